"""How many minutes each recipe takes on this machine: its rounds are timed for a while, and counted up to its end.

    python benchmarks/recipes.py dcgan vq-vae --seconds 20

On its own set and with its own settings, on all cores. What is done once before a stage (latents, tokens) is timed
whole. A stage learns from earlier ones as they are before training: that costs the same. Snapshots are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from sojourn import config
from sojourn import package as packages
from sojourn.data.dataset import PackedSet
from sojourn.package import Package
from sojourn.train.build import build, find_set
from sojourn.train.loop import Run

LONG = {"emoji", "tower"}
"""Recipes of hours."""


def minutes(id: str, seconds: float, precision: str | None, place: Path) -> list[tuple[str, float, float]]:
    """Of each stage: its name, samples/s and minutes."""
    recipe, done, out = config.load_recipe(id), dict[str, Package](), []
    for stage in recipe.stage:
        train = stage.train.model_copy(update={"hooks": (), **({"precision": precision} if precision else {})})
        data = PackedSet(find_set(stage.data))
        parts = {name: done.get(ref) or packages.load(packages.find(ref)) for name, ref in stage.parts.items()}
        done[stage.name] = package = build(stage, data, parts, recipe)
        if precision and not package.family.bf16:
            train = train.model_copy(update={"precision": "fp32"})
        begun = time.perf_counter()
        run = Run(package, data, train, place / id / stage.name)
        for _ in run.start():
            pass
        run.one_round()
        ready, seen = time.perf_counter(), run.seen
        while (now := time.perf_counter()) - ready < seconds:
            run.one_round()
        rate = (run.seen - seen) / (now - ready)
        out.append((stage.name, rate, (ready - begun + train.seen / rate) / 60))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", default=[id for id in config.recipes() if id not in LONG])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--precision", choices=["bf16"], help="where a family can")
    given = parser.parse_args()
    for id in given.ids:
        with tempfile.TemporaryDirectory() as place:
            stages = minutes(id, given.seconds, given.precision, Path(place))
        told = ", ".join(f"{name} {rate:.0f}/s {took:.1f} min" for name, rate, took in stages)
        print(f"{id:14} {sum(took for *_, took in stages):5.1f} min   {told}", flush=True)


if __name__ == "__main__":
    main()
