"""A studio on another machine, as a worker sees it: its jobs, bytes, packages and sets over HTTP. No shared disk.

`FarJobs` and `FarBlobs` have the methods of `Jobs` and `Blobs` that a worker uses. The worker's home is a mirror of the
studio's: packages and sets are fetched by name before a job needs them, and what it trains is sent back.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from sojourn import card, config, safefile
from sojourn import package as packages
from sojourn import prompt as grammar
from sojourn.card import home
from sojourn.engine import Model
from sojourn.errors import InvalidInput, NotFound, SojournError, StoreError
from sojourn.schema import Done, Event, Log
from sojourn.studio.asks import EvaluateAsk, GenerateAsk, TrainAsk
from sojourn.studio.blobs import Blobs
from sojourn.studio.jobs import Done as Ended
from sojourn.studio.ledger import Fenced, Job, message
from sojourn.studio.tables import PictureRow
from sojourn.studio.work import Work
from sojourn.studio.worker import Worker

log = logging.getLogger("sojourn.studio")
KEY = "SOJOURN_KEY"
"""Environment variable with the worker's key: a command line would show it to others."""
PATIENCE_S = 120.0
"""How long a server that does not answer is asked again before a job is given up."""
PICTURE = ("row", "sha256", "width", "height", "words", "model", "style", "seed", "recipe")
"""Columns of a picture that its worker knows."""


class Far:
    """The server's address, and a key of scope worker."""

    def __init__(self, url: str, key: str | None) -> None:
        if not re.fullmatch(r"https?://[^/?#\s]+/?", url):
            raise InvalidInput('"{url}" is no server; write http://HOST:PORT', url=safefile.printable(url))
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(60.0, connect=5.0))

    def ask(self, method: str, path: str, body: Any = None, patience_s: float = PATIENCE_S, **more: Any) -> Any:
        """What the server answers, as data. Asked again for patience_s while it is away.

        Raises Fenced, NotFound, InvalidInput for what it refuses, StoreError where it stays away.
        """
        return self._tried(lambda: self._http.request(method, path, json=body, **more), patience_s).json()

    def send(self, sha256: str, source: Path) -> None:
        """A file's bytes, to be kept."""

        def put() -> httpx.Response:
            with source.open("rb") as file:
                return self._http.put(f"/api/v1/blobs/{sha256}", content=file, headers=_sized(source))

        self._tried(put)

    def fetch(self, path: str, target: Path) -> None:
        """A file, to `target`: whole or not at all."""

        def get() -> httpx.Response:
            with self._http.stream("GET", path) as answer:
                if answer.status_code != 200:
                    answer.read()
                    return answer
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part")
                with safefile.writing(target), part.open("wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
                os.replace(part, target)
                return answer

        self._tried(get)

    def close(self) -> None:
        self._http.close()

    def _tried(self, once: Callable[[], httpx.Response], patience_s: float = PATIENCE_S) -> httpx.Response:
        begun, pause = time.monotonic(), 0.2
        while True:
            try:
                answer = once()
                if answer.status_code < 500 and answer.status_code != 429:
                    return _well(answer)
                why = f"{answer.status_code}"
            except httpx.HTTPError as error:
                why = type(error).__name__
            if time.monotonic() - begun + pause > patience_s:
                raise StoreError("the server {url} does not answer: {why}", url=self.url, why=why)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _well(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        error = answer.json()["error"]
        code, what = str(error.get("code")), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        code, what = "", f"HTTP {answer.status_code}"
    if code == "fenced":
        raise Fenced
    if answer.status_code == 404:
        raise NotFound("the server says: {what}", what=what)
    raise InvalidInput("the server says: {what}", what=what)


def _sized(source: Path) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(source.stat().st_size)}


class FarJobs:
    """The queue of a studio elsewhere, and its bell."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self._rung = 0

    def enlist(self, host: str, pid: int, born: str, lanes: Sequence[str]) -> int:
        body = {"host": host, "pid": pid, "born": born, "lanes": list(lanes)}
        return int(self.far.ask("POST", "/api/v1/workers", body, 0.0)["id"])

    def claim(self, worker: int, lanes: Sequence[str], room: int = 1, batch: str | None = None) -> list[Job]:
        body = {"room": room, "batch": batch}
        return [Job(**given) for given in self.far.ask("POST", f"/api/v1/workers/{worker}/claims", body, 0.0)]

    def beat(self, worker: int) -> set[int]:
        return set(self.far.ask("POST", f"/api/v1/workers/{worker}/beats", {}, 0.0)["stops"])

    stopped = beat

    def bury(self, worker: int, why: str) -> None:
        self.far.ask("DELETE", f"/api/v1/workers/{worker}", None, 1.0)

    def report(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        self._tell(job, "report", {"kind": kind, "data": data})

    def finish(self, job: Job, result: dict[str, Any], pictures: Sequence[PictureRow] = ()) -> None:
        (ids,) = self.finish_all([(job, result, pictures)])
        if ids is None:
            raise Fenced

    def finish_all(self, done: Sequence[Ended]) -> list[list[int] | None]:
        rows = [
            {
                "job": job.id,
                "token": job.token,
                "result": result,
                "pictures": [{name: getattr(picture, name) for name in PICTURE} for picture in pictures],
            }
            for job, result, pictures in done
        ]
        found: list[list[int] | None] = self.far.ask("POST", "/api/v1/workers/done", {"jobs": rows})
        return found

    def fail(self, job: Job, error: BaseException) -> None:
        self._tell(job, "failed", {"error": message(error), "expected": isinstance(error, SojournError)})

    def cancelled(self, job: Job) -> None:
        self._tell(job, "cancelled", {})

    def give_back(self, job: Job) -> None:
        self._tell(job, "back", {})

    def _tell(self, job: Job, what: str, data: dict[str, Any]) -> None:
        self.far.ask("POST", f"/api/v1/workers/{what}", {"job": job.id, "token": job.token, **data})

    # The bell

    def wait(self, timeout_s: float) -> set[str]:
        """What was rung since the last call, once something was; empty after timeout_s, or while it is away."""
        query = {"after": self._rung, "wait_s": timeout_s}
        try:
            found = self.far.ask("GET", "/api/v1/workers/rings", None, 0.0, params=query)
        except (SojournError, Fenced):
            time.sleep(timeout_s)
            return set()
        self._rung = int(found["at"])
        return set(found["words"])

    def close(self) -> None:
        self.far.close()


class FarBlobs(Blobs):
    """Bytes of a studio elsewhere; what was fetched once is kept in `folder`."""

    def __init__(self, folder: Path, far: Far) -> None:
        super().__init__(folder)
        self.far = far

    def put(self, data: bytes) -> str:
        name = super().put(data)
        self.far.send(name, self.path(name))
        return name

    def get(self, name: str) -> bytes:
        if not self.has(name):
            self.far.fetch(f"/api/v1/blobs/{name}", path := self.path(name))
            if hashlib.sha256(path.read_bytes()).hexdigest() != name:
                path.unlink()
                raise StoreError('the server gave other bytes than "{name}"', name=name)
        return super().get(name)


class FarWork(Work):
    """Does the jobs of a studio elsewhere: brings what they need, sends what they made."""

    jobs: Any
    blobs: FarBlobs

    def __init__(self, far: Far, jobs: FarJobs, stops: Callable[[], set[int]], ending: Callable[[], bool]) -> None:
        super().__init__(jobs, FarBlobs(home() / "blobs", far), stops, ending)  # type: ignore[arg-type]
        self.far = far

    def look(self) -> bool:
        """The gallery is not here."""
        return False

    def model(self, name: str) -> Model:
        self.bring(name)
        return super().model(name)

    def _request(self, model: Model, ask: GenerateAsk) -> Any:
        if judge := grammar.parse(ask.prompt, allow_empty=True).judge:
            self.bring(str(judge))
        return super()._request(model, ask)

    def train(self, job: Job) -> Iterator[Event]:
        ask = TrainAsk.model_validate(job.request)
        recipe = config.load_recipe(ask.recipe, ask.overrides)
        names = {stage.name for stage in recipe.stage}
        for stage in recipe.stage:
            near = stage.conditioner.config.get("near")
            for data in (stage.data, near):
                if data:
                    yield from self.bring_set(str(data))
            for name in (stage.start, *stage.parts.values()):
                if name and name not in names:
                    self.bring(name)
        if ask.start:
            self.bring(ask.start)
        for event in super().train(job):
            if isinstance(event, Done):
                self.send(ask.to, job)
            yield event

    def evaluate(self, job: Job) -> Iterator[Event]:
        ask = EvaluateAsk.model_validate(job.request)
        yield from self.bring_set(ask.data)
        with suppress(NotFound):
            self.bring(ask.judge or "judge")
        yield from super().evaluate(job)

    def bring(self, name: str) -> None:
        """Have the studio's package of this name in the mirror. Raises NotFound."""
        whole = quote(name.partition("/")[0], safe="")
        theirs = self.far.ask("GET", f"/api/v1/models/{whole}")["identity"]
        with suppress(SojournError):
            if card.read(card.find(whole, paths=False), verify=False).identity == theirs:
                return
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=_made(home())) as folder:
            archive = Path(folder) / "package.zip"
            self.far.fetch(f"/api/v1/workers/packages/{whole}", archive)
            packages.import_(archive, name=whole, replace=True)

    def bring_set(self, name: str) -> Iterator[Event]:
        """Have the studio's set of this name in the mirror; one that it has not is left to be built here."""
        try:
            files = self.far.ask("GET", f"/api/v1/workers/sets/{name}")
        except NotFound:
            return
        target = home() / "sets" / name
        mark = safefile.canonical({"files": files})
        with suppress(OSError):
            if (target / MARK).read_bytes() == mark:
                return
        yield Log(text=f"fetching the set {name}")
        with safefile.new_folder(target) as part:
            for file in files:
                self.far.fetch(f"/api/v1/workers/sets/{name}/{file['name']}", part / file["name"])
            (part / MARK).write_bytes(mark)

    def send(self, name: str, job: Job) -> None:
        """Give the studio a package that was made here for this job."""
        with tempfile.TemporaryDirectory(prefix=".sent-", dir=_made(home())) as folder:
            archive = packages.export(name, Path(folder) / "package.zip")
            with archive.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self.far.send(sha256, archive)
        self.far.ask("POST", "/api/v1/workers/packages", {"job": job.id, "token": job.token, "sha256": sha256})


MARK = "fetched.json"
"""In a set of the mirror: which files of the studio it was made of."""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class FarWorker(Worker):
    """A worker of a studio elsewhere."""

    jobs: Any

    def make(self) -> Work:
        return FarWork(self.jobs.far, self.jobs, lambda: self._stops, self.closing.is_set)


def far_worker(url: str, lanes: Sequence[str]) -> FarWorker:
    """A worker of the studio at `url`, with the key in $SOJOURN_KEY. From here on home() is the mirror's folder."""
    far = Far(url, os.environ.get(KEY))
    os.environ["SOJOURN_HOME"] = str(home() / "mirrors" / re.sub(r"[^\w.-]", "_", far.url.partition("://")[2]))
    jobs: Any = FarJobs(far)
    return FarWorker(jobs, jobs, lanes)
