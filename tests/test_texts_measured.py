"""How well language models foretell what they have not seen: against formulas, and by the command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sojourn import package as packages
from sojourn.cli.main import run
from sojourn.data.dataset import PackedSet
from sojourn.engine import Model
from sojourn.errors import InvalidInput, Unsupported
from sojourn.measure.bench import Findings
from sojourn.measure.scores import ratio_interval
from sojourn.measure.texts import evaluate_texts, surprise
from sojourn.types import Cond


@pytest.fixture
def lm(packages_folder: Path) -> Model:
    return Model(packages.load(packages_folder / "lm"))


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(lm: Model, poems: Path) -> None:
    with torch.no_grad():
        lm.family.net.embed.weight.zero_()
    found = next(event for event in evaluate_texts([lm], PackedSet(poems)) if isinstance(event, Findings))
    value = {metric.name: metric.value for metric in found.metrics}
    vocab = lm.family.spec.vocab
    assert value["perplexity"] == pytest.approx(vocab, rel=1e-5)
    assert value["nats/token"] == pytest.approx(math.log(vocab), rel=1e-5)
    texts = [PackedSet(poems).text(int(row)) for row in PackedSet(poems).indices("valid")]
    tokens, letters = sum(len(text) + 1 for text in texts), sum(map(len, texts))
    assert value["bits/character"] == pytest.approx(math.log2(vocab) * tokens / letters, rel=1e-5)


def test_a_long_document_is_read_in_windows_and_every_token_once(lm: Model, poems: Path) -> None:
    text = PackedSet(poems).text(3) * 3
    ids = torch.from_numpy(lm.package.codec.pack_many([text])[0]).long()
    length = lm.family.spec.shape[0]
    assert len(ids) > 2.5 * length
    wanted, step = 0.0, length - length // 2
    for at in range(1, len(ids)):  # the window in which each was foretold, by hand
        start = 0 if at < length else ((at - length) // step + 1) * step
        with torch.no_grad():
            logits = lm.family.net(ids[None, start:at], Cond())[0, -1]
        wanted -= float(logits.log_softmax(dim=0)[ids[at]])
    nats, tokens = surprise(lm, text)
    assert tokens == len(ids) - 1
    assert nats == pytest.approx(wanted, rel=1e-4)


def test_what_it_learnt_surprises_it_less(lm: Model, poems: Path) -> None:
    data = PackedSet(poems)
    known = data.text(int(data.indices("train")[0]))
    turned = known[::-1]
    assert surprise(lm, known)[0] < surprise(lm, turned)[0]


def test_the_seed_says_which_documents_are_read(lm: Model, poems: Path) -> None:
    def bits(seed: int) -> float:
        events = evaluate_texts([lm], PackedSet(poems), count=3, seed=seed)
        return next(e for e in events if isinstance(e, Findings)).metrics[-1].value

    assert len({bits(seed) for seed in range(6)}) > 1, "and not those that stand first"
    assert bits(4) == bits(4)


def test_an_interval_holds_the_ratio() -> None:
    rng = np.random.default_rng(0)
    below = rng.integers(5, 50, 400).astype(float)
    above = below * 2 + rng.normal(size=400)
    low, high = ratio_interval(above, below)
    assert low < 2 < high
    assert high - low < 0.05
    told = ratio_interval(np.tile(above, 4), np.tile(below, 4), [f"{i}" for i in range(400)] * 4)
    blind = ratio_interval(np.tile(above, 4), np.tile(below, 4))
    assert blind[1] - blind[0] < 0.7 * (told[1] - told[0]), "four copies of a text are one text"


def test_near_copies_of_one_text_are_one(lm: Model, poems: Path) -> None:
    def spans(data: PackedSet) -> list[float]:
        found = next(event for event in evaluate_texts([lm], data) if isinstance(event, Findings))
        return [metric.high - metric.low for metric in found.metrics]

    data = PackedSet(poems)
    assert min(spans(data)) > 0
    for row in data.rows:
        row["group"] = "one"
    assert max(spans(data)) == 0


def test_by_the_command(
    packages_folder: Path, poems: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path))
    for name in ("lm", "flow"):
        shutil.copytree(packages_folder / name, tmp_path / "models" / name)
    out = str(tmp_path / "out")
    assert run(["evaluate", "lm", "--data", str(poems), "--out", out, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {metric["name"] for metric in row["metrics"]} == {"nats/token", "perplexity", "bits/character"}
    assert run(["evaluate", "flow", "--data", str(poems), "--out", out]) == 1
    assert "does not write text" in capsys.readouterr().err
    assert run(["evaluate", "lm", "--data", str(poems), "-o", "temperature=2", "--out", out]) != 0
    assert "leave out temperature" in capsys.readouterr().err
    assert run(["sample", "lm", "-n", "3", "--out", str(tmp_path / "drawn")]) == 1
    assert "does not draw pictures" in capsys.readouterr().err


def test_what_cannot_be_measured_is_refused_at_once(packages_folder: Path, poems: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="does not write text"):
        list(evaluate_texts([Model(packages.load(packages_folder / "vae"))], PackedSet(poems)))
    shutil.copytree(poems, tmp_path / "all")
    data = PackedSet(tmp_path / "all")
    data.split[:] = 0
    with pytest.raises(InvalidInput, match="no held-out texts"):
        list(evaluate_texts([], data))
