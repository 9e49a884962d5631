"""What workers on other machines ask of this one: jobs, signs of life, packages, sets, bytes. Wants scope worker."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path as File
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from sojourn import card, config, errors, safefile
from sojourn import package as packages
from sojourn.card import home
from sojourn.errors import SojournError
from sojourn.http.answers import Refusal, statuses
from sojourn.http.native import BINARY, Id, Name
from sojourn.http.site import Site, site
from sojourn.studio import process
from sojourn.studio.asks import Sha256, TrainAsk
from sojourn.studio.ledger import Fenced, Job
from sojourn.studio.tables import PictureRow

router = APIRouter(prefix="/api/v1/workers", tags=["Workers"])
Lane = Literal["interactive", "background"]


class Body(BaseModel):
    """What is sent, checked."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Enlisting(Body):
    """A worker that begins."""

    host: str = Field(min_length=1, max_length=100)
    """What tells its machine from others."""
    pid: int = Field(ge=1, le=2**31 - 1)
    born: str = Field(max_length=80)
    """What tells its process from others of that number."""
    lanes: list[Lane] = Field(min_length=1, max_length=2)
    version: str = Field(max_length=40)
    """Of its Sojourn."""


class Enlisted(BaseModel):
    id: int


class Claim(Body):
    """What a worker has room for."""

    room: int = Field(1, ge=1, le=64)
    """Rows of a walk."""
    batch: str | None = Field(None, max_length=64)
    """Only jobs that go along with those of this key. None = any."""


class Whose(BaseModel):
    """What tells this studio from others."""

    place: str


class Stops(BaseModel):
    """Jobs of this worker that are to stop."""

    stops: list[int]


class Rings(BaseModel):
    """What was rung, and its number."""

    at: int
    words: list[str]


class About(Body):
    """Which job, by which claim."""

    job: int = Field(ge=1, le=2**63 - 1)
    token: int = Field(ge=0, le=2**31 - 1)


class Report(About):
    kind: Literal["preview", "progress", "text", "log", "metric", "sheet", "artifact"]
    data: dict[str, Any]


class Failed(About):
    error: dict[str, Any]
    """type, template and fields of the message."""
    expected: bool
    """Whether trying again is of no use."""


class Drawn(Body):
    """A picture whose bytes were sent before."""

    row: int = Field(ge=0, le=1_000_000)
    sha256: Sha256
    width: int = Field(ge=1, le=65_536)
    height: int = Field(ge=1, le=65_536)
    words: str = Field(max_length=20_000)
    model: str = Field(max_length=64)
    style: str | None = Field(None, max_length=100)
    seed: int = Field(ge=0, le=2**63 - 1)
    recipe: dict[str, Any]


class Finished(About):
    result: dict[str, Any]
    pictures: list[Drawn] = Field(default_factory=list, max_length=64)


class Walked(Body):
    """The jobs of one walk."""

    jobs: list[Finished] = Field(min_length=1, max_length=64)


class Made(About):
    pieces: list[Sha256] = Field(min_length=1, max_length=1024)
    """Of the exported package, in order, sent before."""


class SetFile(BaseModel):
    """A file of a set; another size or stamp is another file."""

    name: str
    size_bytes: int
    stamp: str


class Kept(BaseModel):
    """It was written."""

    kept: bool = True


def _here(request: Request) -> Site:
    here = site(request)
    here.need(request, "worker")
    return here


def _job(here: Site, about: About) -> Job:
    """The running job, if this is its last claim. Raises Refusal (409)."""
    job = here.studio.jobs.get(about.job)
    if job.token != about.token or job.state != "running":
        raise _fenced()
    return job


def _fenced() -> Refusal:
    return Refusal(409, "this job is another worker's by now", code="fenced")


# A worker's life


@router.post("", status_code=201, responses=statuses(415))
def enlist(asked: Enlisting, request: Request) -> Enlisted:
    """Begin to work. Refused to one of another version: it would read requests otherwise, or not at all."""
    if asked.version != (own := version("sojourn")):
        raise Refusal(403, "the worker is of Sojourn {found}, the studio of {own}; install the same", code="version",
                      found=safefile.printable(asked.version, 40), own=own)  # fmt: skip
    lanes = sorted(set(asked.lanes))
    return Enlisted(id=_here(request).studio.jobs.enlist(asked.host, asked.pid, asked.born, lanes))


@router.get("/studio", responses=statuses())
def studio(request: Request) -> Whose:
    """Which studio this is: a worker keeps a mirror for each."""
    _here(request)
    return Whose(place=process.here())


@router.post("/{id}/claims", responses=statuses(404, 409, 415))
def claim(id: Id, asked: Claim, request: Request) -> list[Job]:
    """The next job of the worker's lanes, with others that go along in its walk."""
    jobs = _here(request).studio.jobs
    lanes = next((row.lanes.split(",") for row in jobs.workers() if row.id == id), None)
    if lanes is None:
        raise _fenced()
    try:
        return jobs.claim(id, lanes, asked.room, asked.batch)
    except Fenced:
        raise _fenced() from None


@router.post("/{id}/beats", responses=statuses(404, 409))
def beat(id: Id, request: Request) -> Stops:
    """A sign of life."""
    try:
        return Stops(stops=sorted(_here(request).studio.jobs.beat(id)))
    except Fenced:
        raise _fenced() from None


@router.delete("/{id}", responses=statuses(404))
def leave(id: Id, request: Request) -> Kept:
    """End: what the worker had waits again."""
    jobs = _here(request).studio.jobs
    if any(row.id == id and row.host == process.here() for row in jobs.workers()):
        raise Refusal(403, "workers of this machine end with it", code="permission_denied")
    return Kept(kept=jobs.bury(id, "it was stopped") is not None)


@router.get("/rings", responses=statuses())
async def rings(
    request: Request,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    wait_s: Annotated[float, Query(ge=0, le=30, allow_inf_nan=False)] = 0.0,
) -> Rings:
    """What was rung since, as soon as something is; nothing after `wait_s` seconds."""
    at, words = await _here(request).hub.rings(after, wait_s)
    return Rings(at=at, words=words)


# What it says of jobs


@router.post("/report", responses=statuses(404, 409, 415))
def report(asked: Report, request: Request) -> Kept:
    """Something happened in a job."""
    here = _here(request)
    with _held():
        here.studio.jobs.report(_job(here, asked), asked.kind, asked.data)
    return Kept()


@router.post("/failed", responses=statuses(404, 409, 415))
def failed(asked: Failed, request: Request) -> Kept:
    """A job cannot be done; what was not expected is tried again."""
    here = _here(request)
    template, given = str(asked.error.get("template"))[:1000], asked.error.get("fields")
    pairs = given.items() if isinstance(given, dict) else ()
    fields: dict[str, object] = {str(name): str(value)[:2000] for name, value in pairs}
    kind = getattr(errors, str(asked.error.get("type")), SojournError)
    kind = kind if isinstance(kind, type) and issubclass(kind, SojournError) else SojournError
    error = kind("{what}", what=template)
    if template == "{what}" or errors.known(template):  # one of ours: it is filled in when it is told
        with suppress(KeyError):
            template.format(**fields)
            error.template, error.fields = template, fields
    with _held():
        here.studio.jobs.fail(_job(here, asked), error, unforeseen=not asked.expected)
    return Kept()


@router.post("/cancelled", responses=statuses(404, 409, 415))
def cancelled(asked: About, request: Request) -> Kept:
    """A job has stopped as it was asked to."""
    here = _here(request)
    with _held():
        here.studio.jobs.cancelled(_job(here, asked))
    return Kept()


@router.post("/back", responses=statuses(404, 409, 415))
def give_back(asked: About, request: Request) -> Kept:
    """A job is put back, since its worker ends: that was no try."""
    here = _here(request)
    with _held():
        here.studio.jobs.give_back(_job(here, asked))
    return Kept()


@router.post("/done", responses=statuses(404, 409, 415))
def done(asked: Walked, request: Request) -> list[list[int] | None]:
    """Jobs are done, with their pictures: all in one transaction; null for one that is another worker's by now."""
    here = _here(request)
    ended = []
    for one in asked.jobs:
        job = here.studio.jobs.get(one.job)
        job = Job(**{**vars(job), "token": one.token})
        for picture in one.pictures:
            if not here.studio.blobs.has(picture.sha256):
                raise Refusal(409, "the bytes of a picture were not sent", param="pictures")
        made = [PictureRow(owner=job.owner, job=job.id, created=time.time(), **vars(drawn)) for drawn in one.pictures]
        ended.append((job, one.result, made))
    return here.studio.jobs.finish_all(ended)


@contextmanager
def _held() -> Iterator[None]:
    try:
        yield
    except Fenced:
        raise _fenced() from None


# What it fetches and sends


@router.get("/packages/{name}", responses={**statuses(404), **BINARY}, response_class=FileResponse)
def package(name: Name, request: Request) -> FileResponse:
    """A package as `sojourn export` writes it."""
    _here(request)
    folder = card.find(name, paths=False)
    with tempfile.NamedTemporaryFile(prefix=".export-", suffix=".zip", dir=_place(), delete=False) as file:
        made = File(file.name)
    try:
        packages.export(folder, made)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    return FileResponse(made, media_type="application/octet-stream", background=BackgroundTask(made.unlink, True))


@router.post("/packages", status_code=201, responses=statuses(404, 409, 415))
def keep_package(asked: Made, request: Request) -> Kept:
    """A training has made a package: it is checked, and put where its job said."""
    here = _here(request)
    job = _job(here, asked)
    if job.kind != "train":
        raise Refusal(400, "job {id} is no training", param="job", id=job.id)
    blobs = here.studio.blobs
    with tempfile.TemporaryDirectory(prefix=".joined-", dir=_place()) as folder:
        archive = File(folder) / "package.zip"
        with archive.open("wb") as whole:
            for piece in asked.pieces:
                if not blobs.has(piece):
                    raise Refusal(409, "the bytes of the package were not sent", param="pieces")
                whole.write(blobs.get(piece))
        packages.import_(archive, name=TrainAsk.model_validate(job.request).to, replace=True)
    for piece in set(asked.pieces):
        blobs.drop(piece)  # no row names them
    return Kept()


@router.get("/sets/{name}", responses=statuses(404))
def set_files(name: Name, request: Request) -> list[SetFile]:
    """The files of a training set."""
    _here(request)
    out = []
    for path in _files(name):
        stat = path.stat()
        out.append(SetFile(name=path.name, size_bytes=stat.st_size, stamp=f"{stat.st_mtime_ns:x}"))
    return out


@router.get("/sets/{name}/{file}", responses={**statuses(404), **BINARY}, response_class=FileResponse)
def set_file(name: Name, file: Annotated[str, Path(max_length=100)], request: Request) -> FileResponse:
    """One of them."""
    _here(request)
    for path in _files(name):
        if path.name == file:
            return FileResponse(path, media_type="application/octet-stream")
    raise Refusal(404, "there is no such file")


def _place() -> File:
    """Where archives lie for a while."""
    place = home() / "uploads"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _files(name: str) -> list[File]:
    """Plain files of a set. Raises Refusal (404)."""
    for shelf in (home() / "sets", config.cache() / "data"):
        if (shelf / name / "set.json").is_file():
            found = (path for path in (shelf / name).iterdir() if path.is_file() and not path.is_symlink())
            return sorted(path for path in found if not path.name.startswith("."))
    raise Refusal(404, 'there is no data set "{name}"', name=name)
