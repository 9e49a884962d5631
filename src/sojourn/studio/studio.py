"""The studio as one thing: ask for jobs, hear of them, look at pictures, rate them."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from sojourn import card
from sojourn.card import home
from sojourn.errors import InvalidInput, NotFound
from sojourn.studio.asks import settled
from sojourn.studio.bell import Bell
from sojourn.studio.blobs import Blobs
from sojourn.studio.gallery import Gallery
from sojourn.studio.jobs import Jobs, enter
from sojourn.studio.keys import OWNER
from sojourn.studio.ledger import Happened, Job
from sojourn.studio.process import here
from sojourn.studio.ratings import Ratings
from sojourn.studio.runner import Runner
from sojourn.studio.store import Store
from sojourn.studio.tables import OwnerRow

ACTIVE = 10_000
"""Jobs that are looked through for one that makes the same."""


class Studio:
    """A studio in the home folder, or one whose rows are in another database.

    with Studio() as studio:
        job = studio.ask("generate", {"prompt": "a red heart --n 4"})
        for event in studio.follow(job.id):
            print(event.kind, event.data)
        pictures = studio.gallery.page("local", Wanted(job=job.id))
    """

    def __init__(self, database: str | None = None) -> None:
        """Raises StoreError where the database cannot be used."""
        self.store = Store(database)
        self.bell = Bell(home() / "bells")
        self.bell.sweep()
        self.blobs = Blobs(home() / "blobs")
        self.jobs = Jobs(self.store, self.bell)
        self.gallery = Gallery(self.store, self.blobs)
        self.ratings = Ratings(self.store)
        self.runner: Runner | None = None

    def work(self, lanes: Sequence[str] = ("interactive", "background")) -> None:
        """Start worker processes, one for each lane; they end with `close`, or with this process."""
        self.runner = Runner(self.jobs, lanes, self.gallery.reconcile)
        self.runner.start()

    def ask(self, kind: str, request: dict[str, Any], *, owner: str = OWNER, priority: int = 0) -> Job:
        """Ask for a job; it is durable when this returns. Raises InvalidInput, NotFound, Unsupported."""
        kept, batch, rows = settled(kind, request)
        for sha256 in (kept.get("source"), kept.get("mask"), kept.get("upload")):
            if sha256 is not None and not self.blobs.has(sha256):
                raise NotFound("there is no upload {sha256}", sha256=sha256)
        if kind in ("prepare", "train"):
            self._check_name(kind, kept)
        place = here() if kind == "prepare" else ""  # sets are kept here
        if goes_on := kept.get("goes_on"):
            place = self.jobs.get(goes_on).place or here()  # its run is there
        return self.jobs.submit(owner, kind, kept, priority=priority, batch=batch, rows=rows, place=place)

    def _check_name(self, kind: str, asked: dict[str, Any]) -> None:
        """Refuse what would replace a package or a set, or work where another job does."""
        to, goes_on = asked["to"], asked.get("goes_on")
        for job in self.jobs.page(states=("queued", "running"), limit=ACTIVE):
            if job.kind == kind and (
                job.request["to"] == to or (goes_on and goes_on in (job.id, job.request["goes_on"]))
            ):
                raise InvalidInput('job {id} makes "{name}" already; wait for it or stop it', id=job.id, name=to)
        if goes_on and self.jobs.get(goes_on).request["to"] == to:
            return
        if kind == "prepare" and (home() / "sets" / to).exists():
            raise InvalidInput('there is a set "{name}" already; take another name', name=to)
        if kind == "train" and to in card.shelved():
            raise InvalidInput('there is a package "{name}" already; take another name', name=to)

    def follow(
        self, job: int, after: int = 0, owner: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Happened]:
        """Events of a job from `after` on, as they happen, until it is over or nothing happened for timeout_s."""
        self.jobs.get(job, owner)
        ear = Bell(self.bell.folder)
        ear.listen()
        try:
            last = time.monotonic()
            while True:
                over = self.jobs.get(job).over  # before the events: those of an end come with it
                events = self.jobs.events(after, job)
                for event in events:
                    after, last = event.id, time.monotonic()
                    yield event
                if len(events) >= 1000:
                    continue  # there are more
                if over or (timeout_s is not None and time.monotonic() - last > timeout_s):
                    return
                ear.wait(1.0)
        finally:
            ear.close()

    def settings(self, owner: str = OWNER) -> dict[str, Any]:
        """What an owner draws with where they do not say: parameters of prompts, by name."""
        row = self.store.read(lambda session: session.get(OwnerRow, owner))
        return dict(row.settings or {}) if row is not None else {}

    def keep_settings(self, settings: dict[str, Any], owner: str = OWNER) -> None:
        """Keep them, in place of what there was."""

        def work(session: Session) -> None:
            enter(session, owner)
            session.execute(update(OwnerRow).where(OwnerRow.name == owner).values(settings=settings))

        self.store.write(work)

    def zipped(self, ids: Sequence[int], owner: str = OWNER) -> bytes:
        """Pictures and their recipes as a zip that `sojourn prepare` reads."""
        out = io.BytesIO()
        lines = []
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for id in ids:
                row = self.gallery.get(id, owner)
                name = f"{id:08d}.png"
                archive.writestr(name, self.blobs.get(row.sha256))
                lines.append(
                    {"file_name": name, "text": row.words, "style": row.style, "seed": row.seed, "stars": row.stars}
                )
            archive.writestr("metadata.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return out.getvalue()

    def close(self) -> None:
        """End the workers, leave their jobs for the next time, close the database."""
        if self.runner is not None:
            self.runner.stop()
        self.bell.close()
        self.store.close()

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
