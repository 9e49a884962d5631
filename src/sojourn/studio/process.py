"""Which process is which, also after a restart of the machine and when clocks jump."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from sojourn.card import home


def born(pid: int) -> str | None:
    """What tells a process from all others that had or will have its number; None when there is none alive.

    On Linux its start in ticks since the machine's, with the machine's start: neither follows the clock on the wall.
    """
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return f"{psutil.Process(pid).create_time():.2f}"
        ticks = stat.read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
    return f"{boot}:{ticks}"


def here() -> str:
    """What tells this machine from others on one database, also from those of its name: its name and its home's."""
    mark = home() / "place"
    home().mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), mark.open("x") as file:
        file.write(secrets.token_hex(8))
    return f"{socket.gethostname()[:60]}/{mark.read_text()[:16]}"
