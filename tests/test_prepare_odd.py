"""What people's folders, zips and tables hold beside what was meant, and two who prepare at once."""

from __future__ import annotations

import json
import zipfile
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from test_prepare import dropped, fill, run

from sojourn.cli.main import run as sojourn
from sojourn.data import texts, twins
from sojourn.data.archive import _shown
from sojourn.data.clean import Refused
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.data.prepare import prepare
from sojourn.errors import DataError
from sojourn.measure import readers, scores
from sojourn.measure.features import enlarged


def test_two_who_prepare_one_set_at_once_both_make_a_whole_one(tmp_path: Path) -> None:
    """The pictures of one must not get into the set of the other."""
    fill(tmp_path / "in", [f"{i}.png" for i in range(60)])
    alone, _ = run(tmp_path / "in", tmp_path / "alone")
    one, two = (prepare(tmp_path / "in", tmp_path / "set", size=size, workers=1) for size in (20, 16))
    last = [*zip_longest(one, two)][-1]
    assert all(event is None or event.kind == "done" for event in last)
    both = PackedSet(tmp_path / "set")
    assert both.info.shape[0] in (16, 20)
    if both.info.shape[0] == 16:
        assert {row["id"]: both.raw(np.array([i])).sum() for i, row in enumerate(both.rows)} == {
            row["id"]: alone.raw(np.array([i])).sum() for i, row in enumerate(alone.rows)
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "in", "set"]


def test_writers_of_one_place_do_not_touch_each_other(tmp_path: Path) -> None:
    def add(writer: SetWriter, *values: int) -> None:
        for value in values:
            writer.add(Item(id=str(value), data=np.full((2, 2, 1), value, np.uint8)))

    info = SetInfo(name="s", kind="image", shape=(2, 2, 1))
    with SetWriter(tmp_path / "s", info) as one:
        add(one, 1, 2)
        with SetWriter(tmp_path / "s", info) as two:
            add(two, 7)
        assert len(PackedSet(tmp_path / "s")) == 1
        add(one, 3)
    found = PackedSet(tmp_path / "s")
    assert [int(found.data[i, 0, 0, 0]) for i in range(len(found))] == [1, 2, 3]
    with pytest.raises(DataError), SetWriter(tmp_path / "s", info) as broken:
        broken.add(Item(id="9", data=np.zeros((3, 3, 1), np.uint8)))
    assert len(PackedSet(tmp_path / "s")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_long_field_of_a_table_takes_no_other_rows_along(tmp_path: Path) -> None:
    rows = "".join(f"text number {i} about {i * i}\n" for i in range(300))
    (tmp_path / "t.csv").write_text(f'text\n"{"long " * 40_000}"\n{rows}', encoding="utf-8")
    packed, report = run(tmp_path / "t.csv", tmp_path / "set", near=0)
    assert len(packed) == 301
    assert dropped(report) == {}


def test_split_folders_count_for_texts_and_beside_strays(tmp_path: Path) -> None:
    for part, count in (("train", 60), ("test", 20)):
        (tmp_path / "texts" / part).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "texts" / part / f"{i}.txt").write_text(f"{part} {'abcdefgh'[i % 8] * (i + 3)} of {i}")
    packed, _ = run(tmp_path / "texts", tmp_path / "set", near=0)
    placed = {row["id"]: ("train", "valid", "test")[packed.split[i]] for i, row in enumerate(packed.rows)}
    assert {split for name, split in placed.items() if name.startswith("test")} == {"test"}
    found = [split for name, split in placed.items() if name.startswith("train")]
    assert set(found) == {"train", "valid"}, "what is watched in training is taken from train, where none was given"
    assert found.count("valid") < 12
    fill(tmp_path / "in", [*(f"{part}/{i}.png" for part in ("train", "test") for i in range(12)), "stray.png"])
    packed, _ = run(tmp_path / "in", tmp_path / "set")
    for i, row in enumerate(packed.rows):
        assert (packed.split[i] == 2) == row["id"].startswith("test") or row["id"] == "stray.png"
    packed, _ = run(tmp_path / "in", tmp_path / "set", valid=0.0)
    assert not (packed.split == 1).any()


def test_half_an_emoji_in_a_table_is_no_traceback(tmp_path: Path) -> None:
    fill(tmp_path / "in", ["a.png", "b.png"])
    line = {"file_name": "a.png", "text": "cut \ud83d here", "style": "\ud83d"}
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(line))
    packed, _ = run(tmp_path / "in", tmp_path / "set")
    assert next(row for row in packed.rows if row["id"] == "a.png")["captions"] == ["cut \ufffd here"]


@pytest.mark.parametrize("to", ["file.png/x", "n" * 300])
def test_a_set_that_cannot_be_there_is_one_line(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "in", ["a.png", "b.png"])
    fill(tmp_path, ["file.png"])
    assert sojourn(["prepare", "in", "--to", f"./{to}"]) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("sojourn: cannot write")


def test_a_damaged_set_says_so(tmp_path: Path) -> None:
    fill(tmp_path / "in", [f"{i}.png" for i in range(4)])
    run(tmp_path / "in", tmp_path / "set")
    labels = (tmp_path / "set" / "labels.npy").read_bytes()
    (tmp_path / "set" / "labels.npy").write_bytes(labels[:20])
    with pytest.raises(DataError, match=r"is damaged .*; build it again"):
        PackedSet(tmp_path / "set")
    (tmp_path / "set" / "labels.npy").write_bytes(labels)
    (tmp_path / "set" / "set.json").write_text('{"name": 3}')
    with pytest.raises(DataError, match=r"is damaged .*; build it again"):
        PackedSet(tmp_path / "set")
    (tmp_path / "t.txt").write_text("\n\n".join(f"a paragraph about {i} things" for i in range(30)))
    run(tmp_path / "t.txt", tmp_path / "texts")
    data = (tmp_path / "texts" / "data.bin").read_bytes()
    (tmp_path / "texts" / "data.bin").write_bytes(data[:-40])
    with pytest.raises(DataError, match="is cut short"):
        PackedSet(tmp_path / "texts")


def test_a_cover_does_not_make_a_corpus_a_picture_set(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.txt").write_text(f"the {i}th document says {'xyzuvwab'[i] * (i + 5)}")
    fill(tmp_path / "in", ["cover.png"])
    packed, report = run(tmp_path / "in", tmp_path / "set", near=0)
    assert packed.info.kind == "text"
    assert len(packed) == 8
    assert dropped(report) == {"cover.png": "a picture among texts"}
    fill(tmp_path / "art", [f"{i}.png" for i in range(4)])
    for name in ("README.txt", "0.txt", "1.txt", "2.txt", "3.txt"):
        (tmp_path / "art" / name).write_text(f"told by {name}")
    packed, report = run(tmp_path / "art", tmp_path / "set")
    assert packed.info.kind == "image"
    assert packed.rows[1]["captions"][0] == "told by 1.txt"
    assert "README.txt" in json.dumps(report)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("안녕하세요 오늘은 날씨가 좋습니다. 나는 학교에 갑니다. 이 책은 매우 재미있습니다.", "cp949"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "euc-jp"),
    ],
)
def test_korean_and_japanese_are_not_taken_for_chinese(text: str, encoding: str) -> None:
    with pytest.raises(Refused, match="save it as UTF-8"):
        texts.decode(text.encode(encoding))
    chinese = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    assert texts.decode(chinese.encode("gb18030")) == (chinese, "gb18030")
    assert texts.decode("啊啊啊".encode("gb18030"))[0] == "啊啊啊"  # too short to tell


def test_a_name_that_python_has_read_from_a_unicode_field_stays() -> None:
    assert _shown(zipfile.ZipInfo("照片一.png")) == "照片一.png"
    assert _shown(zipfile.ZipInfo("照片.png".encode("gb18030").decode("cp437"))) == "照片.png"


def test_a_crowd_of_look_alikes_that_is_not_compared_whole_is_told() -> None:
    def compared(crowd: int) -> bool:
        pictures = [np.full((16, 16, 3), i % 250, np.uint8) for i in range(crowd)]
        return twins.look_alikes([0] * crowd, list(range(crowd)), lambda i: pictures[i], 4, False)[2]

    assert compared(40)
    assert not compared(300)


def test_r1_says_of_how_many_it_is() -> None:
    table = np.random.default_rng(0).random((60, 60))
    right, rivals = readers._among(table, [[str(i) for i in range(60)], [str(i % 2) for i in range(60)]], 0)
    assert rivals == 30
    assert right.mean() < 0.3
    assert readers._among(table, [[str(i) for i in range(60)], ["same"] * 60], 0)[1] == 0


def test_features_see_pictures_of_one_size_whatever_their_shape() -> None:
    import torch

    for shape in ((256, 128), (128, 256), (64, 128), (128, 128)):
        assert enlarged(torch.zeros(1, 3, *shape), 128).shape == (1, 3, 128, 128)


def test_distances_are_taken_in_parts_that_fit_memory() -> None:
    assert [len(part) for part in scores._parts(np.zeros((5000, 1)), np.zeros((100, 1)))] == [2048, 2048, 904]
    assert {len(part) for part in scores._parts(np.zeros((64, 1)), np.zeros((2**20, 1)))} == {32}


def test_options_without_effect_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "a", [f"{i}.png" for i in range(3)])
    fill(tmp_path / "b", [f"{i}.png" for i in range(3)])
    assert sojourn(["evaluate", str(tmp_path / "a"), str(tmp_path / "b"), "-n", "64", "--judge", "x"]) == 2
    assert capsys.readouterr().err == "sojourn: two folders are compared as they are: leave out --judge, -n\n"
