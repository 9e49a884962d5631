"""Waits for jobs without threads: one ear on the bell and one reader of events for all requests of a server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.concurrency import run_in_threadpool

from sojourn.errors import SojournError
from sojourn.studio.bell import Bell
from sojourn.studio.ledger import OVER, Happened, Job
from sojourn.studio.studio import Studio

LOOK_S = 2.0
"""Without a ring, the database is looked at so often: a ring may be lost."""
BACK = 200
"""So many ids back events are looked for again: PostgreSQL commits them in another order than it numbers them."""

MOST = 1000
"""Events of one look at the database."""
KEPT = 1000
"""Events that wait for one reader at most."""

Wants = Callable[[Happened], bool]
Queue = asyncio.Queue[Happened]


class Hub:
    """Events of a studio for the requests of one event loop."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._ear = Bell(studio.bell.folder)
        self._rung = asyncio.Event()
        self._readers: dict[Queue, Wants] = {}
        self._rings: deque[tuple[int, str]] = deque(maxlen=64)
        self._ring = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to hear. In the running loop."""
        asyncio.get_running_loop().add_reader(self._ear.listen(), self._hear)
        self._pump = asyncio.get_running_loop().create_task(self._run())

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
        last = await run_in_threadpool(self.studio.jobs.latest)
        dealt: deque[int] = deque(maxlen=2 * BACK)
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._rung.wait(), LOOK_S)
            self._rung.clear()
            try:
                after = last if self.studio.store.local else max(last - BACK, 0)
                events = await run_in_threadpool(self.studio.jobs.events, after)
            except SojournError:
                continue  # the database is away; it is asked again
            for event in events:
                if event.id in dealt:
                    continue
                dealt.append(event.id)
                last = max(last, event.id)
                for queue, wants in self._readers.items():
                    if wants(event):
                        queue.put_nowait(event)
                    if queue.qsize() > KEPT:  # who is so slow looks at the database again
                        while not queue.empty():
                            queue.get_nowait()
            if len(events) >= MOST:
                self._rung.set()  # there are more

    @contextmanager
    def _reading(self, wants: Wants) -> Iterator[Queue]:
        queue: Queue = asyncio.Queue()
        self._readers[queue] = wants
        try:
            yield queue
        finally:
            del self._readers[queue]

    async def follow(self, job: int, after: int = 0) -> AsyncIterator[Happened | None]:
        """Events of a job as they happen, until it is over; None where nothing did for a while."""
        with self._reading(lambda event: event.job == job) as queue:
            while True:
                over, events = await run_in_threadpool(self._look, job, after)
                for event in events:
                    after = event.id
                    yield event
                if len(events) >= MOST:
                    continue  # there are more
                if over:
                    return
                while (heard := await _next(queue)) is not None:
                    if heard.id <= after:
                        continue
                    after = heard.id
                    yield heard
                    if heard.kind in OVER:
                        return
                yield None

    async def watch(self, owner: str, after: int) -> AsyncIterator[Happened | None]:
        """Events of all jobs of an owner, without an end."""
        with self._reading(lambda event: event.owner == owner) as queue:
            told: deque[int] = deque(maxlen=2 * KEPT)
            while True:
                for event in await run_in_threadpool(self.studio.jobs.events, after, None, owner):
                    after = event.id
                    if event.id not in told:
                        told.append(event.id)
                        yield event
                while (heard := await _next(queue)) is not None:
                    after = max(after, heard.id)
                    if heard.id not in told:
                        told.append(heard.id)
                        yield heard
                yield None

    async def over(self, job: int) -> Job:
        """A job once it is over."""
        async for _ in self.follow(job):
            pass
        return await run_in_threadpool(self.studio.jobs.get, job)

    def _look(self, job: int, after: int) -> tuple[bool, list[Happened]]:
        over = self.studio.jobs.get(job).over  # first: the events of an end come with it
        return over, self.studio.jobs.events(after, job)


async def _next(queue: Queue) -> Happened | None:
    """The next event, or None after a while without one."""
    try:
        return await asyncio.wait_for(queue.get(), LOOK_S)
    except TimeoutError:
        return None
