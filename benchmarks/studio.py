"""What the studio costs beside drawing itself: ratios and times of one run, on a quiet machine.

    python benchmarks/studio.py

A server of its own in an empty home. Prints the time from POST to the first step of an idle worker, eight prompts at
once against one call of the same rows, pictures beside a training against pictures alone, and a GET beside a training.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS = 20
PROMPT = "a red heart --n 4 --steps 4 --model emoji"


def call(url: str, data: Any = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def ask(url: str, prompt: str, previews: int = 0) -> int:
    request = {"kind": "generate", "request": {"prompt": prompt, "previews": previews}}
    return int(call(f"{url}/api/v1/jobs", request)["id"])


def events(url: str, job: int) -> dict[str, float]:
    """Kind of each event -> when it came first, until the job is over."""
    seen: dict[str, float] = {}
    with urllib.request.urlopen(f"{url}/api/v1/jobs/{job}/events", timeout=300) as stream:
        for line in stream:
            if line.startswith(b"event: "):
                seen.setdefault(line[7:].strip().decode(), time.perf_counter())
    return seen


def whole(url: str, prompt: str) -> float:
    """Seconds from asking to the end."""
    begun = time.perf_counter()
    return events(url, ask(url, prompt))["done"] - begun


def spread(times: list[float]) -> str:
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"p50 {1000 * statistics.median(ordered):.0f} ms, p95 {1000 * p95:.0f} ms"


def at_once(url: str, prompts: list[str]) -> tuple[float, list[float]]:
    """Seconds until all are done, and of each."""
    took: list[float] = []
    threads = [threading.Thread(target=lambda p=prompt: took.append(whole(url, p))) for prompt in prompts]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun, took


@contextmanager
def served() -> Iterator[tuple[str, Path]]:
    """A server of its own in an empty home: its address, and the home."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "SOJOURN_HOME": home, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sojourn", "serve", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            yield found[0], Path(home)
        finally:
            server.terminate()
            server.wait(30)


def main() -> None:
    with served() as (url, home):
        measure(url, home)


def measure(url: str, home: Path) -> None:
    for seed in range(3):
        whole(url, f"{PROMPT} --seed {seed}")
    started, first = [], []
    for seed in range(ROUNDS):
        begun = time.perf_counter()
        seen = events(url, ask(url, f"{PROMPT} --seed {seed}", previews=3))
        started.append(seen["started"] - begun)
        first.append(seen["preview"] - begun)
        time.sleep(0.1)
    print(f"POST to the worker's start: {spread(started)}; to the first step's picture: {spread(first)}")

    alone = [whole(url, f"{PROMPT} --seed {seed}") for seed in range(ROUNDS)]
    print(f"four pictures, 4 steps, over HTTP: {spread(alone)}")
    for steps in ("", " --steps 4"):
        prompt = PROMPT.replace(" --steps 4", steps)
        many = prompt.replace("--n 4", "--n 32")
        one_call = statistics.median(whole(url, f"{many} --seed {seed}") for seed in range(5))
        eight = [at_once(url, [f"{prompt} --seed {10 * k + i}" for i in range(8)]) for k in range(5)]
        together = statistics.median(took for took, _ in eight)
        longest = statistics.median(max(each) for _, each in eight)
        print(
            f"eight prompts at once{steps}: {one_call / together:.2f}x the throughput of one call of 32 rows"
            f" ({one_call:.2f} s, {together:.2f} s); the longest waits {longest / one_call:.2f}x that call"
        )

    small = ["data=emoji-bench", "seen=10000000", "batch_size=32", "snapshot=1000000", "sheet=0", "held_out=0"]
    make_set(home / "sets" / "emoji-bench")
    request = {"kind": "train", "request": {"recipe": "vae", "overrides": small, "to": "bench"}}
    training = int(call(f"{url}/api/v1/jobs", request)["id"])
    while call(f"{url}/api/v1/jobs/{training}")["progress"] is None:
        time.sleep(0.5)
    rate = call(f"{url}/api/v1/jobs/{training}")["progress"]
    beside = []
    for seed in range(10):
        beside.append(whole(url, f"{PROMPT} --seed {seed}"))
        time.sleep(1.0)
    usual = statistics.median(alone)
    slower, most = statistics.median(beside) / usual, max(beside) / usual
    print(f"ten times four pictures beside a training: {slower:.2f}x alone, at most {most:.2f}x ({spread(beside)})")
    gets = []
    for _ in range(100):
        begun = time.perf_counter()
        call(f"{url}/v1/models")
        gets.append(time.perf_counter() - begun)
        time.sleep(0.05)
    after = call(f"{url}/api/v1/jobs/{training}")["progress"]
    print(f"GET /v1/models beside a training: {spread(gets)}")
    print(f"the training went on from {rate['done']:,} samples to {after['done']:,}")
    stop = urllib.request.Request(f"{url}/api/v1/jobs/{training}", method="DELETE")
    urllib.request.urlopen(stop, timeout=60).close()


def make_set(folder: Path) -> None:
    """Pictures of noise: what is learned does not matter."""
    import numpy as np

    from sojourn.data.dataset import Item, SetInfo, SetWriter

    rng = np.random.default_rng(0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with SetWriter(folder, SetInfo(name=folder.name, kind="image", shape=(64, 64, 1))) as writer:
        for i in range(600):
            pixels = rng.integers(0, 256, (64, 64, 1)).astype(np.uint8)
            writer.add(Item(f"p{i}", pixels, split="valid" if i % 10 == 0 else "train"))


if __name__ == "__main__":
    main()
