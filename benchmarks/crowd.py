"""T9: many clients at once with a training beside them: refusals, waiting times, and whether a job was lost.

python benchmarks/crowd.py --clients 50 --seconds 120
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from typing import Any

import httpx
from studio import make_set, served

READS = ("/v1/models", "/api/v1/jobs?limit=20", "/api/v1/pictures?limit=20", "/", "/api/v1/pictures?words=heart")
PAUSE_S = 2.5
"""Mean time that a client thinks: fifty ask about as often as one owner may."""


class Crowd:
    """What the clients saw."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.reads: list[float] = []
        self.jobs: list[int] = []
        self.streams = 0
        self.broken: list[str] = []


async def one(client: httpx.AsyncClient, crowd: Crowd, until: float, dice: random.Random) -> None:
    await asyncio.sleep(dice.uniform(0, PAUSE_S))
    while time.monotonic() < until:
        kind = dice.random()
        try:
            if kind < 0.7:
                begun = time.monotonic()
                answer = await client.get(dice.choice(READS))
                crowd.reads.append(time.monotonic() - begun)
                crowd.statuses[answer.status_code] += 1
            elif kind < 0.9:
                request = {"prompt": f"a red heart --n 4 --steps 4 --seed {dice.randrange(10**6)}"}
                answer = await client.post("/api/v1/jobs", json={"kind": "generate", "request": request})
                crowd.statuses[answer.status_code] += 1
                if answer.status_code == 202:
                    crowd.jobs.append(answer.json()["id"])
            else:
                asked = {"prompt": "a blue car", "stream": True, "partial_images": 2, "steps": 4}
                async with client.stream("POST", "/v1/images/generations", json=asked) as answer:
                    crowd.statuses[answer.status_code] += 1
                    text = (await answer.aread()).decode()
                if answer.status_code == 200:
                    crowd.streams += 1
                    if "image_generation.completed" not in text:
                        crowd.broken.append(text[-200:])
        except httpx.HTTPError as error:
            crowd.broken.append(repr(error))
        await asyncio.sleep(dice.expovariate(1 / PAUSE_S))


async def crowded(url: str, clients: int, seconds: float) -> Crowd:
    crowd, until = Crowd(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client, crowd, until, random.Random(i)) for i in range(clients)))
        states: dict[int, Any] = {}
        for id in crowd.jobs:
            while (state := (await client.get(f"/api/v1/jobs/{id}")).json().get("state")) not in ("done", "failed"):
                await asyncio.sleep(1.0)
            states[id] = state
        lost = [id for id in crowd.jobs if states[id] != "done"]
        print(f"{len(crowd.jobs)} jobs acknowledged, {len(lost)} lost; {crowd.streams} streams, broken {crowd.broken}")
    return crowd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    given = parser.parse_args()
    with served() as (url, home):
        make_set(home / "sets" / "noise")
        overrides = ["data=noise", "seen=10000000", "snapshot=1000000", "sheet=0", "held_out=0"]
        training = {"kind": "train", "request": {"recipe": "vae", "overrides": overrides, "to": "noise"}}
        id = httpx.post(f"{url}/api/v1/jobs", json=training).json()["id"]
        while httpx.get(f"{url}/api/v1/jobs/{id}").json()["progress"] is None:
            time.sleep(0.5)
        crowd = asyncio.run(crowded(url, given.clients, given.seconds))
    reads = sorted(crowd.reads)
    p50, p99 = (1000 * reads[int(share * (len(reads) - 1))] for share in (0.5, 0.99))
    print(f"{given.clients} clients, {given.seconds:g} s: answers {dict(sorted(crowd.statuses.items()))}")
    print(f"GET p50 {p50:.0f} ms, p99 {p99:.0f} ms of {len(reads)}")


if __name__ == "__main__":
    main()
