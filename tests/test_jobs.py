"""Jobs on real databases: nothing lost, nothing twice, each in its turn, and workers that may die at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select

from sojourn.card import home
from sojourn.errors import ConfigError, InvalidInput, NotFound, PromptError, SojournError, StoreError, Unsupported
from sojourn.picture import png
from sojourn.studio import ledger
from sojourn.studio.bell import Bell
from sojourn.studio.jobs import TRIES, Jobs
from sojourn.studio.ledger import Fenced, Job
from sojourn.studio.process import born
from sojourn.studio.store import Store
from sojourn.studio.studio import Studio
from sojourn.studio.tables import EventRow, JobRow

LONG = bool(os.environ.get("SOJOURN_SOAK"))
"""Whether the long forms run: `make soak`."""


@pytest.fixture
def jobs(url: str, tmp_path: Path) -> Iterator[Jobs]:
    store, bell = Store(url), Bell(tmp_path / "bells")
    yield Jobs(store, bell)
    bell.close()
    store.close()


def enlisted(jobs: Jobs) -> int:
    return jobs.enlist("here", os.getpid(), str(born(os.getpid())), ("interactive",))


def ask(jobs: Jobs, owner: str = "ann", **more: Any) -> Job:
    return jobs.submit(owner, "generate", {"prompt": "a"}, **more)


def claimed(jobs: Jobs, lane: str = "interactive", room: int = 1) -> list[Job]:
    """What a worker of its own gets: one that claims again has nothing in hand."""
    return jobs.claim(enlisted(jobs), [lane], room=room)


def kinds(jobs: Jobs, job: int) -> list[str]:
    return [event.kind for event in jobs.events(job=job)]


# Where it is done


def test_a_job_is_done_where_its_files_are(jobs: Jobs) -> None:
    """While there is a worker for it; without one another machine may, but no set is made elsewhere."""

    def worker(host: str, *lanes: str) -> int:
        return jobs.enlist(host, os.getpid(), str(born(os.getpid())), lanes)

    def next_of(worker: int) -> list[int]:
        return [job.id for job in jobs.claim(worker, ["interactive", "background"])]

    here, there = worker("a/1", "interactive", "background"), worker("b/2", "background")
    keeper = worker("b/2", "keeps background")
    training = jobs.submit("ann", "train", {}, place="b/2")
    assert next_of(here) == []
    assert next_of(there) == [training.id]
    jobs.bury(there, "it died")
    assert jobs.get(training.id).place == "b/2"
    assert next_of(here) == [], "its worker is started again"
    jobs.bury(keeper, "it was stopped")
    other = worker("b/2", "interactive")
    (mine,) = jobs.claim(here, ["background"])
    assert mine.id == training.id, "nobody there does trainings any more"
    jobs.finish(mine, {})
    assert jobs.get(training.id).place == "a/1", "it goes on here from now on"
    jobs.bury(other, "it was stopped")
    made = jobs.submit("ann", "prepare", {}, place="c/3")
    assert next_of(here) == []
    assert next_of(worker("c/3", "background")) == [made.id]


# The row is the truth


def test_a_job_goes_from_asked_to_done(jobs: Jobs) -> None:
    job = ask(jobs)
    assert (job.state, jobs.get(job.id)) == ("queued", job)
    me = enlisted(jobs)
    (mine,) = jobs.claim(me, ["interactive"])
    assert (mine.id, mine.state, mine.attempts, mine.token) == (job.id, "running", 1, 1)
    assert claimed(jobs) == []
    jobs.report(mine, "progress", {"done": 1, "total": 2})
    assert jobs.get(job.id).progress == {"done": 1, "total": 2}
    jobs.report(mine, "log", {"text": "红心"})
    jobs.finish(mine, {"answer": 42})
    assert jobs.get(job.id).result == {"answer": 42}
    assert kinds(jobs, job.id) == ["queued", "started", "log", "done"], "what passed is not kept"
    assert jobs.events(job=job.id)[2].data == {"text": "红心"}
    ids = [event.id for event in jobs.events()]
    assert ids == sorted(set(ids))
    assert [event.kind for event in jobs.events(after=ids[1])] == ["log", "done"]


def test_another_owner_sees_nothing(jobs: Jobs) -> None:
    job = ask(jobs)
    with pytest.raises(NotFound):
        jobs.get(job.id, "bob")
    with pytest.raises(NotFound):
        jobs.cancel(job.id, "bob")
    assert jobs.page("bob") == []
    assert jobs.events(owner="bob") == []
    assert len(jobs.events(owner="ann")) == 1


def test_lanes_keep_apart(jobs: Jobs) -> None:
    train = jobs.submit("ann", "train", {})
    picture = ask(jobs)
    assert [job.id for job in claimed(jobs)] == [picture.id]
    assert claimed(jobs) == []
    assert [job.id for job in claimed(jobs, "background")] == [train.id]


def test_everyone_has_a_turn_and_the_urgent_go_first(jobs: Jobs) -> None:
    for _ in range(5):
        ask(jobs, "ann")
    ask(jobs, "bob")
    ask(jobs, "bob")
    ask(jobs, "cyd", priority=-1)
    urgent = ask(jobs, "ann", priority=5)
    order = [claimed(jobs)[0] for _ in range(9)]
    assert order[0].id == urgent.id
    assert [job.owner for job in order[1:]] == ["bob", "ann", "bob", "ann", "ann", "ann", "ann", "cyd"]
    own = [job.id for job in order[1:] if job.owner == "ann"]
    assert own == sorted(own)


def test_a_newcomer_does_not_wait_for_a_crowd(jobs: Jobs) -> None:
    for _ in range(20):
        ask(jobs, "ann")
        claimed(jobs)
    for _ in range(20):
        ask(jobs, "ann")
    ask(jobs, "new")
    order = [claimed(jobs)[0].owner for _ in range(2)]
    assert "new" in order


def test_jobs_of_one_key_are_claimed_together(jobs: Jobs) -> None:
    first = ask(jobs, batch="k", rows=4)
    ask(jobs, batch="other", rows=4)
    alone = ask(jobs, rows=4)
    second = ask(jobs, "bob", batch="k", rows=4)
    big = ask(jobs, batch="k", rows=30)
    taken = claimed(jobs, room=16)
    assert {job.id for job in taken} == {first.id, second.id}
    rest = [[job.id for job in claimed(jobs, room=16)] for _ in range(3)]
    assert [alone.id] in rest
    assert [big.id] in rest, "one that is larger than the room is done alone"


def test_cancelling(jobs: Jobs) -> None:
    waiting, running = ask(jobs, "bob"), ask(jobs, "ann")
    assert jobs.cancel(waiting.id).state == "cancelled"
    me = enlisted(jobs)
    (mine,) = jobs.claim(me, ["interactive"])
    assert mine.id == running.id
    assert jobs.cancel(running.id).state == "running"
    assert jobs.stopped(me) == {running.id}
    assert jobs.beat(me) == {running.id}
    jobs.cancelled(mine)
    assert jobs.get(running.id).state == "cancelled"
    assert jobs.cancel(running.id).state == "cancelled", "once more changes nothing"
    assert jobs.beat(me) == set()
    assert jobs.claim(me, ["interactive"]) == []
    back = ask(jobs)
    (mine,) = jobs.claim(me, ["interactive"])
    jobs.cancel(back.id)
    jobs.give_back(mine)
    assert jobs.get(back.id).state == "cancelled", "what is given back is not begun again"


# Who holds it


def test_a_late_write_is_refused(jobs: Jobs) -> None:
    """T7: a worker that was taken for dead wakes up."""
    job = ask(jobs)
    slow, quick = enlisted(jobs), enlisted(jobs)
    (old,) = jobs.claim(slow, ["interactive"])
    assert jobs.bury(slow, "no sign of life", beats=0) == 1
    assert jobs.bury(slow, "no sign of life") is None
    (new,) = jobs.claim(quick, ["interactive"])
    assert (new.id, new.token, new.attempts) == (job.id, 2, 2)
    writes: list[Callable[[], object]] = [
        lambda: jobs.report(old, "log", {}), lambda: jobs.finish(old, {"by": "old"}),
        lambda: jobs.fail(old, ValueError()), lambda: jobs.cancelled(old), lambda: jobs.give_back(old),
        lambda: jobs.beat(slow),        lambda: jobs.claim(slow, ["interactive"]),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(Fenced):
            write()
    jobs.finish(new, {"by": "new"})
    assert jobs.get(job.id).result == {"by": "new"}
    assert kinds(jobs, job.id).count("done") == 1
    with pytest.raises(Fenced):
        jobs.finish(new, {"by": "new, again"})


def test_one_that_beats_is_not_buried(jobs: Jobs) -> None:
    job = ask(jobs)
    me = enlisted(jobs)
    jobs.claim(me, ["interactive"])
    jobs.beat(me)
    assert jobs.bury(me, "no sign of life", beats=0) is None
    assert jobs.get(job.id).state == "running"


def test_what_a_worker_never_heard_that_it_got_waits_again(jobs: Jobs) -> None:
    """A claim whose answer was lost."""
    job = ask(jobs)
    me = enlisted(jobs)
    jobs.claim(me, ["interactive"])
    (mine,) = jobs.claim(me, ["interactive"])
    assert (mine.id, mine.token, mine.attempts) == (job.id, 2, 1)


def test_a_worker_that_is_buried_while_it_claims_keeps_nothing(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job, me = ask(jobs), enlisted(jobs)
    claims, go = threading.Event(), threading.Event()

    def paused(*told: Any) -> None:
        claims.set()
        go.wait(10)
        ledger.log(*told)

    monkeypatch.setattr("sojourn.studio.jobs.log", paused)
    claim = threading.Thread(target=jobs.claim, args=(me, ["interactive"]))
    claim.start()
    assert claims.wait(10)
    buried: list[int | None] = []
    burial = threading.Thread(target=lambda: buried.append(jobs.bury(me, "gone")))
    burial.start()
    burial.join(0.5)
    go.set()
    claim.join()
    burial.join()
    assert buried == [1], "it waited for the claim, and found the job"
    assert jobs.get(job.id).state == "queued"


def test_an_event_is_never_seen_before_one_of_a_lower_number(jobs: Jobs) -> None:
    first, second = ask(jobs), ask(jobs)
    logged, go = threading.Event(), threading.Event()

    def late(session: Any) -> None:
        ledger.log(session, first.id, "log", {"text": "first"})
        logged.set()
        go.wait(10)

    slow = threading.Thread(target=jobs.store.write, args=(late,))
    slow.start()
    assert logged.wait(10)
    other = lambda session: ledger.log(session, second.id, "log", {"text": "second"})  # noqa: E731
    quick = threading.Thread(target=jobs.store.write, args=(other,))
    quick.start()
    quick.join(0.5)
    seen = [event.data["text"] for event in jobs.events() if event.kind == "log"]
    go.set()
    slow.join()
    quick.join()
    assert seen == []
    assert [event.data["text"] for event in jobs.events() if event.kind == "log"] == ["first", "second"]


def test_events_are_kept_in_bounds_and_told_whole(jobs: Jobs) -> None:
    job = ask(jobs)
    (mine,) = jobs.claim(enlisted(jobs), ["interactive"])
    for i in range(30):
        jobs.report(mine, "progress", {"done": i})
    assert kinds(jobs, job.id) == ["queued", "started", "progress"]
    jobs.report(mine, "sheet", {"sha256": "0" * 64, "suffix": ".png"})
    for i in range(1200):
        jobs.store.write(lambda session, i=i: ledger.log(session, job.id, "log", {"text": str(i)}))  # type: ignore[misc]
    assert jobs.artifacts(job.id) == {"0" * 64: ".png"}
    jobs.finish(mine, {})
    assert jobs.events(after=jobs.latest() - 1)[0].kind == "done"


def test_poison_fails_after_three_tries(jobs: Jobs) -> None:
    job, mate = ask(jobs, batch="k"), ask(jobs, batch="k")
    me = enlisted(jobs)
    assert len(jobs.claim(me, ["interactive"], room=8)) == 2
    jobs.bury(me, "SIGSEGV")
    for _ in range(TRIES - 1):
        me = enlisted(jobs)
        (poison,) = jobs.claim(me, ["interactive"], room=8)
        assert poison.id == job.id, "alone, so that it takes no others with it"
        jobs.bury(me, "SIGSEGV")
    dead = jobs.get(job.id)
    assert dead.state == "failed"
    assert "died 3 times, at last: SIGSEGV" in str(SojournError(dead.error["template"], **dead.error["fields"]))  # type: ignore[index]
    me = enlisted(jobs)
    (well,) = jobs.claim(me, ["interactive"], room=8)
    assert well.id == mate.id
    jobs.finish(well, {})


def test_errors_are_told_and_the_unforeseen_is_tried_again(jobs: Jobs) -> None:
    me = enlisted(jobs)
    wrong = ask(jobs)
    (mine,) = jobs.claim(me, ["interactive"])
    jobs.fail(mine, InvalidInput("label {label} is outside 0..{high}", label=12, high=9))
    assert jobs.get(wrong.id).state == "failed"
    assert jobs.get(wrong.id).error == {
        "type": "InvalidInput", "template": "label {label} is outside 0..{high}",
        "fields": {"label": "12", "high": "9"},
    }  # fmt: skip
    odd = ask(jobs)
    for attempt in range(1, TRIES + 1):
        (mine,) = jobs.claim(me, ["interactive"])
        assert (mine.id, mine.attempts) == (odd.id, attempt)
        jobs.fail(mine, RuntimeError("a bug"))
    assert jobs.get(odd.id).state == "failed"
    assert jobs.get(odd.id).error["fields"] == {"what": "RuntimeError: a bug"}  # type: ignore[index]
    assert jobs.claim(me, ["interactive"]) == []


def test_what_is_given_back_was_no_try(jobs: Jobs) -> None:
    job = ask(jobs)
    me = enlisted(jobs)
    for _ in range(2 * TRIES):
        (mine,) = jobs.claim(me, ["interactive"])
        jobs.give_back(mine)
    assert (jobs.get(job.id).state, jobs.get(job.id).attempts) == ("queued", 0)


RACER = """
import os, sys
from pathlib import Path
from sojourn.studio.bell import Bell
from sojourn.studio.jobs import Jobs
from sojourn.studio.process import born
from sojourn.studio.store import Store

jobs = Jobs(Store(sys.argv[1]), Bell(Path(sys.argv[2])))
me = jobs.enlist("here", os.getpid(), str(born(os.getpid())), ("interactive",))
while taken := jobs.claim(me, ["interactive"]):
    jobs.finish(taken[0], {})
    print(taken[0].id)
"""


def test_claims_race_without_losing_or_doubling(jobs: Jobs, url: str, tmp_path: Path) -> None:
    """T5."""
    processes, count = (16, 2000) if LONG else (6, 200)
    now = time.time()

    ask(jobs)
    jobs.store.write(
        lambda session: session.add_all(
            JobRow(owner="ann", kind="generate", lane="interactive", request={}, created=now) for _ in range(count - 1)
        )
    )
    begun = time.monotonic()
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, url, str(tmp_path / "bells")], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    claimed = [int(line) for racer in racers for line in (racer.communicate()[0]).split()]
    print(f"T5 {url.split(':')[0]}: {count} claims by {processes} processes in {time.monotonic() - begun:.1f} s")
    assert all(racer.returncode == 0 for racer in racers)
    assert len(claimed) == len(set(claimed)) == count


# Real processes


@pytest.fixture
def house(packages_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the tiny packages in it."""
    home = tmp_path / "home 红"
    (home / "models").mkdir(parents=True)
    for name in ("flow", "dcgan"):
        shutil.copytree(packages_folder / name, home / "models" / name)
    monkeypatch.setenv("SOJOURN_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so small a net gains nothing from two that wait for each other
    return home


SERVER = """
import sys, time
from sojourn.studio import runner, worker
from sojourn.studio.studio import Studio

runner.LEASE_S = float(sys.argv[1])
runner.CRASHES_S = 0.2
studio = Studio()
studio.work(["interactive"])
print("up", flush=True)
import signal, threading
end = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: end.set())
end.wait()
studio.close()
"""


class Server:
    """A process with a studio and its workers, as a server is."""

    def __init__(self, lease_s: float = 30.0) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, str(lease_s)], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


@pytest.fixture
def servers(house: Path) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(lease_s: float = 30.0) -> Server:
        running.append(Server(lease_s))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.end()
        assert server.process.stdout is not None
        server.process.stdout.close()


def until(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def slow(seed: int) -> dict[str, Any]:
    """A request that takes seconds."""
    return {"prompt": f"3 --model flow --n 1 --seed {seed} --steps 400"}


def working(studio: Studio) -> int | None:
    """The process that does a job now."""
    running = studio.jobs.page(states=["running"])
    workers = {row.id: row.pid for row in studio.jobs.workers() if row.lanes}
    if not running:
        return None
    with_worker = studio.store.read(lambda session: session.get(JobRow, running[0].id))
    return workers.get(with_worker.worker)  # type: ignore[union-attr,arg-type]


def test_nothing_is_lost_or_done_twice_when_the_server_is_killed(servers: Callable[..., Server], house: Path) -> None:
    """T4."""
    count = 500 if LONG else 60
    with Studio() as studio:
        first = studio.ask("generate", slow(0))
        rest = [studio.ask("generate", {"prompt": f"3 --model dcgan --n 1 --seed {i}"}) for i in range(count)]
        server = servers()
        until(lambda: studio.jobs.get(first.id).state == "running" or studio.jobs.get(first.id).over)
        server.kill()
        begun = time.monotonic()
        servers()
        until(lambda: studio.jobs.page(states=["done"]), 30)
        moving = time.monotonic() - begun
        until(lambda: studio.jobs.get(rest[-1].id).over and studio.jobs.get(first.id).over, 120)
        until(lambda: not studio.jobs.page(states=["queued", "running"]))
        print(f"T4: {count + 1} jobs, moving after {moving:.1f} s, all after {time.monotonic() - begun:.1f} s")
        jobs = [studio.jobs.get(job.id) for job in (first, *rest)]
        assert [job.state for job in jobs] == ["done"] * (count + 1)
        pictures = studio.gallery.page("local", limit=10_000)
        assert sorted(row.job or 0 for row in pictures) == sorted(job.id for job in jobs), "one picture each, no more"
        assert all(studio.blobs.has(row.sha256) for row in pictures)
        done = studio.store.read(
            lambda session: session.execute(
                select(EventRow.job, func.count()).where(EventRow.kind == "done").group_by(EventRow.job)
            ).all()
        )
        assert {row[1] for row in done} == {1}


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_dies_costs_one_try(servers: Callable[..., Server], how: str) -> None:
    """T6."""
    with Studio() as studio:
        job = studio.ask("generate", slow(1))
        server = servers()
        until(lambda: working(studio))
        os.kill(working(studio) or 0, getattr(signal, how))
        begun = time.monotonic()
        until(lambda: studio.jobs.get(job.id).attempts == 2, 30)
        print(f"T6: tried again after {time.monotonic() - begun:.1f} s")
        until(lambda: studio.jobs.get(job.id).over)
        assert studio.jobs.get(job.id).state == "done"
        again = next(event for event in studio.jobs.events(job=job.id) if event.kind == "again")
        assert how in again.data["fields"]["why"]
        assert server.process.poll() is None


def test_a_job_that_kills_its_workers_fails_with_the_reason(servers: Callable[..., Server]) -> None:
    """T6: no loop."""
    with Studio() as studio:
        poison = studio.ask("generate", slow(2))
        well = studio.ask("generate", {"prompt": "3 --model dcgan --n 1"})
        servers()
        for attempt in range(1, TRIES + 1):
            until(lambda attempt=attempt: studio.jobs.get(poison.id).attempts == attempt and working(studio))  # type: ignore[misc]
            os.kill(working(studio) or 0, signal.SIGKILL)
            until(
                lambda attempt=attempt: (
                    studio.jobs.get(poison.id).attempts != attempt or studio.jobs.get(poison.id).over
                )
            )  # type: ignore[misc]
        until(lambda: studio.jobs.get(poison.id).over)
        failed = studio.jobs.get(poison.id)
        assert failed.state == "failed"
        assert failed.error is not None
        assert "SIGKILL" in failed.error["fields"]["why"]
        until(lambda: studio.jobs.get(well.id).state == "done")


def frozen_between_writes(worker: subprocess.Popen[bytes]) -> bool:
    """Freeze a worker, but not while it holds SQLite's one lock for writing, for nobody could go on then."""
    worker.send_signal(signal.SIGSTOP)
    database = sqlite3.connect(home() / "studio.sqlite", timeout=0.5, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    except sqlite3.OperationalError:
        worker.send_signal(signal.SIGCONT)
        return False
    finally:
        database.close()
    return True


def test_a_worker_that_sleeps_through_its_lease_changes_nothing(
    servers: Callable[..., Server], request: pytest.FixtureRequest
) -> None:
    """T7, with the worker frozen and thawed by another hand than the server's."""
    with Studio() as studio:
        job = studio.ask("generate", slow(3))
        frozen = subprocess.Popen([sys.executable, "-m", "sojourn.studio.worker", "--lanes", "interactive"])
        request.addfinalizer(frozen.wait)
        request.addfinalizer(frozen.kill)
        until(lambda: working(studio) == frozen.pid)
        until(lambda: frozen_between_writes(frozen))
        servers(lease_s=4.0)
        until(lambda: studio.jobs.get(job.id).attempts == 2, 60)
        frozen.send_signal(signal.SIGCONT)
        until(lambda: studio.jobs.get(job.id).over)
        time.sleep(2.0)
        assert studio.jobs.get(job.id).state == "done"
        assert len(studio.gallery.page("local", limit=10)) == 1
        assert kinds(studio.jobs, job.id).count("done") == 1
        assert frozen.poll() is None, "it goes on as a new worker"
        frozen.terminate()
        assert frozen.wait(20) == 0


def test_a_server_that_is_told_to_end_does_so_and_keeps_all_jobs(servers: Callable[..., Server]) -> None:
    """T34."""
    with Studio() as studio:
        asked = [studio.ask("generate", slow(i)) for i in range(10)]
        server = servers()
        until(lambda: working(studio))
        begun = time.monotonic()
        assert server.end() == 0
        took = time.monotonic() - begun
        print(f"T34: ended after {took:.1f} s")
        assert took < 10
        states = [studio.jobs.get(job.id) for job in asked]
        assert {job.state for job in states} <= {"done", "queued"}
        assert all(job.attempts == 0 for job in states if job.state == "queued")
        assert all(not row.lanes for row in studio.jobs.workers()), "no worker is left"


def test_cancelling_what_runs_stops_it(servers: Callable[..., Server]) -> None:
    with Studio() as studio:
        job = studio.ask("generate", slow(4))
        servers()
        until(lambda: working(studio))
        begun = time.monotonic()
        studio.jobs.cancel(job.id)
        until(lambda: studio.jobs.get(job.id).over)
        print(f"cancelled after {time.monotonic() - begun:.2f} s")
        assert time.monotonic() - begun < 2
        assert studio.jobs.get(job.id).state == "cancelled"
        assert studio.gallery.page("local") == []


def test_walks_are_shared_and_shown(servers: Callable[..., Server]) -> None:
    with Studio() as studio:
        blocker = studio.ask("generate", slow(5))
        asks = [f"{i} --model flow --n 2 --seed {i} --steps 8" for i in range(4)]
        asked = [studio.ask("generate", {"prompt": text, "previews": 3}) for text in asks]
        odd = studio.ask("generate", {"prompt": "3 --model flow --n 1 --steps 4"})
        broken = studio.ask("generate", {"prompt": "no such class --model flow --n 1 --steps 8"})
        servers()
        seen = {job.id: [event.kind for event in studio.follow(job.id, timeout_s=60)] for job in (blocker, *asked, odd)}
        assert [seen[job.id][-1] for job in asked] == ["done"] * 4
        rows = [row for row in studio.gallery.page("local", limit=100) if row.job in {job.id for job in asked}]
        assert len(rows) == 8
        assert {row.recipe["rows"] for row in rows} == {8}, "one walk for all four, without the one that is wrong"
        assert {(row.words, row.seed) for row in rows} == {(str(i), i + k) for i in range(4) for k in range(2)}
        until(lambda: studio.jobs.get(broken.id).over)
        assert studio.jobs.get(broken.id).state == "failed"
        assert studio.jobs.get(broken.id).error["type"] == "NotFound"  # type: ignore[index]


def test_a_training_is_done_stopped_and_goes_on(
    house: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (house / "sets").mkdir()
    shutil.copytree(digits, house / "sets" / "mine")
    small = ["data=mine", "preset=tiny", "seen=4096", "batch_size=32", "snapshot=1024", "sheet=4", "held_out=32"]
    with Studio() as studio:
        studio.work(["background"])
        job = studio.ask("train", {"recipe": "dcgan", "overrides": small, "to": "made"})
        until(lambda: any(event.kind == "metric" for event in studio.jobs.events(job=job.id)))
        studio.jobs.cancel(job.id)
        until(lambda: studio.jobs.get(job.id).over)
        assert studio.jobs.get(job.id).state == "cancelled"
        more = studio.ask("train", {"recipe": "dcgan", "overrides": small, "to": "made", "goes_on": job.id})
        events = list(studio.follow(more.id, timeout_s=60))
        assert events[-1].kind == "done"
        sheets = [event for event in events if event.kind == "sheet"]
        assert sheets
        assert studio.blobs.get(sheets[-1].data["sha256"]).startswith(b"\x89PNG")
        assert min(event.data["seen"] for event in events if event.kind == "metric") > 0
    assert (house / "models" / "made" / "card.json").is_file()


def test_what_another_job_makes_is_not_made_twice(house: Path) -> None:
    with Studio() as studio:
        ask = {"recipe": "dcgan", "to": "made"}
        job = studio.ask("train", ask)
        for again in (ask, {**ask, "to": "other", "goes_on": job.id}):
            with pytest.raises(InvalidInput, match=f"job {job.id} makes"):
                studio.ask("train", again)
        studio.jobs.cancel(job.id)
        more = studio.ask("train", {**ask, "goes_on": job.id})
        with pytest.raises(InvalidInput, match=f"job {more.id} makes"):
            studio.ask("train", {**ask, "to": "other", "goes_on": job.id})
        studio.jobs.cancel(more.id)
        shutil.copytree(house / "models" / "flow", house / "models" / "made")
        studio.ask("train", {**ask, "goes_on": job.id})  # its own package, made before


def test_a_judge_from_the_network_is_a_name(house: Path) -> None:
    """A path would be looked into, and what was left beside it by a crash put in order."""
    beside = house / ".mine.old"
    beside.mkdir()
    with Studio() as studio, pytest.raises(NotFound):
        studio.ask("generate", {"prompt": f'a heart --judge "{house / "mine"}"'})
    assert beside.is_dir()


def test_wrong_requests_are_refused_before_they_are_kept(house: Path) -> None:
    (house / "sets" / "kept").mkdir(parents=True)
    with Studio() as studio:
        wrong: list[tuple[str, dict[str, Any], type[Exception], str]] = [
            ("generate", {"prompt": "a --n 400"}, PromptError, "--n is 400"),
            ("generate", {"prompt": "a --model nobody"}, NotFound, "nobody"),
            ("generate", {"prompt": "a --model ../../etc"}, NotFound, "no package"),
            ("generate", {"prompt": "a --judge ../../etc"}, NotFound, "no package"),
            ("generate", {"prompt": "a", "colour": 3}, ConfigError, "no setting colour"),
            ("generate", {"prompt": "a", "previews": 1000}, ConfigError, "previews"),
            ("edit", {"prompt": "a", "source": "../x"}, ConfigError, "source"),
            ("edit", {"prompt": "a", "source": "0" * 64, "strength": float("nan")}, ConfigError, "strength"),
            ("train", {"recipe": "nothing", "to": "x"}, NotFound, "nothing"),
            ("train", {"recipe": "dcgan", "to": "../x"}, ConfigError, "to"),
            ("train", {"recipe": "dcgan", "overrides": ["lr=0"], "to": "x"}, ConfigError, "lr"),
            ("train", {"recipe": "dcgan", "overrides": ["lr=" + "[" * 900], "to": "x"}, ConfigError, "lr"),
            ("train", {"recipe": "dcgan", "to": "emoji"}, InvalidInput, "already"),
            ("train", {"recipe": "dcgan", "to": "flow"}, InvalidInput, "already"),
            ("prepare", {"to": "kept", "path": "/tmp"}, InvalidInput, "already"),
            ("prepare", {"to": "x", "upload": "0" * 64}, NotFound, "no upload"),
            ("edit", {"prompt": "a", "source": "0" * 64}, NotFound, "no upload"),
            ("prepare", {"to": "x"}, InvalidInput, "one of the two"),
            ("evaluate", {"packages": [], "data": "x"}, ConfigError, "packages"),
        ]
        for kind, request, error, said in wrong:
            with pytest.raises(error, match=said):
                studio.ask(kind, request)
        assert studio.jobs.page() == []
        shutil.copytree(house / "models" / "flow", house / "models" / "reader")
        card = house / "models" / "reader" / "card.json"
        card.write_text(card.read_text().replace('"sample"', '"embed"'))
        with pytest.raises(Unsupported, match="does not draw"):
            studio.ask("generate", {"prompt": "3 --model reader"})


@pytest.mark.postgres
def test_a_database_that_goes_away_loses_nothing_that_was_acknowledged(postgres: str, tmp_path: Path) -> None:
    """T25: its connections are cut, again and again."""
    import psycopg

    name = f"t{time.monotonic_ns()}"
    with psycopg.connect(postgres, autocommit=True) as raw:
        raw.execute(f"CREATE DATABASE {name}")
    store, bell = Store(postgres.replace("/postgres?", f"/{name}?")), Bell(tmp_path / "bells")
    jobs = Jobs(store, bell)
    acknowledged: list[int] = []
    pauses: list[float] = []
    end = time.monotonic() + (120 if LONG else 6)

    def submit() -> None:
        while time.monotonic() < end:
            begun = time.monotonic()
            with suppress(StoreError):  # cut while it was kept: nobody knows, so it is not acknowledged
                acknowledged.append(ask(jobs).id)
            pauses.append(time.monotonic() - begun)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    cuts = 0
    with psycopg.connect(postgres, autocommit=True) as raw:
        while time.monotonic() < end:
            time.sleep(5 if LONG else 0.5)
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
            cuts += int(raw.execute(query, (name,)).fetchone()[0])  # type: ignore[index]
    for thread in threads:
        thread.join()
    print(f"T25: {len(acknowledged)} acknowledged over {cuts} cuts, {max(pauses):.2f} s at most")
    kept = store.read(lambda session: set(session.scalars(select(JobRow.id))))
    assert cuts > 5
    assert set(acknowledged) <= kept
    assert len(kept) - len(acknowledged) <= cuts, "none twice, but for those that nobody knows of"
    assert max(pauses) < 5
    bell.close()
    store.close()


def test_pictures_are_looked_at_when_nothing_else_is_to_be_done(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what their words mean, in both languages, and their colours; by a tower of pictures once there is one."""
    from sojourn.studio import towers
    from sojourn.studio.tables import PictureRow
    from sojourn.studio.work import Work

    drawn = {"a dog": "brown", "小狗": "red", "a puppy": "brown", "a bus": "brown", "公共汽车": "red", "gone": ""}
    with Studio() as studio:
        work = Work(studio.jobs, studio.blobs)
        assert not work.look(), "nothing to look at"
        ids = {}
        for words, colour in drawn.items():
            picture = Image.new("RGB", (16, 16), "white")
            if colour:
                picture.paste(colour, (4, 4, 12, 12))
            sha = studio.blobs.put(png(picture, None)) if colour else "0" * 64
            row = PictureRow(
                owner="local", sha256=sha, width=16, height=16, words=words, model="x", seed=0, recipe={}, created=0.0
            )
            ids[words] = studio.gallery.add(row)

        def alike(words: str) -> list[str]:
            row = studio.gallery.get(ids[words], "local")
            vector = np.frombuffer(row.vector or b"", np.float16).astype(np.float32)
            return [near.words for near, _ in studio.gallery.alike("local", row.tower, vector)]

        assert work.look()
        assert not work.look()
        assert alike("a dog")[:3] == ["a dog", "a puppy", "小狗"]
        assert alike("公共汽车")[:2] == ["公共汽车", "a bus"]
        assert "gone" not in alike("a dog")

        class Tower:
            package = work.model("flow").package
            card = package.card
            family: Any = type(
                "Family", (), {"can": {"embed"}, "embed_pictures": staticmethod(lambda x: x.flatten(1)[:, :16])}
            )

        monkeypatch.setattr(towers, "tower", lambda: towers.Tower("eye", "eye-1"))
        monkeypatch.setattr(work, "model", lambda name: Tower)
        assert work.look(), "another tower looks at all of them anew"
        assert not work.look()
        assert studio.gallery.get(ids["a dog"], "local").tower == "eye-1"
        assert set(alike("小狗")) == drawn.keys() - {"gone"}
