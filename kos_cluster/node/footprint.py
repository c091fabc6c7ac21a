"""How much memory a worker holds, with whatever it has started: sampled from /proc, without a cgroup.

Theory of operation. What counts is anonymous memory, which only the processes themselves can give back; files and
shared blocks that they map are not theirs alone. The first look is cheap and too high: it counts the pages that a
worker still shares with its fork server. Only where that look is past the limit are shared pages divided among those
who share them (proportional set size).

Rules: a process that ends meanwhile counts as nothing. A sample sees what is held now: what is taken and given back
between two samples is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROCESSES_LIMIT = 512  # of one worker that are looked at
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_GONE = (FileNotFoundError, ProcessLookupError)


def held_bytes(pid: int, limit_bytes: int, proc: Path = Path("/proc")) -> int:
    """What a process and its descendants hold: exact above the limit, an upper bound below it."""
    tree = list(_tree(pid, proc))
    total = sum(_resident_bytes(proc / str(each)) for each in tree)
    return total if total <= limit_bytes else sum(_proportional_bytes(proc / str(each)) for each in tree)


def _tree(pid: int, proc: Path) -> Iterator[int]:
    """A process and its descendants."""
    found, count = [pid], 0
    while found and count < PROCESSES_LIMIT:
        each = found.pop()
        count += 1
        yield each
        try:
            for thread in (proc / str(each) / "task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except _GONE:
            continue


def _resident_bytes(process: Path) -> int:
    try:
        _, resident, shared, *_ = map(int, (process / "statm").read_text().split())
    except _GONE:
        return 0
    return max(0, resident - shared) * _PAGE_BYTES


def _proportional_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except _GONE:
        return 0
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return kib.get("Pss_Anon", kib.get("Pss", 0)) * 1024
