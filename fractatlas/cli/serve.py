"""``fractatlas serve``: a page and a JSON API that predict uploaded images."""

import importlib.util
import sys
from typing import Any

from omegaconf import open_dict

from fractatlas.cli.errors import log_to_terminal, one_line_errors
from fractatlas.cli.hydra_command import HELP, require_checkpoint
from fractatlas.config.overrides import compose_with_hydra, prepare
from fractatlas.config.schema import ServeConfig
from fractatlas.config.validation import validate
from fractatlas.errors import InputError

PACKAGES = {"fastapi": "fastapi", "python_multipart": "python-multipart", "uvicorn": "uvicorn"}  # module: package


def serve() -> None:
    """Serve a page and a JSON API until a signal stops them; no folder is created and no file is written."""
    with one_line_errors(ServeConfig, interrupted="stopped"):
        arguments = prepare(sys.argv[1:], ServeConfig)
        if HELP & set(arguments):
            from fractatlas.cli.help import help_text

            print(help_text("serve", ServeConfig, arguments, run_folder=False))
            return
        config = _compose(arguments)
        require_checkpoint(config, several=True)
        if missing := [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]:
            raise InputError(f"serve needs {', '.join(missing)}: pip install {' '.join(missing)}")
        log_to_terminal()
        from fractatlas.serving import server  # after the checks, because torch is slow to import

        server.serve(config)


def _compose(arguments: list[str]) -> dict[str, Any]:
    for argument in arguments:
        if argument.startswith("-") and not argument.startswith("--config-dir="):
            raise InputError(f"{argument}: no effect on serve; remove it")
        if argument.lstrip("+~").startswith("hydra"):
            raise InputError(f"{argument}: no effect on serve, which has no run folder; remove it")
    config = compose_with_hydra("serve", arguments)
    with open_dict(config):
        del config["hydra"]
    return validate(config, ServeConfig)
