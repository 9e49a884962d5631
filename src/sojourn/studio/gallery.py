"""The gallery: pictures with their recipes, found by words, likeness and marks; collections; the trash.

Rows here and bytes in `blobs`: bytes come first and go last, so that no row is ever without them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Select, bindparam, delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from sojourn.errors import InvalidInput, NotFound
from sojourn.studio.blobs import Blobs
from sojourn.studio.store import Store
from sojourn.studio.tables import CollectionRow, EventRow, JobRow, MemberRow, PictureRow

YOUNG_S = 3600.0
"""Bytes that no row names are left alone so long: their row may be on its way."""
REACH = 200_000
"""Pictures that a search for what is alike looks at."""
SOME = 500
"""Ids of one statement."""
PAGE = 100
"""Pictures of a page at most by default."""


@dataclass(frozen=True)
class Wanted:
    """Which pictures: all conditions that are set hold."""

    words: str = ""
    stars: int = 0
    model: str | None = None
    style: str | None = None
    job: int | None = None
    collection: int | None = None
    trashed: bool = False
    hidden: bool = False
    since: float | None = None
    until: float | None = None


class Gallery:
    """The pictures of all owners; every method asks for whose."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self.store = store
        self.blobs = blobs

    def add(self, picture: PictureRow) -> int:
        """A picture that no job drew; its id."""
        return self.store.write(lambda session: put_in(session, picture))

    def get(self, id: int, owner: str) -> PictureRow:
        """Raises NotFound, also for another's."""
        row = self.store.read(lambda session: session.get(PictureRow, id))
        if row is None or row.owner != owner:
            raise NotFound("there is no picture {id}", id=id)
        return row

    def page(
        self, owner: str, wanted: Wanted = Wanted(), before: int | None = None, limit: int = PAGE
    ) -> list[PictureRow]:
        """Pictures, the newest first; before: an id, to go on from."""
        if self.store.local and tokens(wanted.words):
            newest = before or 2**63 - 1
            return self.store.read(lambda session: self._searched(session, owner, wanted, newest, limit))
        query = self._wanted(owner, wanted).order_by(PictureRow.id.desc()).limit(limit)
        if before is not None:
            query = query.where(PictureRow.id < before)
        return list(self.store.read(lambda session: session.scalars(query).all()))

    def _searched(self, session: Session, owner: str, wanted: Wanted, before: int, limit: int) -> list[PictureRow]:
        """The same where words are asked for: from the newest match on until there are enough, not all of them."""
        having = self._wanted(owner, replace(wanted, words="")).order_by(PictureRow.id.desc())
        match = text(
            "SELECT rowid FROM picture_words WHERE words MATCH :match AND rowid < :before"
            " ORDER BY rowid DESC LIMIT :size"
        )
        said, out, size = _match(wanted.words), list[PictureRow](), 4 * limit
        while True:
            ids = session.scalars(match, {"match": said, "before": before, "size": size}).all()
            out += session.scalars(having.where(PictureRow.id.in_(ids)).limit(limit - len(out)))
            if len(ids) < size or len(out) >= limit:
                return out
            before, size = ids[-1], min(4 * size, 20_000)

    def count(self, owner: str, wanted: Wanted = Wanted()) -> int:
        query = select(func.count()).select_from(self._wanted(owner, wanted).subquery())
        return self.store.read(lambda session: session.scalar(query)) or 0

    def _wanted(self, owner: str, wanted: Wanted) -> Select[PictureRow]:
        has = [PictureRow.owner == owner, PictureRow.hidden.is_(wanted.hidden)]
        has.append(PictureRow.trashed.is_not(None) if wanted.trashed else PictureRow.trashed.is_(None))
        for column, value in (("model", wanted.model), ("style", wanted.style), ("job", wanted.job)):
            if value is not None:
                has.append(getattr(PictureRow, column) == value)
        if wanted.stars:
            has.append(PictureRow.stars >= wanted.stars)
        if wanted.since is not None:
            has.append(PictureRow.created >= wanted.since)
        if wanted.until is not None:
            has.append(PictureRow.created < wanted.until)
        if wanted.collection is not None:
            inside = MemberRow.picture == PictureRow.id, MemberRow.collection == wanted.collection
            has.append(exists().where(*inside))
        query = select(PictureRow).where(*has)
        return query.where(self._says(wanted.words)) if wanted.words.strip() else query

    def _says(self, words: str) -> ColumnElement[bool]:
        """Whether the prompt of a picture has all the words."""
        asked = tokens(words)
        if not asked:
            raise InvalidInput('nothing to search for in "{text}"; write a word', text=words)
        if self.store.local:
            return text("pictures.id IN (SELECT rowid FROM picture_words WHERE words MATCH :match)").bindparams(
                match=_match(words)
            )  # type: ignore[return-value]
        return text(
            "pictures.id IN (SELECT rowid FROM picture_words WHERE words @@ CAST(:match AS tsquery))"
        ).bindparams(match=" & ".join(f"'{token}'" for token in asked))  # type: ignore[return-value]

    # Likeness

    def unseen(self, tower: str, limit: int = 64) -> list[PictureRow]:
        """Pictures that this tower has not looked at."""
        others = or_(PictureRow.tower < tower, PictureRow.tower > tower)  # by the index
        query = select(PictureRow).where(others, PictureRow.trashed.is_(None)).limit(limit)
        return list(self.store.read(lambda session: session.scalars(query).all()))

    def place(self, tower: str, vectors: dict[int, np.ndarray]) -> None:
        """Where a tower puts pictures: id -> a vector of any length, kept as a unit vector."""

        def work(session: Session) -> None:
            for id, vector in vectors.items():
                unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
                row = update(PictureRow).where(PictureRow.id == id)
                session.execute(row.values(vector=unit.astype(np.float16).tobytes(), tower=tower))

        self.store.write(work)

    def alike(
        self, owner: str, tower: str, vector: np.ndarray, limit: int = PAGE
    ) -> list[tuple[PictureRow, float]]:  # fmt: skip
        """Of the owner's newest pictures those nearest to a vector of a tower, with the cosine."""
        query = select(PictureRow.id, PictureRow.vector).where(
            PictureRow.owner == owner, PictureRow.tower == tower, PictureRow.trashed.is_(None),
            PictureRow.hidden.is_(False), func.length(PictureRow.vector) == 2 * len(vector),
        ).order_by(PictureRow.id.desc()).limit(REACH)  # fmt: skip
        found = self.store.read(lambda session: session.execute(query).all())
        if not found:
            return []
        table = np.frombuffer(b"".join(row[1] or b"" for row in found), np.float16).reshape(len(found), -1)
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        near = table.astype(np.float32) @ unit.astype(np.float32)
        best = np.argsort(-near, kind="stable")[:limit]
        ids = [found[i][0] for i in best]
        rows = self.store.read(lambda s: {r.id: r for r in s.scalars(select(PictureRow).where(PictureRow.id.in_(ids)))})
        return [(rows[id], float(near[i])) for id, i in zip(ids, best, strict=True) if id in rows]

    # Marks

    def trash(self, ids: Iterable[int], owner: str, back: bool = False) -> int:
        """Put pictures into the trash, or back; how many."""
        return self._set(ids, owner, trashed=None if back else time.time())

    def _set(self, ids: Iterable[int], owner: str, **values: Any) -> int:
        query = update(PictureRow).where(PictureRow.id.in_(list(ids)), PictureRow.owner == owner).values(**values)
        return self.store.write(lambda session: session.execute(query).rowcount)  # type: ignore[attr-defined,no-any-return]

    def empty(self, owner: str, older_s: float = 0.0) -> int:
        """Delete what has been in the trash so long, for good; how many."""
        limit = time.time() - older_s
        gone = (PictureRow.owner == owner, PictureRow.trashed <= limit)

        def work(session: Session) -> int:
            ids = session.scalars(delete(PictureRow).where(*gone).returning(PictureRow.id)).all()
            words = text("DELETE FROM picture_words WHERE rowid IN :ids").bindparams(bindparam("ids", expanding=True))
            for first in range(0, len(ids), SOME):
                session.execute(words, {"ids": ids[first : first + SOME]})
            return len(ids)

        return self.store.write(work)

    # Collections

    def collect(self, owner: str, name: str, ids: Iterable[int]) -> int:
        """Put pictures into a collection, which is made when there is none of this name; its id."""
        shown = name.strip()
        if not 1 <= len(shown) <= 200:
            raise InvalidInput("the name of a collection has 1..200 characters, found {found}", found=len(shown))

        def work(session: Session) -> int:
            made = "INSERT INTO collections (owner, name, created) VALUES (:owner, :name, :now) ON CONFLICT DO NOTHING"
            session.execute(text(made), {"owner": owner, "name": shown, "now": time.time()})
            found = select(CollectionRow).where(CollectionRow.owner == owner, CollectionRow.name == shown)
            row = session.scalars(found).one()
            theirs = select(PictureRow.id).where(PictureRow.id.in_(list(ids)), PictureRow.owner == owner)
            inside = set(session.scalars(select(MemberRow.picture).where(MemberRow.collection == row.id)))
            session.add_all(
                MemberRow(collection=row.id, picture=id) for id in session.scalars(theirs) if id not in inside
            )
            return row.id

        return self.store.write(work)

    def collections(self, owner: str) -> list[tuple[int, str, int]]:
        """Id, name and size of each."""
        query = (
            select(CollectionRow.id, CollectionRow.name, func.count(MemberRow.picture))
            .outerjoin(MemberRow, MemberRow.collection == CollectionRow.id)
            .where(CollectionRow.owner == owner)
            .group_by(CollectionRow.id, CollectionRow.name)
            .order_by(CollectionRow.name)
        )
        return [(row[0], row[1], row[2]) for row in self.store.read(lambda session: session.execute(query).all())]

    def take_out(self, owner: str, collection: int, ids: Sequence[int] | None = None) -> int:
        """Take pictures out of a collection, or do away with all of it; the pictures stay. How many were in it.

        Raises NotFound.
        """

        def work(session: Session) -> int:
            row = session.get(CollectionRow, collection)
            if row is None or row.owner != owner:
                raise NotFound("there is no collection {id}", id=collection)
            gone = delete(MemberRow).where(MemberRow.collection == collection)
            if ids is not None:
                gone = gone.where(MemberRow.picture.in_(ids))
            count: int = session.execute(gone).rowcount  # type: ignore[attr-defined]
            if ids is None:
                session.delete(row)
            return count

        return self.store.write(work)

    # After a crash

    def reconcile(self, inputs: Iterable[str] = ()) -> tuple[int, int]:
        """Bytes without a row are deleted when they are old, rows without bytes go to the trash: how many of each.

        inputs: sha256 of bytes that something else needs.
        """
        query = select(PictureRow.sha256).distinct()
        named = set(self.store.read(lambda session: session.scalars(query).all()))
        kept = set(inputs)
        kinds = select(JobRow.request).where(JobRow.kind.in_(("edit", "prepare")))
        for request in self.store.read(lambda session: session.scalars(kinds).all()):
            inputs_ = {str(value) for key, value in request.items() if key in ("source", "mask", "upload") and value}
            kept |= inputs_
        made = select(EventRow.data).where(EventRow.kind.in_(("sheet", "artifact")))
        kept |= {str(data.get("sha256")) for data in self.store.read(lambda session: session.scalars(made).all())}
        kept |= named
        orphans = [name for name in self.blobs.names(YOUNG_S) if name not in kept]
        orphans = [name for name in orphans if self.blobs.drop(name, YOUNG_S)]
        lost = [name for name in named if not self.blobs.has(name)]
        gone = 0
        for first in range(0, len(lost), 500):
            part = lost[first : first + 500]
            mark = update(PictureRow).where(PictureRow.sha256.in_(part), PictureRow.trashed.is_(None))
            query_ = mark.values(trashed=time.time())
            gone += self.store.write(lambda session, query_=query_: session.execute(query_).rowcount)  # type: ignore[misc]
        return len(orphans), gone


def _match(words: str) -> str:
    """Words as SQLite's search is asked for all of them."""
    return " ".join(f'"{token}"' for token in tokens(words))


def put_in(session: Session, picture: PictureRow) -> int:
    """A picture's row and its words, in the transaction of the caller; its id."""
    session.add(picture)
    session.flush()
    words = " ".join(dict.fromkeys(tokens(picture.words)))
    if session.get_bind().dialect.name == "sqlite":
        insert = "INSERT INTO picture_words (rowid, words) VALUES (:id, :words)"
    else:
        insert = (
            "INSERT INTO picture_words (rowid, words) VALUES (:id, array_to_tsvector(string_to_array(:words, ' ')))"
        )
    session.execute(text(insert), {"id": picture.id, "words": words})
    return picture.id


_HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_HAN}]+|[^\W_{_HAN}]+")


def tokens(words: str) -> list[str]:
    """What a text is found by: words in lower case; of Chinese each character and each pair of neighbours."""
    out: list[str] = []
    for run in _TOKEN.findall(words.casefold()):
        if re.match(rf"[{_HAN}]", run):
            out += list(run) + [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            out.append(run)
    return out
