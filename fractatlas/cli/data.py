"""``fractatlas data``: download FracAtlas, audit a data set, or export it as a table."""

import os
from argparse import Namespace
from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors
from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError

DATA_ARGUMENTS = "the data set, with the keys of train: data=table data.table=FILE (default: data=fracatlas)"


def data() -> None:
    """Download FracAtlas, audit a data set, or export it as a table."""
    root = Path(os.environ.get("FRACATLAS_ROOT") or "data/FracAtlas")
    parser = ArgumentParser(prog="fractatlas data", description=data.__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    download = actions.add_parser("download", help="download, verify and unpack FracAtlas")
    download.add_argument("--root", type=Path, default=root, metavar="DIR", help="the folder to create (%(default)s)")
    source = download.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, metavar="FILE", help="a zip archive that is already downloaded")
    source.add_argument("--url", help="another address of the archive")
    download.add_argument("--sha256", metavar="HEX", help="the SHA-256 of another release")

    audit = actions.add_parser("audit", help="list every known kind of defect in a data set")
    audit.add_argument("data", nargs="*", metavar="KEY=VALUE", help=DATA_ARGUMENTS)
    audit.add_argument("--root", type=Path, metavar="DIR", help=f"the folder of FracAtlas ({root})")
    audit.add_argument(
        "--out", type=Path, default=Path("data/audit"), metavar="DIR", help="output folder (%(default)s)"
    )
    audit.add_argument("--cache", type=Path, default=Path("data/cache"), metavar="DIR",
                       help="stores image statistics (%(default)s)")  # fmt: skip

    export = actions.add_parser("export", help="write a data set as a table that data=table reads")
    export.add_argument("data", nargs="*", metavar="KEY=VALUE", help=DATA_ARGUMENTS)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder: table.csv, boxes.json")

    options = parser.parse_args()
    with one_line_errors(interrupted="interrupted; no file is incomplete; repeat the command"):
        if options.action == "download":
            from fractatlas.data.download import download_fracatlas

            print(download_fracatlas(options.root, options.archive, options.url, options.sha256))
        elif options.action == "audit":
            from fractatlas.data.audit import audit_source

            log_to_terminal()
            print(audit_source(_open(options), options.out, options.cache))
        else:
            from fractatlas.data.export import export_table

            log_to_terminal()
            print(export_table(_open(options), options.out))


def _open(options: Namespace) -> Source:
    """Return the source that the arguments describe; phantoms are generated."""
    from fractatlas.config.overrides import compose_config
    from fractatlas.data.sources.registry import open_source

    for argument in options.data:
        if not argument.lstrip("+").startswith(("data=", "data.")):
            raise InputError(f"{argument}: no key of data; {options.action} takes data=CHOICE and data.KEY=VALUE")
    arguments = list(options.data)
    if getattr(options, "root", None):
        arguments.append(f"data.root={options.root}")
    source = open_source(compose_config(arguments)["data"])
    source.require()
    source.prepare()
    return source
