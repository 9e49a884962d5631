"""The process that serves: uvicorn, with an end to what it leaves open for ever."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sojourn.errors import InvalidInput
from sojourn.http.app import create_app
from sojourn.http.bodies import Limits
from sojourn.studio.studio import Studio

HEADERS_S = 10.0
"""Seconds that the head of a request may take."""
SHUTDOWN_S = 2
"""Seconds that answers have to end when the server does; jobs go on with the next one. With the time that workers have
it stays below the ten seconds after which many a supervisor kills."""
MOST = 1000
"""Connections at once."""
CRUMBS = (4096, 64)
"""A body of more pieces than the first, of fewer bytes each than the second, is refused: a piece costs some 20 us."""


class Counted(h11.Connection):
    """Counts the pieces of a body, and takes no more of one that comes in crumbs."""

    pieces = size = 0

    def next_event(self) -> Any:
        if self.crumbs():
            return h11.PAUSED
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
        elif isinstance(event, h11.Data):
            self.pieces += 1
            self.size += len(event.data)
        return event

    def crumbs(self) -> bool:
        return self.pieces > CRUMBS[0] and self.size < self.pieces * CRUMBS[1]


class Hasty(H11Protocol):
    """Closes a connection whose next request does not come, head and all, in time (slow-loris), and cuts off a reader
    who hardly takes anything of what is sent."""

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None
    _left = 0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn = self._counted = Counted(h11.SERVER, self.config.h11_max_incomplete_event_size or 64 << 10)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADERS_S, self._late)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.scope["sojourn.crumbs"] = self._counted.crumbs  # type: ignore[typeddict-unknown-key]
            self._stop("_timer")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._end()
        elif self.cycle.response_complete:
            self._stop("_timer")
            self._timer = self.loop.call_later(HEADERS_S, self._late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop("_watch")

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_timer")
        super().connection_lost(exc)
        self._stop("_watch")
        self._unset_keepalive_if_required()

    def _late(self) -> None:
        """No request came."""
        if self.cycle is None or self.cycle.response_complete:
            self._end()

    def _end(self) -> None:
        """Close, once what was written is taken; it must be taken in time."""
        self.transport.close()
        if self._watch is None and self.transport.get_write_buffer_size():
            self._look()

    def _look(self) -> None:
        self._stop("_watch")
        self._left = self.transport.get_write_buffer_size()
        self._watch = self.loop.call_later(self.limits.send_s, self._stuck)

    def _stuck(self) -> None:
        taken = self._left - self.transport.get_write_buffer_size()
        if taken < self.limits.slowest_bytes and self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._look()

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


class Lines(logging.Formatter):
    """What is logged as a JSON object a line: when, how grave, and what."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")}
        told |= {"level": record.levelname.lower()}
        told |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def run(
    studio: Studio,
    host: str,
    port: int,
    names: Iterable[str],
    told: Callable[[str], None],
    limits: Limits | None = None,
    works: bool = True,
) -> int:
    """Serve until a signal; the exit code. told: hears the address once it answers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once only where a socket names its protocol; else a body waits 40 ms for its head
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        studio.close()
        raise InvalidInput(
            "cannot listen on {host} port {port}: {why}; choose another with --port",
            host=host, port=port, why=error.strerror,
        ) from None  # fmt: skip
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    protocol = type("Here", (Hasty,), {"limits": limits or Limits()})
    app = create_app(studio, names=names, limits=limits, works=works)
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, timeout_keep_alive=10,
        timeout_graceful_shutdown=SHUTDOWN_S, limit_concurrency=MOST, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            told(url)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.site.hub.end()  # it waits for all answers, and these have no end
            await super().shutdown(sockets)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _heard)  # uvicorn sends them once more when it has ended
    Server(config).run(sockets=[listener])
    return 0


def _room_for_files() -> None:
    """As many open files as connections want, where the system lets us."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST if hard == resource.RLIM_INFINITY else min(4 * MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _heard(number: int, frame: object) -> None:
    """The server ended in peace: so does the process."""
