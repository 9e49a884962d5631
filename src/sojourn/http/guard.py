"""What stands before every route: hosts and origins, keys, how much is asked, headers of answers.

Plain ASGI, so that it also holds for what no route takes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import re
import time
import traceback
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from sojourn import safefile
from sojourn.errors import SojournError, translate
from sojourn.http.answers import RETRY_S, body, refused
from sojourn.http.bodies import (
    App,
    Denied,
    Limits,
    Message,
    Receive,
    Scope,
    Send,
    Slow,
    check_json,
    replayed,
)
from sojourn.studio.keys import Caller, Keys

COOKIE = "sojourn_key"
log = logging.getLogger("sojourn.http")
LOCAL = Caller("local", "admin")
"""Who asks where there is no key: anyone on this machine."""
OPEN = {"/health"}
"""Routes for everyone."""
DOORS = {"/login", "/logout", "/language", "/static", "/v1/files"}
"""What is needed to come in, the page to log in and its files; and addresses of pictures that are keys themselves."""
PUSHED = {"/login", "/logout", "/language"}
"""Doors that take a POST."""
LIGHT = re.compile(r"/static/.*|/v1/files/.*|/api/v1/(pictures/\d+/file|jobs/\d+/artifacts/.*|models/.*/sheet)")
"""Files that a page asks for by the dozen: counted apart, or who scrolls a gallery could not draw any more."""
FILES = 10
"""So many times the requests of a minute may be for these."""
SEEN_S = 2.0
"""How long a key that was found is believed."""
WORKERS = "/api/v1/workers/"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self';"
    " object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
}


@dataclass
class Guard:
    """The middleware. `names`: host names by which this server is called, besides addresses and localhost."""

    app: App
    keys: Keys
    names: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
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
            caller = scope["state"]["caller"] = await self._caller(scope, headers)
            scope["state"]["holds"] = lambda: self._holds(headers, caller)
            self._count(scope)
            await self.app(scope, await self._body(scope, headers, receive), answer)
        except Denied as denied:
            if not started:
                await self._deny(denied, headers, answer)
        except ClientDisconnect:
            return  # nobody reads
        except SojournError as error:  # the database is away
            told = refused(error)
            if not started:
                again = Denied(told.status, told.template, headers=told.headers)
                again.fields = told.fields
                await self._deny(again, headers, answer)
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
            line = {"method": scope["method"], "path": path, "status": status, "ms": round(took, 1), "id": id}
            log.info("%(method)s %(path)s %(status)s %(ms)s ms %(id)s", line, extra={"fields": line})

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
        method, path = scope["method"], scope["path"]
        if path in OPEN or not await self._is_locked():
            return LOCAL
        key, by_cookie = _key(headers)
        address = (scope.get("client") or ("?",))[0]
        at_door = any(path == door or path.startswith(door + "/") for door in DOORS)
        at_door = at_door and (method == "GET" or (method == "POST" and path in PUSHED))
        # A browser brings its cookie everywhere, also one that is worth nothing any more.
        if key and not (at_door and by_cookie):
            if (found := await self._known(key)) is not None:
                return found
            if self._guessed(address, key):
                raise Denied(429, "too many wrong keys; wait a minute", "rate_limit_exceeded", headers=_later(60))
        if at_door:
            if (method, path) == ("POST", "/login") and self._told(f"wrong {address}") >= self.limits.wrong:
                raise Denied(429, "too many wrong keys; wait a minute", "rate_limit_exceeded", headers=_later(60))
            return None
        if (not key or by_cookie) and method == "GET" and "text/html" in headers.first("accept"):
            gone = {"set-cookie": f"{COOKIE}=; Max-Age=0; Path=/; HttpOnly; SameSite=strict"} if by_cookie else {}
            raise Denied(303, "log in first", headers={"location": "/login", **gone})
        raise Denied(401, "no key, or a wrong one; send `Authorization: Bearer KEY`", "invalid_api_key",
                     headers={"www-authenticate": "Bearer"})  # fmt: skip

    async def _known(self, key: str) -> Caller | None:
        """Whose key this is; looked up once in SEEN_S."""
        held = self._seen.get(key)
        if held is not None and time.monotonic() - held[0] < SEEN_S:
            return held[1]
        found = await run_in_threadpool(self.keys.caller, key)
        self._seen.pop(key, None)
        if found is not None:
            self._seen[key] = (time.monotonic(), found)
            while len(self._seen) > 1000:
                self._seen.popitem(last=False)
        return found

    def _guessed(self, address: str, key: str) -> bool:
        """Whether a wrong key is one more than an address may try; the same one counts once in a minute."""
        name = f"key {address} {hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"
        if self._told(name):
            return False
        if self._tally(f"wrong {address}") > self.limits.wrong:
            return True
        self._tally(name)
        return False

    async def _holds(self, headers: _Headers, caller: Caller | None) -> bool:
        """Whether the caller of a request that goes on may still come in: keys are taken back."""
        if not await self._is_locked():
            return caller == LOCAL
        key, _ = _key(headers)
        return bool(key) and await self._known(key) == caller

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
        most = self.limits.per_minute
        if scope["method"] == "GET" and LIGHT.fullmatch(scope["path"]):
            who, most = f"{who}, files", most * FILES
        if self._tally(f"of {who}") > most:
            raise Denied(429, "more than {count} requests in a minute; wait a little", "rate_limit_exceeded",
                         headers=_later(RETRY_S), count=most)  # fmt: skip

    async def _body(self, scope: Scope, headers: _Headers, receive: Receive) -> Receive:
        """A `receive` that gives up on bodies that are too large, too slow or, as JSON, unsound."""
        kind = headers.first("content-type").partition(";")[0].strip().lower()
        as_json = kind == "application/json" or kind.endswith("+json")
        upload = kind == "multipart/form-data" or (scope["method"] == "PUT" and not as_json)
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
        limited = Slow(receive, most, self.limits, scope.get("sojourn.crumbs", bool))
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
            await run_in_threadpool(check_json, bytes(data))
        elif data:
            check_json(bytes(data))
        return replayed(bytes(data), receive)

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


def _headers(raw: list[tuple[bytes, bytes]], id: str) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that all answers have."""
    have = {name.lower() for name, _ in raw}
    more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in have]
    if b"cache-control" not in have:
        more.append((b"cache-control", b"no-store"))
    return [*raw, *more, (b"x-request-id", id.encode())]


def _later(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}


def _key(headers: _Headers) -> tuple[str, bool]:
    """The key of a request, "" for none or what can be none, and whether a browser brought it as its cookie."""
    given, sent = headers.all("authorization"), headers.first("authorization")
    by_header = sent[:7].lower() == "bearer " and len(given) == 1
    key = sent[7:].strip() if by_header else _cookie(headers)
    return (key, not by_header) if 0 < len(key) < 200 else ("", False)


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
