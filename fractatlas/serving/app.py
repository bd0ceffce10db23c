"""The page and the JSON API as an ASGI application."""

import asyncio
import json
import logging
import platform
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fractatlas
from fractatlas.build import model_name
from fractatlas.errors import InputError
from fractatlas.evaluation.operating_point import DEFAULT_OPERATING_POINT
from fractatlas.evaluation.overlays import PALETTE, full_heat
from fractatlas.inference.model import Ensemble, Model
from fractatlas.serving.predictor import Predictor
from fractatlas.serving.uploads import FIELD, RequestError, Upload, receive
from fractatlas.wording import plural

log = logging.getLogger(__name__)
NOTICE = "Research only, not a medical device."
PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
RETRY_SECONDS = 1
ADDRESSES = ("/", "/health", "/v1/model", "/v1/openapi.json", "/v1/predict")
PARAMETERS = ("map", "image")  # of POST /v1/predict
HEADERS = {
    # The page loads its own files only, and no other page can show it in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
UPLOADS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}

ERROR = {
    "type": "object",
    "required": ["problem", "remedy"],
    "properties": {"problem": {"type": "string"}, "remedy": {"type": "string"}},
}
ANSWER = {
    "type": "object",
    "required": ["notice"],
    "properties": {
        "results": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "threshold": {"type": "number"},
        "error": ERROR,
        "notice": {"type": "string"},
    },
}
STATUSES = {
    200: "at least one file was predicted",
    400: "malformed request, no file, or an unknown or wrong parameter",
    408: "the upload takes too long",
    413: "too many bytes or files",
    415: "not multipart/form-data",
    422: "no file could be read; results has the reason for each",
    429: "too many requests at the same time",
    503: "the prediction takes too long",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ANSWER}}}
    for status, text in STATUSES.items()
}


def create_app(model: Model, config: dict[str, Any]) -> FastAPI:
    """Return the application.

    ``POST /v1/predict`` predicts uploaded files, ``GET /v1/model`` describes the network, ``GET /health`` states that
    the server works, and ``GET /`` is the page. ``GET /v1/openapi.json`` describes the interface. Nothing is written to
    disk. Every JSON answer has the key ``notice``.

    Args:
        model: the network.
        config: a checked ``ServeConfig``, plain.
    """
    predictor = Predictor(model, *(config[key] for key in ("box_threshold", "batch_size", "threads", "image_side")))
    gate = _Gate(config["max_requests"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(predictor.close)

    app = FastAPI(
        title="fractatlas", version=fractatlas.__version__, description=NOTICE, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json",
    )  # fmt: skip
    app.add_middleware(_Finish)
    description = describe_model(model, predictor, config)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        problem = f"{first['loc'][-1]}: {first['msg']}"
        return _error(RequestError(400, problem, "GET /v1/openapi.json describes the interface"))

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        remedy = f"the addresses are {', '.join(ADDRESSES)}"
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            remedy = f"this address accepts {(error.headers or {}).get('Allow', 'other methods')}"
        return _error(RequestError(error.status_code, error.detail, remedy), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _error(RequestError(500, "the server failed", "the server's log has the reason"))

    @app.post("/v1/predict", openapi_extra=UPLOADS, responses=RESPONSES)
    async def predict(request: Request, map: bool = False, image: bool = False) -> Response:
        """Predict each file of the multipart field ``files``; ``map`` and ``image`` add grey PNG images."""
        uploads: list[Upload] = []
        if unknown := [name for name in request.query_params if name not in PARAMETERS]:
            raise RequestError(400, f"unknown parameter {unknown[0][:60]!r}", f"use {' or '.join(PARAMETERS)}")
        with gate.enter():
            try:
                async with asyncio.timeout(config["max_seconds"]):
                    uploads += await receive(request, config["max_bytes"], config["max_files"])
                    request.state.files = len(uploads)
                    results = await _predict_all(predictor, uploads, map, image)
            except TimeoutError:
                problem = f"the request takes longer than {config['max_seconds']:g} seconds"
                raise RequestError(503 if uploads else 408, problem, "send fewer files, or repeat it later") from None
        errors = [result["error"] for result in results if "error" in result]
        request.state.errors = len(errors)
        answer: dict[str, Any] = {"results": results, "threshold": description["threshold"], "notice": NOTICE}
        if len(errors) == len(results):
            answer["error"] = errors[0]
        return JSONResponse(answer, 422 if "error" in answer else 200)

    @app.get("/v1/model")
    async def describe(format: Literal["json", "markdown"] = "json") -> Response:
        """Describe the network: its operating point, versions, limits of requests, and model card."""
        if format == "json":
            return JSONResponse(description)
        if description["card"] is None:
            raise RequestError(404, "the checkpoint has no model card", "serve a run folder that has model_card.md")
        return PlainTextResponse(f"{NOTICE}\n\n{description['card']}", media_type="text/markdown")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """State that the server works, and on how many requests."""
        return {"status": "ok", "requests": gate.inside, "notice": NOTICE}

    @app.get("/palette.json", include_in_schema=False)
    async def palette() -> dict[str, Any]:
        return {"colours": _palette(), "notice": NOTICE}

    def add_page_file(name: str, address: str, kind: str) -> None:
        content = (PAGE / name).read_bytes()

        @app.get(address, include_in_schema=False)
        async def page_file() -> Response:
            return Response(content, media_type=kind)

    for name, kind in PAGE_FILES.items():
        add_page_file(name, "/" if name == "index.html" else f"/{name}", kind)
    return app


def describe_model(model: Model, predictor: Predictor, config: dict[str, Any]) -> dict[str, Any]:
    """Return what ``GET /v1/model`` answers, without a path of this machine."""
    card = model.checkpoint.absolute().parent.parent / "model_card.md"
    networks = len(model.members) if isinstance(model, Ensemble) else 1
    point = model.operating_point or DEFAULT_OPERATING_POINT
    kinds = {name: value for name, value in model.config["preprocess"].items() if name not in ("mean", "std")}
    return {
        "model": model_name(model.config),
        "checkpoint": model.checkpoint.name,
        "networks": networks,
        "preprocess": kinds | {"_target_": kinds["_target_"].rpartition(".")[2]},
        "threshold": point["threshold"],
        "calibrated": model.operating_point is not None,
        "operating_point": dict(point),
        "heatmap": predictor.kind,
        "box_threshold": predictor.box_threshold if model.has_map else None,
        "full_heat": full_heat(predictor.box_threshold) if model.has_map else None,
        "limits": {key: config[key] for key in ("max_bytes", "max_files", "max_requests", "max_seconds")},
        "versions": {
            "fractatlas": fractatlas.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "card": card.read_text(encoding="utf-8") if networks == 1 and card.is_file() else None,
        "notice": NOTICE,
    }


async def _predict_all(predictor: Predictor, uploads: list[Upload], heatmap: bool, image: bool) -> list[dict[str, Any]]:
    """Return a result for each file, with the key ``error`` for a file that cannot be predicted."""

    async def predict(upload: Upload) -> dict[str, Any]:
        try:
            return await predictor.predict(upload, heatmap, image)
        except RequestError as error:
            return {"name": upload.name, "error": error.content()}
        except InputError as error:
            problem, _, remedy = str(error).partition("; ")
            return {"name": upload.name, "error": {"problem": problem, "remedy": remedy}}

    return await asyncio.gather(*map(predict, uploads))


class _Gate:
    """Count the requests that are worked on, and refuse more than ``limit``; each can need its limit of memory."""

    def __init__(self, limit: int):
        self.limit, self.inside = limit, 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        if self.inside >= self.limit:
            problem = f"the server works on {plural(self.limit, 'request')} already"
            raise RequestError(429, problem, f"repeat the request after {RETRY_SECONDS} s")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class _Finish:
    """Add the headers to every answer, and log one line for each request."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        state = scope.setdefault("state", {})

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await self.app(scope, receive, finish)
        finally:
            counts = [f"{state['bytes'] / 1e6:.2f} MB"] if "bytes" in state else []
            counts += [plural(state["files"], "file")] if "files" in state else []
            counts += [plural(state["errors"], "error")] if state.get("errors") else []
            path = json.dumps(scope["path"][:60])[1:-1]
            line = " ".join([scope["method"], path, str(status), *([f"({', '.join(counts)})"] if counts else [])])
            log.info("%s in %.2f s", line, time.monotonic() - started)


def _error(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        headers = {"Retry-After": str(RETRY_SECONDS)}
    return JSONResponse({"error": error.content(), "notice": NOTICE}, error.status, headers)


def _palette() -> list[list[int]]:
    """Return the colours of heat from 0 to 1 as 256 times red, green, blue: those of overlays."""
    import matplotlib

    colours: list[list[int]] = matplotlib.colormaps[PALETTE](range(256), bytes=True)[:, :3].tolist()
    return colours
