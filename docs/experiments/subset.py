"""The fixed subset that designs are compared on: 300 concepts of the emoji set, each in six colour styles.

    sojourn starter emoji && python docs/experiments/subset.py

makes the set "emoji-300": real pictures only, the first of each emoji, with the splits of the whole set.
"""

from __future__ import annotations

import numpy as np

from sojourn.config import set_folder
from sojourn.data.dataset import SPLITS, Item, PackedSet, SetWriter

NAME = "emoji-300"
STYLES = ("noto", "noto-v1", "twemoji", "fluent-flat", "fluent-3d", "emojione")
CONCEPTS = 300


def main() -> None:
    data = PackedSet(set_folder("emoji"))
    rows: dict[str, dict[str, int]] = {}
    for i, row in enumerate(data.rows):
        if "made" not in row and row["style"] in STYLES and row.get("hex", row["group"]) == row["group"]:
            rows.setdefault(row["group"], {}).setdefault(row["style"], i)
    whole = [list(styles.values()) for _, styles in sorted(rows.items()) if len(styles) == len(STYLES)]
    chosen = np.random.default_rng(0).permutation(len(whole))[:CONCEPTS]
    about = f"{CONCEPTS} concepts of emoji in {len(STYLES)} styles, drawn by a fixed seed, to compare designs on"
    with SetWriter(set_folder(NAME), data.info.model_copy(update={"name": NAME, "about": about})) as writer:
        for i in sorted(row for concept in chosen for row in whole[concept]):
            row = dict(data.rows[i])
            known = {key: row.pop(key) for key in ("id", "captions", "style", "group", "source")}
            split = SPLITS[data.split[i]]
            writer.add(Item(data=data.data[i], labels=data.labels[i].tolist(), split=split, extra=row, **known))
    built = PackedSet(set_folder(NAME))
    print(f"{CONCEPTS} of {len(whole)} concepts with all {len(STYLES)} styles: {len(built)} pictures in {built.folder}")
    print({split: len(built.indices(split)) for split in SPLITS})


if __name__ == "__main__":
    main()
