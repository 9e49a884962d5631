"""Verbs of the server: serve, keys, worker."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys

import click

from sojourn.cli.say import Commands, console, say, warn
from sojourn.errors import InvalidInput

DATABASE = click.option("--database", metavar="URL", help="Default: studio.sqlite in the home folder.")


@click.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on. Default: 127.0.0.1, this machine alone.")
@click.option("--port", type=click.IntRange(0, 65535), default=7865, help="Default: 7865. 0 = any that is free.")
@click.option("--name", "names", multiple=True, help="A host name this server is called by; may be repeated.")
@DATABASE
@click.option("--verbose", is_flag=True, help="Log each request as a line of JSON, without prompts.")
def serve(host: str, port: int, names: tuple[str, ...], database: str | None, verbose: bool) -> None:
    """Start the studio: pictures, trainings and a gallery over HTTP, with an OpenAI-compatible API."""
    from sojourn.http.server import Lines, run
    from sojourn.studio.keys import Keys
    from sojourn.studio.studio import Studio

    studio = Studio(database)
    if not _loopback(host) and not Keys(studio.store).any():
        studio.close()
        raise InvalidInput(
            "listening on {host} without a key would let everyone in; make one first: sojourn keys add NAME", host=host
        )
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(message)s")
    if verbose:
        logging.getLogger().handlers[0].setFormatter(Lines())
    sys.exit(run(studio, host, port, names, lambda url: say("the studio is at {url}", url=url)))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.group(cls=Commands)
def keys() -> None:
    """Keys for the server: who may come in, and what for."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["generate", "train", "admin", "worker"]),
    default="generate",
    help="Default: generate.",
)
@DATABASE
def add(name: str, scope: str, database: str | None) -> None:
    """Make a key. It is shown once; from then on nobody comes in without one."""
    from sojourn.studio.keys import Keys
    from sojourn.studio.store import Store

    kept = Keys(Store(database))
    first = not kept.any()
    print(kept.add(name, scope))  # type: ignore[arg-type]
    if first and (count := kept.unowned()):
        warn(
            "{count} pictures were made while there was no key; to give them to {name}: sojourn keys adopt {name}",
            count=count, name=name,
        )  # fmt: skip


@keys.command("list")
@DATABASE
def list_keys(database: str | None) -> None:
    """Who has one."""
    from rich.table import Table

    from sojourn.studio.keys import Keys
    from sojourn.studio.store import Store

    table = Table("name", "scope", box=None)
    for row in Keys(Store(database)).page():
        table.add_row(row.name, row.scope)
    console().print(table)


@keys.command()
@click.argument("name")
@DATABASE
def adopt(name: str, database: str | None) -> None:
    """Give NAME what was made while there was no key: pictures, jobs, collections, ratings."""
    from sojourn.studio.keys import Keys
    from sojourn.studio.store import Store

    say("{count} pictures belong to {name} now", count=Keys(Store(database)).adopt(name), name=name)


@keys.command()
@click.argument("name")
@DATABASE
def remove(name: str, database: str | None) -> None:
    """Take a key back."""
    from sojourn.studio.keys import Keys
    from sojourn.studio.store import Store

    Keys(Store(database)).remove(name)
    say('the key of "{name}" is worth nothing any more', name=name)


@click.command()
@click.option("--lanes", default="interactive,background", help="What it does. Default: interactive,background.")
@click.option("--server", metavar="URL", help="A studio on another machine; its key goes into $SOJOURN_KEY.")
@DATABASE
def worker(lanes: str, server: str | None, database: str | None) -> None:
    """Do the jobs of a studio: of this machine's beside its own workers, or of one elsewhere."""
    from sojourn.studio.worker import Worker

    chosen = [lane.strip() for lane in lanes.split(",")]
    if not chosen or set(chosen) - {"interactive", "background"}:
        raise InvalidInput('no lanes "{lanes}"; write interactive, background or both with a comma', lanes=lanes)
    if server is not None and database is not None:
        raise InvalidInput("give --server or --database, one of the two")
    if server is None:
        running = Worker.of(database, chosen)
    else:
        from sojourn.studio.far import far_worker

        running = far_worker(server, chosen)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, running.end)
    say("worker {pid} waits for jobs", pid=os.getpid())
    running.run()
