"""``fractatlas export``: export a checkpoint to ONNX."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from fractatlas.cli.errors import ArgumentParser, one_line_errors
from fractatlas.config.trusted import check_prefixes
from fractatlas.config.validation import known_keys, unknown_key_message
from fractatlas.errors import InputError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass
class ExportArguments:
    """The keys of the command."""

    ckpt: str
    output: str
    trusted_targets: str


def export() -> None:
    """Export a checkpoint to one ONNX file, and verify that ONNX Runtime gives the same probabilities as PyTorch."""
    parser = ArgumentParser(
        prog="fractatlas export",
        usage="%(prog)s ckpt=RUN [output=FILE] [trusted_targets=[PACKAGE,...]]",
        description=export.__doc__,
        epilog="ckpt: a run folder or a checkpoint; output: the ONNX file (in the checkpoint's folder, with .onnx); "
        "trusted_targets: packages besides fractatlas whose classes the checkpoint may name",
    )
    parser.add_argument("arguments", nargs="*", metavar="KEY=VALUE", help="taken literally")
    options = parser.parse_args()
    with one_line_errors(interrupted="interrupted; the ONNX file is not written"):
        checkpoint, output, trusted = _parse(options.arguments)
        if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
            raise InputError(f"export needs {', '.join(missing)}: pip install {' '.join(missing)}")
        from fractatlas.inference.onnx import export_onnx  # after the checks, because torch is slow to import

        difference = export_onnx(checkpoint, output, trusted)
        size = output.stat().st_size / 1e6
        print(f"{output} ({size:.1f} MB): probabilities differ from the checkpoint's by at most {difference:.1e}")


def _parse(arguments: list[str]) -> tuple[Path, Path, list[str]]:
    keys = list(known_keys(ExportArguments))
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise InputError(f"{argument}: should be key=value; the keys are {', '.join(keys)}")
        if key not in keys:
            raise InputError(unknown_key_message(key, ExportArguments))
        given[key] = value
    if "ckpt" not in given:
        raise InputError("ckpt needs a value: ckpt=<run folder>")
    from fractatlas.evaluation.run_folder import best_checkpoint  # after the checks, because pandas is slow to import

    checkpoint = best_checkpoint(Path(given["ckpt"]))
    output = Path(given.get("output", checkpoint.with_suffix(".onnx")))
    if not checkpoint.is_file():
        raise InputError(f"ckpt={checkpoint}: no such file; give a run folder or a checkpoint in it")
    if output.is_dir():
        raise InputError(f"output={output} is a folder; give a file in it")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {folder}; choose another file: output=FILE")
    packages = given.get("trusted_targets", "").removeprefix("[").removesuffix("]")
    return checkpoint, output, check_prefixes([name.strip() for name in packages.split(",") if name.strip()])
