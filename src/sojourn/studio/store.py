"""The database of the studio: SQLite in the home folder, or PostgreSQL by URL; transactions, migrations, damage.

Knows no table's meaning. A transaction is a function of a session: it may run again when the database was busy or
went away, so it does nothing but read and write rows.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from sojourn.card import home
from sojourn.errors import InvalidInput, OutOfRoom, StoreError

T = TypeVar("T")
FILE = "studio.sqlite"
PATIENCE_S = 60.0
"""How long a transaction waits for a database that is locked or away before it gives up."""
WRITERS = 20
"""Writers of a process that may wait for a local database at once: more would leave no thread for readers."""
AWAY = (OperationalError, InterfaceError, DatabaseError)
"""What a database raises that is away, busy or damaged (the last: SQLite's "malformed"); others are about the rows."""
MIGRATIONS = Path(__file__).parent.parent / "migrations"


class Store:
    """An open database. Safe to use from several threads and, each with a Store of its own, processes."""

    def __init__(self, url: str | None = None) -> None:
        """Open, and make or lift the schema. url None: `studio.sqlite` in the home folder.

        Raises StoreError where the database is damaged, newer than this Sojourn or not to be written; InvalidInput
        for a URL that is none.
        """
        self.url = _url(url)
        self.engine = _engine(self.url)
        self.patience_s = PATIENCE_S  # of readers: a server has no thread to spare for one that waits long
        self._writers = threading.BoundedSemaphore(WRITERS)
        self._turn = threading.Lock()
        self._writer: ThreadPoolExecutor | None = None
        try:
            self._migrate()
        except (DBAPIError, sqlite3.Error, OSError) as error:
            self.engine.dispose()
            raise self._told(error) from None
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def local(self) -> bool:
        """Whether it is a file of this machine."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The file of a local one."""
        return Path(self.url.database or "")

    def read(self, work: Callable[[Session], T]) -> T:
        """What `work` makes of one consistent view of the rows."""
        return self._run(work, self.engine, self.patience_s)

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` as one transaction: all of it is durable when this returns, or nothing was done."""
        if self._writer is not None:
            return self._writer.submit(self._write, work).result()
        return self._write(work)

    def steady(self) -> None:
        """Write in a thread that is started here and now, with the priority of this one: a thread that computes where
        nobody else would must not hold a lock that all wait for."""
        self._writer = ThreadPoolExecutor(1, "writer")
        self._writer.submit(int).result()

    def _write(self, work: Callable[[Session], T]) -> T:
        engine = self.engine.execution_options(sojourn_write=True)
        if not self.local:
            return self._run(work, engine)
        # One writes at a time anyway; those that SQLite itself makes wait, sleep longer than the other takes.
        with self._waiting(self._writers, 2.0), self._waiting(self._turn, PATIENCE_S):
            return self._run(work, engine)

    @contextmanager
    def _waiting(self, gate: threading.BoundedSemaphore | threading.Lock, seconds: float) -> Iterator[None]:
        if not gate.acquire(timeout=seconds):
            raise StoreError('the database "{name}" is busy; try again', name=self.name)
        try:
            yield
        finally:
            gate.release()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.shutdown()
        self.engine.dispose()

    def _run(self, work: Callable[[Session], T], engine: Engine, patience_s: float = PATIENCE_S) -> T:
        patience = time.monotonic() + patience_s
        while True:
            committing = False
            try:
                with Session(engine, expire_on_commit=False) as session:
                    found = work(session)
                    committing = True
                    session.commit()
                    return found
            except (DatabaseError, InterfaceError) as error:
                if type(error) not in AWAY:
                    raise
                unknown = committing and not self.local  # it may be done: once more could be twice
                if unknown or not _passing(error) or time.monotonic() > patience:
                    raise self._told(error) from None
            except TimeoutError as error:  # no connection is free
                if time.monotonic() > patience:
                    raise self._told(error) from None
            time.sleep(random.uniform(0.02, 0.2))

    # The schema

    def _migrate(self) -> None:
        if self.local:
            self._check_file()
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        head = script.get_current_head()
        engine = self.engine.execution_options(sojourn_write=True)
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found == head:
            return
        known = {revision.revision for revision in script.walk_revisions()}
        if found is not None and found not in known:
            raise StoreError(
                'the database "{name}" was made by a newer Sojourn (schema {found}, this one knows {head}); upgrade',
                name=self.name, found=found, head=head,
            )  # fmt: skip
        if found is not None and self.local:
            self.copy(self.path.with_name(f"{self.path.name}.{found}"))
        with engine.begin() as connection:
            if not self.local:  # several servers may start at once
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7306591)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _check_file(self) -> None:
        """Refuse a file that is no sound database, or that may not be written."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        if not os.access(self.path, os.W_OK) or not os.access(self.path.parent, os.W_OK):
            raise StoreError('the database "{name}" may not be written; change its rights', name=self.name)
        with closing(sqlite3.connect(self.path)) as raw:
            found = raw.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(str(found))

    def copy(self, target: Path) -> None:
        """A consistent copy of a local database, whole or not at all."""
        part = target.with_name(target.name + ".part")
        part.unlink(missing_ok=True)
        with closing(sqlite3.connect(self.path)) as raw, closing(sqlite3.connect(part)) as copy:
            raw.backup(copy)
        os.replace(part, target)

    @property
    def name(self) -> str:
        return str(self.path) if self.local else self.url.render_as_string(hide_password=True)

    def _damaged(self, why: str) -> StoreError:
        copies = sorted(self.path.parent.glob(f"{self.path.name}.*"), key=lambda path: path.stat().st_mtime)
        kept = [path for path in copies if not path.name.endswith(("-wal", "-shm", ".part"))]
        if kept:
            return StoreError(
                'the database "{name}" is damaged ({why}); nothing was changed. The last copy is "{copy}"',
                name=self.name, why=why, copy=kept[-1],
            )  # fmt: skip
        return StoreError(
            'the database "{name}" is damaged ({why}); nothing was changed. Move it away to begin anew',
            name=self.name, why=why,
        )  # fmt: skip

    def _told(self, error: Exception) -> StoreError | OutOfRoom:
        """What the database said, in one line."""
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        if "disk is full" in said or "No space left" in said or "disk I/O error" in said:
            return OutOfRoom('no room to write the database "{name}"; free some', name=self.name)
        if self.local and any(word in said for word in ("malformed", "not a database", "corrupt")):
            return self._damaged(said)
        return StoreError('the database "{name}" does not answer: {why}', name=self.name, why=said[:200])


def _url(given: str | None) -> URL:
    if given is None:
        return URL.create("sqlite", database=str(home() / FILE))
    try:
        url = make_url(given)
    except ArgumentError:
        raise InvalidInput(
            '"{url}" is no database; write sqlite:///FILE or postgresql://USER@HOST/NAME', url=given
        ) from None
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite" or not url.database:
        raise InvalidInput('"{url}" is no database; write sqlite:///FILE or postgresql://USER@HOST/NAME', url=given)
    return url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=24, connect_args={"connect_timeout": 5})
    engine = create_engine(url, connect_args={"timeout": PATIENCE_S}, pool_size=8, max_overflow=40)

    @event.listens_for(engine, "connect")
    def opened(raw: Any, _: Any) -> None:
        raw.isolation_level = None  # the driver begins no transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            raw.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads first and writes later could not wait for another writer: SQLite would refuse it.
        writes = connection.get_execution_options().get("sojourn_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _passing(error: DBAPIError) -> bool:
    """Whether trying again may help: locked, or the connection was lost."""
    said = str(error.orig)
    return error.connection_invalidated or any(
        word in said for word in ("locked", "connection", "deadlock", "shutting down", "starting up")
    )
