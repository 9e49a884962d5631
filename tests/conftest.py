"""Small real sets and tiny trained packages that several test files share."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, SetInfo, SetWriter
from sojourn.schema import Part

pytest_plugins = ("browsing",)
SMALL = {"seen": 512, "batch_size": 32, "snapshot": 128, "sheet": 4, "held_out": 32, "threads": 1, "hooks": ()}
STAGES = {
    "flow": {"family": "flow", "conditioner": Part(id="labels"), "options": {"steps": 4}},
    "dcgan": {"family": "dcgan", "conditioner": Part(id="labels")},
    "vae": {"family": "vae"},
    "lm": {
        "family": "lm",
        "codec": Part(id="text", config={"tokenizer": "chars", "length": 24}),
        "conditioner": Part(id="tokens", config={"tokenizer": {"tokenizer": "chars", "length": 24}}),
    },
}


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's models and sets."""
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("SOJOURN_LANG", "en")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as a packed set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    folder = tmp_path_factory.mktemp("sets") / "digits"
    names = list("0123456789")
    info = SetInfo(name="digits", kind="image", shape=(8, 8, 1), labels=[LabelColumn(name="class", values=names)])
    with SetWriter(folder, info) as writer:
        for i, (picture, label) in enumerate(zip(data.images, data.target, strict=True)):
            pixels = (picture * 15.9).astype(np.uint8)[:, :, None]
            split = "valid" if i % 10 == 0 else "train"
            writer.add(Item(f"d{i}", pixels, captions=[str(label)], labels=[int(label)], split=split))
    return folder


@pytest.fixture(scope="session")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four couplets of four old lines."""
    folder = tmp_path_factory.mktemp("sets") / "poems"
    lines = [
        "春眠不觉晓，处处闻啼鸟。",
        "白日依山尽，黄河入海流。",
        "床前明月光，疑是地上霜。",
        "红豆生南国，春来发几枝。",
    ]
    with SetWriter(folder, SetInfo(name="poems", kind="text", shape=())) as writer:
        for i in range(64):
            writer.add(Item(f"p{i}", lines[i % 4] + lines[(i // 4) % 4], split="valid" if i % 8 == 0 else "train"))
    return folder


@pytest.fixture(scope="session")
def sets(digits: Path, poems: Path) -> dict[str, Path]:
    return {"digits": digits, "poems": poems}


def recipe_for(name: str, sets: dict[str, Path], **train: object) -> Recipe:
    """A one-stage recipe of a tiny family on a small set."""
    data = str(sets["poems" if name == "lm" else "digits"])
    stage = Stage(data=data, train=TrainConfig(**{**SMALL, **train}), **STAGES[name])
    return Recipe(name=name, stage=[stage])


@pytest.fixture(scope="session")
def packages_folder(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained package of each kind, in folders by name."""
    from sojourn.train.build import run_recipe

    folder = tmp_path_factory.mktemp("packages")
    for name in STAGES:
        # The flow long enough for its condition to show in the pixels.
        longer = {"seen": 6400, "lr": 5e-3, "snapshot": 3200, "ema": 200} if name == "flow" else {}
        for _ in run_recipe(recipe_for(name, sets, **longer), folder / "runs" / name):
            pass
        (folder / "runs" / name / "model" / "package").rename(folder / name)
    return folder


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of the tests' own; its URL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    bin, folder = found[-1].parent, tmp_path_factory.mktemp("postgres")
    as_user: list[str] = []
    if os.getuid() == 0:  # it refuses to run as root
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and str(path).startswith("/tmp/"):
                path.chmod(0o755)
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    made = [*as_user, str(bin / "initdb"), "-D", str(data), "-A", "trust", "-U", "sojourn", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True)
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=200"
    control = [*as_user, str(bin / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True)
    yield f"postgresql://sojourn@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/studio.sqlite"
        return
    base = request.getfixturevalue("postgres")
    name = f"t{time.monotonic_ns()}"
    import psycopg

    with psycopg.connect(base, autocommit=True) as raw:
        raw.execute(f"CREATE DATABASE {name}")
    yield base.replace("/postgres?", f"/{name}?")
