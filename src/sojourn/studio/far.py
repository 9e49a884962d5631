"""A studio on another machine, as a worker sees it: its jobs, bytes, packages and sets over HTTP. No shared disk.

`FarJobs` and `FarBlobs` have the methods of `Jobs` and `Blobs` that a worker uses. The worker's home is a mirror of the
studio's: packages and sets are fetched by name before a job needs them, and what it trains is sent back.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from sojourn import card, config, safefile
from sojourn import package as packages
from sojourn import prompt as grammar
from sojourn.card import home
from sojourn.engine import Model
from sojourn.errors import Forbidden, InvalidInput, NotFound, SojournError, StoreError
from sojourn.schema import Done, Event, Log, Progress
from sojourn.studio.asks import EvaluateAsk, GenerateAsk, TrainAsk
from sojourn.studio.blobs import Blobs
from sojourn.studio.jobs import Done as Ended
from sojourn.studio.ledger import Fenced, Job, message
from sojourn.studio.tables import PictureRow
from sojourn.studio.work import Work
from sojourn.studio.worker import Worker

T = TypeVar("T")
KEY = "SOJOURN_KEY"
"""Environment variable with the worker's key: a command line would show it to others."""
PATIENCE_S = 120.0
"""How long a server that does not answer is asked again before a job is given up."""
BEAT_WAIT_S = 5.0
"""How long a sign of life may take: less than the lease, so that one lost line is not the end."""
BYTES_WAIT_S = 600.0
"""How long a server may be silent about bytes, while it packs, checks or syncs them."""
PIECE_BYTES = 32 << 20
"""A package is sent in pieces of so many bytes."""
PICTURE = ("row", "sha256", "width", "height", "words", "model", "style", "seed", "recipe")
"""Columns of a picture that its worker knows."""


class Far:
    """The server's address, and a key of scope worker."""

    def __init__(self, url: str, key: str | None) -> None:
        if not re.fullmatch(r"https?://[^/?#\s]+/?", url):
            raise InvalidInput('"{url}" is no server; write http://HOST:PORT', url=safefile.printable(url))
        self.url = url.rstrip("/")
        self.closing = threading.Event()
        """Set: nothing is waited for any more."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(60.0, connect=5.0))

    def ask(
        self, method: str, path: str, body: Any = None, *, patience_s: float = PATIENCE_S, wait_s: float = 60.0,
        query: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """What the server answers, as data. Asked again for patience_s while it is away, each time for wait_s at most.

        Raises Fenced, NotFound, Forbidden, InvalidInput for what it refuses, StoreError where it stays away.
        """

        def once() -> Any:
            answer = self._http.request(method, path, json=body, params=query, timeout=_timeout(wait_s))
            _check(answer)
            return answer.json()

        return self._tried(once, patience_s)

    def send(self, data: bytes) -> str:
        """Bytes, to be kept; their sha256."""
        name = hashlib.sha256(data).hexdigest()
        headers = {"Content-Type": "application/octet-stream"}

        def once() -> None:
            path = f"/api/v1/blobs/{name}"
            _check(self._http.put(path, content=data, headers=headers, timeout=_timeout(BYTES_WAIT_S)))

        self._tried(once)
        return name

    def fetch(self, path: str, target: Path, sha256: str | None = None) -> None:
        """A file, to `target`: whole or not at all, and with this sha256."""
        part = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.part")

        def once() -> None:
            found = hashlib.sha256()
            with self._http.stream("GET", path, timeout=_timeout(BYTES_WAIT_S)) as answer:
                if not answer.is_success:
                    answer.read()
                    _check(answer)
                target.parent.mkdir(parents=True, exist_ok=True)
                with safefile.writing(target), part.open("wb") as file:
                    for piece in answer.iter_bytes():
                        if self.closing.is_set():
                            raise StoreError("the server {url} does not answer: {why}", url=self.url, why="the end")
                        file.write(piece)
                        found.update(piece)
            if sha256 is not None and found.hexdigest() != sha256:
                raise ValueError("other bytes")
            os.replace(part, target)

        try:
            self._tried(once)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        self._http.close()

    def _tried(self, once: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """What `once` gives, tried again while the server is away; the clock begins with the first failure."""
        since, pause = None, 0.2
        while True:
            try:
                return once()
            except SojournError:
                raise
            except (httpx.HTTPError, _Away, ValueError, KeyError, TypeError) as error:  # an answer that makes no sense
                why = str(error) if isinstance(error, _Away) else type(error).__name__
            since = since or time.monotonic()
            if self.closing.is_set() or time.monotonic() - since + pause > patience_s:
                raise StoreError("the server {url} does not answer: {why}", url=self.url, why=why)
            self.closing.wait(pause)
            pause = min(2 * pause, 5.0)


class _Away(Exception):
    """Not now."""


def _timeout(wait_s: float) -> httpx.Timeout:
    return httpx.Timeout(wait_s, connect=5.0)


def _check(answer: httpx.Response) -> None:
    """Raises for an answer that is no success."""
    if answer.is_success:
        return
    if answer.status_code >= 500 or answer.status_code in (408, 429):
        raise _Away(f"HTTP {answer.status_code}")
    error = answer.json()["error"]
    if error.get("code") == "fenced":
        raise Fenced
    what = str(error["message"])
    if answer.status_code in (401, 403):
        raise Forbidden("the server says: {what}", what=what)
    if answer.status_code == 404:
        raise NotFound("the server says: {what}", what=what)
    raise InvalidInput("the server says: {what}", what=what)


class FarJobs:
    """The queue of a studio elsewhere, and its bell."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self._rung = 0

    def enlist(self, host: str, pid: int, born: str, lanes: Sequence[str]) -> int:
        body = {"host": host, "pid": pid, "born": born, "lanes": list(lanes), "version": version("sojourn")}
        return int(self.far.ask("POST", "/api/v1/workers", body, patience_s=0.0)["id"])

    def claim(self, worker: int, lanes: Sequence[str], room: int = 1, batch: str | None = None) -> list[Job]:
        body = {"room": room, "batch": batch}
        found = self.far.ask("POST", f"/api/v1/workers/{worker}/claims", body, patience_s=0.0)
        return [Job(**given) for given in found]

    def beat(self, worker: int) -> set[int]:
        found = self.far.ask("POST", f"/api/v1/workers/{worker}/beats", {}, patience_s=0.0, wait_s=BEAT_WAIT_S)
        return set(found["stops"])

    stopped = beat

    def bury(self, worker: int, why: str) -> None:
        self.far.ask("DELETE", f"/api/v1/workers/{worker}", patience_s=1.0, wait_s=BEAT_WAIT_S)

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
            wait_s = timeout_s + BEAT_WAIT_S
            found = self.far.ask("GET", "/api/v1/workers/rings", query=query, patience_s=0.0, wait_s=wait_s)
        except SojournError:
            self.far.closing.wait(timeout_s)
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
        return self.far.send(data)

    def get(self, name: str) -> bytes:
        if not self.has(name):
            self.far.fetch(f"/api/v1/blobs/{name}", self.path(name), name)
        return super().get(name)

    def sweep(self) -> None:
        """Forget what was fetched a day ago."""
        for name in list(self.names(DAY_S)):
            self.drop(name, DAY_S)


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

    def train(self, job: Job) -> Generator[Event]:
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
        with closing(super().train(job)) as events:
            for event in events:
                if isinstance(event, Done):
                    yield Log.say("sending the package {name}", name=ask.to)
                    self.send(ask.to, job)
                yield event

    def evaluate(self, job: Job) -> Iterator[Event]:
        ask = EvaluateAsk.model_validate(job.request)
        yield from self.bring_set(ask.data)
        with suppress(NotFound):
            self.bring(ask.judge or "judge")
        yield from super().evaluate(job)

    def bring(self, name: str) -> None:
        """Have the studio's package of this name in the mirror. Raises NotFound, and forgets what it had."""
        whole = name.partition("/")[0]
        address = quote(whole, safe="")
        mine = home() / "models" / whole
        try:
            theirs = self.far.ask("GET", f"/api/v1/models/{address}")["identity"]
        except NotFound:
            if mine.parent == home() / "models" and (mine / "card.json").is_file():
                shutil.rmtree(mine)
            raise
        with suppress(SojournError):
            if card.read(card.find(whole, paths=False), verify=False).identity == theirs:
                return
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=_made(home())) as folder:
            archive = Path(folder) / "package.zip"
            self.far.fetch(f"/api/v1/workers/packages/{address}", archive)
            packages.import_(archive, name=whole, replace=True)

    def bring_set(self, name: str) -> Iterator[Event]:
        """Have the studio's set of this name in the mirror; one that it has not is left to be built here."""
        address, target = f"/api/v1/workers/sets/{quote(name, safe='')}", home() / "sets" / name
        for _ in range(TRIES):
            try:
                files = self.far.ask("GET", address)
            except NotFound:
                if (target / MARK).is_file():
                    shutil.rmtree(target)
                return
            mark = safefile.canonical({"files": files})
            with suppress(OSError):
                if (target / MARK).read_bytes() == mark:
                    return
            with suppress(NotFound), safefile.new_folder(target) as part:
                for at, file in enumerate(files):
                    yield Progress(done=at, total=len(files), unit="files", text=f"fetching the set {name}")
                    self.far.fetch(f"{address}/{quote(file['name'], safe='')}", part / file["name"])
                if self.far.ask("GET", address) != files:
                    continue  # it was made anew meanwhile
                (part / MARK).write_bytes(mark)
        if not (target / MARK).is_file():
            raise StoreError('the set "{name}" changes while it is fetched', name=name)

    def send(self, name: str, job: Job) -> None:
        """Give the studio a package that was made here for this job."""
        with tempfile.TemporaryDirectory(prefix=".sent-", dir=_made(home())) as folder:
            archive = packages.export(home() / "models" / name, Path(folder) / "package.zip")
            with archive.open("rb") as file:
                pieces = [self.far.send(piece) for piece in iter(lambda: file.read(PIECE_BYTES), b"")]
        told = {"job": job.id, "token": job.token, "pieces": pieces}
        self.far.ask("POST", "/api/v1/workers/packages", told, wait_s=BYTES_WAIT_S)


MARK = "fetched.json"
"""In a set of the mirror: which files of the studio it was made of."""
TRIES = 3
"""Times that a set is fetched that changes meanwhile."""
DAY_S = 86_400.0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class FarWorker(Worker):
    """A worker of a studio elsewhere."""

    jobs: Any

    def make(self) -> Work:
        work = FarWork(self.jobs.far, self.jobs, lambda: self._stops, self.closing.is_set)
        work.blobs.sweep()
        return work


def far_worker(url: str, lanes: Sequence[str]) -> FarWorker:
    """A worker of the studio at `url`, with the key in $SOJOURN_KEY. From here on home() is the mirror's folder."""
    far = Far(url, os.environ.get(KEY))
    studio = str(far.ask("GET", "/api/v1/workers/studio", patience_s=0.0)["place"])
    os.environ["SOJOURN_HOME"] = str(home() / "mirrors" / re.sub(r"[^\w.-]", "_", studio))
    jobs: Any = FarJobs(far)
    out = FarWorker(jobs, jobs, lanes)
    far.closing = out.closing
    return out
