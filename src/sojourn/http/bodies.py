"""Bodies as they come in: their size, their speed, and JSON that every parser reads the same. Knows no caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from sojourn import safefile
from sojourn.errors import PackageError, SojournError

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
DEPTH = 64
"""How deep a JSON body may nest."""


@dataclass(frozen=True)
class Limits:
    """How much, and how fast."""

    json_bytes: int = 1 << 20
    upload_bytes: int = 64 << 20
    body_s: float = 15.0
    """Seconds a body may take, and one more for each slowest_bytes of it."""
    slowest_bytes: int = 16 << 10
    send_s: float = 60.0
    """Seconds after which a reader who took less than slowest_bytes is let go."""
    per_minute: int = 1200
    """Requests of a caller in a minute."""
    wrong: int = 10
    """Wrong keys from one address in a minute."""


class Denied(HTTPException):
    """The request goes no further. Raised while a route reads the body, too: as the kind that FastAPI lets through."""

    def __init__(self, status: int, template: str, code: str | None = None, **more: Any) -> None:
        self.status, self.template, self.code = status, template, code
        told: dict[str, str] = more.pop("headers", {})
        self.fields = more
        super().__init__(status, template.format(**more) if more else template, told)


class Slow:
    """`receive` with a size and a time that the whole body may take. crumbs: whether it comes in tiny pieces."""

    def __init__(self, receive: Receive, most: int, limits: Limits, crumbs: Callable[[], bool]) -> None:
        self.receive, self.most, self.limits, self.crumbs = receive, most, limits, crumbs
        self.size, self.begun, self.whole = 0, time.monotonic(), False

    async def __call__(self) -> Message:
        if self.whole:
            return await self.receive()
        allowed = self.limits.body_s + self.size / self.limits.slowest_bytes
        left = self.begun + allowed - time.monotonic()
        try:
            message = await asyncio.wait_for(self.receive(), max(left, 0.01))
        except TimeoutError:
            raise Denied(408, "the body came too slowly", "timeout", headers={"connection": "close"}) from None
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.whole = not message.get("more_body")
            if self.crumbs():
                raise Denied(
                    413, "the body comes in too many tiny pieces", "too_large", headers={"connection": "close"}
                )
            if self.size > self.most:
                raise Denied(413, "the body has {size} bytes, at most {most}", "too_large",
                             headers={"connection": "close"}, size=self.size, most=self.most)  # fmt: skip
        return message


def replayed(data: bytes, receive: Receive) -> Receive:
    """A body that was read already, once more."""
    told = False

    async def again() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": data, "more_body": False}
        return await receive()

    return again


def check_json(data: bytes) -> None:
    """Refuse what parsers read differently, or at a cost: double keys, NaN, half characters, depth, huge numbers."""
    try:
        value = safefile.parse_json(data, "body")
    except PackageError as error:
        reason = str(error.fields.get("reason", "it is not an object"))
        raise Denied(400, "the body is not sound JSON: {reason}", "invalid_json", reason=reason) from None
    except SojournError as error:
        raise Denied(400, error.template, "invalid_json", **error.fields) from None
    if reason := _unsound(value):
        raise Denied(400, "the body is not sound JSON: {reason}", "invalid_json", reason=reason)


def _unsound(value: Any) -> str:
    """What databases or other parsers would choke on: an integer beyond 64 bits, a NUL, depth. "" = nothing."""
    level = [value]
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif type(item) is int and not -(2**63) <= item < 2**63:
                return "a number beyond 64 bits"
            elif isinstance(item, str) and "\0" in item:
                return "a NUL character"
        if not deeper:
            return ""
        level = deeper
    return "it is nested too deeply"
