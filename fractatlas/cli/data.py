"""``fractatlas data``: download or audit the FracAtlas data set."""

import os
from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, log_to_terminal, one_line_errors


def data() -> None:
    """Download or audit the FracAtlas data set."""
    root = Path(os.environ.get("FRACATLAS_ROOT") or "data/FracAtlas")
    parser = ArgumentParser(prog="fractatlas data", description=data.__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    download = actions.add_parser("download", help="download, verify and unpack FracAtlas")
    download.add_argument("--root", type=Path, default=root, metavar="DIR", help="the folder to create (%(default)s)")
    source = download.add_mutually_exclusive_group()
    source.add_argument("--archive", type=Path, metavar="FILE", help="a zip archive that is already downloaded")
    source.add_argument("--url", help="another address of the archive")
    download.add_argument("--sha256", metavar="HEX", help="the SHA-256 of another release")

    audit = actions.add_parser("audit", help="list every known kind of defect in the data set")
    audit.add_argument("--root", type=Path, default=root, metavar="DIR", help="the data folder (%(default)s)")
    audit.add_argument(
        "--out", type=Path, default=Path("data/audit"), metavar="DIR", help="output folder (%(default)s)"
    )
    audit.add_argument("--cache", type=Path, default=Path("data/cache"), metavar="DIR",
                       help="stores image statistics (%(default)s)")  # fmt: skip

    options = parser.parse_args()
    with one_line_errors(interrupted="interrupted; no file is incomplete; repeat the command"):
        if options.action == "download":
            from fractatlas.data.download import download_fracatlas

            print(download_fracatlas(options.root, options.archive, options.url, options.sha256))
        else:
            from fractatlas.data.audit import audit_folder

            log_to_terminal()
            print(audit_folder(options.root, options.out, options.cache))
