"""The command line: what a person types, and what they get when it is wrong: one line, a code, no litter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sojourn.cli.draw import joined, slug
from sojourn.cli.main import run
from sojourn.engine import load
from sojourn.prompt import parse


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(args: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Run a command that must fail; its one line."""
    assert run(args) == code
    out = capsys.readouterr()
    lines = out.err.strip().splitlines()
    assert len(lines) == 1, out.err
    assert lines[0].startswith("sojourn: ")
    assert "Traceback" not in out.err
    return lines[0]


def test_imagine_writes_pictures_and_a_grid(
    packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["imagine", "3", "--n", "4", "--seed", "7", "--model", str(packages_folder / "flow")]) == 0
    told = capsys.readouterr().out
    files = sorted((here / "out").iterdir())
    assert len(files) == 5
    for path in files:
        assert path.name in told
    with Image.open(files[0]) as picture:
        assert picture.size == (8, 8)
    assert (
        run(
            [
                "replay",
                *(str(path) for path in files if "grid" not in path.name),
                "--model",
                str(packages_folder / "flow"),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.count("equal") == 4


def test_imagine_as_json(packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["imagine", "3 --n 2 --seed 1", "--json", "--model", str(packages_folder / "flow")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in data["pictures"]] == [1, 2]
    assert all(Path(row["file"]).is_file() for row in data["pictures"])


BAD = [
    (["imagine", ""], 2, "empty"),
    (["imagine", "x" * 1_000_000], 2, "2,?000|10,?000"),
    (["imagine", "a heart --steps 1e9"], 2, "must be 1..1000"),
    (["imagine", "a heart --stepz 3"], 2, "--steps"),
    (["imagine", "a", "heart", "-n", "1"], 2, "two dashes: --n"),
    (["imagine", "a\x00b"], 2, "U\\+0000"),
    (["imagine", "a\x1b[31mb"], 2, "U\\+001B"),
    (["imagine", "3", "--model", "nothing-here"], 1, "nothing-here"),
    (["imagine", "3", "--strength", "0.5"], 2, "--strength"),
    (["train", "nothing-here"], 1, "known: "),
    (["train", "digits", "-o", "nonsense"], 2, "key=value"),
    (["train", "digits", "-o", "data=nothing-here"], 1, "no data set"),
    (["starter", "nothing-here"], 1, "digits"),
    (["prepare", "/nothing/here", "--to", "x"], None, "/nothing/here"),
    (["replay", "/nothing/here.png"], 1, "no file"),
    (["models", "verify", "nothing-here"], 1, "nothing-here"),
    (["families", "nothing-here"], 1, "known: "),
]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    BAD,
    ids=[
        " ".join(a)[:30].encode("ascii", "replace").decode().replace("\x00", "0").replace("\x1b", "E")
        for a, _, _ in BAD
    ],
)
def test_bad_input_is_one_line(
    args: list[str], code: int | None, words: str, here: Path, packages_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    if args[0] == "imagine" and "--model" not in args:
        args = [*args, "--model", str(packages_folder / "flow")]
    began = time.monotonic()
    assert run(args) == code if code is not None else run(args) != 0
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    assert re.search(words, err), err
    assert time.monotonic() - began < 10
    assert not (here / "out").exists() or list((here / "out").iterdir()) == []


def test_a_picture_varies_subtly_and_strongly(
    packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = str(packages_folder / "flow")
    assert run(["imagine", "5 --n 1 --seed 3", "--quiet", "--json", "--model", flow]) == 0
    first = Path(json.loads(capsys.readouterr().out)["pictures"][0]["file"])
    base = np.asarray(Image.open(first).convert("L"), np.int16)
    gaps = []
    for strong in ([], ["--strong"]):
        assert run(["vary", str(first), *strong, "-n", "3", "--seed", "9", "--json", "--quiet", "--model", flow]) == 0
        told = json.loads(capsys.readouterr().out)
        rows = told["pictures"]
        assert [row["seed"] for row in rows] == [9, 10, 11]
        assert all(row["prompt"].startswith("5 ") for row in rows)
        drawn = [np.asarray(Image.open(row["file"]).convert("L"), np.int16) for row in rows]
        assert np.abs(drawn[0] - drawn[1]).max() > 0
        gaps.append(np.mean([np.abs(x - base).mean() for x in drawn]))
    assert 0 < gaps[0] < gaps[1]
    assert run(["replay", rows[0]["file"], "--model", flow, "--source", str(first)]) == 0
    capsys.readouterr()
    assert run(["replay", told["grid"], rows[0]["file"], "--model", flow, "--source", str(first)]) == 1
    out, err = capsys.readouterr()
    assert "several pictures" in err
    assert out.count("equal") == 1, "the others are drawn all the same"
    plain = here / "plain.png"
    Image.new("L", (8, 8), 90).save(plain)
    assert "no recipe" in fails(["vary", str(plain), "--model", flow], capsys, 2)
    assert run(["vary", str(plain), "--prompt", "7", "-n", "1", "--model", flow, "--quiet"]) == 0


def test_words_with_joiners_and_direction_marks_draw(
    packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no class of this package: one clear line, nothing written, nothing sent to the terminal raw."""
    line = fails(["imagine", "\u202e👩\u200d🚀", "--model", str(packages_folder / "flow")], capsys, 1)
    assert "\u202e" not in line


def test_a_full_disk_is_one_line(packages_folder: Path, here: Path) -> None:
    """RLIMIT_FSIZE of 16 bytes: exit 1, no half-written file."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from sojourn.cli.main import run\nimport sojourn.engine\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"
        f"sys.exit(run(['imagine', '3', '--quiet', '--model', {str(packages_folder / 'flow')!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 1
    assert "no room to write" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in (here / "out").iterdir()] == []


def test_a_tampered_package_is_refused(packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    bad = here / "bad"
    shutil.copytree(packages_folder / "flow", bad)
    weights = bad / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "weights.safetensors" in fails(["imagine", "3", "--model", str(bad)], capsys, 1)
    assert not (here / "out").exists()
    assert run(["models", "verify", str(bad)]) == 1


def test_errors_in_chinese(packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--lang", "zh", "imagine", "3 --tile", "--model", str(packages_folder / "flow")]) == 1
    err = capsys.readouterr().err
    assert "--tile" in err
    assert any("\u4e00" <= c <= "\u9fff" for c in err)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sample", "vae"], "缺少 '--out'"),
        (["train"], "缺少 'RECIPE'"),
        (["imagin"], "没有命令“imagin”；是不是 imagine？"),
        (["jump"], "没有命令“jump”；sojourn --help"),
        (["keys", "jump"], "没有命令“jump”；sojourn keys --help"),
        (["train", "vae", "--run"], "--run 需要一个值"),
        (["train", "vae", "--nosuch"], "没有选项 --nosuch"),
        (["sample", "vae", "-n", "x", "--out", "o"], "'-n' 不对：'x' 不是整数"),
        (["sample", "vae", "-n", "0", "--out", "o"], "'-n' 不对：0 不在"),
        (["walk", "vae", "--fps", "x"], "'--fps' 不对：'x' 不是数"),
        (["vary", __file__], "不是图片"),
    ],
)
def test_wrong_arguments_in_chinese(
    args: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOJOURN_LANG", "zh")
    assert said in fails(args, capsys, 2)
    monkeypatch.setenv("SOJOURN_LANG", "en")
    assert not any("\u4e00" <= c <= "\u9fff" for c in fails(args, capsys, 2))


def test_sample_makes_a_set_and_goes_on(packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["sample", str(packages_folder / "flow"), "-n", "12", "--out", "many", "--batch", "4"]
    assert run(args) == 0
    files = sorted((here / "many").glob("*.png"))
    assert len(files) == 12
    before = files[9].read_bytes()
    for path in files[7:]:
        path.unlink()
    assert run(args) == 0
    assert files[9].read_bytes() == before
    rows = [json.loads(line) for line in (here / "many" / "metadata.jsonl").read_text().splitlines()]
    assert all(row["label"] == row["text"] for row in rows), "a class is its pictures' label"
    assert [row["text"] for row in rows] == [str(i % 10) for i in range(12)]
    assert run(["prepare", "many", "--to", str(here / "again"), "--size", "8"]) == 0
    assert (here / "again" / "set.json").is_file()


def test_sample_reads_prompts_of_any_encoding(
    packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "prompts.txt"
    for i, data in enumerate(("\ufeff3\n7\n".encode(), "3\r\n7\r\n".encode("utf-16"))):
        file.write_bytes(data)
        assert run(["sample", str(packages_folder / "flow"), "-n", "2", "--out", f"o{i}", "--prompts", str(file)]) == 0
        rows = (here / f"o{i}" / "metadata.jsonl").read_text().splitlines()
        assert [json.loads(row)["text"] for row in rows] == ["3", "7"]
    file.write_bytes(b"\xff\x00\x81")
    assert "is no text" in fails(
        ["sample", str(packages_folder / "flow"), "--out", "no", "--prompts", str(file)], capsys, 2
    )


def test_sample_leaves_other_files_alone(packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["sample", str(packages_folder / "flow"), "-n", "4", "--batch", "4", "--class", "3", "--out"]
    (here / "mine").mkdir()
    (here / "mine" / "000001.png").write_bytes(b"mine")
    assert "holds other files" in fails([*args, "mine"], capsys, 2)
    assert [(path.name, path.read_bytes()) for path in (here / "mine").iterdir()] == [("000001.png", b"mine")]
    assert run([*args, "drawn"]) == 0
    before = {path.name: path.read_bytes() for path in (here / "drawn").iterdir()}
    capsys.readouterr()
    assert "(other prompts, seed)" in fails([*args, "drawn", "--class", "5", "--seed", "9"], capsys, 2)
    assert {path.name: path.read_bytes() for path in (here / "drawn").iterdir()} == before
    assert run([*args, "drawn", "-n", "6"]) == 0
    assert len((here / "drawn" / "metadata.jsonl").read_text().splitlines()) == 6


def test_words_are_refused_or_warned_of_where_none_are_known(
    packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = str(packages_folder / "vae")
    assert "without words and classes" in fails(["sample", vae, "--class", "cat", "--out", "no"], capsys, 2)
    assert not (here / "no").exists()
    assert "cannot do --style" in fails(["sample", vae, "--style", "3d", "--out", "no"], capsys, 1)
    (here / "empty.txt").write_text("\n \n")
    assert "holds no prompt" in fails(["sample", vae, "--prompts", "empty.txt", "--out", "no"], capsys, 2)
    assert run(["imagine", "cat", "--model", vae, "--n", "1", "--quiet"]) == 0
    assert '"cat" changes nothing' in capsys.readouterr().err
    assert run(["imagine", "--n", "1", "--model", vae, "--quiet"]) == 0
    assert "changes nothing" not in capsys.readouterr().err


def test_text_is_asked_of_what_writes_it(packages_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["write", str(packages_folder / "vae"), "hello"]) == 1
    out = capsys.readouterr()
    assert not out.out
    assert "does not write text" in out.err


def test_train_goes_on_and_its_package_draws(digits: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        f"{key}={value}"
        for key, value in {
            "data": digits,
            "seen": 256,
            "batch_size": 32,
            "snapshot": 128,
            "held_out": 32,
            "sheet": 4,
            "threads": 1,
        }.items()
    ]
    args = ["train", "digits", *(part for item in small for part in ("-o", item)), "--run", "run", "--to", "mine"]
    assert run(args) == 0
    assert run(args) == 0  # already trained: nothing to do, and no error
    assert run(["models", "list", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert "mine" in [row["name"] for row in listed]
    assert run(["imagine", "7", "--model", "mine", "--n", "1", "--quiet"]) == 0
    assert run(["models", "verify", "mine"]) == 0
    assert run(["models", "export", "mine", "mine.zip"]) == 0
    assert run(["models", "import", "mine.zip", "--name", "other"]) == 0
    assert (
        run(["train", "digits", *(part for item in small for part in ("-o", item)), "--from", "mine", "--run", "r2"])
        == 0
    )


def test_a_training_does_not_take_anothers_name(digits: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"data": digits, "seen": 64, "batch_size": 32, "snapshot": 64, "held_out": 32, "sheet": 0, "threads": 1}
    args = ["train", "digits", *(part for key, value in small.items() for part in ("-o", f"{key}={value}"))]
    assert run([*args, "--run", "one", "--to", "taken"]) == 0
    place = Path(os.environ["SOJOURN_HOME"]) / "models" / "taken"
    before = (place / "weights.safetensors").read_bytes()
    assert json.loads((place / "card.json").read_text())["name"] == "taken"
    other = [*args, "-o", "seed=1", "--run", "two", "--to", "taken"]
    capsys.readouterr()
    assert '"taken" already' in fails(other, capsys, 2)
    assert not (here / "two").exists()
    assert run([*args, "--run", "one", "--to", "taken"]) == 0, "its own place it may take again"
    assert (place / "weights.safetensors").read_bytes() == before
    assert run([*other, "--replace"]) == 0
    assert (place / "weights.safetensors").read_bytes() != before
    capsys.readouterr()
    assert "package name" in fails([*args, "--run", "three", "--to", "a/b"], capsys, 1)
    assert not (here / "three").exists()


def test_an_interrupt_saves_and_the_same_command_goes_on(digits: Path, here: Path) -> None:
    import signal

    args = [sys.executable, "-m", "sojourn", "train", "digits", "--run", "run", "--to", "halted", "--json"]
    for item in (
        f"data={digits}",
        "seen=1000000",
        "batch_size=16",
        "snapshot=500000",
        "threads=1",
        "sheet=0",
        "held_out=16",
    ):
        args += ["-o", item]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if '"progress"' in line and '"samples"' in line:
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in out
    assert any((here / "run" / "model" / "state").iterdir())


def test_arguments_become_one_prompt() -> None:
    assert joined(("a", "red", "heart", "--n", "4")) == "a red heart --n 4"
    assert parse(joined(("heart", "--style", "flat color"))).style == "flat color"
    assert parse(joined(("heart --style noto --n 2",))).n == 2
    assert slug("红色的心 / a b") == "红色的心-a-b"
    assert slug("../..") == "picture"


def test_write_begins_with_its_prompt_once(packages_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["write", str(packages_folder / "lm"), "春眠", "--seed", "1", "--tokens", "6"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("春眠")
    assert not said.startswith("春眠春眠")
    assert said == "".join(load(packages_folder / "lm").write("春眠", seed=1, max_tokens=6)) + "\n"


def test_quoted_values_reach_the_parameter_they_are_of() -> None:
    assert parse(joined(("a cat", "--palette", "red, blue"))).palette == ("red", "blue")
    assert parse(joined(("红心", "--palette", "红，蓝色"))).palette == ("红", "蓝色")
    for words in (("a", "cat", "--style", "flat color"), ("a", "cat", "--style=flat color")):
        assert parse(joined(words)).style == "flat color"
    assert parse(joined(("a cat", "--no", "a dog, rain"))).no == ("a dog", "rain")
    assert joined(("a cat --n 2",)) == "a cat --n 2"


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "{flow}", "--style", " ", "--out", "s", "-n", "2"],
        ["sample", "{flow}", "--style", "x" * 120, "--out", "s", "-n", "2"],
        ["walk", "{flow}", "7", "--along", "steps=1..nan"],
        ["walk", "{flow}", "7", "--along", "steps=1..inf"],
        ["walk", "{flow}", "7", "--fps", "nan"],
        ["walk", "{flow}", ""],
        ["walk", "{flow}", "7 --seed 3"],
        ["walk", "{flow}", "7", "--out", "."],
        ["walk", "{flow}", "7", "--out", "/proc/nowhere/a.webp"],
        ["imagine", "7", "--model", "{flow}", "--out", "/proc/nowhere"],
        ["imagine", "7 --place up", "--model", "{flow}", "--out", "new/folder"],
        ["sample", "{flow}", "-n", "2", "--out", "s", "-o", "steps=0"],
        ["sample", "{flow}", "-n", "2", "--out", "s", "--class", "3" * 3000],
        ["sample", "{flow}", "-n", "2", "--out", "s", "--class", "3\0"],
    ],
)
def test_odd_values_are_one_line(
    args: list[str], packages_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails([arg.format(flow=packages_folder / "flow") for arg in args], capsys, 2)
    assert not list(here.iterdir())
