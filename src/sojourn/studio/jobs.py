"""Jobs: asked for, claimed, done once. What may happen to a job row, and who may do it.

    queued -> running -> done | failed | cancelled
       ^________|   given back, or its worker died: three tries, then failed

A claim raises the job's token. Everything a worker writes about a job brings that token, and is refused (`Fenced`)
when the job has changed hands since. Knows nothing about how a job is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlalchemy import delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from sojourn.errors import NotFound, OutOfRoom, SojournError, StoreError
from sojourn.studio.bell import Bell
from sojourn.studio.ledger import (
    Fenced,
    Happened,
    Job,
    again,
    as_job,
    copied,
    held,
    log,
    message,
    over,
    running,
)
from sojourn.studio.store import Store
from sojourn.studio.tables import EventRow, JobRow, OwnerRow, PictureRow, WorkerRow

Lane = Literal["interactive", "background"]
LANES: dict[str, Lane] = {
    "generate": "interactive", "edit": "interactive", "write": "interactive",
    "prepare": "background", "train": "background", "evaluate": "background",
}  # fmt: skip
"""The kinds of job there are, and where they wait."""
STAYS = ("train",)
"""Kinds that leave files where they were begun, and go on there."""
TRIES = 3
"""Times that a job is begun at most."""
Done = tuple[Job, dict[str, Any], Sequence[PictureRow]]
"""A job, what came of it, and its pictures."""


def enter(session: Session, owner: str) -> None:
    """Give an owner a row where there is none. A newcomer takes a turn, but not those that others had before."""
    if session.get(OwnerRow, owner) is None:
        least = session.scalar(select(func.min(OwnerRow.served))) or 0
        first = text("INSERT INTO owners (name, served) VALUES (:name, :served) ON CONFLICT DO NOTHING")
        session.execute(first, {"name": owner, "served": least})  # another may be adding it just now


class Jobs:
    """The queue in a store. All that is here is durable when a method returns."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self.store = store
        self.bell = bell

    # Asking

    def submit(
        self, owner: str, kind: str, request: dict[str, Any], *, priority: int = 0, batch: str = "", rows: int = 1,
        place: str = "",
    ) -> Job:  # fmt: skip
        """Ask for a job. batch: jobs that may be drawn in one walk have the same; rows: what it takes of one; place:
        the machine that has its files."""

        def work(session: Session) -> JobRow:
            enter(session, owner)
            given = {
                "owner": owner,
                "kind": kind,
                "priority": priority,
                "request": request,
                "batch": batch,
                "rows": rows,
                "place": place,
            }
            row = JobRow(lane=LANES[kind], created=time.time(), **given)
            session.add(row)
            session.flush()
            log(session, row.id, "queued", {})
            return row

        row = self.store.write(work)
        self.bell.ring(row.lane)
        return as_job(row)

    def get(self, id: int, owner: str | None = None) -> Job:
        """A job; with `owner`, only if it is theirs. Raises NotFound."""
        row = self.store.read(lambda session: session.get(JobRow, id))
        if row is None or (owner is not None and row.owner != owner):
            raise NotFound("there is no job {id}", id=id)
        return as_job(row)

    def page(
        self, owner: str | None = None, states: Iterable[str] = (), before: int | None = None, limit: int = 100
    ) -> list[Job]:
        """Jobs, the newest first; before: an id, to go on from."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if wanted := tuple(states):
            query = query.where(JobRow.state.in_(wanted))
        if before is not None:
            query = query.where(JobRow.id < before)
        return [as_job(row) for row in self.store.read(lambda session: session.scalars(query).all())]

    def ahead(self, job: Job) -> int:
        """Jobs that were asked for before this one, in its lane, and are not over."""
        query = select(func.count()).where(
            JobRow.lane == LANES[job.kind], JobRow.state.in_(("queued", "running")), JobRow.id < job.id
        )
        return self.store.read(lambda session: session.scalar(query)) or 0

    def waiting(self, owner: str) -> int:
        """Jobs of an owner that wait."""
        query = select(func.count()).where(JobRow.owner == owner, JobRow.state == "queued")
        return self.store.read(lambda session: session.scalar(query)) or 0

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each state."""
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        return {row[0]: row[1] for row in self.store.read(lambda session: session.execute(query).all())}

    def cancel(self, id: int, owner: str | None = None) -> Job:
        """Stop a job: at once if it waits, else as soon as its worker hears of it. One that is over stays as it is."""
        self.get(id, owner)

        def work(session: Session) -> JobRow:
            row = session.scalars(select(JobRow).where(JobRow.id == id).with_for_update()).one()
            if row.state == "queued":
                over(session, row, "cancelled", {})
            elif row.state == "running":
                row.stop = True
            return row

        row = self.store.write(work)
        self.bell.ring("stop" if row.state == "running" else "event")
        return as_job(row)

    def events(
        self, after: int = 0, job: int | None = None, owner: str | None = None, limit: int = 1000
    ) -> list[Happened]:
        """What happened since the event `after`, in order."""
        query = select(EventRow, JobRow.owner).join(JobRow, JobRow.id == EventRow.job).where(EventRow.id > after)
        if job is not None:
            query = query.where(EventRow.job == job)
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        query = query.order_by(EventRow.id).limit(limit)
        rows = self.store.read(lambda session: session.execute(query).all())
        return [Happened(row.id, row.job, row.kind, row.data, row.created, whose) for row, whose in rows]

    def artifacts(self, job: int) -> dict[str, str]:
        """sha256 -> ending of the files that a job made."""
        query = select(EventRow.data).where(EventRow.job == job, EventRow.kind.in_(("sheet", "artifact")))
        found = self.store.read(lambda session: session.scalars(query).all())
        return {str(data["sha256"]): str(data.get("suffix", "")) for data in found if "sha256" in data}

    def latest(self) -> int:
        """Number of the last event."""
        return self.store.read(lambda session: session.scalar(select(func.max(EventRow.id)))) or 0

    # Workers

    def enlist(self, host: str, pid: int, born: str, lanes: Sequence[str]) -> int:
        """A new worker; its number. born: what tells its process from others of that number."""

        def work(session: Session) -> int:
            row = WorkerRow(host=host, pid=pid, born=born, lanes=",".join(lanes), created=time.time())
            session.add(row)
            session.flush()
            return row.id

        return self.store.write(work)

    def claim(self, worker: int, lanes: Sequence[str], room: int = 1, batch: str | None = None) -> list[Job]:
        """The next job for a worker, with others of its batch key up to `room` rows; [] when none waits.

        batch: only jobs of this key, to go with those that the worker has.

        Higher priority first; then the owner who was served longest ago; then the older job. A job that was begun
        before is done alone: it may be what killed its worker. What lies on one machine is done there while it has a
        worker of that lane; a set is prepared there and nowhere else.
        """

        def work(session: Session) -> list[JobRow]:
            me = session.get(WorkerRow, worker, with_for_update=True)  # or it is buried while it claims
            if me is None or me.gone:
                raise Fenced
            if batch is None:  # it has nothing now: what it is said to have, it never heard that it got
                for lost in session.scalars(running(worker).with_for_update()):
                    lost.attempts -= 1
                    again(session, lost, message(SojournError("its worker was stopped")))
            theirs = (WorkerRow.host == JobRow.place, WorkerRow.lanes.contains(JobRow.lane), WorkerRow.gone.is_(False))
            left = ~exists().where(*theirs) & (JobRow.kind != "prepare")  # what others may do from the start
            waiting = (
                select(JobRow)
                .join(OwnerRow, OwnerRow.name == JobRow.owner)
                .where(JobRow.state == "queued", JobRow.lane.in_(lanes))
                .where(or_(JobRow.place.in_(("", me.host)), left))
                .order_by(JobRow.priority.desc(), OwnerRow.served, JobRow.id)
                .with_for_update(of=JobRow, skip_locked=True)
            )
            if batch is not None:
                waiting = waiting.where(JobRow.batch == batch, JobRow.attempts == 0, JobRow.rows <= room)
            first = session.scalars(waiting.limit(1)).first()
            if first is None:
                return []
            taken = [first]
            if first.batch and not first.attempts:
                alike = waiting.where(JobRow.batch == first.batch, JobRow.attempts == 0, JobRow.id != first.id)
                free = room - first.rows
                for row in session.scalars(alike.limit(room)):
                    if row.rows <= free:
                        taken.append(row)
                        free -= row.rows
            turn = (session.scalar(select(func.max(OwnerRow.served))) or 0) + 1
            owners = {row.owner for row in taken}
            session.execute(update(OwnerRow).where(OwnerRow.name.in_(owners)).values(served=turn))
            for row in taken:
                row.state, row.worker, row.started = "running", worker, time.time()
                row.place = me.host if row.kind in STAYS else row.place
                row.token += 1
                row.attempts += 1
                log(session, row.id, "started", {"attempt": row.attempts})
            return taken

        rows = self.store.write(work)
        if rows:
            self.bell.ring("event")
        return [as_job(row) for row in rows]

    def beat(self, worker: int) -> set[int]:
        """A sign of life; the jobs of this worker that are to stop. Raises Fenced when it was taken for dead."""

        def work(session: Session) -> set[int]:
            alive = session.execute(
                update(WorkerRow)
                .where(WorkerRow.id == worker, WorkerRow.gone.is_(False))
                .values(beats=WorkerRow.beats + 1)
            )
            if not alive.rowcount:  # type: ignore[attr-defined]
                raise Fenced
            return set(session.scalars(running(worker).where(JobRow.stop.is_(True)).with_only_columns(JobRow.id)))

        return self.store.write(work)

    def stopped(self, worker: int) -> set[int]:
        """The jobs of a worker that are to stop, without a sign of life."""
        query = running(worker).where(JobRow.stop.is_(True)).with_only_columns(JobRow.id)
        return self.store.read(lambda session: set(session.scalars(query)))

    def report(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        """An event of a running job. Raises Fenced."""

        def work(session: Session) -> None:
            row = held(session, job)
            if kind == "progress":
                row.progress = data
                session.execute(delete(EventRow).where(EventRow.job == job.id, EventRow.kind == "progress"))
            log(session, job.id, kind, data)

        self.store.write(work)
        self.bell.ring("event")

    def finish(self, job: Job, result: dict[str, Any], pictures: Sequence[PictureRow] = ()) -> list[int]:
        """The job is done, and these are its pictures: both or nothing. Their ids. Raises Fenced."""
        (ids,) = self.finish_all([(job, result, pictures)])
        if ids is None:
            raise Fenced
        return ids

    def finish_all(self, done: Sequence[Done]) -> list[list[int] | None]:
        """The same for the jobs of one walk, in one transaction; None for one that is another's by now."""
        from sojourn.studio.gallery import put_in

        def work(session: Session) -> list[list[int] | None]:
            out: list[list[int] | None] = []
            for job, result, pictures in done:
                try:
                    row = held(session, job)
                except Fenced:
                    out.append(None)
                    continue
                ids = [put_in(session, copied(picture)) for picture in pictures]
                row.result = {**result, "pictures": ids} if pictures else result
                # How likely each token was is much, and only who asked for it wants it.
                over(session, row, "done", {key: value for key, value in row.result.items() if key != "tokens"})
                out.append(ids)
            return out

        found = self.store.write(work)
        self.bell.ring("event")
        return found

    def fail(self, job: Job, error: BaseException, unforeseen: bool = False) -> None:
        """The job cannot be done: bad input is told at once, what was unforeseen is tried again. Raises Fenced."""

        def work(session: Session) -> None:
            row = held(session, job)
            told = message(error)
            lasting = isinstance(error, SojournError) and not isinstance(error, StoreError | OutOfRoom)
            if (lasting and not unforeseen) or row.attempts >= TRIES:
                over(session, row, "failed", told)
            else:
                again(session, row, told)

        self.store.write(work)
        self.bell.ring("job")

    def cancelled(self, job: Job) -> None:
        """A running job has stopped as it was asked to. Raises Fenced."""
        self.store.write(lambda session: over(session, held(session, job), "cancelled", {}))
        self.bell.ring("event")

    def give_back(self, job: Job) -> None:
        """A worker that ends in peace puts a job back; that was no try of it. Raises Fenced."""

        def work(session: Session) -> None:
            row = held(session, job)
            row.attempts -= 1
            again(session, row, message(SojournError("its worker was stopped")))

        self.store.write(work)
        self.bell.ring("job")

    def bury(self, worker: int, why: str, beats: int | None = None) -> int | None:
        """A worker is dead: its jobs wait again, or have failed after their third try. How many there were.

        beats: only if it gave no sign of life since that one; None where it had, or was buried before.
        """

        def work(session: Session) -> int | None:
            query = update(WorkerRow).where(WorkerRow.id == worker, WorkerRow.gone.is_(False))
            if beats is not None:
                query = query.where(WorkerRow.beats == beats)
            if not session.execute(query.values(gone=True)).rowcount:  # type: ignore[attr-defined]
                return None
            rows = session.scalars(running(worker).with_for_update()).all()
            for row in rows:
                if row.attempts >= TRIES and not row.stop:
                    told = SojournError("its worker died {count} times, at last: {why}", count=row.attempts, why=why)
                    over(session, row, "failed", message(told))
                else:
                    again(session, row, message(SojournError("its worker died: {why}", why=why)))
            return len(rows)

        count = self.store.write(work)
        self.bell.ring("job")
        return count

    def workers(self) -> list[WorkerRow]:
        """Those that are not known to be dead."""
        query = select(WorkerRow).where(WorkerRow.gone.is_(False)).order_by(WorkerRow.id)
        return list(self.store.read(lambda session: session.scalars(query).all()))
