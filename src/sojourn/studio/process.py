"""Which process is which, also after a restart of the machine and when clocks jump."""

from __future__ import annotations

from pathlib import Path

import psutil


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
