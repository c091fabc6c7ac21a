"""What is asked about the Jupyter kernels of a node, and its answer.

Rules: who asks is known by its certificate. The key of a kernel's messages travels only here, to the node that is to
run it, inside the encryption of the control link.
"""

from __future__ import annotations

import msgspec


class StartKernel(msgspec.Struct, frozen=True, tag=True):
    """Run a Jupyter kernel on the node that is asked. Reply: bool. Asked again with the same id it changes nothing."""

    id: str  # also of the job that it is
    cpus: int
    memory_bytes: int
    key: str  # of the signatures on the kernel's messages
    signature_scheme: str
    environ: dict[str, str]  # variables that it is to have
    folder: str  # where it is to work, if there is such a folder


class KernelOf(msgspec.Struct, frozen=True, tag=True):
    """What has become of a kernel of this node. Reply: KernelState. NoSuchTaskError for one that it does not know."""

    id: str


class StopKernel(msgspec.Struct, frozen=True, tag=True):
    """End a kernel of this node. Reply: bool, whether it ran. NoSuchTaskError for one that it does not know."""

    id: str


class KernelState(msgspec.Struct, frozen=True):
    """`why` says how it has ended, or what it waits for."""

    node: str  # its name
    state: str  # a `node.kernels.State`
    why: str = ""
