"""The studio's own API: jobs and their events, packages, sets, the gallery, ratings, uploads."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from sojourn import card, config, registry, safefile
from sojourn.card import home
from sojourn.http.answers import EVENTS, Refusal, in_words, language, statuses
from sojourn.http.site import holds, owner, site
from sojourn.schema import Card
from sojourn.studio.asks import ASKS
from sojourn.studio.keys import Scope
from sojourn.studio.ledger import Happened, Job

router = APIRouter(tags=["Studio"])
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Go on before this id.")]
Limit = Annotated[int, Query(ge=1, le=500, description="Rows at most.")]
State = Literal["queued", "running", "done", "failed", "cancelled"]
SCOPES: dict[str, Scope] = {"generate": "generate", "edit": "generate", "write": "generate"}
"""What a key must be for to ask for a kind of job; the others want "train"."""
PING_S = 10.0
CHECK_S = 1.0
"""How often a stream asks whether its key still opens anything."""


class Asking(BaseModel):
    """A job to be done."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    kind: Literal["generate", "edit", "write", "prepare", "train", "evaluate"]
    request: dict[str, Any]
    """What is asked, by the schema of its kind at /api/v1/kinds."""
    priority: int = Field(0, ge=-10, le=10)
    """Higher goes first; above 0 wants a key of scope admin."""


class JobOut(BaseModel):
    """A job as it is now."""

    id: int
    owner: str
    kind: str
    state: State
    request: dict[str, Any]
    attempts: int
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created: float
    started: float | None
    ended: float | None


class Upload(BaseModel):
    """Bytes that were kept."""

    sha256: str
    size_bytes: int


class Settings(BaseModel):
    """What the page begins with when you draw; a request says all itself. Nothing = as the package has it."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    model: str | None = Field(None, min_length=1, max_length=100)
    """A package."""
    style: str | None = Field(None, min_length=1, max_length=100)
    n: int | None = Field(None, ge=1, le=16)
    """Pictures of a prompt."""
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, le=100)
    chaos: float | None = Field(None, ge=0, le=100)
    no: str | None = Field(None, min_length=1, max_length=500)
    """What to keep out, with commas between."""


class Package(BaseModel):
    """A package in short."""

    name: str
    family: str
    title: str
    can: list[str]
    seen: int
    licence: str
    shipped: bool


def _job(job: Job, request: Request) -> JobOut:
    made = JobOut(**{name: getattr(job, name) for name in JobOut.model_fields})
    if made.error is not None:
        made.error = in_words(made.error, language(request))
    return made


# Jobs


@router.get("/api/v1/kinds", responses=statuses())
def kinds() -> dict[str, Any]:
    """The JSON schema of each kind's request."""
    return {kind: ask.model_json_schema() for kind, ask in ASKS.items()}


@router.post("/api/v1/jobs", status_code=202, responses=statuses(404, 415))
def ask(asking: Asking, request: Request) -> JobOut:
    """Ask for a job. It is durable when this answers; follow it at /api/v1/jobs/{id}/events."""
    here = site(request)
    caller = here.need(request, SCOPES.get(asking.kind, "train"))
    if asking.priority > 0:
        here.need(request, "admin")
    if asking.request.get("path") is not None and caller.owner != "local":
        raise Refusal(403, "folders of the machine are for its own user; upload a zip", param="request.path")
    if (goes_on := asking.request.get("goes_on")) is not None:
        _check_run(here.studio.jobs.get(goes_on if type(goes_on) is int else 0, caller.owner))
    if asking.kind == "train" and str(asking.request.get("recipe")) not in config.recipes():
        known = ", ".join(config.recipes())
        raise Refusal(404, 'no recipe "{name}"; there are {known}', param="request.recipe",
                      name=str(asking.request.get("recipe"))[:80], known=known)  # fmt: skip
    if asking.kind == "train" and caller.owner != "local":
        _check_sets(asking.request)
    return _job(here.ask(asking.kind, asking.request, caller.owner, asking.priority), request)


def _check_run(job: Job) -> None:
    """Refuse to go on with what is no training, or runs."""
    if job.kind != "train" or not job.over:
        raise Refusal(400, "job {id} is no training that has ended", param="request.goes_on", id=job.id)


def _check_sets(request: dict[str, Any]) -> None:
    """Refuse a training on a folder of the machine: overrides may name any set, and a set may be a path."""
    overrides = request.get("overrides", [])
    if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
        return  # refused for that by and by
    for stage in config.load_recipe(str(request["recipe"]), overrides).stage:
        if not all(
            re.fullmatch(r"(?!\.)[\w.-]*(/[\w.-]+)?", name) for name in (stage.data, stage.start, *stage.parts.values())
        ):
            raise Refusal(403, "folders of the machine are for its own user; upload a zip", param="request.overrides")


@router.get("/api/v1/jobs", responses=statuses())
def jobs(
    request: Request, state: Annotated[list[State] | None, Query()] = None, before: Before = None, limit: Limit = 100,
    everyone: Annotated[bool, Query(description="Jobs of all owners; wants a key of scope admin.")] = False,
) -> list[JobOut]:  # fmt: skip
    """Your jobs, the newest first."""
    here = site(request)
    whose = None if everyone and here.need(request, "admin") else owner(request)
    out = [_job(job, request) for job in here.studio.jobs.page(whose, state or (), before, limit)]
    for told in out:
        if told.result is not None:
            told.result.pop("tokens", None)  # one job tells them
    return out


@router.get("/api/v1/jobs/{id}", responses=statuses(404))
def job(id: Id, request: Request) -> JobOut:
    """One of your jobs; with a key of scope admin, anyone's."""
    return _job(site(request).studio.jobs.get(id, _whose(request)), request)


@router.delete("/api/v1/jobs/{id}", responses=statuses(404))
def cancel(id: Id, request: Request) -> JobOut:
    """Stop a job: at once if it waits, within a step if it runs. One that is over stays as it is.

    With a key of scope admin, anyone's.
    """
    return _job(site(request).studio.jobs.cancel(id, _whose(request)), request)


def _whose(request: Request) -> str | None:
    """Whose jobs a caller may look at and stop. None = everyone's."""
    caller = site(request).need(request, "generate")
    return None if caller.may("admin") else caller.owner


LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20, pattern=r"^\d{1,19}$")]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": EVENTS, "description": "Events as they happen"}}


@router.get("/api/v1/jobs/{id}/events", responses={**statuses(404), **STREAM}, response_class=StreamingResponse)
async def events(id: Id, request: Request, last: LastId = None) -> StreamingResponse:
    """What happens in a job, as server-sent events until it is over; goes on after `Last-Event-ID`."""
    here = site(request)
    await run_in_threadpool(here.studio.jobs.get, id, owner(request))
    return _stream(request, here.hub.follow(id, _after(last)))


@router.get("/api/v1/events", responses={**statuses(), **STREAM}, response_class=StreamingResponse)
async def all_events(
    request: Request, last: LastId = None, after: Annotated[int | None, Query(ge=0)] = None
) -> StreamingResponse:
    """What happens in all your jobs from now on, or after `Last-Event-ID` (or else `after`), without an end."""
    here = site(request)
    latest = await run_in_threadpool(here.studio.jobs.latest)
    known = _after(last) if last else after
    after = latest if known is None else min(known, latest)  # beyond it: of a database that was here before
    return _stream(request, here.hub.watch(owner(request), after), after)


def _after(last: str | None) -> int:
    return min(int(last or 0), 2**63 - 1)


def _stream(
    request: Request, happened: AsyncGenerator[Happened | None, None], after: int = 0
) -> StreamingResponse:  # fmt: skip
    """Events as they go out, until there are no more, the key is worth nothing or the server ends."""
    hub, lang = site(request).hub, language(request)

    async def told() -> AsyncIterator[bytes]:
        pinged = checked = time.monotonic()
        # A line that is cut before the first event goes on from here.
        yield f"id: {after}\nretry: 500\n\n".encode() if after else b"retry: 500\n\n"
        async with aclosing(happened):
            async for event in happened:
                if time.monotonic() - checked > CHECK_S:
                    checked = time.monotonic()
                    if not await holds(request):
                        return
                if hub.ending:
                    return
                if event is not None:
                    data = {"job": event.job, "created": event.created, **event.data}
                    if "template" in data:
                        data = in_words(data, lang)
                    text = json.dumps(data, ensure_ascii=False)
                    yield f"id: {event.id}\nevent: {event.kind}\ndata: {text}\n\n".encode()
                elif time.monotonic() - pinged > PING_S:
                    pinged = time.monotonic()
                    yield b": ping\n\n"

    return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


# What there is


@router.get("/api/v1/models", responses=statuses())
def models() -> list[Package]:
    """The packages there are."""
    out = []
    for name, path, found in card.list_packages():
        given = {key: getattr(found, key) for key in ("family", "title", "seen", "licence")}
        out.append(Package(name=name, can=list(found.can), shipped=path.parent != home() / "models", **given))
    return out


BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_NAME = r"\w[\w.\-]{0,63}"
Name = Annotated[str, Path(max_length=130, pattern=rf"^{_NAME}(/{_NAME})?$")]


@router.get("/api/v1/models/{name:path}/sheet", responses={**statuses(404), 200: {"content": {"image/png": {}}}},
            response_class=Response)  # fmt: skip
def sheet(name: Name) -> Response:
    """The sheet of a package's samples."""
    path = card.find(name, paths=False) / "sheet.png"
    if not path.is_file():
        raise Refusal(404, '"{name}" has no sheet', name=name)
    return Response(path.read_bytes(), media_type="image/png")


@router.get("/api/v1/models/{name:path}", responses=statuses(404))
def model(name: Name) -> Card:
    """The card of a package."""
    return card.read(card.find(name, paths=False), verify=False)


@router.get("/api/v1/sets", responses=statuses())
def sets() -> list[str]:
    """Names of the training sets in the home folder."""
    shelf = home() / "sets"
    return sorted(path.name for path in shelf.iterdir() if (path / "set.json").is_file()) if shelf.is_dir() else []


@router.get("/api/v1/sets/{name}", responses=statuses(404))
def one_set(name: Annotated[str, Path(pattern=rf"^{_NAME}$")]) -> dict[str, Any]:
    """What a training set holds: kind, shape, how many, labels, sources with their licences."""
    file = home() / "sets" / name / "set.json"
    if not file.is_file():
        raise Refusal(404, 'there is no set "{name}"', name=name)
    return safefile.parse_json(file.read_bytes(), "set.json")


@router.get("/api/v1/recipes", responses=statuses())
def recipes() -> dict[str, Any]:
    """The trainings that ship with Sojourn."""
    return {name: config.load_recipe(name).dump() for name in config.recipes()}


@router.get("/api/v1/families", responses=statuses())
def families() -> list[str]:
    """The kinds of model there are."""
    return registry.ids("family")


@router.get("/api/v1/settings", responses=statuses())
def settings(request: Request) -> Settings:
    """Your settings."""
    return Settings(**site(request).studio.settings(owner(request)))


@router.put("/api/v1/settings", responses=statuses(415))
def keep_settings(given: Settings, request: Request) -> Settings:
    """Keep your settings, in place of those there were."""
    site(request).studio.keep_settings(given.model_dump(exclude_none=True), owner(request))
    return given


# Bytes


@router.put("/api/v1/blobs/{sha256}", status_code=201, responses=statuses(409), openapi_extra=BYTES)
async def put_blob(sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], request: Request) -> Upload:
    """Keep bytes by their sha256: a zip to prepare, a picture to edit. 64 MiB at most."""
    here = site(request)
    here.need(request, "generate", "worker")
    found, size = hashlib.sha256(), 0
    here.studio.blobs.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=here.studio.blobs.folder) as spool:  # not in memory: there may be many at once
        async for piece in request.stream():
            found.update(piece)
            size += spool.write(piece)
        if found.hexdigest() != sha256:
            raise Refusal(409, "the bytes have another sha256 than their address", param="sha256")
        spool.seek(0)
        await run_in_threadpool(here.studio.blobs.keep, sha256, spool)
    return Upload(sha256=sha256, size_bytes=size)


@router.get("/api/v1/blobs/{sha256}", responses={**statuses(404), **BINARY}, response_class=FileResponse)
def get_blob(sha256: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], request: Request) -> FileResponse:
    """Bytes that were kept. Wants a key of scope worker: they may be anyone's."""
    here = site(request)
    here.need(request, "worker")
    path = here.studio.blobs.path(sha256)
    if not path.is_file():
        raise Refusal(404, "there is no such file")
    return FileResponse(path, media_type="application/octet-stream", filename=f"{sha256[:12]}.bin")
