"""Workers on another machine: a server, and a worker with a home of its own, that share nothing but HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from served import Served, app, noise
from starlette.testclient import TestClient

import sojourn
from sojourn import card
from sojourn.errors import StoreError
from sojourn.picture import png
from sojourn.schema import Measured
from sojourn.studio import far as far_module
from sojourn.studio import process
from sojourn.studio.blobs import Blobs
from sojourn.studio.keys import Keys
from sojourn.studio.studio import Studio
from sojourn.studio.work import Work

SHAPES = """
import sys
from pathlib import Path
from PIL import Image, ImageDraw
for name, box in (("square", "rectangle"), ("round", "ellipse")):
    for i in range(24):
        picture = Image.new("L", (32, 32), 255)
        getattr(ImageDraw.Draw(picture), box)((4 + i % 5, 4 + i % 7, 20 + i % 9, 20 + i % 11), fill=0)
        path = Path(sys.argv[1]) / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
"""


class Far:
    """A worker process elsewhere: another home, no database."""

    def __init__(self, url: str, key: str, folder: Path, lanes: str = "interactive,background") -> None:
        self.home, self.log = folder, folder.with_name(folder.name + ".log")
        folder.mkdir(exist_ok=True)
        env = {**os.environ, "SOJOURN_HOME": str(folder), "SOJOURN_KEY": key}
        env.pop("SOJOURN_DATABASE", None)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "sojourn", "worker", "--server", url, "--lanes", lanes]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOJOURN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def keys(house: Path) -> dict[str, str]:
    with Studio() as studio:
        made = Keys(studio.store)
        return {"ann": made.add("ann", "admin"), "far": made.add("far", "worker"), "bob": made.add("bob", "generate")}


@pytest.fixture
def server(keys: dict[str, str], house: Path) -> Iterator[Served]:
    """One that does no job itself."""
    with Served(house) as made:
        yield made


@pytest.fixture
def ann(server: Served, keys: dict[str, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {keys['ann']}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


def done(ann: httpx.Client, job: int, far: Far, state: str = "done", seconds: float = 240.0) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = ann.get(f"/api/v1/jobs/{job}").json()
        if found["state"] in ("done", "failed", "cancelled"):
            assert found["state"] == state, (found["error"], far.said())
            return found
        assert far.process.poll() is None, far.said()
        assert time.monotonic() < deadline, (found, far.said())
        time.sleep(0.05)


def told(ann: httpx.Client, job: int, words: str, far: Far) -> None:
    """Wait for a line of a job's log."""
    with ann.stream("GET", f"/api/v1/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if words in line:
                return
    raise AssertionError((ann.get(f"/api/v1/jobs/{job}").json(), far.said()))


def ask(ann: httpx.Client, kind: str, **request: Any) -> int:
    answer = ann.post("/api/v1/jobs", json={"kind": kind, "request": request})
    assert answer.status_code == 202, answer.text
    return int(answer.json()["id"])


def test_it_draws_edits_trains_and_measures(
    server: Served, ann: httpx.Client, keys: dict[str, str], house: Path
) -> None:
    """One after another, since each worker takes seconds to start."""
    far = Far(server.url, keys["far"], house / "elsewhere")
    begun = time.monotonic()
    try:
        job = ask(ann, "generate", prompt="a red heart --seed 5 --n 2", previews=2)
        done(ann, job, far)
        print(f"drawn {time.monotonic() - begun:.1f} s after the start of the worker")
        rows = ann.get("/api/v1/pictures", params={"job": job}).json()
        here = [png(picture.pil, None) for picture in sojourn.load("emoji").imagine("a red heart", n=2, seed=5)]
        drawn = [ann.get(f"/api/v1/pictures/{row['id']}/file").content for row in reversed(rows)]
        same = [np.array_equal(pixels(a), pixels(b)) for a, b in zip(here, drawn, strict=True)]
        assert same == [True, True], "the same pictures as here"

        begun = time.monotonic()
        done(ann, ask(ann, "generate", prompt="a blue car --seed 1"), far)
        print(f"warm: {time.monotonic() - begun:.2f} s")

        data = noise(64)
        name = ann.post("/api/v1/uploads", files={"file": ("a.png", data)}).json()["sha256"]
        done(ann, ask(ann, "edit", prompt="a red heart --seed 1 --n 1", source=name, strength=0.5), far)

        # A set that only the server has; a package that only the server has afterwards; both are fetched.
        subprocess.run([sys.executable, "-c", SHAPES, str(house / "shapes")], check=True)
        subprocess.run([sys.executable, "-m", "sojourn", "prepare", str(house / "shapes"), "--to", "shapes",
                        "--size", "32"], check=True, capture_output=True)  # fmt: skip
        settings = ["data=shapes", "preset=tiny", "seen=256", "batch_size=16", "snapshot=128", "sheet=4"]
        job = ask(ann, "train", recipe="dcgan", to="mine", overrides=settings)
        done(ann, job, far)
        found = card.find("mine", paths=False)
        assert found.is_relative_to(house / "home"), "it came back"
        assert sojourn.load("mine").card.seen == 256
        events = [line for line in ann.get(f"/api/v1/jobs/{job}/events").text.splitlines() if line.startswith("event")]
        assert {"event: log", "event: metric", "event: sheet", "event: done"} <= set(events)
        assert not (house / "home" / "runs" / f"job-{job}").exists(), "it was trained elsewhere"

        done(ann, ask(ann, "generate", prompt="square --model mine --n 2 --seed 1"), far)

        # Stopped, it goes on where its run is.
        settings[2:4] = ["seen=20_000", "batch_size=8"]
        job = ask(ann, "train", recipe="dcgan", to="later", overrides=settings)
        told(ann, job, "snapshot at", far)
        ann.delete(f"/api/v1/jobs/{job}")
        done(ann, job, far, "cancelled")
        again = ask(ann, "train", recipe="dcgan", to="later", overrides=settings, goes_on=job)
        told(ann, again, "resumed at", far)
        ann.delete(f"/api/v1/jobs/{again}")
        done(ann, again, far, "cancelled")
        assert [path.name for path in far.home.glob("mirrors/*/runs/*")].count(f"job-{again}") == 0

        # A changed package is fetched anew, by its identity.
        before = card.read(next(far.home.glob("mirrors/*/models/mine")), verify=False).identity
        done(ann, ask(ann, "generate", prompt="square --model mine --n 1 --seed 1"), far)
        assert before == card.read(found, verify=False).identity

        failed = done(ann, ask(ann, "generate", prompt="triangle --model mine"), far, "failed")
        assert failed["attempts"] == 1
        assert "triangle" in json.dumps(failed["error"]), "bad input is told at once, in its own words"
        assert "Traceback" not in far.said()
    finally:
        assert far.end() == 0
    assert ann.get("/ready").status_code == 503, "it took leave"


def test_what_it_leaves_goes_to_another(server: Served, ann: httpx.Client, keys: dict[str, str], house: Path) -> None:
    """One ends in peace within a training, another of another home does it, from the start."""
    subprocess.run([sys.executable, "-c", SHAPES, str(house / "shapes")], check=True)
    subprocess.run([sys.executable, "-m", "sojourn", "prepare", str(house / "shapes"), "--to", "shapes", "--size",
                    "32"], check=True, capture_output=True)  # fmt: skip
    settings = ["data=shapes", "preset=tiny", "seen=1_000_000", "batch_size=16", "snapshot=64", "sheet=0"]
    far = Far(server.url, keys["far"], house / "one", "background")
    job = ask(ann, "train", recipe="dcgan", to="other", overrides=settings)
    deadline = time.monotonic() + 120
    while ann.get(f"/api/v1/jobs/{job}").json()["state"] != "running":
        assert time.monotonic() < deadline, far.said()
        time.sleep(0.1)
    assert far.end() == 0
    left = ann.get(f"/api/v1/jobs/{job}").json()
    assert (left["state"], left["attempts"]) == ("queued", 0), "that was no try"
    other = Far(server.url, keys["far"], house / "two", "background")
    try:
        while (now := ann.get(f"/api/v1/jobs/{job}").json())["state"] != "running" or not now["progress"]:
            assert time.monotonic() < deadline, other.said()
            time.sleep(0.1)
        ann.delete(f"/api/v1/jobs/{job}")
        done(ann, job, other, "cancelled")
    finally:
        assert other.end() == 0


def test_a_server_that_is_away_is_waited_for(keys: dict[str, str], house: Path) -> None:
    """The worker outlives its server; what it had is done with the next one."""
    with Served(house) as first:
        far = Far(first.url, keys["far"], house / "elsewhere", "interactive")
        headers = {"Authorization": f"Bearer {keys['ann']}"}
        with httpx.Client(base_url=first.url, headers=headers, timeout=60) as ann:
            done(ann, ask(ann, "generate", prompt="a red heart --n 1"), far)
        first.end()
        time.sleep(3)
        assert far.process.poll() is None, far.said()
        again = subprocess.Popen(
            [sys.executable, "-m", "sojourn", "serve", "--port", str(first.port)], stdin=subprocess.DEVNULL
        )
        try:
            with httpx.Client(base_url=first.url, headers=headers, timeout=60) as ann:
                deadline = time.monotonic() + 60
                while True:
                    try:
                        if len(ann.get("/api/v1/workers/rings", params={"wait_s": 0}).json()):
                            break
                    except httpx.TransportError:
                        assert time.monotonic() < deadline
                        time.sleep(0.2)
                job = ask(ann, "generate", prompt="a blue car --n 1")
                done(ann, job, far)
        finally:
            again.terminate()
            again.wait(30)
            assert far.end() == 0


# What may be said by whom


@pytest.fixture
def client(house: Path) -> Iterator[tuple[TestClient, Studio]]:
    with app() as (client, studio):
        yield client, studio


def enlisted(client: TestClient) -> int:
    given = {"host": "there/1", "pid": 7, "born": "x", "lanes": ["interactive", "background"]}
    older = client.post("/api/v1/workers", json={**given, "version": "0.0.1"})
    assert (older.status_code, older.json()["error"]["code"]) == (403, "version")
    answer = client.post("/api/v1/workers", json={**given, "version": version("sojourn")})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def test_keys(client: tuple[TestClient, Studio]) -> None:
    """A worker's key opens what workers need, and only that; another's does not open that."""
    web, studio = client
    made = Keys(studio.store)
    worker, generate = made.add("far", "worker"), made.add("bob", "generate")
    time.sleep(1.1)  # from now on it is locked
    blob = studio.blobs.put(b"bytes")
    rings = {"after": 0, "wait_s": 0}
    for key, fine in ((worker, 200), (generate, 403)):
        headers = {"Authorization": f"Bearer {key}"}
        assert web.get("/api/v1/workers/rings", params=rings, headers=headers).status_code == fine
        assert web.get(f"/api/v1/blobs/{blob}", headers=headers).status_code == fine
        assert web.get("/api/v1/workers/packages/emoji", headers=headers).status_code == fine
        given = {"kind": "generate", "request": {"prompt": "a"}}
        assert web.post("/api/v1/jobs", json=given, headers=headers).status_code == (403 if fine == 200 else 202)
        assert web.get("/api/v1/pictures", headers=headers).status_code == (403 if fine == 200 else 200)
    assert web.get("/api/v1/workers/rings", params=rings).status_code == 401


def test_a_late_word_is_refused(client: tuple[TestClient, Studio]) -> None:
    web, studio = client
    me = enlisted(web)
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={"room": 1}).json()
    assert (mine["id"], mine["token"]) == (job.id, 1)
    studio.jobs.bury(me, "it stood still")
    for path, more in (
        ("report", {"kind": "log", "data": {}}),
        ("failed", {"error": {}, "expected": True}),
        ("cancelled", {}),
        ("back", {}),
        ("packages", {"pieces": ["0" * 64]}),
    ):
        answer = web.post(f"/api/v1/workers/{path}", json={"job": job.id, "token": 1, **more})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "fenced"), path
    late = {"jobs": [{"job": job.id, "token": 1, "result": {}, "pictures": []}]}
    assert web.post("/api/v1/workers/done", json=late).json() == [None]
    assert web.post(f"/api/v1/workers/{me}/claims", json={"room": 1}).json()["error"]["code"] == "fenced"
    assert web.post(f"/api/v1/workers/{me}/beats").json()["error"]["code"] == "fenced"
    assert studio.jobs.get(job.id).state == "queued"


def test_errors_keep_their_kind(client: tuple[TestClient, Studio]) -> None:
    """What was bad input ends a job; what was unforeseen is tried three times."""
    web, studio = client
    me = enlisted(web)
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    unforeseen = {"type": "SojournError", "template": "{what}", "fields": {"what": "ValueError: {x}"}}
    for attempt in (1, 2, 3):
        (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
        told = {"job": job.id, "token": mine["token"], "error": unforeseen, "expected": False}
        assert web.post("/api/v1/workers/failed", json=told).status_code == 200
        assert studio.jobs.get(job.id).state == ("queued" if attempt < 3 else "failed")
    assert studio.jobs.get(job.id).error == unforeseen
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
    error = {"type": "NotFound", "template": "there is no job {id}", "fields": {"id": "7"}}
    told = {"job": job.id, "token": mine["token"], "error": error, "expected": True}
    assert web.post("/api/v1/workers/failed", json=told).status_code == 200
    assert (studio.jobs.get(job.id).state, studio.jobs.get(job.id).error) == ("failed", error)


def test_pictures_want_their_bytes(client: tuple[TestClient, Studio]) -> None:
    web, studio = client
    me = enlisted(web)
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
    drawn = {"row": 0, "sha256": "a" * 64, "width": 64, "height": 64, "words": "a red heart", "model": "emoji",
             "style": None, "seed": 1, "recipe": {"prompt": "a red heart"}}  # fmt: skip
    told = {"jobs": [{"job": job.id, "token": mine["token"], "result": {}, "pictures": [drawn]}]}
    assert web.post("/api/v1/workers/done", json=told).status_code == 409
    drawn["sha256"] = studio.blobs.put(noise())
    ((id,),) = web.post("/api/v1/workers/done", json=told).json()
    assert studio.gallery.get(id, "local").words == "a red heart"


def test_only_what_it_trains_for_is_kept(client: tuple[TestClient, Studio]) -> None:
    """No package but of a running training, none that does not hold, under no name but the job's."""
    web, studio = client
    me = enlisted(web)
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
    sha256 = studio.blobs.put(b"no zip")
    told = {"job": job.id, "token": mine["token"], "pieces": [sha256]}
    assert web.post("/api/v1/workers/packages", json=told).status_code == 400
    studio.jobs.bury(me, "over")
    me = enlisted(web)
    job = studio.ask("train", {"recipe": "dcgan", "to": "mine"}, priority=9)
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
    assert mine["id"] == job.id
    told = {"job": job.id, "token": mine["token"], "pieces": [sha256]}
    assert web.post("/api/v1/workers/packages", json=told).status_code == 400
    told["pieces"] = ["b" * 64]
    assert web.post("/api/v1/workers/packages", json=told).status_code == 409
    archive = web.get("/api/v1/workers/packages/emoji").content
    half = len(archive) // 2
    told["pieces"] = [studio.blobs.put(archive[:half]), studio.blobs.put(archive[half:])]
    assert web.post("/api/v1/workers/packages", json=told).status_code == 201
    assert card.find("mine", paths=False).name == "mine"


def test_it_is_woken_by_a_job(client: tuple[TestClient, Studio]) -> None:
    """A request for rings waits for one, and is answered by it; nothing is answered before."""
    web, studio = client
    at = web.get("/api/v1/workers/rings", params={"wait_s": 0}).json()["at"]
    begun = time.monotonic()
    quiet = web.get("/api/v1/workers/rings", params={"after": at, "wait_s": 0.5}).json()
    assert (quiet["words"], time.monotonic() - begun > 0.45) == ([], True)
    threading.Timer(0.3, lambda: studio.ask("generate", {"prompt": "a red heart"})).start()
    begun = time.monotonic()
    rung = web.get("/api/v1/workers/rings", params={"after": at, "wait_s": 20}).json()
    assert rung["words"] == ["interactive"]
    assert 0.2 < time.monotonic() - begun < 5
    missed = web.get("/api/v1/workers/rings", params={"after": at, "wait_s": 20}).json()
    assert missed == rung, "what was rung between two requests is told by the next"


def test_other_bytes_than_asked_for_are_not_kept(tmp_path: Path) -> None:
    class Hasty(far_module.Far):
        def _tried(self, once: Any, patience_s: float = 0.0) -> Any:
            return super()._tried(once, 0.0)

    far = Hasty("http://127.0.0.1:9", None)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"others"))
    far._http = httpx.Client(base_url=far.url, transport=transport)
    blobs = far_module.FarBlobs(tmp_path, far)
    with pytest.raises(StoreError, match="ValueError"):
        blobs.get("a" * 64)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_number_that_is_none_is_not_told(tmp_path: Path) -> None:
    work = Work(None, Blobs(tmp_path))  # type: ignore[arg-type]
    told = work._told(Measured(seen=1, values={"loss": float("nan"), "rate": 2.0, "far": float("inf")}))
    assert told == ("metric", {"seen": 1, "values": {"rate": 2.0}})


def test_what_it_says_of_an_error_is_not_filled_in_blindly(client: tuple[TestClient, Studio]) -> None:
    web, studio = client
    me = enlisted(web)
    job = studio.ask("generate", {"prompt": "a red heart --n 1"})
    (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()
    wide = {"type": "SystemExit", "template": "{what:>999999999}", "fields": {"what": "x"}}
    bare = {"type": "NotFound", "template": "there is no job {id}", "fields": {}}
    for error in (wide, bare):
        told = {"job": job.id, "token": mine["token"], "error": error, "expected": False}
        assert web.post("/api/v1/workers/failed", json=told).status_code == 200
        events = studio.jobs.events(job=job.id)
        assert events[-1].data["template"] == "{what}"
        (mine,) = web.post(f"/api/v1/workers/{me}/claims", json={}).json()


def test_this_machines_workers_are_its_own(client: tuple[TestClient, Studio]) -> None:
    web, studio = client
    own = studio.jobs.enlist(process.here(), os.getpid(), "x", ["interactive"])
    assert web.delete(f"/api/v1/workers/{own}").status_code == 403
    assert web.delete(f"/api/v1/workers/{enlisted(web)}").json() == {"kept": True}


def test_many_bytes_at_once_are_for_workers(client: tuple[TestClient, Studio]) -> None:
    web, studio = client
    key = Keys(studio.store).add("bob", "generate")
    time.sleep(1.1)
    big = b'{"a": "' + b"x" * (2 << 20) + b'"}'
    headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
    assert web.post("/api/v1/workers/report", content=big, headers=headers).status_code == 413


def test_a_key_that_is_taken_back_ends_the_worker(server: Served, keys: dict[str, str], house: Path) -> None:
    far = Far(server.url, keys["far"], house / "elsewhere", "background")
    deadline = time.monotonic() + 60
    while "waits for jobs" not in far.said():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with Studio() as studio:
        Keys(studio.store).remove("far")
    assert far.process.wait(30) != 0
    assert "Traceback" not in far.said()
    assert "no key" in far.said()


@pytest.mark.parametrize("name", ["../home", "..", ".hidden", "a/b", "%2e%2e%2fhome", "nothing"])
def test_sets_are_named(client: tuple[TestClient, Studio], name: str) -> None:
    web, _ = client
    assert web.get(f"/api/v1/workers/sets/{name}").status_code in (400, 404, 405)
    assert web.get(f"/api/v1/workers/sets/{name}/set.json").status_code in (400, 404, 405)
    assert web.get(f"/api/v1/workers/packages/{name}").status_code in (400, 404, 405)


def test_wrong_addresses() -> None:
    for url in ("nonsense", "ftp://a", "http://", "http://a/b?c"):
        done = subprocess.run(
            [sys.executable, "-m", "sojourn", "worker", "--server", url], capture_output=True, text=True
        )
        assert (done.returncode != 0, done.stderr.count("\n")) == (True, 1), done.stderr
    both = [sys.executable, "-m", "sojourn", "worker", "--server", "http://127.0.0.1:9", "--database", "sqlite:///x"]
    assert "one of the two" in subprocess.run(both, capture_output=True, text=True).stderr
    away = subprocess.run(both[:-2], capture_output=True, text=True)
    assert "does not answer" in away.stderr
    assert away.returncode != 0


def pixels(data: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
