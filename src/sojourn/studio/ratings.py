"""What people thought of pictures: stars, which of two, what they would rather not see. Nothing is overwritten."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from sojourn.errors import InvalidInput, NotFound
from sojourn.studio.store import Store
from sojourn.studio.tables import PictureRow, RatingRow

Kind = Literal["stars", "hide", "pair"]
MOST = {"stars": 5, "hide": 1, "pair": 1}


class Ratings:
    """Ratings in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def rate(self, who: str, kind: Kind, picture: int, value: int, other: int | None = None) -> int:
        """Keep a rating, and mark the picture with it; its id.

        stars: 0..5. hide: 1 hides, 0 shows again. pair: 1 = better than `other`, 0 = a draw. Raises InvalidInput,
        NotFound for a picture that is not theirs.
        """
        _check(kind, value)
        if (kind == "pair") != (other is not None) or picture == other:
            raise InvalidInput("a pair is of two pictures, other ratings of one")

        def work(session: Session) -> int:
            row = _theirs(session, picture, who)
            rating = _rated(row, kind, value, None if other is None else _theirs(session, other, who))
            session.add(rating)
            session.flush()
            return rating.id

        return self.store.write(work)

    def rate_many(self, who: str, kind: Literal["stars", "hide"], pictures: Sequence[int], value: int) -> int:
        """Rate each alike, in one transaction; how many. Those that are not theirs are passed over.

        Raises InvalidInput.
        """
        _check(kind, value)

        def work(session: Session) -> int:
            rows = session.scalars(select(PictureRow).where(PictureRow.id.in_(pictures), PictureRow.owner == who)).all()
            session.add_all(_rated(row, kind, value) for row in rows)
            return len(rows)

        return self.store.write(work)

    def undo(self, who: str, kind: Kind | None = None) -> RatingRow | None:
        """Take the last rating (of a kind) back, marks and all; it is kept, as undone. None where there is none."""

        def work(session: Session) -> RatingRow | None:
            query = select(RatingRow).where(RatingRow.who == who, RatingRow.undone.is_(False))
            if kind is not None:
                query = query.where(RatingRow.kind == kind)
            last = session.scalars(query.order_by(RatingRow.id.desc()).limit(1)).first()
            if last is None:
                return None
            last.undone = True
            picture = session.get(PictureRow, last.picture)
            earlier = query.where(RatingRow.picture == last.picture, RatingRow.kind == last.kind)
            before = session.scalars(earlier.where(RatingRow.id < last.id).order_by(RatingRow.id.desc())).first()
            if picture is not None and last.kind == "stars":
                picture.stars = int(before.value) if before else 0
            if picture is not None and last.kind == "hide":
                picture.hidden = bool(before and before.value)
            return last

        return self.store.write(work)

    def page(self, who: str | None = None, after: int = 0, limit: int = 1000) -> list[RatingRow]:
        """Ratings that hold, in order; after: an id, to go on from."""
        query = select(RatingRow).where(RatingRow.id > after, RatingRow.undone.is_(False))
        if who is not None:
            query = query.where(RatingRow.who == who)
        return list(self.store.read(lambda session: session.scalars(query.order_by(RatingRow.id).limit(limit)).all()))


def _check(kind: Kind, value: int) -> None:
    if kind not in MOST or not 0 <= value <= MOST[kind]:
        most = MOST.get(kind, 0)
        raise InvalidInput("a rating of {kind} is 0..{most}, found {value}", kind=kind, most=most, value=value)


def _rated(row: PictureRow, kind: Kind, value: int, other: PictureRow | None = None) -> RatingRow:
    """Mark a picture of their own; the rating to be kept."""
    recipe: dict[str, Any] = {"picture": row.recipe}
    if other is not None:
        recipe["other"] = other.recipe
    if kind == "stars":
        row.stars = value
    if kind == "hide":
        row.hidden = bool(value)
    return RatingRow(
        who=row.owner, kind=kind, picture=row.id, other=other.id if other else None, value=value, recipe=recipe,
        created=time.time(),
    )  # fmt: skip


def _theirs(session: Session, picture: int, who: str) -> PictureRow:
    row = session.get(PictureRow, picture)
    if row is None or row.owner != who:
        raise NotFound("there is no picture {id}", id=picture)
    return row
