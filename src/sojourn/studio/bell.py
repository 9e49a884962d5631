"""Wakes processes of one machine: whoever changed the database rings, and those who wait look at it.

A ring carries a word or two and no truth: what was missed is found in the database, a false one costs a look. Each
listener has a UDP port on the loopback, and a file with the port's number for a name.
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
WORD_BYTES = 64


class Bell:
    """Rings all others that share `folder`. `listen` first where rings are to be heard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.setblocking(False)
        self._in: socket.socket | None = None
        self._mark: Path | None = None

    def listen(self) -> socket.socket:
        """Begin to hear; the socket becomes readable when it rings."""
        if self._in is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._in.bind((LOOPBACK, 0))
            self._in.setblocking(False)
            self._mark = self.folder / str(self._in.getsockname()[1])
            self._mark.write_text(str(os.getpid()))
        return self._in

    def wait(self, timeout_s: float) -> set[str]:
        """What was rung since the last call, once something was; empty after timeout_s without a ring."""
        ear = self.listen()
        select.select([ear], [], [], timeout_s)
        return self.heard()

    def heard(self) -> set[str]:
        """What was rung since the last call, without waiting."""
        words: set[str] = set()
        ear = self.listen()
        while True:
            try:
                words.add(ear.recv(WORD_BYTES).decode("ascii", "replace"))
            except (BlockingIOError, ConnectionError):
                return words

    def ring(self, word: str) -> None:
        """Wake everyone; `word` says what about: a lane with a new job, "job" for any, "stop", "event"."""
        own = self._mark.name if self._mark else ""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return
        for name in names:
            if name == own or not name.isdigit():
                continue
            try:
                self._out.sendto(word.encode("ascii"), (LOOPBACK, int(name)))
            except (BlockingIOError, OSError, OverflowError):
                continue  # who does not hear looks at the database by and by

    def sweep(self) -> None:
        """Remove the marks of processes that are no more."""
        for path in self.folder.glob("[0-9]*"):
            try:
                alive = psutil.pid_exists(int(path.read_text()))
            except (OSError, ValueError):
                continue  # just being written
            if not alive:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
        for end in (self._in, self._out):
            if end is not None:
                end.close()
