"""A task of KOS's on its way to an engine and back: what `Connection.submit` is given, and what comes of it.

Theory of operation. An engine runs several calls in one process, and can neither end one of them nor tell whose output
is whose. So what an engine is given is a `HostedCall`, which holds the task as nodes get it: pickled, with the
environment of its worker. In the engine's process it has a KOS worker beneath that run the task (`hosting`), and
returns how it ended. So a task means the same there as on the mesh: variables, output, displays, interrupts.

Rules. An engine pickles these values as any; they hold bytes and names only, so to unpickle one runs nothing of the
user's. What a call says by the engine's way for texts is named "stdout" or "stderr", BEGUN or DISPLAY.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import AttemptEnd
from kos_cluster.services.engines.engine import Task

BEGUN = "begun"  # the text is the name of the node
DISPLAY = "display"  # the text is the JSON of the sink's `display` call, and then this:
DISPLAY_END = "\n"  # which is not in the JSON; an engine may part a long text into several


class Ended(msgspec.Struct, frozen=True):
    """How a call has ended: done or failed, and then with a payload as a worker sends it; or lost."""

    end: AttemptEnd
    payload: bytes = b""
    node: str = ""
    detail: str = ""  # how its worker ended, where it has no payload
    blocks: tuple[str, ...] = ()  # that the payload refers to


class HostedCall(msgspec.Struct, frozen=True):
    """One attempt at one task."""

    job: str
    index: int
    attempt: int
    owner: str  # identity of who submitted it, for KOS_OWNER
    fn: bytes  # the pickled function
    args: bytes  # the pickled arguments
    environment: bytes  # MessagePack of a `net.local.Environment`
    parts: dict[str, bytes]  # that the environment names, by hash
    seed: int | None = None
    timeout_s: float | None = None

    def __call__(self, task: Task) -> Ended:
        """Run it in a worker beneath this process, and wait for its end."""
        from kos_cluster.services.engines.hosting import host  # only where calls run

        return host().run(self, task)
