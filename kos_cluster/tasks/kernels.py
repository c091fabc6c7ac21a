"""A Jupyter kernel on a node, as the client sees it that has started it.

Theory of operation. The client places the kernel as an owner places a task, and asks that node to start it; from then
on the node alone has it. Its id and its node's are all that is needed to find it again, from another process of the
same user too. Whether it is alive is asked of its node; when that does not answer, of what the cluster holds of it.

Rules. A node that cannot be reached is not taken for dead: the kernel is lost only when the cluster says that its node
is, or when the node, started anew, does not know it. Used in any thread; each call may wait for a node.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kos_cluster.core.records import Member, MemberState
from kos_cluster.errors import AuthError, KosError, NoSuchTaskError, PlacementError, TaskLostError, UnreachableError
from kos_cluster.net import kernels as asks
from kos_cluster.net import tunnel
from kos_cluster.tasks.options import Options

if TYPE_CHECKING:
    import ssl

    from kos_cluster.tasks.mesh import Mesh

PLACE_TIMEOUT_S = 30.0  # for a node that has room
START_TIMEOUT_S = 60.0  # from being asked of the node to being ready: slots may have to become free
POLL_S = 0.05  # between two looks while one waits
ASK_TIMEOUT_S = 2.0  # of a kernel's node, how it is


@dataclass(frozen=True)
class KernelSpec:
    """What is to run. `folder`: where it is to work, if the node has such a folder."""

    key: str  # of the signatures on its messages
    signature_scheme: str
    options: Options  # of these cpus, memory, on and env
    folder: str = ""


class RemoteKernel:
    """One kernel. Made by `Cluster.start_kernel`, or by `Cluster.kernel` to find it again."""

    def __init__(self, mesh: Mesh, id: str, node: str, node_name: str) -> None:
        self.id = id
        self.node = node
        self.node_name = node_name
        self._mesh = mesh

    def __repr__(self) -> str:
        return f"<kos RemoteKernel {self.id} on {self.node_name}>"

    def ended(self) -> str:
        """How it has ended; an empty string while it runs, for all that is known."""
        try:
            state = self._mesh.request(
                asks.KernelOf(self.id), asks.KernelState, node=self.node, timeout_s=ASK_TIMEOUT_S
            )
        except NoSuchTaskError:
            return "the node was started anew"
        except AuthError as error:
            return f"{error.message.rstrip('.')}, so it cannot be used any more"
        except KosError:  # of this side, or the way there; of the kernel it says nothing
            return self._node_lost()
        return (state.why or "it ended") if state.state == "ended" else ""

    def stop(self) -> bool:
        """End it. False when it had ended. Raises UnreachableError when its node cannot be told."""
        try:
            return self._mesh.request(asks.StopKernel(self.id), bool, node=self.node)
        except NoSuchTaskError:
            return False

    def dial(self, socket: str, id: str, *, new: bool, received: int) -> tuple[ssl.SSLSocket, int]:
        """A link for a tunnel to one of its sockets; see `net.tunnel`. Raises KosError."""
        member = self._mesh.member(self.node)
        if member is None or member.state in (MemberState.DEAD, MemberState.LEFT):
            raise UnreachableError(f"Node {self.node_name} cannot be reached.", "Type 'kos cluster nodes'.")
        wanted = tunnel.Open(self.id, socket, id, new, received)
        return tunnel.dial(member.host, member.port, self._mesh.credentials, wanted)

    def wait_ready(self) -> None:
        """Return when it listens. Raises TaskLostError, PlacementError; it is stopped then."""
        deadline = time.monotonic() + START_TIMEOUT_S
        why = ""
        while time.monotonic() < deadline:
            state = self._mesh.request(asks.KernelOf(self.id), asks.KernelState, node=self.node)
            if state.state == "running":
                return
            if state.state == "ended":
                raise TaskLostError(f"The kernel could not be started on node {self.node_name}: {state.why}.")
            why = state.why
            time.sleep(POLL_S)
        self.stop()
        raise PlacementError(
            f"The kernel was not ready on node {self.node_name} after {START_TIMEOUT_S:.0f} s: {why}.",
            "Type 'kos ps' to see what runs, or ask for less.",
        )

    # ---- inside

    def _node_lost(self) -> str:
        member = self._mesh.member(self.node)
        if member is not None and member.state not in (MemberState.DEAD, MemberState.LEFT):
            return ""
        left = member is None or member.state is MemberState.LEFT
        return "the node has left the cluster" if left else "the node is dead"


def start(mesh: Mesh, id: str, spec: KernelSpec) -> RemoteKernel:
    """Start a kernel where there is room; return when it is ready. Raises KosError."""
    member = _placed(mesh, spec)
    kernel = RemoteKernel(mesh, id, member.id, member.name)
    needs, environ = spec.options.needs(), dict(spec.options.env or {})
    ask = asks.StartKernel(id, needs.cpus, needs.memory_bytes, spec.key, spec.signature_scheme, environ, spec.folder)
    mesh.request(ask, bool, node=member.id)
    try:
        kernel.wait_ready()
    except BaseException:
        kernel.stop()
        raise
    return kernel


def _placed(mesh: Mesh, spec: KernelSpec) -> Member:
    deadline = time.monotonic() + PLACE_TIMEOUT_S
    while True:
        member, reasons = mesh.placing.place(spec.options.needs())
        if member is not None:
            return member
        if time.monotonic() > deadline:
            raise PlacementError(
                f"No node has room for the kernel: {'; '.join(reasons)}.", "Type 'kos cluster nodes' to see them."
            )
        time.sleep(POLL_S)
