"""The database under fault, and the gallery in it: locked, damaged, newer, half lifted; a million pictures; a crash."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from PIL import Image
from sqlalchemy import select, text

from sojourn.errors import InvalidInput, NotFound, StoreError
from sojourn.picture import png
from sojourn.studio import store as stores
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery, Wanted, tokens
from sojourn.studio.jobs import Jobs
from sojourn.studio.keys import Keys
from sojourn.studio.ratings import Ratings
from sojourn.studio.store import Store
from sojourn.studio.studio import Studio
from sojourn.studio.tables import Base, JobRow, PictureRow

LONG = bool(os.environ.get("SOJOURN_SOAK"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    out = Store(url)
    yield out
    out.close()


@pytest.fixture
def gallery(store: Store, tmp_path: Path) -> Gallery:
    return Gallery(store, Blobs(tmp_path / "blobs"))


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    out = Bell(tmp_path / "bells")
    yield out
    out.close()


@pytest.fixture
def file(tmp_path: Path, bell: Bell) -> Path:
    """A database with a row in it."""
    path = tmp_path / "studio.sqlite"
    store = Store(f"sqlite:///{path}")
    Jobs(store, bell).submit("ann", "generate", {"prompt": "红心"})
    store.close()
    return path


# The schema


def test_the_migrations_make_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": lambda name, kind, _: kind != "table" or not str(name).startswith("picture_words")},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_opening_again_changes_nothing(file: Path) -> None:
    before = file.read_bytes()
    Store(f"sqlite:///{file}").close()
    assert file.read_bytes() == before


KILLED = """
import os, sys, sqlite3
from sojourn.studio import store
from alembic import command
steps = int(sys.argv[2])
count = 0
def trace(frame, event, argument):
    global count
    count += 1
    if count == steps:
        os._exit(9)
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute")
def before(*_):
    trace(None, None, None)
store.Store(f"sqlite:///{sys.argv[1]}")
print(count)
"""


def test_a_killed_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    """T24: killed before each statement of it."""
    whole = tmp_path / "whole.sqlite"
    done = subprocess.run([sys.executable, "-c", KILLED, str(whole), "0"], capture_output=True, text=True, check=True)
    count = int(done.stdout)
    assert count > 20
    every = range(1, count + 1) if LONG else [1, 2, count // 2, count - 1, count]
    for step in every:
        path = tmp_path / f"killed-{step}.sqlite"
        killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(step)], check=False)
        assert killed.returncode == 9
        with sqlite3.connect(path) as raw:
            tables = [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        raw.close()
        assert tables == [], "never between"
        Store(f"sqlite:///{path}").close()


@pytest.mark.parametrize("how", ["cut", "flipped", "text"])
def test_a_damaged_database_is_refused_and_left_alone(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flipped":
        for page in range(1, len(data) // 4096):
            data[page * 4096 : page * 4096 + 12] = os.urandom(12)
    else:
        data = bytearray("这不是数据库\n".encode() * 1000)
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"is damaged .*nothing was changed"):
        Store(f"sqlite:///{file}")
    assert file.read_bytes() == bytes(data)
    copy = file.with_name(file.name + ".0000")
    copy.write_bytes(b"")
    with pytest.raises(StoreError, match=r"The last copy is .*0000"):
        Store(f"sqlite:///{file}")


def test_one_that_is_damaged_while_it_is_open_is_told(file: Path) -> None:
    store = Store(f"sqlite:///{file}")
    store.write(lambda session: session.execute(text("DELETE FROM jobs")))
    store.engine.dispose()
    data = bytearray(file.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 12] = os.urandom(12)
    file.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        store.read(lambda session: session.scalars(select(JobRow)).all())
    store.close()


def test_without_a_key_it_is_nobodys_until_it_is_given(store: Store, gallery: Gallery, bell: Bell) -> None:
    keys, jobs, ratings = Keys(store), Jobs(store, bell), Ratings(store)
    job = jobs.submit("local", "generate", {"prompt": "a cat"})
    mine = gallery.add(row("a cat", "local"))
    gallery.collect("local", "best", [mine])
    ratings.rate("local", "stars", mine, 5)
    keys.add("ann")
    gallery.collect("ann", "best", [gallery.add(row("a dog", "ann"))])
    with pytest.raises(NotFound, match="no key"):
        keys.adopt("bob")
    assert (keys.unowned(), keys.adopt("ann"), keys.unowned()) == (1, 1, 0)
    assert [found.words for found in gallery.page("ann", Wanted())] == ["a dog", "a cat"]
    assert sorted(name.split(" (")[0] for _, name, _ in gallery.collections("ann")) == ["best", "best"]
    worker = jobs.enlist("here", 1, "now", ("interactive",))
    assert [(found.id, found.owner) for found in jobs.claim(worker, ("interactive",))] == [(job.id, "ann")]
    assert ratings.undo("ann") is not None


def test_a_newer_database_is_refused(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreError, match=r"newer Sojourn .*9999.*upgrade"):
        Store(f"sqlite:///{file}")


NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0006", "0005"

def upgrade():
    op.create_table("more", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("UPDATE jobs SET owner = 'lifted'")
    if FAIL:
        raise RuntimeError("half way")
"""


def test_a_database_is_lifted_whole_with_a_copy_beside_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T24."""
    place = tmp_path / "migrations"
    shutil.copytree(stores.MIGRATIONS, place)
    monkeypatch.setattr(stores, "MIGRATIONS", place)
    step = place / "versions" / "0006_next.py"
    step.write_text("FAIL = True" + NEXT)
    with pytest.raises(RuntimeError, match="half way"):
        Store(f"sqlite:///{file}")

    def owner(path: Path) -> tuple[str, str]:
        with closing(sqlite3.connect(path)) as raw:
            version = raw.execute("SELECT version_num FROM alembic_version").fetchone()[0]
            return version, raw.execute("SELECT owner FROM jobs").fetchone()[0]

    assert owner(file) == ("0005", "ann"), "as it was"
    step.write_text("FAIL = False" + NEXT)
    Store(f"sqlite:///{file}").close()
    assert owner(file) == ("0006", "lifted")
    assert owner(file.with_name("studio.sqlite.0005")) == ("0005", "ann")


@contextmanager
def as_nobody(file: Path) -> Iterator[None]:
    """Root may write everything: be somebody else, who owns the file, for a while."""
    if os.getuid() != 0:
        yield
        return
    for path in (file, file.parent):
        os.chown(path, 65534, 65534)
    for path in file.parents:
        if str(path).startswith("/tmp/"):
            path.chmod(0o755)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_one_that_may_not_be_written_is_refused(file: Path) -> None:
    """T24."""
    with as_nobody(file):
        Store(f"sqlite:///{file}").close()
    file.chmod(0o400)
    with as_nobody(file), pytest.raises(StoreError, match="may not be written"):
        Store(f"sqlite:///{file}")


@pytest.mark.parametrize("given", ["mysql://x/y", "nonsense", "sqlite://", "http://a/b"])
def test_what_is_no_database_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="is no database; write sqlite"):
        Store(given)


LOCKER = """
import sqlite3, sys, time
raw = sqlite3.connect(sys.argv[1], isolation_level=None)
raw.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
raw.execute("COMMIT")
"""


def test_a_locked_database_is_waited_for_and_can_be_read(file: Path, bell: Bell) -> None:
    """T23."""
    seconds = 30.0 if LONG else 3.0
    store = Store(f"sqlite:///{file}")
    jobs = Jobs(store, bell)
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(file), str(seconds)], stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        locker.stdout.readline()
        begun = time.monotonic()
        written: list[int] = []
        threads = [
            threading.Thread(target=lambda: written.append(jobs.submit("bob", "generate", {}).id)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        assert len(jobs.page()) == 1, "read while it is locked"
        assert time.monotonic() - begun < 1
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun > seconds / 2
    assert len(set(written)) == 8
    assert len(jobs.page("bob")) == 8
    store.close()


def test_a_crowd_of_writers_leaves_room_for_readers(file: Path, bell: Bell) -> None:
    """T23: more than can wait are told so at once, and nothing of what was taken is lost."""
    store = Store(f"sqlite:///{file}")
    jobs = Jobs(store, bell)
    told: list[object] = []

    def submit() -> None:
        try:
            told.append(jobs.submit("bob", "generate", {}).id)
        except StoreError as error:
            told.append(str(error))

    with subprocess.Popen([sys.executable, "-c", LOCKER, str(file), "5"], stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        locker.stdout.readline()
        threads = [threading.Thread(target=submit) for _ in range(60)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        begun = time.monotonic()
        assert len(jobs.page()) == 1
        assert time.monotonic() - begun < 1
        for thread in threads:
            thread.join()
    done = {one for one in told if isinstance(one, int)}
    assert len(told) == 60
    assert len(done) >= stores.WRITERS
    assert all("is busy; try again" in str(one) for one in told if not isinstance(one, int))
    assert {job.id for job in jobs.page("bob")} == done
    store.close()


# The gallery


def row(words: str = "a red heart", owner: str = "ann", **more: Any) -> PictureRow:
    given = {"sha256": "0" * 64, "width": 64, "height": 64, "model": "emoji", "seed": 1, "recipe": {"rows": 4}} | more
    return PictureRow(owner=owner, words=words, created=time.time(), **given)


def test_pictures_are_found_by_words_in_both_languages(gallery: Gallery) -> None:
    texts = ["a red heart", "a blue heart", "红色的心", "蓝色的猫", "Ein schöner Hund's house", "a red cat"]
    ids = {words: gallery.add(row(words)) for words in texts}
    gallery.add(row("a red heart", "bob"))

    def found(words: str) -> set[str]:
        return {r.words for r in gallery.page("ann", Wanted(words=words))}

    assert found("red") == {"a red heart", "a red cat"}
    assert found("HEART red") == {"a red heart"}
    assert found("红色") == {"红色的心"}
    assert found("色") == {"红色的心", "蓝色的猫"}
    assert found("色心") == set(), "characters that stand together"
    assert found("schöner hund") == {"Ein schöner Hund's house"}
    assert found("pizza") == set()
    for hostile in ("heart'; DROP TABLE pictures; --", 'a" OR 1', "red AND NOT heart", "hea* NEAR(red)", "心 | ' & :*"):
        found(hostile)
    with pytest.raises(InvalidInput, match="nothing to search"):
        found("!?")
    assert len(gallery.page("ann")) == len(ids)


def test_words_are_split() -> None:
    assert tokens("A red-heart 3d") == ["a", "red", "heart", "3d"]
    assert tokens("红心 heart") == ["红", "心", "红心", "heart"]


def test_filters_pages_and_counts(gallery: Gallery) -> None:
    ids = [gallery.add(row(style="flat" if i % 2 else "3d", stars=i % 3)) for i in range(10)]
    assert [r.id for r in gallery.page("ann", limit=4)] == ids[:5:-1]
    assert [r.id for r in gallery.page("ann", limit=4, before=ids[6])] == [ids[5], ids[4], ids[3], ids[2]]
    assert gallery.count("ann", Wanted(style="flat")) == 5
    assert gallery.count("ann", Wanted(stars=2)) == 3
    assert gallery.count("ann", Wanted(style="flat", stars=1, words="heart")) == 3
    assert gallery.count("bob") == 0
    for _ in range(30):
        gallery.add(row("a blue heart", "bob"))
    asked = Wanted(style="flat", words="heart")
    pages = [[r.id for r in gallery.page("ann", asked, before=before, limit=2)] for before in (None, ids[7], ids[3])]
    assert pages == [[ids[9], ids[7]], [ids[5], ids[3]], [ids[1]]], "behind many of another owner"
    with pytest.raises(NotFound):
        gallery.get(ids[0], "bob")


def test_the_trash_can_be_emptied_and_taken_from(gallery: Gallery) -> None:
    kept, gone = gallery.add(row()), gallery.add(row("a blue car"))
    assert gallery.trash([kept, gone], "bob") == 0
    assert gallery.trash([kept, gone], "ann") == 2
    assert gallery.page("ann") == []
    assert gallery.trash([kept], "ann", back=True) == 1
    assert gallery.empty("ann", older_s=3600) == 0
    assert gallery.empty("ann") == 1
    assert [r.id for r in gallery.page("ann")] == [kept]
    assert gallery.page("ann", Wanted(words="car", trashed=True)) == []
    assert gallery.add(row()) > gone, "an id is not given twice"


def test_collections(gallery: Gallery) -> None:
    ids = [gallery.add(row()) for _ in range(4)]
    other = gallery.add(row(owner="bob"))
    hearts = gallery.collect("ann", " hearts 心 ", [*ids[:2], other])
    assert gallery.collect("ann", "hearts 心", ids[1:3]) == hearts
    assert gallery.collections("ann") == [(hearts, "hearts 心", 3)]
    assert {r.id for r in gallery.page("ann", Wanted(collection=hearts))} == set(ids[:3])
    assert gallery.page("bob", Wanted(collection=hearts)) == []
    assert gallery.take_out("ann", hearts, [ids[0], ids[3]]) == 1
    assert gallery.collections("ann")[0][2] == 2
    with pytest.raises(NotFound):
        gallery.take_out("bob", hearts)
    assert gallery.take_out("ann", hearts) == 2
    assert gallery.collections("ann") == []
    assert len(gallery.page("ann")) == 4
    with pytest.raises(InvalidInput):
        gallery.collect("ann", "  ", ids)


def test_likeness(gallery: Gallery) -> None:
    rng = np.random.default_rng(0)
    vectors = {gallery.add(row()): rng.normal(size=32) for _ in range(20)}
    theirs = gallery.add(row(owner="bob"))
    assert len(gallery.unseen("one")) == 21
    gallery.place("one", {**vectors, theirs: np.ones(32)})
    assert gallery.unseen("one") == []
    assert len(gallery.unseen("another")) == 21
    some = list(vectors)[7]
    near = gallery.alike("ann", "one", 5 * vectors[some], limit=3)
    assert near[0][0].id == some
    assert near[0][1] == pytest.approx(1.0, abs=2e-3)
    want = sorted(vectors, key=lambda i: -float(vectors[i] @ vectors[some] / np.linalg.norm(vectors[i])))[:3]
    assert [r.id for r, _ in near] == want
    assert gallery.alike("ann", "another", vectors[some]) == [], "of another tower"
    assert gallery.alike("ann", "one", np.ones(16)) == [], "of another length"


def test_a_crash_leaves_no_orphans(store: Store, gallery: Gallery, bell: Bell) -> None:
    """T37: between bytes and row, and rows whose bytes are gone."""
    good, lost, fresh, old = (gallery.blobs.put(name.encode()) for name in ("good", "lost", "fresh", "old"))
    keeps, loses = gallery.add(row(sha256=good)), gallery.add(row(sha256=lost))
    source = gallery.blobs.put(b"source")
    Jobs(store, bell).submit("ann", "edit", {"source": source})
    for name in (good, old, source):
        os.utime(gallery.blobs.path(name), (0, 0))
    gallery.blobs.drop(lost)
    assert gallery.reconcile() == (1, 1)
    assert [gallery.blobs.has(name) for name in (good, fresh, old, source)] == [True, True, False, True]
    assert [r.id for r in gallery.page("ann")] == [keeps]
    assert [r.id for r in gallery.page("ann", Wanted(trashed=True))] == [loses]
    assert gallery.reconcile() == (0, 0)


def test_names_of_bytes_lead_nowhere_else(gallery: Gallery) -> None:
    for name in ("../x", "a" * 63, "A" * 64, "/etc/passwd", "", "0" * 64 + "\n", "\x00" * 64):
        with pytest.raises(NotFound):
            gallery.blobs.get(name)
        assert not gallery.blobs.has(name)


def test_ratings_are_kept_and_can_be_undone(store: Store, gallery: Gallery) -> None:
    ratings = Ratings(store)
    first, second = gallery.add(row(recipe={"n": 1})), gallery.add(row(recipe={"n": 2}))
    theirs = gallery.add(row(owner="bob"))
    ratings.rate("ann", "stars", first, 3)
    ratings.rate("ann", "stars", first, 5)
    ratings.rate("ann", "pair", first, 1, other=second)
    ratings.rate("ann", "hide", second, 1)
    assert (gallery.get(first, "ann").stars, gallery.get(second, "ann").hidden) == (5, True)
    assert [r.id for r in gallery.page("ann")] == [first]
    assert [(r.kind, r.value) for r in ratings.page("ann")] == [("stars", 3), ("stars", 5), ("pair", 1), ("hide", 1)]
    assert ratings.page("ann")[2].recipe == {"picture": {"n": 1}, "other": {"n": 2}}
    for _ in range(3):
        assert ratings.undo("ann") is not None
    assert (gallery.get(first, "ann").stars, gallery.get(second, "ann").hidden) == (3, False)
    ratings.undo("ann")
    assert gallery.get(first, "ann").stars == 0
    assert ratings.undo("ann") is None
    wrong: list[tuple[str, int, int, int | None]] = [
        ("stars", first, 6, None), ("stars", first, -1, None), ("pair", first, 1, None), ("pair", first, 1, first),
        ("love", first, 1, None), ("stars", first, 1, second),
    ]  # fmt: skip
    for kind, picture, value, other in wrong:
        with pytest.raises(InvalidInput):
            ratings.rate("ann", kind, picture, value, other)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        ratings.rate("ann", "stars", theirs, 1)
    with pytest.raises(NotFound):
        ratings.rate("ann", "pair", first, 1, other=theirs)


def test_many_are_rated_at_once_and_pairs_are_undone_alone(store: Store, gallery: Gallery) -> None:
    ratings = Ratings(store)
    ids = [gallery.add(row()) for _ in range(3)]
    theirs = gallery.add(row(owner="bob"))
    ratings.rate("ann", "pair", ids[0], 1, other=ids[1])
    assert ratings.rate_many("ann", "stars", [*ids, theirs, 10**6], 5) == 3
    assert ratings.rate_many("ann", "hide", ids[:1], 1) == 1
    assert [gallery.get(id, "ann").stars for id in ids] == [5, 5, 5]
    assert gallery.get(theirs, "bob").stars == 0
    undone = ratings.undo("ann", "pair")
    assert undone is not None
    assert undone.kind == "pair"
    assert ratings.undo("ann", "pair") is None
    assert [r.id for r in gallery.page("ann", Wanted(hidden=True))] == ids[:1], "the others stand"
    assert ratings.rate_many("ann", "hide", ids, 0) == 3
    assert len(gallery.page("ann")) == 3
    with pytest.raises(InvalidInput):
        ratings.rate_many("ann", "hide", ids, 2)


def test_many_are_taken_away_as_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sojourn.data.prepare import prepare

    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    with Studio() as studio:
        ids = []
        for i in range(12):
            picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8).astype(np.uint8))
            sha = studio.blobs.put(png(picture, None))
            ids.append(studio.gallery.add(row(f"number {i}", "local", sha256=sha, width=32, height=32)))
        data = studio.zipped(ids)
        with pytest.raises(NotFound):
            studio.zipped(ids, owner="bob")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == 13
        assert json.loads(archive.read("metadata.jsonl").splitlines()[0])["text"] == "number 0"
    (tmp_path / "all.zip").write_bytes(data)
    last = list(prepare(tmp_path / "all.zip", tmp_path / "set", size=32))[-1]
    assert "12 pictures" in getattr(last, "text", "")


def test_a_big_gallery_answers_quickly(tmp_path: Path) -> None:
    """T37."""
    count = 1_000_000 if LONG else 20_000
    store = Store(f"sqlite:///{tmp_path}/big.sqlite")
    gallery = Gallery(store, Blobs(tmp_path / "blobs"))
    things = ["heart", "cat", "car", "tree", "红心", "猫", "dog", "house", "moon", "rare"]
    colours = ["red", "blue", "green", "蓝色的", "yellow"]

    def fill(session: Any) -> None:
        for first in range(0, count, 10_000):
            texts = [f"a {colours[i % 5]} {things[i % 9 if i % 1000 else 9]} {i}" for i in range(first, first + 10_000)]
            session.execute(
                text(
                    "INSERT INTO pictures (owner, row, sha256, width, height, words, model, seed, recipe, stars,"
                    " hidden, created) VALUES ('ann', 0, :sha, 64, 64, :words, 'emoji', :seed, '{}', :stars, 0, 0)"
                ),
                [{"sha": f"{first + i:064x}", "words": t, "seed": i, "stars": i % 6} for i, t in enumerate(texts)],
            )
            session.execute(
                text("INSERT INTO picture_words (rowid, words) VALUES (:id, :words)"),
                [{"id": first + i + 1, "words": " ".join(tokens(t))} for i, t in enumerate(texts)],
            )

    store.write(fill)
    for at, change in ((7, "model = 'mine', style = '3d'"), (8, "hidden = 1"), (9, "trashed = 1.0")):
        rare = text(f"UPDATE pictures SET {change} WHERE id % 20000 = {at}")
        store.write(lambda session, rare=rare: session.execute(rare))
    asked = [
        Wanted(),
        Wanted(model="mine"),
        Wanted(style="3d"),
        Wanted(hidden=True),
        Wanted(trashed=True),
        Wanted(stars=4),
        Wanted(words="red heart"),
        Wanted(words="rare"),
        Wanted(words="蓝色"),
        Wanted(words="nothing"),
    ]
    for wanted in asked:
        times = []
        for before in (None, count // 2, count // 10, None, count // 3):
            begun = time.monotonic()
            gallery.page("ann", wanted, before=before)
            times.append(time.monotonic() - begun)
        said = {name: value for name, value in vars(wanted).items() if value}
        print(f"T37 {count} rows: {said or 'page'}: {max(times) * 1000:.1f} ms at most")
        assert max(times) < (0.3 if wanted.words else 0.1) * (1 if LONG else 3)
    store.close()


def test_a_bell_wakes_others_and_costs_nothing_when_nobody_listens(tmp_path: Path) -> None:
    loud, quiet = Bell(tmp_path / "bells"), Bell(tmp_path / "bells")
    loud.ring("job")  # no folder yet
    assert quiet.wait(0.01) == set()
    threading.Timer(0.1, loud.ring, ["job"]).start()
    begun = time.monotonic()
    assert quiet.wait(5.0) == {"job"}
    assert time.monotonic() - begun < 1
    (tmp_path / "bells" / "1").write_text("999999999")
    loud.ring("stop")
    assert quiet.wait(1.0) == {"stop"}
    quiet.sweep()
    assert not (tmp_path / "bells" / "1").exists()
    quiet.close()
    assert list((tmp_path / "bells").iterdir()) == []
    loud.close()
