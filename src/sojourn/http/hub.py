"""Waits for jobs without threads: one ear on the bell and one reader of events for all requests of a server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool

from sojourn.errors import SojournError
from sojourn.studio.bell import Bell
from sojourn.studio.ledger import OVER, Happened, Job
from sojourn.studio.studio import Studio

LOOK_S = 2.0
"""Without a ring, the database is looked at so often: a ring may be lost."""
THREADS = 4
"""Looks at the database at once: where it is away, those who listen do not take the threads of those who ask."""
MOST = 1000
"""Events of one look at the database."""
KEPT = 1000
"""Events that wait for one reader at most."""

T = TypeVar("T")
Wants = Callable[[Happened], bool]


@dataclass(eq=False)
class Reader:
    """One who listens. None in the queue wakes without an event."""

    wants: Wants
    queue: asyncio.Queue[Happened | None] = field(default_factory=asyncio.Queue)
    lost: bool = False
    """Whether it was so slow that events were let go: it reads them from the database."""

    def give(self, event: Happened) -> None:
        if self.lost or not self.wants(event):
            return
        if self.queue.qsize() >= KEPT:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.lost = True
        self.queue.put_nowait(None if self.lost else event)

    async def next(self) -> Happened | None:
        """The next event; None after a while without one, and where some were lost."""
        try:
            return await asyncio.wait_for(self.queue.get(), LOOK_S)
        except TimeoutError:
            return None


class Hub:
    """Events of a studio for the requests of one event loop."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._ear = Bell(studio.bell.folder)
        self._rung = asyncio.Event()
        self._readers: set[Reader] = set()
        self._threads = CapacityLimiter(THREADS)
        self.ending = False
        self._rings: deque[tuple[int, str]] = deque(maxlen=64)
        self._ring = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to hear. In the running loop."""
        asyncio.get_running_loop().add_reader(self._ear.listen(), self._hear)
        self._pump = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        """The server ends: wake those who listen to what has no end, that they may stop."""
        self.ending = True
        for reader in self._readers:
            reader.queue.put_nowait(None)

    def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        asyncio.get_running_loop().remove_reader(self._ear.listen())
        self._ear.close()

    def _hear(self) -> None:
        for word in self._ear.heard() - {"event"}:
            self._rings.append((self._rings[-1][0] + 1 if self._rings else 1, word))
            self._ring.set()
            self._ring = asyncio.Event()
        self._rung.set()

    async def rings(self, after: int, wait_s: float) -> tuple[int, list[str]]:
        """What was rung after the ring of that number, as soon as something was, and the number of the last."""
        if not self._rings or self._rings[-1][0] == after:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ring.wait(), wait_s)
        last = self._rings[-1][0] if self._rings else 0
        fresh = {word for number, word in self._rings if number > after or after > last}  # > last: another server's
        return last, sorted(fresh)

    async def _run(self) -> None:
        """Read what is new once for all, and deal it out."""
        last: int | None = None
        while True:
            try:
                if last is None:
                    last = await self._asked(self.studio.jobs.latest)
                events = await self._asked(self.studio.jobs.events, last, None, None, MOST)
            except SojournError:
                events = []  # the database is away; it is asked again
            for event in events:
                last = event.id
                for reader in self._readers:
                    reader.give(event)
            if len(events) < MOST:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._rung.wait(), LOOK_S)
                self._rung.clear()

    async def _asked(self, what: Callable[..., T], *more: object) -> T:
        return await anyio.to_thread.run_sync(what, *more, limiter=self._threads)

    @contextmanager
    def _reading(self, wants: Wants) -> Iterator[Reader]:
        reader = Reader(wants)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

    async def follow(self, job: int, after: int = 0) -> AsyncGenerator[Happened | None, None]:
        """Events of a job as they happen, until it is over; None where nothing did for a while."""
        with self._reading(lambda event: event.job == job) as reader:
            while True:
                reader.lost = False  # before the look, which sees what was let go
                over, events = await self._asked(self._look, job, after)
                for event in events:
                    after = event.id
                    yield event
                if len(events) >= MOST:
                    continue  # there are more
                if over:
                    return
                while (heard := await reader.next()) is not None:
                    if heard.id <= after:
                        continue
                    after = heard.id
                    yield heard
                    if heard.kind in OVER:
                        return
                yield None

    async def watch(self, owner: str, after: int) -> AsyncGenerator[Happened | None, None]:
        """Events of all jobs of an owner, without an end; None where nothing happened for a while."""
        with self._reading(lambda event: event.owner == owner) as reader:
            while True:
                reader.lost = False
                events = await self._asked(self.studio.jobs.events, after, None, owner, MOST)
                for event in events:
                    after = event.id
                    yield event
                if len(events) >= MOST:
                    continue  # there are more
                while (heard := await reader.next()) is not None:
                    if heard.id <= after:
                        continue
                    after = heard.id
                    yield heard
                yield None

    async def over(self, job: int) -> Job:
        """A job once it is over."""
        async for _ in self.follow(job):
            pass
        return await run_in_threadpool(self.studio.jobs.get, job)

    def _look(self, job: int, after: int) -> tuple[bool, list[Happened]]:
        over = self.studio.jobs.get(job).over  # first: the events of an end come with it
        return over, self.studio.jobs.events(after, job, None, MOST)
