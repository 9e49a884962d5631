"""The server: routes, guard and studio put together."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sojourn.errors import SojournError
from sojourn.http import answers, files, gallery, native, openai, pages, texts, workers
from sojourn.http.bodies import Limits
from sojourn.http.guard import Guard
from sojourn.http.site import Site, site
from sojourn.studio.studio import Studio

log = logging.getLogger("sojourn.http")
READ_S = 10.0
"""How long a request waits for a database that is away before it is told so."""


class Health(BaseModel):
    """Alive."""

    status: str = "ok"
    version: str


def create_app(
    studio: Studio, *, names: Iterable[str] = (), limits: Limits | None = None, works: bool = True
) -> FastAPI:
    """An ASGI app for a studio. names: host names it is called by; works: whether it starts worker processes."""
    here = Site(studio)
    studio.store.patience_s = READ_S

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        here.hub.open()
        if works:
            await run_in_threadpool(studio.work)
        yield
        here.hub.end()
        here.hub.close()
        here.uploads.close()
        await run_in_threadpool(studio.close)

    app = FastAPI(
        title="Sojourn", version=version("sojourn"), summary="A self-hosted generative studio.", lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", redirect_slashes=False,
    )  # fmt: skip
    app.state.site = here
    app.add_exception_handler(answers.Refusal, answers.on_refusal)
    app.add_exception_handler(SojournError, answers.on_error)
    app.add_exception_handler(RequestValidationError, answers.on_validation)
    app.add_exception_handler(HTTPException, answers.on_http)
    app.include_router(openai.router)
    app.include_router(texts.router)
    app.include_router(native.router)
    app.include_router(workers.router)
    app.include_router(gallery.router)
    app.include_router(files.router)
    app.include_router(pages.router)

    @app.get("/health", tags=["Server"], responses=answers.statuses())
    async def health() -> Health:  # of no thread: while the database is away they may all wait for it
        """Whether the server answers."""
        return Health(version=version("sojourn"))

    @app.get("/ready", tags=["Server"], responses=answers.statuses())
    def ready(request: Request) -> Health:
        """Whether the database answers and a worker draws."""
        lanes = {lane for row in studio.jobs.workers() for lane in row.lanes.split(",")}
        if "interactive" not in lanes:
            raise answers.Refusal(503, "no worker draws yet", code="not_ready", headers={"Retry-After": "1"})
        return Health(version=version("sojourn"))

    @app.get("/metrics", tags=["Server"], responses=answers.statuses(), response_class=PlainTextResponse)
    def metrics(request: Request) -> str:
        """Numbers for Prometheus. Wants a key of scope admin."""
        site(request).need(request, "admin")
        return _metrics(studio)

    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    app.add_middleware(Guard, keys=here.keys, names=frozenset(names), limits=limits or Limits())
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document without FastAPI's own answer to bad input: here it is a 400 like all others."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(name, None)
        app.openapi_schema = made
    return app.openapi_schema


def _metrics(studio: Studio) -> str:
    lines = ["# HELP sojourn_jobs Jobs by state.", "# TYPE sojourn_jobs gauge"]
    lines += [f'sojourn_jobs{{state="{state}"}} {count}' for state, count in sorted(studio.jobs.counts().items())]
    lines += ["# HELP sojourn_workers Workers alive by lane.", "# TYPE sojourn_workers gauge"]
    lanes: dict[str, int] = {}
    for row in studio.jobs.workers():
        for lane in set(row.lanes.split(",")) & {"interactive", "background"}:
            lanes[lane] = lanes.get(lane, 0) + 1
    lines += [f'sojourn_workers{{lane="{lane}"}} {count}' for lane, count in sorted(lanes.items())]
    lines += ["# HELP sojourn_time_seconds Time of the server.", "# TYPE sojourn_time_seconds gauge"]
    return "\n".join([*lines, f"sojourn_time_seconds {time.time():.3f}"]) + "\n"
