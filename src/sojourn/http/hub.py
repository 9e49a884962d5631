"""Waits for jobs without threads: one ear on the bell for all requests of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from sojourn.studio.bell import Bell
from sojourn.studio.jobs import Happened, Job
from sojourn.studio.studio import Studio

LOOK_S = 2.0
"""Without a ring, the database is looked at so often: a ring may be lost."""


class Hub:
    """Events of a studio for the requests of one event loop."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._ear = Bell(studio.bell.folder)
        self._rung = asyncio.Event()

    def open(self) -> None:
        """Begin to hear. In the running loop."""
        asyncio.get_running_loop().add_reader(self._ear.listen(), self._hear)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ear.listen())
        self._ear.close()

    def _hear(self) -> None:
        self._ear.heard()
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def follow(self, job: int, after: int = 0) -> AsyncIterator[Happened | None]:
        """Events of a job as they happen, until it is over; None where nothing did for a while."""
        while True:
            rung = self._rung
            over, events = await run_in_threadpool(self._look, job, after)
            for event in events:
                after = event.id
                yield event
            if over:
                return
            if not await _rang(rung):
                yield None

    async def watch(self, owner: str, after: int) -> AsyncIterator[Happened | None]:
        """Events of all jobs of an owner, without an end."""
        while True:
            rung = self._rung
            events = await run_in_threadpool(self.studio.jobs.events, after, None, owner)
            for event in events:
                after = event.id
                yield event
            if not events and not await _rang(rung):
                yield None

    async def over(self, job: int) -> Job:
        """A job once it is over."""
        async for _ in self.follow(job):
            pass
        return await run_in_threadpool(self.studio.jobs.get, job)

    def _look(self, job: int, after: int) -> tuple[bool, list[Happened]]:
        over = self.studio.jobs.get(job).over  # first: the events of an end come with it
        return over, self.studio.jobs.events(after, job)


async def _rang(rung: asyncio.Event) -> bool:
    try:
        await asyncio.wait_for(rung.wait(), LOOK_S)
    except TimeoutError:
        return False
    return True
