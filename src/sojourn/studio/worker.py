"""A process that does jobs: claims what waits in its lanes, and can be killed at any moment without harm.

    python -m sojourn.studio.worker --lanes interactive [--parent PID]

One thread works. Another listens: it gives signs of life, hears what is to stop, and ends the process in peace when
its parent is gone.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from sojourn.card import home
from sojourn.errors import Forbidden, SojournError
from sojourn.studio.asks import DEFAULT
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.jobs import Jobs
from sojourn.studio.ledger import Fenced, Job
from sojourn.studio.process import born, here
from sojourn.studio.store import Store

if TYPE_CHECKING:
    from sojourn.studio.work import Work

DATABASE = "SOJOURN_DATABASE"
"""Environment variable with the database's URL, for a worker that a server starts."""
BEAT_S = 2.0
"""Seconds between signs of life."""
ROOM = 32
"""Rows of one walk that several jobs share at most."""
GATHER_S = 0.008
"""How long a walk waits for another job that can go along; again after each that came."""
PAUSES = 2
"""So many times more where there is company already: where some ask at once, more do."""


class Worker:
    """One worker, of a studio on this machine or of one elsewhere: what differs are jobs, ear and work."""

    def __init__(self, jobs: Jobs, ear: Bell, lanes: Sequence[str], parent: int | None = None) -> None:
        """ear: tells of new jobs. jobs and ear may be anything that has the methods used here."""
        self.lanes, self.parent, self.jobs, self.ear = tuple(lanes), parent, jobs, ear
        self.wake = threading.Event()
        self.closing = threading.Event()
        self._stops: set[int] = set()
        self._forbidden: Forbidden | None = None
        """Why the listener ended it."""
        self.id = self._enlist()

    @classmethod
    def of(cls, url: str | None, lanes: Sequence[str], parent: int | None = None) -> Worker:
        """A worker of this machine's studio, whose rows are in the database at `url`."""
        bell = Bell(home() / "bells")
        bell.listen()
        return cls(Jobs(Store(url), bell), bell, lanes, parent)

    def make(self) -> Work:
        """What does the jobs. In the thread that does them."""
        from sojourn.studio.work import Work

        if "interactive" not in self.lanes:
            self.jobs.store.steady()
        return Work(self.jobs, Blobs(home() / "blobs"), lambda: self._stops, self.closing.is_set)

    def run(self) -> None:
        """Work until told to end."""
        listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        listener.start()
        work = self.make()
        from sojourn.train.room import give_back  # torch is here by now

        busy = False
        if "interactive" in self.lanes:
            self._warm(work)
        else:
            stand_back()
        while not self.closing.is_set():
            self.wake.clear()
            try:
                taken = self.jobs.claim(self.id, self.lanes, ROOM if "interactive" in self.lanes else 1)
                if taken:
                    busy = True
                    work.do(self._joined(taken))
                    continue
            except Fenced:  # taken for dead while it slept: what it had is others' by now
                with suppress(SojournError):
                    self.id = self._enlist()
                    continue
            except Forbidden:
                raise
            except SojournError as error:
                print(f"waiting: {error}", file=sys.stderr)
                self.closing.wait(BEAT_S)
                continue
            if "background" not in self.lanes or not work.look():
                idle = not self.wake.wait(BEAT_S)
                if busy and idle:
                    give_back()
                    busy = False
        with suppress(SojournError):
            self.jobs.bury(self.id, "it was stopped")
        self.ear.close()
        if self._forbidden is not None:
            raise self._forbidden

    def _joined(self, taken: list[Job]) -> list[Job]:
        """What was claimed, with what comes in just now and can go along: people ask at once, one after the other."""
        batch = taken[0].batch if taken[0].attempts == 1 else ""
        quiet = 0
        while batch and (room := ROOM - sum(job.rows for job in taken)) > 0:
            time.sleep(GATHER_S)
            more = self.jobs.claim(self.id, self.lanes, room, batch)
            taken += more
            quiet = 0 if more else quiet + 1
            if quiet > (PAUSES if len(taken) > 1 else 0):
                break
        return taken

    def end(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Finish the step at hand, give the job back, end. A signal handler."""
        self.closing.set()
        self.wake.set()

    def _enlist(self) -> int:
        return self.jobs.enlist(here(), os.getpid(), str(born(os.getpid())), self.lanes)

    @staticmethod
    def _warm(work: Work) -> None:
        """Have the default package in memory, and everything that drawing imports."""
        try:
            model = work.model(DEFAULT)
            for _ in model.walk(model.request("a red heart", n=1, seed=0, steps=1)):
                pass
        except SojournError as error:
            print(f"{DEFAULT}: {error}", file=sys.stderr)

    def _listen(self) -> None:
        beaten = 0.0
        while not self.closing.is_set():
            words = self.ear.wait(BEAT_S)
            if words & {"job", *self.lanes}:
                self.wake.set()
            try:
                if time.monotonic() - beaten >= BEAT_S:
                    beaten = time.monotonic()
                    self._stops = self.jobs.beat(self.id)
                elif "stop" in words:
                    self._stops = self.jobs.stopped(self.id)
            except Fenced:
                self._stops = set()
            except Forbidden as error:
                self._forbidden = error
                self.end()
            except SojournError:
                pass  # the database is away; it may come back
            except Exception:  # without signs of life all that it does is in vain: whatever it was, go on
                traceback.print_exc()
            if self.parent is not None and os.getppid() != self.parent:
                self.end()


def stand_back() -> None:
    """Compute in this thread, and in those it starts, only where nobody else would.

    Threads of a matrix product wait for one another: at a mere lower priority, a training that gets a core for a moment
    holds up both of a walk's. The listener stays as it is, so that signs of life get through.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


def main() -> None:
    parser = argparse.ArgumentParser(prog="sojourn worker", description="Do the jobs of a studio.")
    parser.add_argument("--lanes", default="interactive,background")
    parser.add_argument("--parent", type=int, help="End when this process is gone.")
    given = parser.parse_args()
    lanes = given.lanes.split(",")
    worker = Worker.of(os.environ.get(DATABASE), lanes, given.parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.end)
    worker.run()


if __name__ == "__main__":
    main()
