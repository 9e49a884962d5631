"""Jobs that somebody waits for over the OpenAI-compatible API: begun, followed, let go when the caller goes away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from sojourn.errors import InvalidInput, NotFound, Unsupported
from sojourn.http.answers import EVENTS, Refusal, body, kept, refused, said
from sojourn.http.site import Site, owner, site
from sojourn.studio.ledger import Happened, Job

PING_S = 15.0


async def begun(request: Request, kind: str, asked: dict[str, Any]) -> Job:
    """The job that is asked for. Raises Refusal with the field that is wrong."""
    here, who = site(request), owner(request)
    try:
        return await run_in_threadpool(lambda: here.ask(kind, asked, who))
    except NotFound as error:
        raise refused(error, "model", "model_not_found") from None
    except Unsupported as error:
        raise refused(error, "model", "unsupported_model") from None
    except InvalidInput as error:
        raise refused(error, "prompt", "invalid_prompt") from None


def failure(job: Job, param: str) -> Refusal:
    """Why a job was not done. It would fail again: the client's library is told not to send it once more."""
    told = kept(job.error)
    told.headers["x-should-retry"] = "false"
    if told.status < 500:  # what a package does not know is no address that does not exist
        told.status, told.param, told.code = 400, param, "invalid_prompt"
    return told


STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": EVENTS}}
"""What the document says beside JSON of routes that answer with a Stream where one is asked for."""


class Stream(StreamingResponse):
    """Server-sent events of jobs that nobody wants when the reader is gone."""

    def __init__(self, here: Site, jobs: Sequence[Job], content: AsyncIterator[bytes]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self.here, self.jobs = here, jobs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(run_in_threadpool(let_go, self.here, self.jobs))


async def waited(request: Request, here: Site, jobs: Sequence[Job]) -> list[Job]:
    """The jobs once they are over, unless the caller goes away before."""
    waiting = asyncio.gather(*(here.hub.over(job.id) for job in jobs))
    leaving = asyncio.ensure_future(_left(request))
    both: set[asyncio.Future[Any]] = {waiting, leaving}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return list(waiting.result())
        raise Refusal(400, "the caller went away")
    finally:
        leaving.cancel()
        if not waiting.done():
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            await asyncio.shield(run_in_threadpool(let_go, here, jobs))


def let_go(here: Site, jobs: Sequence[Job]) -> None:
    """Cancel what is not over."""
    for job in jobs:
        if not here.studio.jobs.get(job.id).over:
            here.studio.jobs.cancel(job.id)


async def _left(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def pinging(here: Site, job: Job) -> AsyncIterator[Happened | bytes]:
    """Events of a job until it is over, and a comment now and then where nothing happens."""
    told = time.monotonic()
    async for happened in here.hub.follow(job.id):
        if happened is not None:
            yield happened
        elif time.monotonic() - told > PING_S:
            told = time.monotonic()
            yield b": ping\n\n"


def sse(data: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event. Never with an id: the client's library then stumbles over comments."""
    head = f"event: {name}\n" if name else ""
    text = json.dumps(data, ensure_ascii=False)
    for odd in "\x85\u2028\u2029":  # ends of lines to some readers
        text = text.replace(odd, f"\\u{ord(odd):04x}")
    return f"{head}data: {text}\n\n".encode()


def fault(refusal: Refusal, lang: str) -> bytes:
    """An error within a stream."""
    return sse(body(refusal.status, said(refusal, lang), refusal.param, refusal.code))
