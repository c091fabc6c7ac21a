"""What memory the processes of a cluster share, as /proc shows it: anonymous files, and files with names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.mesh.conftest import Mesh

NAMED = Path("/dev/shm")  # where what is shared under a name has it


def processes(mesh: Mesh) -> Iterator[Path]:
    """The processes of this cluster, but for this one, each as its folder in /proc."""
    ours = f"KOS_HOME={mesh.home.path}".encode()
    for path in all_processes():
        if int(path.name) != os.getpid():
            with suppress(OSError):
                if ours in (path / "environ").read_bytes().split(b"\0"):
                    yield path


def all_processes() -> Iterator[Path]:
    """Every process that can be seen from here, whoever has started it."""
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def shared_files(mesh: Mesh, prefix: str) -> dict[int, tuple[str, int]]:
    """The files of such names that some process of the cluster has open or mapped: name and bytes, by inode."""
    return files_of(processes(mesh), prefix)


def files_of(some: Iterable[Path], prefix: str) -> dict[int, tuple[str, int]]:
    """As `shared_files`, of these processes."""
    found: dict[int, tuple[str, int]] = {}
    for process in some:
        with suppress(OSError):
            for fd in (process / "fd").iterdir():
                if (name := os.readlink(fd)).startswith(prefix):
                    found[fd.stat().st_ino] = name, fd.stat().st_blocks * 512
            for line in (process / "maps").read_text().splitlines():
                span, _, _, _, inode, *name = line.split(maxsplit=5)
                if name and name[0].startswith(prefix):
                    begin, end = (int(address, 16) for address in span.split("-"))
                    found.setdefault(int(inode), (name[0], end - begin))
    return found


def named(mesh: Mesh) -> list[str]:
    """What these processes share under a name, which would stay there after SIGKILL of all of them."""
    return sorted(name for name, _ in shared_files(mesh, f"{NAMED}/").values() if not name.endswith(" (deleted)"))
