"""What the fork server asks of Linux: process groups, death signals, orphans, descriptors.

Rules: thin, each function one or two system calls; a process that is already gone is not an error.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Container, Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def lead_group(pid: int) -> None:
    """Make `pid` (0: this process) the leader of a process group of its own."""
    try:
        os.setpgid(pid, 0)
    except (ProcessLookupError, PermissionError):
        return  # it has done so itself, or has ended


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, and end now if it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none escapes."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def take_descriptors(*, stdout: int, stderr: int, extra: dict[int, int]) -> None:
    """Put /dev/null, `stdout` and `stderr` at 0, 1, 2 and `extra` where it says; the extra ones stay close-on-exec."""
    # First out of the way of the targets, since the numbers may overlap.
    top = max((2, *extra.values())) + 1
    moved_out, moved_err = _above(stdout, top), _above(stderr, top)
    moved = {_above(source, top): target for source, target in extra.items()}
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((null, 0), (moved_out, 1), (moved_err, 2)):
        os.dup2(source, target, inheritable=True)
    for source, target in moved.items():
        os.dup2(source, target, inheritable=False)
    for fd in {null, stdout, stderr, moved_out, moved_err, *extra, *moved} - {0, 1, 2, *extra.values()}:
        os.close(fd)


def ended_children(leaders: Container[int]) -> Iterator[tuple[int, int]]:
    """Reap every child that has ended: (pid, status). What is left of a leader's process group is killed first."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        if found.si_pid in leaders:
            kill_group(found.si_pid)  # while the zombie still holds its number
        yield os.waitpid(found.si_pid, 0)


def kill_group(group: int) -> None:
    """SIGKILL to every process of a group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def kill_and_reap_all() -> None:
    """Kill all children and, as they become ours, theirs; returns when none is left."""
    while True:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        try:
            os.wait()
        except ChildProcessError:
            return


def end(status: int) -> None:
    """Leave a forked child without running the parent's clean-up."""
    os._exit(status)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN: groups have been killed, that is all there is
        return []


def _above(fd: int, lowest: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
