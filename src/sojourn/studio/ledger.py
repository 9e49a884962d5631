"""What may be written about a job row, in a transaction of the caller's: held by its token, over, again, told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from sojourn.errors import SojournError
from sojourn.studio.tables import EventRow, JobRow, PictureRow

OVER = ("done", "failed", "cancelled")
PASSING = ("preview", "progress", "text")
"""Events that say nothing any more when the job is over."""


class Fenced(Exception):
    """The job is no longer this worker's: what it found is not wanted."""


@dataclass(frozen=True)
class Job:
    """A job as it was when it was looked at."""

    id: int
    owner: str
    kind: str
    state: str
    request: dict[str, Any]
    rows: int
    batch: str
    attempts: int
    token: int
    place: str
    stop: bool
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created: float
    started: float | None
    ended: float | None

    @property
    def over(self) -> bool:
        return self.state in OVER


@dataclass(frozen=True)
class Happened:
    """An event of a job; ids rise in order over all jobs."""

    id: int
    job: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0
    owner: str = ""


def message(error: BaseException) -> dict[str, Any]:
    """An error as it is kept: template and fields, to be told in any language."""
    if isinstance(error, SojournError):
        return {
            "type": type(error).__name__,
            "template": error.template,
            "fields": {name: str(value) for name, value in error.fields.items()},
        }
    what = f"{type(error).__name__}: {error}"[:500]
    return {"type": "SojournError", "template": "{what}", "fields": {"what": what}}


def running(worker: int) -> Any:
    """The jobs that a worker has."""
    return select(JobRow).where(JobRow.state == "running", JobRow.worker == worker)


def held(session: Session, job: Job) -> JobRow:
    """The row of a running job, locked, if the token is still the one."""
    query = select(JobRow).where(JobRow.id == job.id, JobRow.token == job.token, JobRow.state == "running")
    row = session.scalars(query.with_for_update()).first()
    if row is None:
        raise Fenced
    return row


def over(session: Session, row: JobRow, state: str, told: dict[str, Any]) -> None:
    """The job has ended so."""
    row.state, row.ended, row.worker = state, time.time(), None
    if state == "failed":
        row.error = told
    session.execute(delete(EventRow).where(EventRow.job == row.id, EventRow.kind.in_(PASSING)))
    log(session, row.id, state, told)


def again(session: Session, row: JobRow, told: dict[str, Any]) -> None:
    """The job waits once more; one that was to stop has."""
    if row.stop:
        over(session, row, "cancelled", {})
        return
    row.state, row.worker, row.progress = "queued", None, None
    log(session, row.id, "again", told)


def log(session: Session, job: int, kind: str, data: dict[str, Any]) -> None:
    """An event. Those of all transactions are seen in the order of their ids."""
    if session.get_bind().dialect.name != "sqlite":  # which has one writer at a time
        session.execute(text("SELECT pg_advisory_xact_lock(7306592)"))
    session.add(EventRow(job=job, kind=kind, data=data, created=time.time()))
    session.flush()


def as_job(row: JobRow) -> Job:
    """A row as it is."""
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})


def copied(row: PictureRow) -> PictureRow:
    """A row of its own for each attempt of a transaction."""
    kept = {column.key for column in PictureRow.__table__.columns} - {"id"}
    return PictureRow(**{key: value for key, value in vars(row).items() if key in kept})
