"""What stands before every route: hosts and origins, keys, sizes and speeds of bodies, headers of answers.

Plain ASGI, so that it also holds for what no route takes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sojourn import safefile
from sojourn.errors import PackageError, SojournError, translate
from sojourn.http.answers import RETRY_S, body
from sojourn.studio.keys import Caller, Keys

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "sojourn_key"
log = logging.getLogger("sojourn.http")
LOCAL = Caller("local", "admin")
"""Who asks where there is no key: anyone on this machine."""
OPEN = {"/health"}
"""Routes for everyone."""
DOORS = {"/login", "/static", "/v1/files"}
"""What is needed to come in, the page to log in and its files; and addresses of pictures that are keys themselves."""
WORKERS = "/api/v1/workers/"
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


HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self';"
    " object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}


class Denied(HTTPException):
    """The request goes no further. Raised while a route reads the body, too: as the kind that FastAPI lets through."""

    def __init__(self, status: int, template: str, code: str | None = None, **more: Any) -> None:
        self.status, self.template, self.code = status, template, code
        told: dict[str, str] = more.pop("headers", {})
        self.fields = more
        super().__init__(status, template.format(**more) if more else template, told)


@dataclass
class Guard:
    """The middleware. `names`: host names by which this server is called, besides addresses and localhost."""

    app: App
    keys: Keys
    names: frozenset[str] = frozenset()
    limits: Limits = Limits()
    _seen: OrderedDict[str, tuple[float, Caller]] = field(default_factory=OrderedDict)
    _locked: tuple[float, bool] | None = None
    _counts: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = frozenset(name.lower() for name in self.names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        id, begun, status = uuid.uuid4().hex, time.monotonic(), 500
        scope["state"] = {**scope.get("state", {}), "request_id": id}
        started = False

        async def answer(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                if status == 401 and scope["method"] == "POST" and scope["path"] == "/login":
                    self._tally(f"wrong {(scope.get('client') or ('?',))[0]}")
                message = {**message, "headers": _headers(message.get("headers", []), id)}
            await send(message)

        headers = _Headers(scope["headers"])
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
                raise Denied(400, "the address holds a NUL character")
            scope["state"]["caller"] = await self._caller(scope, headers)
            self._count(scope)
            await self.app(scope, await self._body(scope, headers, receive), answer)
        except Denied as denied:
            if not started:
                await self._deny(denied, headers, answer)
        except ClientDisconnect:
            return  # nobody reads
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))  # the message may hold what people wrote
            log.error("%s failed: %s\n%s", id, type(error).__name__, frames)
            if started:
                return
            fault = Denied(500, "a fault of the server; its log tells more under {id}", "server_error", id=id)
            await self._deny(fault, headers, answer)
        finally:
            took = (time.monotonic() - begun) * 1000
            path = safefile.printable(scope["path"], 200)
            log.info("%s %s %s %.1f ms %s", scope["method"], path, status, took, id)

    # Who

    def _check_host(self, headers: _Headers) -> None:
        """A name that is not ours is a page elsewhere that had its name point here (DNS rebinding)."""
        hosts = headers.all("host")
        name = _hostname(hosts[0]) if len(hosts) == 1 else ""
        if name != "localhost" and name not in self.names and not _address(name):
            raise Denied(421, "this server is not called that; use its address, or start it with --name", "wrong_host")

    def _check_origin(self, scope: Scope, headers: _Headers) -> None:
        """What another page's script sends is refused, whatever it carries."""
        origins = headers.all("origin")
        own = headers.first("host").lower()
        if origins and (len(origins) > 1 or origins[0].lower() not in (f"http://{own}", f"https://{own}")):
            raise Denied(403, "requests of other pages are refused", "wrong_origin")
        site, mode = headers.first("sec-fetch-site"), headers.first("sec-fetch-mode")
        comes_in = scope["method"] == "GET" and mode == "navigate" and not scope["path"].startswith(("/api", "/v1"))
        if site in ("cross-site", "same-site") and not comes_in:
            raise Denied(403, "requests of other pages are refused", "wrong_origin")

    async def _caller(self, scope: Scope, headers: _Headers) -> Caller | None:
        """Whose request this is."""
        path = scope["path"]
        if path in OPEN or not await self._is_locked():
            return LOCAL
        given, sent = headers.all("authorization"), headers.first("authorization")
        key = sent[7:].strip() if sent[:7].lower() == "bearer " and len(given) == 1 else _cookie(headers)
        address = (scope.get("client") or ("?",))[0]
        if key and len(key) < 200:
            held = self._seen.get(key)
            if held is not None and time.monotonic() - held[0] < 2.0:
                return held[1]
            found = await run_in_threadpool(self.keys.caller, key)
            if found is not None:
                self._seen[key] = (time.monotonic(), found)
                while len(self._seen) > 1000:
                    self._seen.popitem(last=False)
                return found
            if self._tally(f"wrong {address}") > self.limits.wrong:
                raise Denied(429, "too many wrong keys; wait a minute", "rate_limit_exceeded", headers=_later(60))
        at_door = any(path == door or path.startswith(door + "/") for door in DOORS)
        if at_door and (scope["method"] == "GET" or (scope["method"], path) == ("POST", "/login")):
            if scope["method"] == "POST" and self._told(f"wrong {address}") >= self.limits.wrong:
                raise Denied(429, "too many wrong keys; wait a minute", "rate_limit_exceeded", headers=_later(60))
            return None
        if not key and scope["method"] == "GET" and "text/html" in headers.first("accept"):
            raise Denied(303, "log in first", headers={"location": "/login"})
        raise Denied(401, "no key, or a wrong one; send `Authorization: Bearer KEY`", "invalid_api_key",
                     headers={"www-authenticate": "Bearer"})  # fmt: skip

    async def _is_locked(self) -> bool:
        """Whether a key is needed; looked at once a second while none is. With the last key the door stays shut."""
        if self._locked is None or (not self._locked[1] and time.monotonic() - self._locked[0] > 1.0):
            self._locked = (time.monotonic(), await run_in_threadpool(self.keys.any))
        return self._locked[1]

    # How much

    def _told(self, name: str) -> int:
        begun, count = self._counts.get(name, (0.0, 0))
        return count if time.monotonic() - begun < 60 else 0

    def _tally(self, name: str) -> int:
        """How often, this time included, in the minute that began with the first."""
        now = time.monotonic()
        begun, count = self._counts.get(name, (now, 0))
        if now - begun >= 60:
            begun, count = now, 0
        if len(self._counts) > 10_000:
            self._counts = {key: value for key, value in self._counts.items() if now - value[0] < 60}
        self._counts[name] = (begun, count + 1)
        return count + 1

    def _count(self, scope: Scope) -> None:
        caller = scope["state"]["caller"]
        if scope["path"] in OPEN or (caller is not None and caller.scope == "worker"):
            return
        who = caller.owner if caller is not None else f"at {(scope.get('client') or ('?',))[0]}"
        if self._tally(f"of {who}") > self.limits.per_minute:
            raise Denied(429, "more than {count} requests in a minute; wait a little", "rate_limit_exceeded",
                         headers=_later(RETRY_S), count=self.limits.per_minute)  # fmt: skip

    async def _body(self, scope: Scope, headers: _Headers, receive: Receive) -> Receive:
        """A `receive` that gives up on bodies that are too large, too slow or, as JSON, unsound."""
        kind = headers.first("content-type").partition(";")[0].strip().lower()
        as_json = kind == "application/json" or kind.endswith("+json")
        upload = kind == "multipart/form-data" or scope["method"] == "PUT"
        most = self.limits.upload_bytes if upload else self.limits.json_bytes
        caller = scope["state"]["caller"]
        if scope["path"].startswith(WORKERS) and caller is not None and caller.may("worker"):
            most = self.limits.upload_bytes  # previews of many pictures
        length = headers.first("content-length")
        if length and headers.first("transfer-encoding"):  # a proxy may see another end of the body than we do
            raise Denied(400, "the body has two lengths", headers={"connection": "close"})
        if length and (not re.fullmatch("[0-9]{1,18}", length) or int(length) > most):
            raise Denied(413, "the body has {size} bytes, at most {most}", "too_large",
                         headers={"connection": "close"}, size=length[:20], most=most)  # fmt: skip
        limited = _Slow(receive, most, self.limits, scope.get("sojourn.crumbs", bool))
        if not as_json:
            return limited
        data = bytearray()
        while True:
            message = await limited()
            if message["type"] != "http.request":
                return limited
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        if len(data) > self.limits.json_bytes:
            await run_in_threadpool(_check_json, bytes(data))
        elif data:
            _check_json(bytes(data))
        return _replayed(bytes(data), receive)

    async def _deny(self, denied: Denied, headers: _Headers, send: Send) -> None:
        lang = "zh" if headers.first("accept-language").lower().startswith("zh") else "en"
        template = translate(denied.template, lang)
        text = template.format(**denied.fields) if denied.fields else template
        data = json.dumps(body(denied.status, text, None, denied.code), ensure_ascii=False).encode()
        told = {"content-type": "application/json", "content-length": str(len(data)), **(denied.headers or {})}
        raw = [(name.encode(), value.encode()) for name, value in told.items()]
        await send({"type": "http.response.start", "status": denied.status, "headers": raw})
        await send({"type": "http.response.body", "body": data})


class _Headers:
    """Header values by name in lower case."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def all(self, name: str) -> list[str]:
        return [value.decode("latin-1") for key, value in self._raw if key == name.encode()]

    def first(self, name: str) -> str:
        return next(iter(self.all(name)), "")


class _Slow:
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


def _replayed(data: bytes, receive: Receive) -> Receive:
    """A body that was read already, once more."""
    told = False

    async def again() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": data, "more_body": False}
        return await receive()

    return again


def _check_json(data: bytes) -> None:
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


def _headers(raw: list[tuple[bytes, bytes]], id: str) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that all answers have."""
    have = {name.lower() for name, _ in raw}
    more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in have]
    if b"cache-control" not in have:
        more.append((b"cache-control", b"no-store"))
    return [*raw, *more, (b"x-request-id", id.encode())]


def _later(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


def _cookie(headers: _Headers) -> str:
    try:
        found = SimpleCookie(headers.first("cookie")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


def _hostname(host: str) -> str:
    """The name in a Host header, "" for one that is none."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]").lower() if match else ""


def _address(name: str) -> bool:
    """Whether it is an address and no name: nobody can make an address point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
