"""Tell a kill by the kernel's out-of-memory killer from any other SIGKILL, by the kernel's own counters.

Rules: the narrowest counter that exists is read: this process's memory cgroup (version 2), else the whole machine's.
A rise is credited to at most as many deaths as it counts, and one that was seen before a worker started is never
credited to it.
"""

from __future__ import annotations

from pathlib import Path


class Counter:
    """Reads the kernel's count of out-of-memory kills and credits each to at most one death."""

    def __init__(self) -> None:
        self._path = _events_file()
        self._credited = self.read()  # kills up to this count are accounted for

    def take(self, since: int) -> bool:
        """Whether the count has risen above `since` by a kill that is not credited yet; credits it."""
        floor = max(since, self._credited)
        if self.read() <= floor:
            return False
        self._credited = floor + 1
        return True

    def read(self) -> int:
        for line in self._path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0


def _events_file() -> Path:
    machine = Path("/proc/vmstat")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events"
            return own if own.is_file() else machine
    return machine
