"""T33: what a server and its workers hold on to over half an hour of use: memory, files, threads, zombies.

    python benchmarks/soak.py --minutes 30

A client a second does one of what people do: pictures, edits, streams that are cut, reads, ratings, uploads, a wrong
request, a small training now and then. Every ten seconds the processes are looked at. Memory's growth is the slope of
a straight line through the second half (least squares); the first fills caches.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from studio import make_set, served

LOOK_S = 10.0
ROUNDS_S = 120.0
"""A small training begins so often."""


def looked(server: psutil.Process) -> dict[str, dict[str, float]]:
    """Memory in MiB, open files and threads of the server and of each worker; how many zombies there are."""
    out: dict[str, dict[str, float]] = {}
    zombies = 0
    for process in [server, *server.children(recursive=True)]:
        try:
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    zombies += 1
                    continue
                lane = re.search(r"--lanes (\w+)", " ".join(process.cmdline()))
                out[lane[1] if lane else "server" if process == server else "helper"] = {
                    "MiB": process.memory_info().rss / 2**20,
                    "files": process.num_fds(),
                    "threads": process.num_threads(),
                }
        except psutil.NoSuchProcess:
            continue
    out["all"] = {"zombies": zombies}
    return out


def one(client: httpx.Client, dice: random.Random, pictures: list[int]) -> int:
    """Something that somebody does; the status."""
    kind = dice.choice(("read", "read", "read", "draw", "edit", "cut", "rate", "upload", "wrong"))
    if kind == "draw":
        request = {"prompt": f"a red heart --n 4 --steps 4 --seed {dice.randrange(10**6)}", "previews": 2}
        return client.post("/api/v1/jobs", json={"kind": "generate", "request": request}).status_code
    if kind == "cut":
        asked = {"prompt": "a blue car", "stream": True, "partial_images": 3, "steps": 4}
        with client.stream("POST", "/v1/images/generations", json=asked) as answer:
            for _ in answer.iter_lines():
                break
            return answer.status_code
    if kind == "rate" and pictures:
        rating = {"kind": "stars", "picture": dice.choice(pictures), "value": dice.randrange(6)}
        return client.post("/api/v1/ratings", json=rating).status_code
    if kind in ("upload", "edit"):
        data = io.BytesIO()
        Image.fromarray(np.random.default_rng(dice.randrange(99)).integers(0, 256, (64, 64, 3), np.uint8)).save(
            data, "PNG"
        )
        answer = client.post("/api/v1/uploads", files={"file": ("a.png", data.getvalue())})
        if kind == "upload" or answer.status_code != 201:
            return answer.status_code
        request = {"prompt": "a cat --n 1", "source": answer.json()["sha256"], "strength": 0.5}
        return client.post("/api/v1/jobs", json={"kind": "edit", "request": request}).status_code
    if kind == "wrong":
        return client.post("/api/v1/jobs", json={"kind": "generate", "request": {"prompt": "a --steps 0"}}).status_code
    answer = client.get(
        dice.choice(("/", "/gallery", "/v1/models", "/api/v1/jobs?limit=50", "/api/v1/pictures?words=heart"))
    )
    if "pictures?" in str(answer.url):
        pictures[:] = [row["id"] for row in answer.json()][:50]
    return answer.status_code


def slope(times: list[float], values: list[float]) -> float:
    """Growth an hour over the second half."""
    half = len(times) // 2
    return float(np.polyfit(np.array(times[half:]) / 3600, values[half:], 1)[0]) if len(times) - half > 2 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    seen: list[tuple[float, dict[str, dict[str, float]]]] = []
    statuses: Counter[int] = Counter()
    with served() as (url, home):
        make_set(home / "sets" / "noise")
        port = int(url.rpartition(":")[2])
        server = next(
            psutil.Process(link.pid)
            for link in psutil.net_connections("tcp")
            if link.laddr.port == port and link.status == "LISTEN"
        )
        dice, pictures, begun, trained, at = random.Random(0), [], time.monotonic(), -ROUNDS_S, 0.0
        with httpx.Client(base_url=url, timeout=120) as client:
            while (now := time.monotonic() - begun) < 60 * given.minutes:
                statuses[one(client, dice, pictures)] += 1
                if now - trained > ROUNDS_S:
                    trained = now
                    settings = ["data=noise", "preset=tiny", "seen=1024", "batch_size=16", "snapshot=512", "sheet=4"]
                    body: dict[str, Any] = {"recipe": "vae", "overrides": settings, "to": f"small-{now:.0f}"}
                    statuses[client.post("/api/v1/jobs", json={"kind": "train", "request": body}).status_code] += 1
                if now >= at:
                    at = now + LOOK_S
                    seen.append((now, looked(server)))
                time.sleep(dice.uniform(0.5, 1.5))
    print(f"{given.minutes:g} min: answers {dict(sorted(statuses.items()))}")
    for name in ("server", "interactive", "background"):
        rows = [(at, found[name]) for at, found in seen if name in found]
        times = [at for at, _ in rows]
        for what in ("MiB", "files", "threads"):
            values = [found[what] for _, found in rows]
            half = values[len(values) // 2 :]
            print(
                f"{name} {what}: {values[0]:.0f} at first, {half[0]:.0f} at half time, {values[-1]:.0f} at the end; "
                f"{slope(times, values):+.2f} an hour; {min(half):.0f} to {max(half):.0f} in the second half"
            )
    print(f"zombies: {max(found['all']['zombies'] for _, found in seen):.0f} at most")


if __name__ == "__main__":
    main()
