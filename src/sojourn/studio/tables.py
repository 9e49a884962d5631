"""The tables of the studio, as they are now; `migrations` says how older ones become these. No statements, no files.

Times are seconds since 1970 (UTC) to be shown; nothing is decided by them. Order is the order of ids.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Id = BigInteger().with_variant(Integer, "sqlite")
NUMBERED = {"sqlite_autoincrement": True}
"""Ids are never given twice, also not after the last row is deleted: a reader goes on after the last that it saw."""


class Base(DeclarativeBase):
    """All tables of the studio."""


class JobRow(Base):
    """One thing asked for. It is the truth about it: what no row says did not happen."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    lane: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int] = mapped_column(Integer, default=0)
    state: Mapped[str] = mapped_column(String(16), default="queued")
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    batch: Mapped[str] = mapped_column(String(64), default="")
    """Jobs of one batch key can be drawn in one walk. Empty = alone."""
    rows: Mapped[int] = mapped_column(Integer, default=1)
    """Rows of the walk that it takes."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    token: Mapped[int] = mapped_column(Integer, default=0)
    """Raised whenever it changes hands: a write that brings an older one is refused."""
    worker: Mapped[int | None] = mapped_column(ForeignKey("workers.id"), default=None)
    place: Mapped[str] = mapped_column(String(100), default="")
    """The machine that has its files, and does it while it has a worker for it. Empty = any machine."""
    stop: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether it was asked to stop."""
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    """Why it failed: template and fields of a message."""
    created: Mapped[float] = mapped_column(Float)
    started: Mapped[float | None] = mapped_column(Float, default=None)
    ended: Mapped[float | None] = mapped_column(Float, default=None)

    __table_args__ = (
        Index("jobs_waiting", "lane", "owner", "priority", "id", sqlite_where=text("state = 'queued'"),
              postgresql_where=text("state = 'queued'")),
        Index("jobs_running", "worker", sqlite_where=text("state = 'running'"),
              postgresql_where=text("state = 'running'")),
        Index("jobs_of", "owner", "id"),
        NUMBERED,
    )  # fmt: skip


class EventRow(Base):
    """What happened in a job, in order."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    job: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("events_of", "job", "id"), NUMBERED)


class OwnerRow(Base):
    """Whose turn it is: who was served longest ago. And what they draw with where they do not say."""

    __tablename__ = "owners"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    served: Mapped[int] = mapped_column(Id, default=0)
    """Number of the last claim that was for this owner, counted over all."""
    settings: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    """Parameters of prompts, by name."""


class WorkerRow(Base):
    """A process that does jobs."""

    __tablename__ = "workers"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    born: Mapped[str] = mapped_column(String(80))
    """What tells its process from others of that number."""
    lanes: Mapped[str] = mapped_column(String(64))
    beats: Mapped[int] = mapped_column(Id, default=0)
    """Signs of life so far. Who sees it stand still for a lease, by a clock of its own, takes the worker for dead."""
    gone: Mapped[bool] = mapped_column(Boolean, default=False)
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (NUMBERED,)


class PictureRow(Base):
    """A picture of the gallery; its bytes are a blob."""

    __tablename__ = "pictures"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    job: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), default=None)
    row: Mapped[int] = mapped_column(Integer, default=0)
    sha256: Mapped[str] = mapped_column(String(64))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    words: Mapped[str] = mapped_column(Text)
    """The prompt as text."""
    model: Mapped[str] = mapped_column(String(64))
    style: Mapped[str | None] = mapped_column(String(100), default=None)
    seed: Mapped[int] = mapped_column(BigInteger)
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    stars: Mapped[int] = mapped_column(Integer, default=0)
    hidden: Mapped[bool] = mapped_column(Boolean, default=False)
    trashed: Mapped[float | None] = mapped_column(Float, default=None)
    vector: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)
    """Where a tower puts it: float16 of unit length. None = not looked at yet."""
    tower: Mapped[str] = mapped_column(String(32), default="", server_default="")
    """The mark of that tower: places of two are not to be compared."""
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (
        UniqueConstraint("job", "row", name="pictures_once"),
        Index("pictures_of", "owner", "id"),
        Index("pictures_starred", "owner", "stars", "id", sqlite_where=text("stars > 0"),
              postgresql_where=text("stars > 0")),
        Index("pictures_blob", "sha256"),
        Index("pictures_trashed", "owner", "id", sqlite_where=text("trashed IS NOT NULL"),
              postgresql_where=text("trashed IS NOT NULL")),
        Index("pictures_hidden", "owner", "id", sqlite_where=text("hidden IS 1"),
              postgresql_where=text("hidden IS true")),
        Index("pictures_model", "owner", "model", "id"),
        Index("pictures_style", "owner", "style", "id"),
        Index("pictures_tower", "tower", "id"),
        NUMBERED,
    )  # fmt: skip


class CollectionRow(Base):
    """A named choice of pictures."""

    __tablename__ = "collections"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(200))
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (UniqueConstraint("owner", "name", name="collections_once"), NUMBERED)


class MemberRow(Base):
    """A picture's place in a collection."""

    __tablename__ = "members"
    collection: Mapped[int] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"), primary_key=True)
    picture: Mapped[int] = mapped_column(ForeignKey("pictures.id", ondelete="CASCADE"), primary_key=True)

    __table_args__ = (Index("members_picture", "picture"),)


class RatingRow(Base):
    """What somebody thought of a picture: one row each time, none is overwritten."""

    __tablename__ = "ratings"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    who: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    """stars: value 0..5. hide: 1 hidden, 0 shown again. pair: the picture was preferred to `other`; 0 = a draw."""
    picture: Mapped[int] = mapped_column(Id)
    other: Mapped[int | None] = mapped_column(Id, default=None)
    value: Mapped[float] = mapped_column(Float)
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Of the picture, and of the other one: what adapting needs, also after they are deleted."""
    undone: Mapped[bool] = mapped_column(Boolean, default=False)
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("ratings_of", "who", "id"), Index("ratings_picture", "picture"), NUMBERED)


class KeyRow(Base):
    """Who may come in, and what for."""

    __tablename__ = "keys"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[str] = mapped_column(String(16))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """sha256 of the key: it has 256 random bits, so nothing slower is needed."""
    created: Mapped[float] = mapped_column(Float)

    __table_args__ = (NUMBERED,)
