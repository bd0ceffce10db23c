"""Load a checkpoint and serve it until a signal stops the server."""

import asyncio
import logging
import os
import socket
import warnings
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
import uvicorn

from fractatlas.errors import InputError
from fractatlas.inference.model import NO_BOX_THRESHOLD, UNFINISHED, load_model
from fractatlas.serving.app import NOTICE, create_app
from fractatlas.training.silence_warnings import quieten
from fractatlas.wording import plural

log = logging.getLogger(__name__)
LOOPBACK = ("127.", "::1", "localhost")


def serve(config: dict[str, Any]) -> None:
    """Serve the page and the JSON API; return after SIGTERM, SIGINT or Ctrl-C, when open requests are answered.

    Args:
        config: a checked ``ServeConfig``, plain.

    Raises:
        InputError: the file is not a checkpoint of this project, this machine does not have the device, the address
            is not free, or ``box_threshold`` is given for a network without a fracture map.
    """
    quieten()
    for library in ("pydicom", "tifffile"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # the answer states what is wrong with a file
    warnings.filterwarnings("ignore", module="pydicom|PIL|tifffile")
    with _listen(config["host"], config["port"]) as listener:
        model = load_model(config["ckpt"], _device(config["device"]), config["trusted_targets"])
        if config["box_threshold"] is not None and not model.has_map:
            problem = f"box_threshold={config['box_threshold']}: the network has no fracture map, which gives boxes"
            raise InputError(f"{problem}; remove it")
        if model.operating_point is None:
            log.warning(UNFINISHED, model.checkpoint)
        if model.has_map and config["box_threshold"] is None and "box_threshold" not in (model.operating_point or {}):
            log.warning(NO_BOX_THRESHOLD, model.checkpoint, model.box_threshold)
        host, port = listener.getsockname()[:2]
        if not host.startswith(LOOPBACK):
            log.warning("host=%s: other machines can connect, without encryption and without a password", host)
        log.info("%s", NOTICE)
        log.info("serving %s on http://%s:%d; stop with Ctrl-C", model.checkpoint, _in_address(host), port)
        settings = uvicorn.Config(
            create_app(model, config), log_config=None, access_log=False, server_header=False, date_header=False,
            timeout_graceful_shutdown=int(config["max_seconds"]) + 1, lifespan="on",
        )  # fmt: skip
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        with suppress(
            KeyboardInterrupt, SystemExit, asyncio.CancelledError
        ):  # uvicorn raises the signal again after the graceful stop
            _Server(settings).run(sockets=[listener])
    log.info("stopped")


class _Server(uvicorn.Server):
    """uvicorn's server, which logs that it waits for open requests, and ends them quietly at a second signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the open requests, or at once at a second Ctrl-C."""
        super().handle_exit(sig, frame)
        if self.force_exit:
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the cancelled requests
        elif open_requests := len(self.server_state.connections):
            log.info("stopping after %s; Ctrl-C again stops at once", plural(open_requests, "open connection"))


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; it is opened before the checkpoint is read, which can take seconds."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        # The number of a name that cannot be resolved is negative. Python adds the address to the other messages.
        number = error.errno or 0
        text = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise InputError(
            f"cannot listen on host={host} port={port}: {text.lower()}; use another host or port"
        ) from None


def _device(name: str) -> str:
    """Return the name that torch has for the device ``auto, cpu, cuda`` or ``mps``.

    Raises:
        InputError: this machine does not have it.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise InputError(f"device={name}: this machine has none that PyTorch can use; use device=cpu")
    return name


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
