"""Trains the recipe of each family named (default: all), to a tenth and whole, and measures both.

    python docs/experiments/families.py dcgan vq-vae --runs ~/runs --judge judge-glyphs

A row for each: KID at a tenth of `seen` and at its end, with 95 % intervals, R@1 by the judge of its set, and the
seconds of training. Sheets go to docs/images/families. Runs that are there already are gone on with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from sojourn import card as cards
from sojourn import config, registry

IMAGES = Path(__file__).parent.parent / "images" / "families"
READS = {"contrastive"}
"""Families that draw nothing."""


def sojourn(*arguments: str) -> str:
    """Run a command; its output."""
    done = subprocess.run(["sojourn", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def trained(id: str, runs: Path) -> tuple[str, str]:
    """Names of the packages at a tenth of `seen`, before its rate falls, and at the end."""
    recipe = config.load_recipe(id)
    last = recipe.stage[-1]
    sojourn("train", id, "--run", str(runs / id), "--to", id)
    early = []
    for stage in recipe.stage:
        prefix = f"{stage.name}." if len(recipe.stage) > 1 else ""
        if stage is last or stage.name == last.start:  # one model, in stages
            tenth = stage.train.seen // 10
            early += ["-o", f"{prefix}seen={tenth}", "-o", f"{prefix}decay=0", "-o", f"{prefix}snapshot={tenth}"]
            continue
        target = runs / f"{id}-tenth" / stage.name  # a part of it, which is the same: taken from the whole run
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(runs / id / stage.name)
    sojourn("train", id, *early, "--run", str(runs / f"{id}-tenth"), "--to", f"{id}-tenth")
    return f"{id}-tenth", id


def measured(names: tuple[str, str], data: str, judge: str, count: int, out: Path) -> list[dict[str, Any]]:
    """What `sojourn evaluate` finds of both."""
    text = sojourn("evaluate", *names, "--data", data, "--judge", judge, "-n", str(count), "--out", str(out), "--json")
    found: list[dict[str, Any]] = json.loads(text.strip().splitlines()[-1])
    return found


def sheet(id: str) -> None:
    """The last sheet of the training, as it is."""
    source = cards.find(id) / "sheet.png"
    if source.is_file():
        IMAGES.mkdir(parents=True, exist_ok=True)
        (IMAGES / f"{id}.png").write_bytes(source.read_bytes())


def told(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    span = f" ({metric['low']:.3f} to {metric['high']:.3f})" if metric.get("low") is not None else ""
    return f"{metric['value']:.3f}{span}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = [id for id in config.recipes() if id in registry.ids("family")]
    parser.add_argument("ids", nargs="*", default=shipped)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--judge", action="append", default=[], metavar="SET=PACKAGE")
    parser.add_argument("-n", type=int, default=1000)
    given = parser.parse_args()
    judges = {"emoji": "judge", **dict(pair.split("=", 1) for pair in given.judge)}
    for id in given.ids:
        data = config.load_recipe(id).stage[-1].data
        names = trained(id, given.runs)
        rows = measured(names, data, judges.get(data, "judge"), given.n, given.runs / f"{id}-report")
        by = [{metric["name"]: metric for metric in row["metrics"]} for row in rows]
        kid = [next((m for name, m in part.items() if name.startswith("seen/KID")), None) for part in by]
        seconds = cards.read(cards.find(id)).train_s
        right = by[1].get("seen/R@1")
        print(f"| {id} | {told(kid[0])} | {told(kid[1])} | {told(right)} | {seconds:.0f} s |", flush=True)
        if id not in READS:
            sheet(id)


if __name__ == "__main__":
    main()
