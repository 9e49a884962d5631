"""Processes that decode strangers' pictures: limited in time and memory, killed and replaced when they go over.

The parent side is `Pool`; `python -m sojourn.data.pool` is the child. Neither knows about sets or needs torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from sojourn.data import clean
from sojourn.data.clean import Refused
from sojourn.errors import DataError

_BATCH = 32
_BATCH_BYTES = 8 << 20
_STARTS = 3
_START_S = 60


@dataclass(frozen=True)
class Work:
    """What is done to every file, and what it may cost."""

    width: int
    height: int
    fit: clean.Fit | Literal["within"] = "crop"
    """within: whole, in its own shape, no larger than that, and be it empty: it may be a mask."""
    fill: clean.Background = "white"
    limits: clean.Limits = field(default_factory=clean.Limits)
    time_s: float = 2.0
    """CPU seconds a file: a busy machine refuses no more than an idle one."""
    clock_s: float = 60.0
    """Seconds on the clock a file, against reads that hang."""
    memory_bytes: int = 512 << 20
    """Address space beyond what an idle process has."""


@dataclass(frozen=True)
class Job:
    """One file: a path, or bytes that are fetched when its turn comes (`load` may raise Refused)."""

    path: str = ""
    load: Callable[[], bytes] | None = None


@dataclass
class Result:
    """What became of a job: `pixels`, or the `reason` why not."""

    pixels: np.ndarray | None = None
    """uint8 (height, width, 1|3|4)."""
    size: tuple[int, int] = (0, 0)
    """Width and height in the file, upright."""
    notes: list[str] = field(default_factory=list)
    sha: str = ""
    phash: int = 0
    reason: str = ""
    detail: str = ""


class Pool:
    """`count` child processes, started when needed. Close it: `with Pool(work) as pool`."""

    def __init__(self, work: Work, count: int | None = None) -> None:
        self.work = work
        self.count = count or min(8, os.cpu_count() or 1)
        self._stop = threading.Event()
        self._children: list[_Child] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Iterable[Job], tick_s: float = 0.5) -> Iterator[tuple[int, Result] | None]:
        """(position, result) in the order they finish, and None whenever `tick_s` passed without one."""
        source, lock = enumerate(jobs), threading.Lock()
        results: queue.Queue[tuple[int, Result] | BaseException | None] = queue.Queue(maxsize=256)

        def put(value: tuple[int, Result] | BaseException | None) -> None:
            while not self._stop.is_set():
                with contextlib.suppress(queue.Full):
                    results.put(value, timeout=0.2)
                    return

        def drive(child: _Child) -> None:
            try:
                entry: tuple[int, Job] | None = (0, Job())
                while entry is not None and not self._stop.is_set():
                    todo: list[_Todo] = []
                    while len(todo) < _BATCH and sum(len(t.data) for t in todo) < _BATCH_BYTES:
                        with lock:
                            entry = next(source, None)
                        if entry is None:
                            break
                        try:
                            todo.append(_Todo(entry[0], entry[1].path, entry[1].load() if entry[1].load else b""))
                        except Refused as refused:
                            put((entry[0], Result(reason=refused.reason, detail=refused.detail)))
                    for found in child.do(todo):
                        put(found)
            except BaseException as error:  # raised again where run() is consumed
                put(error)
            finally:
                child.close()
                put(None)

        self._children = [_Child(self.work, self._stop) for _ in range(self.count)]
        self._threads = [threading.Thread(target=drive, args=(child,), daemon=True) for child in self._children]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()
        running = self.count
        while running:
            try:
                value = results.get(timeout=tick_s)
            except queue.Empty:
                yield None
                continue
            if value is None:
                running -= 1
            elif isinstance(value, BaseException):
                raise value
            else:
                yield value

    def close(self) -> None:
        """End the children; a running `run` ends too."""
        self._stop.set()
        for child in self._children:
            child.kill()
        for thread in self._threads:
            thread.join(timeout=10)

    def _watch(self) -> None:
        while not self._stop.wait(0.1) and any(t.is_alive() for t in self._threads[:-1]):
            for child in self._children:
                child.check_clock()


@dataclass(frozen=True)
class _Todo:
    index: int
    path: str
    data: bytes


class _Child:
    """One process and the pipe to it. A message is a length, JSON, and the bytes that the JSON announces."""

    def __init__(self, work: Work, stop: threading.Event) -> None:
        self._work = work
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None
        self._due: float | None = None
        self._late = False

    def do(self, todo: list[_Todo]) -> Iterator[tuple[int, Result]]:
        """Results in order. When the process dies, the file it was at is tried once more alone, then refused."""
        alone = False
        while todo and not self._stop.is_set():
            batch, done = todo[:1] if alone else todo, 0
            try:
                self._start()
                self._send({"jobs": [[t.path, len(t.data)] for t in batch]}, b"".join(t.data for t in batch))
                for entry in batch:
                    yield entry.index, self._result()
                    done += 1
                alone = False
            except (OSError, EOFError):
                reason, detail = self._cause()
                if reason or alone:
                    yield batch[done].index, Result(reason=reason or "crashed the decoder", detail=detail)
                    done, alone = done + 1, False
                else:
                    alone = True
            todo = todo[done:]

    def _start(self) -> None:
        for attempt in range(_STARTS):
            if self._process is not None or self._stop.is_set():
                return
            try:
                self._process = _spawn()
                self._late = False
                self._send(asdict(self._work))
                self._due = time.monotonic() + _START_S
                self._receive()
            except (OSError, EOFError) as error:
                reason = self._cause()[1] or str(error)
                if attempt + 1 == _STARTS and not self._stop.is_set():
                    raise DataError(
                        "the process that decodes pictures does not start ({reason})", reason=reason
                    ) from None

    def _send(self, message: dict[str, Any], data: bytes = b"") -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        _write(self._process.stdin, message, data)

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            return _read(self._process.stdout)
        finally:
            self._due = None

    def _result(self) -> Result:
        self._due = time.monotonic() + self._work.clock_s
        answer, data = self._receive()
        shape = answer.pop("shape", None)
        size = tuple(answer.pop("size", (0, 0)))
        pixels = np.frombuffer(data, np.uint8).reshape(shape) if shape else None
        return Result(pixels=pixels, size=(size[0], size[1]), **answer)

    def _cause(self) -> tuple[str, str]:
        """Why the process ended: a reason when it went over its time, else "", and its exit in words."""
        process, self._process, self._due = self._process, None, None
        if process is None:
            return "", ""
        process.kill()
        code = process.wait()
        _shut(process)
        profiled = getattr(signal, "SIGPROF", None)
        if self._late or (profiled is not None and code == -profiled):
            return "too slow", f"more than {self._work.time_s:g} s"
        return "", signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def check_clock(self) -> None:
        """Kill the process when the file at hand is past its time on the clock."""
        due = self._due
        if due is not None and time.monotonic() > due:
            self._late = True
            self.kill()

    def kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _shut(process)


def _spawn() -> subprocess.Popen[bytes]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", "sojourn.data.pool"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **one, "PYTHONPATH": path},
        start_new_session=True,
    )


def _shut(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _write(pipe: Any, message: dict[str, Any], data: bytes = b"") -> None:
    head = json.dumps(message).encode()
    pipe.write(struct.pack("<II", len(head), len(data)) + head)
    pipe.write(data)
    pipe.flush()


def _read(pipe: Any) -> tuple[dict[str, Any], bytes]:
    lengths = pipe.read(8)
    if len(lengths) < 8:
        raise EOFError
    head, size = struct.unpack("<II", lengths)
    message, data = pipe.read(head), pipe.read(size)
    if len(message) < head or len(data) < size:
        raise EOFError
    return json.loads(message), data


def _confine(work: Work) -> None:
    """Limits that hold for the rest of this process's life: no files written, no core, bounded memory."""
    if sys.platform == "win32":
        return
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + work.memory_bytes, now + work.memory_bytes))


def _clean(file: BinaryIO, work: Work) -> tuple[dict[str, Any], bytes]:
    picture = clean.read(file, work.limits, (work.width, work.height))
    if work.fit == "within":
        scale = min(1.0, work.width / picture.image.width, work.height / picture.image.height)
        wide, high = (max(1, round(side * scale)) for side in picture.image.size)
        fitted = clean.fit(picture.image, wide, high)
    else:
        fitted = clean.fit(picture.image, work.width, work.height, work.fit, work.fill)
    pixels = clean.pixels(fitted)
    if pixels.shape[2] == 4 and not pixels[:, :, 3].any() and work.fit != "within":
        raise Refused("nothing visible", "every pixel is transparent")
    answer = {"size": picture.size, "notes": picture.notes, "shape": pixels.shape}
    return {**answer, "sha": clean.fingerprint(pixels), "phash": clean.perceptual_hash(pixels)}, pixels.tobytes()


def _answer(path: str, data: bytes, work: Work) -> tuple[dict[str, Any], bytes]:
    try:
        with open(path, "rb") if path else io.BytesIO(data) as file:
            return _clean(file, work)
    except Refused as refused:
        return {"reason": refused.reason, "detail": refused.detail}, b""
    except MemoryError:
        return {"reason": "too much memory", "detail": f"more than {work.memory_bytes >> 20} MiB"}, b""
    except OSError as error:
        return {"reason": "cannot be read", "detail": error.strerror or str(error)}, b""


def main() -> None:
    """The child: answers on what was its standard output, until its input ends."""
    source, channel = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    settings, _ = _read(source)
    work = Work(**{**settings, "limits": clean.Limits(**settings["limits"])})
    Image.init()
    _confine(work)
    _write(channel, {})
    timer = getattr(signal, "setitimer", None)  # its signal ends the process; Windows has the parent's clock only
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            message, data = _read(source)
            start = 0
            for path, size in message["jobs"]:
                if timer:
                    timer(signal.ITIMER_PROF, work.time_s)
                answer, pixels = _answer(path, data[start : start + size], work)
                if timer:
                    timer(signal.ITIMER_PROF, 0)
                start += size
                _write(channel, answer, pixels)


if __name__ == "__main__":
    main()
