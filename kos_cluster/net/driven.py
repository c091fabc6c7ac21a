"""Messages between a daemon and a driver: the process that holds a detached job's tasks in its submitter's stead, or a
kernel's one task.

Rules: these never leave the machine. They travel as `net.channel` has it, over a stream pair that the driver inherits,
so nobody else can speak for it. The daemon closes the pair to end a driver; a driver whose daemon has closed it ends,
and so does its work.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Runs
from kos_cluster.net.standing import Standing


class Drive(msgspec.Struct, frozen=True, tag=True):
    """The daemon's first message: run the tasks of the job that have no result."""

    job: str
    cluster: str
    epoch: int
    programs: bool  # its tasks are programs, whose exit codes are wanted
    bundle: str  # the file with its work
    sha256: str  # of that
    settled: Runs  # tasks that have a result
    inline_bytes: int  # of these, in the replicated state
    spool: str  # the folder for results that are too large for it


class AskStanding(msgspec.Struct, frozen=True, tag=True):
    """Of a driver: say why the tasks of the job wait. Its answer is `Stands`."""


class HostKernel(msgspec.Struct, frozen=True, tag=True):
    """The daemon's one message to the host of a kernel: run it on this node. Its last message is `Failed`."""

    id: str
    cluster: str
    node: str  # the id of this node
    name: str  # of the job
    folder: str  # with its connection file; its sockets are to be there
    cwd: str
    cpus: int
    memory_bytes: int
    environ: dict[str, str]


class Wrote(msgspec.Struct, frozen=True, tag=True):
    """What a task wrote: the payload."""


class Settled(msgspec.Struct, frozen=True, tag=True):
    """Results: task -> exit code (see `TaskResult`). All outcomes are in one MessagePack map, task -> bytes.

    It is the payload, to be kept in the replicated state; or, when `file` is not empty, that file, whose hash is
    `sha256`.
    """

    exit_codes: dict[int, int]
    file: str = ""
    sha256: str = ""


class Stands(msgspec.Struct, frozen=True, tag=True):
    """The answer to `AskStanding`; None when the job has not begun, or has ended."""

    standing: Standing | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The job cannot be run, by no driver, or the kernel has ended: the last message."""

    sentence: str
    exit_code: int


FromDriver = Wrote | Settled | Stands | Failed
