"""A process that does jobs: claims what waits in its lanes, and can be killed at any moment without harm.

    python -m sojourn.studio.worker --lanes interactive [--database URL] [--parent PID]

One thread works. Another listens: it gives signs of life, hears what is to stop, and ends the process in peace when
its parent is gone.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from sojourn.card import home
from sojourn.studio.asks import DEFAULT
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.jobs import Fenced, Jobs
from sojourn.studio.process import born
from sojourn.studio.store import Store

BEAT_S = 2.0
"""Seconds between signs of life."""
ROOM = 32
"""Rows of one walk that several jobs share at most."""


class Worker:
    """One worker of a store."""

    def __init__(self, url: str | None, lanes: Sequence[str], parent: int | None = None) -> None:
        self.lanes, self.parent = tuple(lanes), parent
        self.bell = Bell(home() / "bells")
        self.bell.listen()
        self.jobs = Jobs(Store(url), self.bell)
        self.blobs = Blobs(home() / "blobs")
        self.wake = threading.Event()
        self.closing = threading.Event()
        self._stops: set[int] = set()
        self.id = self._enlist()

    def run(self) -> None:
        """Work until told to end."""
        from sojourn.studio.work import Work

        listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        listener.start()
        if "interactive" not in self.lanes:
            stand_back()
        work = Work(self.jobs, self.blobs, lambda: self._stops, self.closing.is_set)
        if "interactive" in self.lanes:
            self._warm(work)
        while not self.closing.is_set():
            self.wake.clear()
            try:
                taken = self.jobs.claim(self.id, self.lanes, ROOM if "interactive" in self.lanes else 1)
            except Fenced:  # taken for dead while it slept: what it had is others' by now
                self.id = self._enlist()
                continue
            if taken:
                work.do(taken)
            elif "background" not in self.lanes or not work.look():
                self.wake.wait(BEAT_S)
        self.jobs.bury(self.id, "it was stopped")
        self.bell.close()

    def end(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Finish the step at hand, give the job back, end. A signal handler."""
        self.closing.set()
        self.wake.set()

    def _enlist(self) -> int:
        return self.jobs.enlist(socket.gethostname(), os.getpid(), str(born(os.getpid())), self.lanes)

    @staticmethod
    def _warm(work: object) -> None:
        """Have the default package in memory, and everything that drawing imports."""
        from sojourn.errors import SojournError
        from sojourn.studio.work import Work

        assert isinstance(work, Work)
        try:
            model = work.model(DEFAULT)
            for _ in model.walk(model.request("a red heart", n=1, seed=0, steps=1)):
                pass
        except SojournError as error:
            print(f"{DEFAULT}: {error}", file=sys.stderr)

    def _listen(self) -> None:
        beaten = 0.0
        while not self.closing.is_set():
            words = self.bell.wait(BEAT_S)
            if "job" in words:
                self.wake.set()
            try:
                if time.monotonic() - beaten >= BEAT_S:
                    beaten = time.monotonic()
                    self._stops = self.jobs.beat(self.id)
                elif "stop" in words:
                    self._stops = self.jobs.stopped(self.id)
            except Fenced:
                self._stops = set()
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
    parser.add_argument("--database", help="URL of the database. Default: the file in the home folder.")
    parser.add_argument("--lanes", default="interactive,background")
    parser.add_argument("--parent", type=int, help="End when this process is gone.")
    given = parser.parse_args()
    lanes = given.lanes.split(",")
    worker = Worker(given.database, lanes, given.parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.end)
    worker.run()


if __name__ == "__main__":
    main()
