"""Keys: who may come in, and what for. A key is told once, when it is made; what is kept is its hash."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sojourn.errors import InvalidInput, NotFound
from sojourn.studio.store import Store
from sojourn.studio.tables import CollectionRow, JobRow, KeyRow, OwnerRow, PictureRow, RatingRow

Scope = Literal["generate", "train", "admin", "worker"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
RISING: tuple[Scope, ...] = ("generate", "train", "admin")
"""What a key may do; each may also do what those before it may. A worker does jobs and nothing else."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PREFIX = "sj-"
OWNER = "local"
"""Who owns what is made while there is no key."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the owner of what is made, and what they may."""

    owner: str
    scope: Scope

    def may(self, scope: Scope) -> bool:
        if "worker" in (scope, self.scope):
            return self.scope in (scope, "admin")
        return RISING.index(self.scope) >= RISING.index(scope)


class Keys:
    """The keys in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, name: str, scope: Scope = "generate") -> str:
        """A new key for `name`, who then owns what is made with it. Raises InvalidInput for a name that is taken."""
        if not _NAME.fullmatch(name) or name == OWNER:
            raise InvalidInput('the name "{name}" is wrong: 1..64 letters, digits, "_", "." or "-"', name=name[:80])
        if scope not in SCOPES:
            raise InvalidInput('no scope "{scope}"; it can be {known}', scope=scope, known=", ".join(SCOPES))
        key = PREFIX + secrets.token_urlsafe(32)
        row = KeyRow(name=name, scope=scope, hash=_hash(key), created=time.time())
        try:
            self.store.write(lambda session: session.add(row))
        except IntegrityError:
            raise InvalidInput('there is a key for "{name}" already; remove it first', name=name) from None
        return key

    def unowned(self) -> int:
        """Pictures that were made while there was no key."""
        query = select(func.count(PictureRow.id)).where(PictureRow.owner == OWNER)
        return self.store.read(lambda session: session.scalar(query)) or 0

    def adopt(self, name: str) -> int:
        """Give `name` all that was made while there was no key; how many pictures. Raises NotFound.

        A collection whose name they have already is given another.
        """

        def work(session: Session) -> int:
            if session.scalar(select(KeyRow.id).where(KeyRow.name == name)) is None:
                raise NotFound('there is no key for "{name}"', name=name[:80])
            first = text("INSERT INTO owners (name, served) VALUES (:name, 0) ON CONFLICT DO NOTHING")
            session.execute(first, {"name": name})  # whose turn it is is asked of all who wait
            if (had := session.get(OwnerRow, OWNER)) is not None:
                mine = update(OwnerRow).where(OwnerRow.name == name, OwnerRow.settings.is_(None))
                session.execute(mine.values(settings=had.settings))
            names = set(session.scalars(select(CollectionRow.name).where(CollectionRow.owner == name)))
            for row in session.scalars(select(CollectionRow).where(CollectionRow.owner == OWNER)).all():
                if row.name in names:
                    row.name = f"{row.name[:180]} ({row.id})"
            session.flush()
            pictures = 0
            for table, column in (
                (JobRow, "owner"),
                (CollectionRow, "owner"),
                (RatingRow, "who"),
                (PictureRow, "owner"),
            ):
                moved = update(table).where(getattr(table, column) == OWNER).values({column: name})
                pictures = session.execute(moved).rowcount  # type: ignore[attr-defined]
            return pictures

        return self.store.write(work)

    def remove(self, name: str) -> None:
        """The key is worth nothing any more; what its owner made stays. Raises NotFound."""
        gone = self.store.write(lambda session: session.execute(delete(KeyRow).where(KeyRow.name == name)).rowcount)  # type: ignore[attr-defined]
        if not gone:
            raise NotFound('there is no key for "{name}"', name=name[:80])

    def page(self) -> list[KeyRow]:
        """All of them, without what would open anything."""
        return list(self.store.read(lambda session: session.scalars(select(KeyRow).order_by(KeyRow.id)).all()))

    def any(self) -> bool:
        """Whether there is one: then nobody comes in without."""
        return bool(self.store.read(lambda session: session.scalar(select(func.count(KeyRow.id)))))

    def caller(self, key: str) -> Caller | None:
        """Whose key this is; None for one that is none."""
        digest = _hash(key)
        row = self.store.read(lambda session: session.scalars(select(KeyRow).where(KeyRow.hash == digest)).first())
        if row is None or not secrets.compare_digest(row.hash, digest):
            return None
        return Caller(row.name, row.scope)  # type: ignore[arg-type]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
