"""A server for tests: as an app in this process, or as a process of its own with sockets."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import psutil
from fastapi.routing import APIRoute
from PIL import Image
from starlette.testclient import TestClient

from sojourn.http.app import create_app
from sojourn.http.bodies import Limits
from sojourn.studio.studio import Studio
from sojourn.studio.tables import PictureRow

LONG = bool(os.environ.get("SOJOURN_SOAK"))
"""Whether the long forms run: `make soak`."""
FREE = Limits(per_minute=10**9)
CODE = """
import asyncio, json, signal, sys
from sojourn.http.bodies import Limits
from sojourn.http.server import run
from sojourn.studio.studio import Studio

def told(url):
    print(f"the studio is at {url}", flush=True)
    signal.signal(signal.SIGUSR1, lambda *_: print("tasks:", len(asyncio.all_tasks()), flush=True))

sys.exit(run(Studio(), "127.0.0.1", 0, (), told, Limits(**json.loads(sys.argv[1])), works=False))
"""


@contextmanager
def app(limits: Limits = FREE, **headers: str) -> Iterator[tuple[TestClient, Studio]]:
    """A client of an app without workers, and its studio."""
    studio = Studio()
    made = create_app(studio, works=False, limits=limits)
    with TestClient(made, base_url="http://127.0.0.1", headers=headers, follow_redirects=False) as client:
        yield client, studio


def routes(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of every route of the app, also of those that nobody has written yet."""
    found: list[tuple[str, str]] = []

    def walk(several: Any) -> None:
        for route in several:
            if isinstance(route, APIRoute) or hasattr(route, "methods"):
                found.extend((method, route.path) for method in sorted(route.methods or ()))
            elif inner := getattr(route, "routes", None) or getattr(
                getattr(route, "original_router", None), "routes", None
            ):
                walk(inner)

    walk(client.app.routes)  # type: ignore[attr-defined]
    assert len(found) > 30
    return found


def filled(path: str, value: str) -> str:
    """A route's path with all its parameters filled in."""
    return re.sub(r"{[^}]+}", lambda _: value, path)


def noise(side: int = 32, seed: int = 0) -> bytes:
    """A PNG that does not compress."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def picture(studio: Studio, owner: str = "local", words: str = "a cat", data: bytes | None = None) -> int:
    """A picture in the gallery; its id."""
    data = data or noise()
    row = PictureRow(
        owner=owner, sha256=studio.blobs.put(data), width=32, height=32, words=words, model="emoji", seed=1,
        recipe={"prompt": words, "name": "emoji"}, created=time.time(),
    )  # fmt: skip
    return studio.gallery.add(row)


def generate(prompt: str, **more: Any) -> dict[str, Any]:
    return {"kind": "generate", "request": {"prompt": prompt, **more}}


def sent(client: TestClient, method: str, target: str, data: bytes = b"", **headers: str) -> tuple[int, bytes, str]:
    """Status, body and type of the answer to a target that no client library has tidied."""
    told: list[dict[str, Any]] = []
    raw, _, query = target.partition("?")
    given = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
        "scheme": "http", "headers": [(k.encode(), v.encode()) for k, v in given.items()], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    bodies = [{"type": "http.request", "body": data, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return bodies.pop() if bodies else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    async def call() -> None:
        await client.app(scope, receive, send)  # type: ignore[arg-type]

    assert client.portal is not None
    client.portal.call(call)
    kind = dict(told[0]["headers"]).get(b"content-type", b"").decode()
    return told[0]["status"], b"".join(part.get("body", b"") for part in told[1:]), kind


class Served:
    """A server process; its output goes to a file."""

    def __init__(self, folder: Path, *command: str, before: tuple[str, ...] = (), **limits: float) -> None:
        import json

        self.log = folder / f"log-{time.monotonic_ns()}"
        made = [*before, sys.executable, *(command or ("-c", CODE, json.dumps({"per_minute": 10**9, **limits})))]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(made, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.said())):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="surrogateescape")

    def rss(self) -> float:
        """MiB in memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def holds(self) -> tuple[int, int]:
        """Tasks of its event loop, and open files."""
        before = self.said().count("tasks:")
        self.process.send_signal(signal.SIGUSR1)
        while len(found := re.findall(r"tasks: (\d+)\n", self.said())) == before:
            time.sleep(0.01)
        return int(found[-1]), psutil.Process(self.process.pid).num_fds()

    def open(self, timeout: float = 60.0, buffer: int | None = None) -> socket.socket:
        made = socket.socket()
        if buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.settimeout(timeout)
        made.connect(("127.0.0.1", self.port))
        return made

    def ask(self, data: bytes, timeout: float = 60.0) -> bytes:
        """What comes back for these bytes until the server closes, or after a second of silence."""
        with self.open(timeout) as link:
            out = b""
            try:
                link.sendall(data)
                while select.select([link], [], [], timeout if not out else 1.0)[0] and (got := link.recv(65536)):
                    out += got
            except (ConnectionError, TimeoutError):
                pass
            return out

    def end(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * 0.99))]
