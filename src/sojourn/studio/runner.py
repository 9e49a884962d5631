"""Keeps the worker processes of this machine alive, and buries those that died or stand still.

A worker stands still when its count of beats did not change for a lease, by this process's own monotonic clock: no
clock is compared with another, so none can jump.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sojourn.errors import SojournError
from sojourn.studio.jobs import Jobs
from sojourn.studio.ledger import Fenced
from sojourn.studio.process import born, here
from sojourn.studio.worker import BEAT_S, DATABASE

log = logging.getLogger("sojourn.studio")
LEASE_S = 12.0
"""Without a sign of life for so long, a worker is taken for dead."""
PATIENCE_S = 6.0
"""How long workers have to end in peace."""
SWEEP_S = 3600.0
"""Time between two sweeps."""
CRASHES_S = 5.0
"""Pause before a worker that died within its first seconds is started again."""


class Runner:
    """Worker processes for a list of lanes ("interactive", "background"), one each."""

    def __init__(
        self, jobs: Jobs, lanes: Sequence[str] = ("interactive", "background"), sweep: Callable[[], object] = bool
    ) -> None:
        """sweep: what is done once an hour, to keep the house."""
        self.jobs, self.lanes, self.lease_s, self.sweep = jobs, tuple(lanes), LEASE_S, sweep
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Bury what an earlier life left, and start."""
        self._me: int | None = self._enlist()  # first: what is to be done here waits for us
        self._bury_dead()
        self._threads = [threading.Thread(target=self._keep, args=(lane,), daemon=True) for lane in self.lanes]
        self._threads.append(threading.Thread(target=self._watch, name="watch", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all workers: in peace, or after a while not; their jobs wait for the next start."""
        with self._lock:  # none is being started
            self.closing.set()
            processes = list(self._processes.values())
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + PATIENCE_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._processes.clear()
        with suppress(SojournError):  # the next start does it
            self._bury_dead()

    def pids(self) -> dict[str, int]:
        """Lane -> process."""
        return {lane: process.pid for lane, process in self._processes.items() if process.poll() is None}

    def _keep(self, lane: str) -> None:
        """Start the worker of a lane again and again."""
        while not self.closing.is_set():
            begun = time.monotonic()
            try:
                with self._lock:
                    if self.closing.is_set():
                        return
                    process = self._started(lane)
                    self._processes[lane] = process
                code = process.wait()
                if self.closing.is_set():
                    return
                self._bury(process.pid, _cause(code))
            except (SojournError, OSError) as error:  # no room, or the database is away: the next round buries it
                log.warning("the worker of lane %s: %s", lane, error)
            if time.monotonic() - begun < CRASHES_S:
                self.closing.wait(CRASHES_S)

    def _started(self, lane: str) -> subprocess.Popen[bytes]:
        """A worker process. The database's address may hold a password: it goes where others do not see it."""
        url = self.jobs.store.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "sojourn.studio.worker", "--lanes", lane, "--parent", str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, DATABASE: url})

    def _bury(self, pid: int, why: str) -> None:
        host = here()
        for row in self.jobs.workers():
            if row.host == host and row.pid == pid:
                self.jobs.bury(row.id, why)

    def _bury_dead(self) -> None:
        """Workers of this machine whose process is no more."""
        host = here()
        ours = {process.pid for process in list(self._processes.values())}  # those `_keep` buries, and knows why
        for row in self.jobs.workers():
            if row.host == host and row.pid not in ours and born(row.pid) != row.born:
                self.jobs.bury(row.id, "its process is gone")

    def _enlist(self) -> int:
        """As one that starts workers: it keeps the place of jobs whose files are here."""
        return self.jobs.enlist(here(), os.getpid(), str(born(os.getpid())), [f"keeps {lane}" for lane in self.lanes])

    def _watch(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        me = self._me
        swept = -SWEEP_S
        while not self.closing.wait(BEAT_S):
            try:
                if me is None:
                    me = self._enlist()
                begun = time.monotonic()
                self.jobs.beat(me)
                if time.monotonic() - begun > BEAT_S:
                    seen.clear()  # nobody could write: standing still says nothing
                    continue
                self._look(seen)
                self._bury_dead()
                if time.monotonic() - swept > SWEEP_S:
                    swept = time.monotonic()
                    self.sweep()
            except Fenced:
                me = None
            except (SojournError, OSError) as error:
                seen.clear()
                log.warning("watching the workers: %s", error)
        if me is not None:
            with suppress(SojournError):
                self.jobs.bury(me, "it was stopped")

    def _look(self, seen: dict[int, tuple[int, float]]) -> None:
        """Find those whose count of beats stands still. seen: count and since when, of each."""
        now = time.monotonic()
        for row in self.jobs.workers():
            beats, since = seen.get(row.id, (-1, now))
            if row.beats != beats:
                seen[row.id] = (row.beats, now)
            elif now - since > self.lease_s:
                self._still(row.id, row.host, row.pid, row.beats)

    def _still(self, worker: int, host: str, pid: int, beats: int) -> None:
        """Take a worker for dead; one of ours is killed, and `_keep` starts another."""
        if self.jobs.bury(worker, f"no sign of life for {self.lease_s:g} s", beats) is None:
            return
        for process in list(self._processes.values()):
            if process.pid == pid and host == here() and process.poll() is None:
                process.kill()


def _cause(code: int) -> str:
    """Why a process ended, in words."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"{name}{hint}"
    return f"exit code {code}"
