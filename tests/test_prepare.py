"""Folders, zips, tables and texts to sets: what is taken, said, grouped and refused (fault T19; T3 for preparing)."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import psutil
import pytest
from PIL import Image

from sojourn.data import scan as scanning
from sojourn.data import texts, twins
from sojourn.data.clean import Refused
from sojourn.data.dataset import PackedSet
from sojourn.data.prepare import PrepareConfig, prepare
from sojourn.data.report import Report
from sojourn.data.scan import caption_of_name
from sojourn.errors import ConfigError, DataError, NotFound, OutOfRoom


def art(seed, size=(32, 32), mode="RGB"):
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = rng.integers(0, 256, (6, 6, bands), dtype=np.uint8)
    layers = [Image.fromarray(noise[:, :, i]).resize(size, Image.Resampling.BICUBIC) for i in range(bands)]
    return layers[0] if bands == 1 else Image.merge(mode, layers)


def png(seed, **kinds):
    buffer = io.BytesIO()
    art(seed, **kinds).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder, names, **kinds):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed, **kinds))


def run(source, to, **settings):
    """(set, report as a dict) of a small preparation."""
    events = list(prepare(source, to, **{"size": 16, "workers": 1, **settings}))
    assert [event.kind for event in events[-3:]] == ["artifact", "artifact", "done"]
    for event in events[-3:-1]:
        assert os.path.isfile(event.path)
    return PackedSet(to), json.loads((to / "report.json").read_text(encoding="utf-8"))


def dropped(report):
    return {name: reason for reason, remark in report["dropped"].items() for name, _ in remark["files"]}


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


# Pictures and what is said of them


def test_class_folders_become_labels_and_captions(tmp_path):
    fill(tmp_path / "in", [f"{name}/{i}.png" for name in ("red_cat", "dog") for i in range(4)])
    packed, report = run(tmp_path / "in", tmp_path / "set")
    assert [(c.name, c.values) for c in packed.info.labels] == [("class", ["dog", "red_cat"])]
    for i, row in enumerate(packed.rows):
        folder = row["id"].split("/")[0]
        assert packed.label_name(i, "class") == folder
        assert row["captions"] == [folder.replace("_", " ")]
    assert report["classes"] == {"dog": 4, "red_cat": 4}
    assert report["captions"] == {"folder": 8}


def test_number_folders_sort_as_numbers_and_a_wrapping_folder_is_no_class(tmp_path):
    fill(tmp_path / "in", [f"all/{i}/x.png" for i in (10, 9, 2)])
    packed, _ = run(tmp_path / "in", tmp_path / "set")
    assert packed.info.labels[0].values == ["2", "9", "10"]
    fill(tmp_path / "one", [f"photos/{name}.png" for name in ("sun", "moon")])
    packed, _ = run(tmp_path / "one", tmp_path / "set")
    assert packed.info.labels == []
    assert [row["captions"] for row in packed.rows] == [["moon"], ["sun"]]


def test_captions_come_in_order(tmp_path):
    source = tmp_path / "in"
    fill(source, ["a/sun_set-01.png", "a/moon.png", "b/star.png", "IMG_2034.png", "sky.png"])
    (source / "a" / "sun_set-01.txt").write_text("the sun\n\n落日\n", encoding="utf-8")
    (source / "metadata.csv").write_text('file_name,text\na/moon.png,"a moon, full"\na/sun_set-01.png,not this\n')
    packed, report = run(source, tmp_path / "set")
    said = {row["id"]: row["captions"] for row in packed.rows}
    assert said == {
        "a/sun_set-01.png": ["the sun", "落日"], "a/moon.png": ["a moon, full"], "b/star.png": ["b"],
        "IMG_2034.png": [], "sky.png": ["sky"],
    }  # fmt: skip
    assert report["captions"] == {"folder": 1, "name": 1, "none": 1, "sidecar": 1, "table": 1}
    packed, _ = run(source, tmp_path / "set", captions="name")
    assert {row["id"]: row["captions"] for row in packed.rows}["a/sun_set-01.png"] == ["sun set"]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red_heart-02", "red heart"), ("DSC00123", ""), ("go go go", "go"),
         ("IMG 20240101 120000", ""), ("48x48", ""), ("红心 (2)", "红心"),
        ("d41d8cd98f00b204e9800998ecf8427e", ""), ("edit-copy", "edit copy"), ("photo", "photo"), ("2001", ""),
        ("café.au+lait", "café au lait"), ("decade", "decade"),
    ],
)  # fmt: skip
def test_what_a_file_name_says(name, caption):
    assert caption_of_name(name) == caption


def test_table_columns(tmp_path):
    source = tmp_path / "in"
    fill(source, [f"img/{i}.png" for i in range(6)])
    rows = [
        {"file_name": "img/0.png", "text": ["one", "two"], "label": 3, "licence": "CC0-1.0", "source": "mine"},
        {"file_name": "img/0.png", "text": "three"},
        {"file_name": "./img\\1.png", "text": "x", "label": "12", "style": "ink", "license": "MIT"},
        {"file_name": "img/2.png", "text": "  spaces \n  in\tlines "},
        {"file_name": "img/none.png", "text": "missing"},
        {"file_name": "../secret.png", "text": "outside"},
        {"text": "no name"},
    ]
    lines = [json.dumps(row) for row in rows] + ["{broken", "[1]", ""]
    (source / "metadata.jsonl").write_text("\n".join(lines))
    art(99).save(tmp_path / "secret.png")
    packed, report = run(source, tmp_path / "set", licence="CC-BY-4.0", source_name="the web", url="https://x.org")
    by_id = {row["id"]: (i, row) for i, row in enumerate(packed.rows)}
    assert len(by_id) == 6
    assert by_id["img/0.png"][1]["captions"] == ["one", "two", "three"]
    assert by_id["img/2.png"][1]["captions"] == ["spaces in lines"]
    assert by_id["img/1.png"][1]["style"] == "ink"
    assert [packed.label_name(by_id[f"img/{i}.png"][0], "class") for i in range(3)] == ["3", "12", None]
    terms = {name: packed.info.sources[row["source"]] for name, (_, row) in by_id.items()}
    assert (terms["img/0.png"].name, terms["img/0.png"].licence) == ("mine", "CC0-1.0")
    assert (terms["img/1.png"].name, terms["img/1.png"].licence) == ("the web", "MIT")
    assert (terms["img/5.png"].licence, terms["img/5.png"].count) == ("CC-BY-4.0", 4)
    assert sorted(dropped(report).items()) == [
        ("../secret.png", "unsafe path"), ("img/none.png", "missing file"),
        ("metadata.jsonl:7", "table row without file_name"), ("metadata.jsonl:8", "table row not readable"),
        ("metadata.jsonl:9", "table row not readable"),
    ]  # fmt: skip


def test_a_table_as_the_source_takes_only_what_it_lists(tmp_path):
    fill(tmp_path / "in", ["a.png", "b.png", "c.svg"])
    table = tmp_path / "in" / "some.csv"
    table.write_text("file_name,text,group\nb.png,hello,g\n", encoding="utf-8-sig")
    packed, report = run(table, tmp_path / "set")
    assert [(row["id"], row["captions"]) for row in packed.rows] == [("b.png", ["hello"])]
    assert dropped(report) == {}


def test_split_folders_and_tables_of_hugging_face(tmp_path):
    source = tmp_path / "in"
    fill(
        source,
        [f"{part}/{name}/{i}.png" for part in ("train", "validation", "test") for name in "ab" for i in range(3)],
    )
    (source / "test" / "metadata.jsonl").write_text('{"file_name": "a/0.png", "text": "told"}')
    packed, _ = run(source, tmp_path / "set")
    for i, row in enumerate(packed.rows):
        assert ("train", "validation", "test")[packed.split[i]] == row["id"].split("/")[0]
        assert packed.label_name(i, "class") == row["id"].split("/")[1]
    assert next(r for r in packed.rows if r["id"] == "test/a/0.png")["captions"] == ["told"]


def test_channels_are_what_the_pictures_have(tmp_path):
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
        fill(tmp_path / mode, ["a.png", "b.png"], mode=mode)
        packed, report = run(tmp_path / mode, tmp_path / "set")
        assert packed.info.shape == (16, 16, channels)
        assert report["shape"] == [16, 16, channels]
    grey = Image.merge("RGB", [art(3, mode="L")] * 3)
    (tmp_path / "grey").mkdir()
    grey.save(tmp_path / "grey" / "a.png")
    Image.merge("RGBA", [*grey.split(), Image.new("L", grey.size, 255)]).resize((40, 40)).save(
        tmp_path / "grey" / "b.png"
    )
    assert run(tmp_path / "grey", tmp_path / "set", near=0)[0].info.shape[2] == 1
    assert run(tmp_path / "RGBA", tmp_path / "set", channels=3)[0].info.shape[2] == 3
    assert run(tmp_path / "RGB", tmp_path / "set", channels=1, size=(24, 8))[0].info.shape == (24, 8, 1)


def test_set_holds_the_pictures(tmp_path):
    fill(tmp_path / "in", [f"{i}.png" for i in range(5)], size=(16, 16))
    packed, _ = run(tmp_path / "in", tmp_path / "set")
    for i, row in enumerate(packed.rows):
        assert np.array_equal(packed.data[i], np.asarray(Image.open(tmp_path / "in" / row["id"])))
        assert row["size"] == [16, 16]


# Copies, look-alikes, splits


def test_copies_are_dropped_and_their_captions_kept(tmp_path):
    fill(tmp_path / "in", ["cat/one.png", "dog/other.png"])
    for name in ("cat/same.png", "dog/same.png"):
        art(0).convert("RGBA").save(tmp_path / "in" / name)
    packed, report = run(tmp_path / "in", tmp_path / "set", captions="name")
    assert {row["id"]: row["captions"] for row in packed.rows} == {
        "cat/one.png": ["one", "same"],
        "dog/other.png": ["other"],
    }
    assert dropped(report) == {"cat/same.png": "copy of another", "dog/same.png": "copy of another"}
    assert report["notes"]["also found as another class"]["files"] == [["cat/one.png", "dog, kept as cat"]]


def test_of_copies_the_largest_original_stays(tmp_path):
    (tmp_path / "in").mkdir()
    for name, side in (("a", 20), ("b", 40), ("c", 30)):
        Image.new("RGB", (side, side), "teal").save(tmp_path / "in" / f"{name}.png")
    packed, report = run(tmp_path / "in", tmp_path / "set")
    assert [(row["id"], row["captions"]) for row in packed.rows] == [("b.png", ["b", "c", "a"])]
    assert dropped(report) == {"a.png": "copy of another", "c.png": "copy of another"}


def _twins(folder, pairs):
    folder.mkdir()
    for seed in range(pairs):
        whole = art(seed, (96, 96))
        whole.save(folder / f"{seed}_a.png")
        whole.resize((50, 50)).point(lambda v: min(255, int(v * 1.04) + 3)).save(folder / f"{seed}_b.jpg", quality=60)


def test_near_twins_share_a_split(tmp_path):
    _twins(tmp_path / "in", 60)
    settings = {"size": 32, "valid": 0.3, "test": 0.3, "drop_twins": False}
    packed, report = run(tmp_path / "in", tmp_path / "set", **settings)
    split, group = {}, {}
    for i, row in enumerate(packed.rows):
        split.setdefault(row["id"].split("_")[0], set()).add(int(packed.split[i]))
        group.setdefault(row["id"].split("_")[0], set()).add(row["group"])
    assert len(packed) == 120
    assert report["groups"] == 60
    assert all(len(parts) == 1 for parts in split.values())
    assert len({next(iter(g)) for g in group.values()}) == 60
    assert min(report["splits"].values()) >= 12
    alone, _ = run(tmp_path / "in", tmp_path / "set", **{**settings, "near": 0})
    assert len({row["group"] for row in alone.rows}) == 120, "without grouping this test would prove nothing"


def test_only_what_nobody_can_tell_apart_is_dropped(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    art(1, (128, 128)).save(source / "big.png")
    art(1, (128, 128)).resize((64, 64)).save(source / "small.png")
    clock = Image.new("L", (64, 64), 255)
    clock.paste(0, (30, 8, 34, 56))
    for name, box in (("three.png", (34, 30, 50, 33)), ("four.png", (34, 36, 50, 39))):
        face = clock.copy()
        face.paste(0, box)
        face.save(source / name)
    for name, box in (("white_left.png", (4, 4, 20, 60)), ("white_right.png", (40, 10, 60, 50))):
        drawing = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
        drawing.paste((255, 255, 255, 255), box)
        drawing.save(source / name)
    packed, report = run(source, tmp_path / "set", size=64, near=12)
    assert dropped(report) == {"small.png": "nearly the same as another"}
    assert len(packed) == 5


def test_a_dot_is_a_difference_in_every_colour():
    """All hashes are equal here, so that only the pictures themselves decide."""

    def repeats(one, other):
        return twins.look_alikes([0, 0], [0, 1], [one, other].__getitem__, 1, True)[1]

    for ground, ink in (((255, 255, 255, 255), 0), ((0, 0, 0, 255), 255), ((0, 0, 0, 0), 0), ((255, 255, 255, 0), 255)):
        plain = np.full((64, 64, 4), ground, np.uint8)
        plain[8:56, 30:34] = (ink, ink, ink, 255)
        dot, paler = plain.copy(), plain.copy()
        dot[30:35, 50:55] = (ink, ink, ink, 255)
        paler[8:56, 30:34, 3] = 250
        assert repeats(plain, plain.copy()) == {1: 0}
        assert repeats(plain, paler) == {1: 0}
        assert repeats(plain, dot) == {}


def test_a_twin_across_given_splits_moves_to_the_test(tmp_path):
    fill(tmp_path / "in", [f"{part}/{i}.png" for part in ("train", "test") for i in range(3)])
    art(1).resize((60, 60)).save(tmp_path / "in" / "test" / "twin.png")
    packed, report = run(tmp_path / "in", tmp_path / "set", drop_twins=False)
    parts = {row["id"]: int(packed.split[i]) for i, row in enumerate(packed.rows)}
    assert parts["train/1.png"] == parts["test/twin.png"] == 2
    assert "look-alikes kept in one split" in report["notes"]


def test_groups_of_a_table(tmp_path):
    fill(tmp_path / "in", [f"{i}.png" for i in range(40)])
    lines = [json.dumps({"file_name": f"{i}.png", "text": "", "group": f"g{i % 4}"}) for i in range(40)]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(lines))
    packed, report = run(tmp_path / "in", tmp_path / "set", valid=0.3, test=0.3)
    assert report["groups"] == 4
    assert report["largest_group"] == 10
    for part in range(4):
        rows = [i for i, row in enumerate(packed.rows) if int(row["id"][:-4]) % 4 == part]
        assert len({int(packed.split[i]) for i in rows}) == 1


def test_split_follows_the_group_and_never_leaves_train_empty():
    names = [f"g{i // 3}" for i in range(3000)]
    parts, moved = twins.split(names, [None] * 3000, 0.1, 0.2)
    assert moved == 0
    assert 60 <= sum(p == "valid" for p in parts) / 3 <= 140
    assert 150 <= sum(p == "test" for p in parts) / 3 <= 250
    more, _ = twins.split([*names, "new"], [None] * 3001, 0.1, 0.2)
    assert more[:3000] == parts
    for count in (1, 2, 3, 4, 8):
        few, _ = twins.split([f"n{i}" for i in range(count)], [None] * count, 0.05, 0.05)
        assert "train" in few
        assert count < 3 or {"valid", "test"} <= set(few)
    assert set(twins.split(names, [None] * 3000, 0, 0)[0]) == {"train"}
    assert twins.split(["a", "a", "b"], ["train", "test", None], 0, 0) == (["test", "test", "train"], 1)


@pytest.mark.parametrize("distance", [1, 3, 6])
def test_neighbours_are_exact(distance):
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**63, 150, dtype=np.uint64)
    flips = [base]
    for _ in range(7):
        base = base ^ (np.uint64(1) << rng.integers(0, 64, 150).astype(np.uint64))
        flips.append(base)
    hashes = np.unique(np.concatenate(flips))
    table, whole = twins.neighbours(hashes, distance)
    assert whole
    gaps = np.bitwise_count(hashes[:, None] ^ hashes[None])
    found = 0
    for i, others in enumerate(table):
        assert set(others) == set(np.flatnonzero(gaps[i] <= distance).tolist()) - {i}
        assert [gaps[i, j] for j in others] == sorted(gaps[i, j] for j in others)
        found += len(others)
    assert found > 100


# The same in, the same out; nothing left behind; nothing overwritten


def test_same_input_same_bytes(tmp_path):
    _twins(tmp_path / "in", 20)
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    contents = []
    for workers in (1, 2):
        run(tmp_path / "in", tmp_path / "set", workers=workers, size=32)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()})
    assert contents[0] == contents[1]
    assert {"set.json", "data.bin", "report.json", "report.html", "sheet.png"} <= set(contents[0])
    assert b"pytest-of" not in contents[0]["report.json"] + contents[0]["set.json"]
    assert leftovers(tmp_path) == ["in", "set"]


def test_closing_cancels_and_leaves_the_old_set(tmp_path):
    fill(tmp_path / "in", [f"{i}.png" for i in range(200)])
    fill(tmp_path / "small", ["a.png"])
    run(tmp_path / "small", tmp_path / "set")
    running = prepare(tmp_path / "in", tmp_path / "set", size=16, workers=2)
    for event in running:
        if event.kind == "progress" and event.total:
            break
    running.close()
    assert leftovers(tmp_path) == ["in", "set", "small"]
    assert len(PackedSet(tmp_path / "set")) == 1
    assert not [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE]


def test_it_says_how_far_it_is(tmp_path):
    fill(tmp_path / "in", [f"{i}.png" for i in range(20)])
    events = [e for e in prepare(tmp_path / "in", tmp_path / "set", size=16) if e.kind == "progress"]
    assert (events[-1].done, events[-1].total, events[-1].text) == (20, 20, "packing")
    assert any(e.text == "reading" and e.done == 20 for e in events)


@pytest.mark.parametrize("limit", [3000, 12_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, limit):
    """RLIMIT_FSIZE stands for the disk: 3000 bytes stop the spool, 12000 the set (grey pictures with four channels)."""
    fill(tmp_path / "in", [f"{i}.png" for i in range(20)], mode="L")
    code = (
        "import resource, sys\n"
        "from sojourn.data.prepare import prepare\n"
        "from sojourn.errors import OutOfRoom\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    list(prepare(sys.argv[1], sys.argv[2], size=16, channels=4))\n"
        "except OutOfRoom as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "set")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert str(tmp_path / "set") in done.stdout
    assert "are free" in done.stdout
    assert leftovers(tmp_path) == ["in"]


def test_too_small_a_disk_is_said_before_the_work(tmp_path, monkeypatch):
    fill(tmp_path / "in", ["a.png"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(100))
    with pytest.raises(OutOfRoom, match=r"no room to write .*: 100 bytes are free"):
        list(prepare(tmp_path / "in", tmp_path / "set", size=64))
    assert leftovers(tmp_path) == ["in"]


class _Usage:
    def __init__(self, free):
        self.free = free


def test_it_overwrites_nothing_but_sets(tmp_path):
    fill(tmp_path / "in", ["a.png"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt", tmp_path / "in"):
        with pytest.raises(DataError, match="not a data set"):
            list(prepare(tmp_path / "in", place))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    run(tmp_path / "in", tmp_path / "set")
    fill(tmp_path / "set", ["in/x.png"])
    with pytest.raises(DataError, match="replace its source"):
        list(prepare(tmp_path / "set" / "in", tmp_path / "set"))


def test_a_set_inside_its_source_is_not_its_own_input(tmp_path):
    fill(tmp_path, ["a.png", "b.png"])
    for _ in range(2):
        packed, _ = run(tmp_path, tmp_path / "set")
        assert [row["id"] for row in packed.rows] == ["a.png", "b.png"]
    packed, report = run(tmp_path, tmp_path / "second")
    assert len(packed) == 2
    assert report["notes"]["a prepared set, not looked into"]["files"] == [["set", ""]]


@pytest.mark.parametrize("kind", ["folder", "zip", "files"])
def test_nothing_to_prepare_is_one_line(tmp_path, kind):
    source = tmp_path / "in"
    if kind == "zip":
        source = tmp_path / "in.zip"
        zipfile.ZipFile(source, "w").close()
    else:
        source.mkdir()
        if kind == "files":
            (source / "notes.docx").write_bytes(b"x")
    with pytest.raises(DataError, match="no pictures or texts") as caught:
        list(prepare(source, tmp_path / "set"))
    assert "\n" not in str(caught.value)
    assert "set" not in leftovers(tmp_path)


def test_other_refusals(tmp_path):
    with pytest.raises(NotFound, match="nothing to prepare"):
        list(prepare(tmp_path / "none", tmp_path / "set"))
    fill(tmp_path, ["a.png"])
    with pytest.raises(DataError, match="no folder, zip or table"):
        list(prepare(tmp_path / "a.png", tmp_path / "set"))
    with pytest.raises(ConfigError, match="setting size"):
        list(prepare(tmp_path, tmp_path / "set", size=3))
    with pytest.raises(ConfigError, match="setting sise"):
        list(prepare(tmp_path, tmp_path / "set", PrepareConfig(), sise=3))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"none of the 1 pictures.*1 not a picture"):
        list(prepare(tmp_path / "bad", tmp_path / "set"))
    assert "set" not in leftovers(tmp_path)


def test_report_page_shows_names_as_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    fill(tmp_path / "in", ["a.png", f"{evil}.png"])
    (tmp_path / "in" / f"{evil}2.png").write_bytes(b"broken")
    (tmp_path / "in" / "a.txt").write_text("<script>alert(1)</script>")
    _, report = run(tmp_path / "in", tmp_path / "set", name=evil, licence="<b>")
    page = (tmp_path / "set" / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert "<b>" not in page
    assert Report.model_validate(report).kept == 2


# T19: archives


def pack(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def test_a_zip_is_as_its_folder(tmp_path):
    fill(tmp_path / "in", [f"{name}/{i}.png" for name in "ab" for i in range(3)])
    (tmp_path / "in" / "a" / "0.txt").write_text("told")
    members = [(str(p.relative_to(tmp_path / "in")), p.read_bytes()) for p in (tmp_path / "in").rglob("*.*")]
    pack(tmp_path / "in.zip", members)
    plain, _ = run(tmp_path / "in", tmp_path / "one")
    packed, _ = run(tmp_path / "in.zip", tmp_path / "two")
    assert packed.rows == plain.rows
    assert np.array_equal(packed.data, plain.data)


def test_t19_unsafe_members_are_refused_and_the_rest_kept(tmp_path):
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    device = zipfile.ZipInfo("device.png")
    device.create_system, device.external_attr = 3, 0o060666 << 16
    nested = pack(tmp_path / "n.zip", [("x.png", png(50))]).read_bytes()
    secret = b"SECRETSECRETSECRET"
    path = pack(
        inside / "bad.zip",
        [
            ("good.png", png(1)), ("Good.PNG", png(2)), ("../up.png", png(3)), ("/abs.png", png(4)),
            ("a/../../up2.png", png(5)), ("C:\\win.png", png(6)), ("..\\back.png", png(7)), (link, b"/etc/passwd"),
            (device, png(8)), ("inner.zip", nested), ("sub/fine.png", png(9)), ("bomb.bmp", bytes(40 << 20)),
            ("locked.png", secret), ("__MACOSX/._good.png", b"x"), ("readme.md", b"hi"), ("empty/", b""),
            ("cut.png", png(10)[:60]), ("crc.png", png(11)),
        ],
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            if b"locked.png" in data[at : at + 80].split(b"PK", 2)[1]:
                data[at + flag] |= 1
    at = data.find(b"PK\x01\x02")
    while data[at + 46 : at + 53] != b"crc.png":
        at = data.find(b"PK\x01\x02", at + 1)
    data[at + 16] ^= 0xFF
    path.write_bytes(data)
    packed, report = run(path, inside / "set")
    assert {row["id"] for row in packed.rows} == {"good.png", "Good.PNG", "sub/fine.png"}
    assert dropped(report) == {
        "../up.png": "unsafe path", "abs.png": "unsafe path", "a/../../up2.png": "unsafe path",
        "C:/win.png": "unsafe path", "../back.png": "unsafe path", "link.png": "symbolic link",
        "device.png": "not a regular file", "inner.zip": "archive inside", "bomb.bmp": "zip bomb",
        "locked.png": "encrypted", "cut.png": "truncated", "crc.png": "corrupt",
    }  # fmt: skip
    assert report["notes"]["differs from good.png in case only"]["files"] == [["Good.PNG", ""]]
    assert report["other"] == 1
    assert leftovers(tmp_path) == ["deep", "n.zip"]
    assert leftovers(inside) == ["bad.zip", "set"]


def _entries(path, count, data=b"x"):
    """A zip whose directory names one member `count` times."""
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(data), len(data), 5, 0) + b"a.png" + data
    name = b"%05x.png"
    central = b"".join(
        struct.pack(
            "<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, len(data), len(data), 9, 0, 0, 0, 0, 0, 0
        )
        + name % i
        for i in range(count)
    )
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path


def _refused(path, to, **settings):
    start = time.process_time()  # nothing is decoded, so all the work is in this process
    with pytest.raises(DataError) as caught:
        list(prepare(path, to, **settings))
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert not to.exists()
    return str(caught.value)


def test_t19_archives_that_are_refused_whole(tmp_path):
    to = tmp_path / "set"
    assert "more than 100000 entries" in _refused(_entries(tmp_path / "many.zip", 100_001), to)
    assert "more than 3 entries" in _refused(_entries(tmp_path / "few.zip", 4), to, zip_entries=3)
    bomb = pack(tmp_path / "bomb.zip", [("a.bmp", bytes(150 << 20))])
    assert "times its size" in _refused(bomb, to)
    flat = pack(tmp_path / "flat.zip", [(f"{i}.png", png(i)) for i in range(9)])
    assert "at most 3000 are read" in _refused(flat, to, zip_bytes=3000)
    for name, data in (("text.zip", b"no zip"), ("empty.zip", b""), ("cut.zip", flat.read_bytes()[:-40])):
        (tmp_path / name).write_bytes(data)
        assert "cannot be read" in _refused(tmp_path / name, to)


def test_t19_a_directory_that_lies_about_sizes(tmp_path):
    path = pack(tmp_path / "lie.zip", [("good.png", png(1)), ("lie.png", png(2) + bytes(60 << 20))])
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 500)
    path.write_bytes(data)
    packed, report = run(path, tmp_path / "set")
    assert [row["id"] for row in packed.rows] == ["good.png"]
    assert set(dropped(report)) == {"lie.png"}


def test_chinese_names_of_old_zips(tmp_path):
    name = "红心.png".encode("gb18030")
    path = pack(tmp_path / "in.zip", [("x" * len(name), png(1))])
    path.write_bytes(path.read_bytes().replace(b"x" * len(name), name))
    packed, _ = run(path, tmp_path / "set")
    assert [(row["id"], row["captions"]) for row in packed.rows] == [("红心.png", ["红心"])]


def test_scanning_a_big_zip_opens_no_picture(tmp_path, monkeypatch):
    path = pack(tmp_path / "in.zip", [(f"{i}.png", b"not looked at") for i in range(50)])
    monkeypatch.setattr("sojourn.data.archive.Archive.read", lambda *a: pytest.fail("read"))
    found, archive = scanning.scan(path)
    archive.close()
    assert len(found.items) == 50


# Texts


def test_texts_of_a_folder(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    poem = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    files = {
        "utf8.txt": poem.encode(), "mark.txt": b"\xef\xbb\xbfmarked text",
        "gb.txt": ("春眠不觉晓，" * 5).encode("gb18030"),
        "wide.txt": "sixteen bits".encode("utf-16"), "latin.txt": "déjà vu, garçon éternel".encode("latin-1"),
        "binary.txt": bytes(range(256)), "zero.txt": b"abc\0def", "empty.txt": b"", "blank.txt": b" \n\n ",
        "copy.txt": ("  " + poem.replace("，", ", ") + "\r\n").encode(), "image.dat": b"x",
    }  # fmt: skip
    for name, data in files.items():
        (source / name).write_bytes(data)
    packed, report = run(source, tmp_path / "set", licence="PD")
    assert packed.info.kind == "text"
    assert {row["id"]: packed.text(i) for i, row in enumerate(packed.rows)} == {
        "copy.txt": poem.replace("，", ", "), "mark.txt": "marked text", "gb.txt": "春眠不觉晓，" * 5,
        "wide.txt": "sixteen bits",
    }  # fmt: skip
    assert dropped(report) == {
        "latin.txt": "encoding not known", "binary.txt": "encoding not known", "zero.txt": "not a text",
        "empty.txt": "empty file", "blank.txt": "empty file", "utf8.txt": "copy of another",
    }  # fmt: skip
    assert report["notes"]["encoding"]["files"] == [
        ["gb.txt", "gb18030"],
        ["mark.txt", "utf-8-sig"],
        ["wide.txt", "utf-16"],
    ]
    assert packed.info.sources[0].licence == "PD"


def test_a_lone_text_is_cut(tmp_path):
    path = tmp_path / "poems.txt"
    path.write_text("one\nmore\n\n\n two \n \nthree\n", encoding="utf-8")
    packed, _ = run(path, tmp_path / "set")
    assert [packed.text(i) for i in range(3)] == ["one\nmore", "two", "three"]
    packed, _ = run(path, tmp_path / "set", documents="file")
    assert len(packed) == 1
    path.write_text("a b\nc d\n", encoding="utf-8")
    packed, _ = run(path, tmp_path / "set", min_chars=2)
    assert [packed.text(i) for i in range(2)] == ["a b", "c d"]


def test_text_tables(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [
        {"text": "first text", "title": "静夜思", "label": "tang", "source": "book"},
        {"text": "second text", "label": "song"},
        {"text": ""}, {"title": "none"}, {"text": "half \ud800 pair"},
    ]  # fmt: skip
    path.write_text("\n".join([*map(json.dumps, rows), "{"]), encoding="utf-8")
    packed, report = run(path, tmp_path / "set")
    assert [packed.text(i) for i in range(2)] == ["first text", "second text"]
    assert packed.rows[0]["captions"] == ["静夜思"]
    assert [packed.label_name(i, "class") for i in range(2)] == ["tang", "song"]
    assert {remark["reason"]: remark["count"] for remark in report["dropped"].values()} == {
        "table row without text": 2, "not a text": 1, "table row not readable": 1,
    }  # fmt: skip
    path = tmp_path / "in.csv"
    path.write_text('text,label\n"a, b",x\nplain,y\n', encoding="utf-8")
    packed, _ = run(path, tmp_path / "set")
    assert sorted(packed.text(i) for i in range(2)) == ["a, b", "plain"]


def test_near_texts_share_a_split(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 7)) for _ in range(800)]
    documents = []
    for _ in range(40):
        text = [words[w] for w in rng.integers(0, 800, 400)]
        documents.append(" ".join(text))
        text[200] = "changed"
        documents.append(" ".join(text))
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents))
    packed, report = run(tmp_path / "in.jsonl", tmp_path / "set", valid=0.3, test=0.3)
    assert len(packed) == 80
    assert report["groups"] == 40
    assert all(packed.split[i] == packed.split[i + 1] for i in range(0, 80, 2))


def test_decode_tells_chinese_from_western():
    assert texts.decode("简体中文，常用字".encode("gb18030")) == ("简体中文，常用字", "gb18030")
    for text in ("garçon très étrange à Noël", "Müßiggänger über Österreich", "naïve"):
        with pytest.raises(Refused, match="encoding not known"):
            texts.decode(text.encode("latin-1"))
    assert texts.decode(b"a\r\nb\rc")[0] == "a\nb\nc"


def test_similarity_hash():
    long = "the quick brown fox jumps over the lazy dog and runs away into the deep forest " * 20

    def gap(one, other):
        return (texts.similarity_hash(one) ^ texts.similarity_hash(other)).bit_count()

    assert gap(long, long.upper() + "!!") == 0
    assert gap(long, long.replace("lazy", "lame", 1)) <= 3
    assert gap(long, long[::-1]) > 12
    assert texts.similarity_hash("短") != texts.similarity_hash("长")
    assert texts.similarity_hash("") == texts.similarity_hash("")
