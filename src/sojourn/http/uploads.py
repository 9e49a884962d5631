"""Strangers' pictures: decoded in a process that can be killed, kept as plain PNG."""

from __future__ import annotations

import threading
from typing import BinaryIO

import anyio
import anyio.to_thread
from PIL import Image

from sojourn.data.clean import Limits
from sojourn.data.pool import Job, Pool, Work
from sojourn.http.answers import Refusal
from sojourn.picture import png
from sojourn.studio.blobs import Blobs

WAITING = 32
"""Uploads that may wait to be looked at."""
SIDE = 2048
"""Uploads keep their shape, no side longer than this: what packages draw is smaller."""


class Uploads:
    """A pool of one process, started with the first upload."""

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._pool = Pool(Work(SIDE, SIDE, "within", limits=Limits(file_bytes=64 << 20)), count=1)
        self._lock = threading.Lock()
        self._limiter = anyio.CapacityLimiter(1)

    async def decoded(self, data: bytes | BinaryIO, param: str) -> Image.Image:
        """The picture in an upload. None of the threads that answer waits for it. Raises Refusal (400, 429).

        A file is read when its turn comes: those that wait are not in memory.
        """
        if self._limiter.statistics().tasks_waiting >= WAITING:
            raise Refusal(429, "too many uploads at once; wait a little", code="rate_limit_exceeded",
                          headers={"Retry-After": "5", "x-should-retry": "false"})  # fmt: skip
        return await anyio.to_thread.run_sync(self.picture, data, param, limiter=self._limiter)

    def picture(self, data: bytes | BinaryIO, param: str) -> Image.Image:
        """The picture in an upload. Raises Refusal (400)."""
        with self._lock:
            raw = data if isinstance(data, bytes) else data.read()
            result = next(filter(None, self._pool.run([Job(load=lambda: raw)])))[1]
        if result.pixels is None:
            why = f"{result.reason} ({result.detail})" if result.detail else result.reason
            raise Refusal(
                400, "the upload is no picture that can be used: {why}", param=param, code="invalid_image", why=why
            )
        pixels = result.pixels
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def keep(self, picture: Image.Image) -> str:
        """Its bytes as a blob; the name."""
        return self.blobs.put(png(picture, None))

    def close(self) -> None:
        self._pool.close()
