"""A client's links to all nodes, and the membership that it learns through them.

Theory of operation. A client knows some addresses: of this machine's nodes and of the cluster file. It links to
these, learns the members from whoever welcomes it first, and links to every member. Each node tells its own view,
which means something only together with that node; of what several tell of a member the newest record holds. A node
that stops answering, or was started anew, is told to be down; so is one that is dead by the cluster's view, unless it
answers us: when a split network heals, either side holds the other to be dead for a moment.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec
import zmq

from kos_cluster.core.records import JobSummary, Load, Member, MemberState
from kos_cluster.errors import AuthError, NoSuchNodeError, UnreachableError
from kos_cluster.home import ClusterFile, ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.transport import Context
from kos_cluster.node import machine
from kos_cluster.tasks.nodes import merge
from kos_cluster.tasks.why import NOTEBOOK

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
BOOTSTRAP_LIMIT = 64  # addresses that a machine keeps
ALL_NODES_TIMEOUT_S = 1.0  # for the links to the members beyond the first
POLL_S = 0.005
ANSWERS_S = 3.0  # a node heard of so lately is not dead, whatever is said of it


class Listener(Protocol):
    """Whom the attachment tells."""

    def node_up(self, member: Member, packages: dict[str, str]) -> None: ...
    def node_down(self, id_: str, why: str) -> None: ...
    def node_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None: ...


class Attachment:
    """The links of one client. Used in the mesh thread."""

    def __init__(
        self, home: ClusterHome, file: ClusterFile, credentials: Credentials, hello: wire.Hello, listener: Listener
    ) -> None:
        self.members: dict[str, Member] = {}
        self.packages: dict[str, dict[str, str]] = {}  # by node name
        self.by_node: dict[str, NodeLink] = {}  # by node id, once welcomed
        self.coordinator = ""  # the id of the node that coordinates, as far as is known
        self.voters: tuple[str, ...] = ()  # the ids of the nodes that decide, as it was told with that coordinator
        self._home = home
        self._file = file
        self._credentials = credentials
        self._hello = hello
        self._listener = listener
        self._loads: dict[str, tuple[Load, float]] = {}  # node id -> its load, and when it was so (monotonic)
        self._context: Context = zmq.Context(io_threads=1)
        self._links: dict[str, NodeLink] = {}  # by address
        self._term = 0  # of that coordinator
        self._views: dict[str, int] = {}  # node id -> the number of the view that it told last
        self._lives: dict[str, int] = {}  # node id -> when the daemon that welcomed us was started

    async def attach(self) -> None:
        """Return when every member that is alive is linked. Raises UnreachableError, AuthError."""
        addresses = [f"{r.host}:{r.port}" for name in self._file.nodes if (r := self._home.ready(name)) is not None]
        for address in dict.fromkeys([*addresses, *self._file.bootstrap]):
            host, _, port = address.rpartition(":")
            self._link_to(host, int(port))
        if not self._links:
            raise UnreachableError(
                f"No node of cluster {self._home.name!r} is known to run.", "Type 'kos up' to start this machine's."
            )
        await self._until(lambda: bool(self.members) or self._hopeless(), CONNECT_TIMEOUT_S)
        if not self.members:
            failures = [link.failure for link in self._links.values() if isinstance(link.failure, AuthError)]
            raise failures[0] if len(failures) == len(self._links) else self.unreachable()
        await self._until(lambda: bool(self._views) and self._all_linked(), ALL_NODES_TIMEOUT_S)

    async def more_linked(self, timeout_s: float) -> bool:
        """Wait until every member that is alive is linked, unless its link has failed; whether some came to it."""
        before = set(self.by_node)
        await self._until(self._all_linked, timeout_s)
        return not before >= self.by_node.keys()

    def links(self) -> list[NodeLink]:
        return list(self._links.values())

    def tell_all(self, message: wire.Message) -> None:
        for link in self.by_node.values():
            link.send(message)

    def choose(self, node: str) -> NodeLink:
        """The link to the named node, or to any, the coordinator's first. Raises NoSuchNodeError, UnreachableError."""
        ups = [link for link in self.by_node.values() if link.up and link.peer is not None]
        if node:
            for link in ups:
                if link.peer is not None and node in (link.peer.name, link.peer.id):
                    return link
            raise self._no_link(node)
        if not ups:
            raise self.unreachable()
        return next((link for link in ups if link.peer and link.peer.id == self.coordinator), ups[0])

    def view_of(self, id_: str) -> int:
        """The number of the view that this node told last; -1 when it has told none."""
        return self._views.get(id_, -1)

    def heard(self) -> wire.SyncData:
        """The members, their loads with ages, coordinator and voters, as they were told by now."""
        now = time.monotonic()
        loads = {id_: (load, now - at) for id_, (load, at) in self._loads.items() if id_ in self.members}
        return wire.SyncData(0, list(self.members.values()), loads, self.coordinator, voters=list(self.voters))

    def takes_load(self, id_: str, load: Load, age_s: float) -> bool:
        """Take in what is told of a node's load, unless something younger is known; whether it was."""
        at = time.monotonic() - age_s
        if id_ in self._loads and at < self._loads[id_][1]:
            return False
        self._loads[id_] = load, at
        return True

    def linked(self, node: str) -> bool:
        """Whether the named node is linked; it may not be yet. Raises NoSuchNodeError, or UnreachableError if dead."""
        member = self._member(node)
        if member is not None and member.id in self.by_node:
            return True
        if member is None or member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
            raise self._no_link(node)
        return False

    def greet_lost(self) -> None:
        """Say hello again on links that are up to nodes that we hold to be lost; their welcome brings them back."""
        for link in self._links.values():
            if link.up and link.peer is not None and link.peer.id not in self.by_node:
                link.greet()

    def give_up_dead(self) -> None:
        """Hold those to be lost that the cluster holds to be dead and that do not answer us either, or have left."""
        for id_, link in list(self.by_node.items()):
            member = self.members[id_]
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT) or self._lives.get(id_) != member.started_ns:
                continue
            answers = link.up and time.monotonic() - link.heard_s < ANSWERS_S
            if member.state is MemberState.LEFT or not answers:
                self.down(id_, f"the cluster holds it to be {member.state}")

    def down(self, id_: str, why: str) -> None:
        """Hold a node to be lost until it is welcomed again."""
        link = self.by_node.pop(id_, None)
        if link is not None:
            link.given.clear()
        self._lives.pop(id_, None)
        self._listener.node_down(id_, why)

    def renewed(self, credentials: Credentials) -> None:
        """Present another certificate, of the same keys, from now on."""
        self._credentials = credentials
        for link in self._links.values():
            link.renewed(credentials)
            if isinstance(link.failure, AuthError):
                link.hurry()

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._context.term()

    def unreachable(self) -> UnreachableError:
        """Why no node can be reached, address by address."""
        tried = "; ".join(
            f"{link.address}: {link.failure.message.rstrip('.') if link.failure else 'no answer'}"
            for link in self._links.values()
        )
        return UnreachableError(
            f"No node of cluster {self._home.name!r} answers ({tried}).",
            "Type 'kos up' to start this machine's nodes."
            if self._file.nodes
            else "Type 'kos up' on one of its machines; if it is no more, 'kos cluster leave' here.",
        )

    def waits_on(self, job: JobSummary) -> str:
        """On what a job waits of which nothing is at a node; else an empty string."""
        if job.running:
            return ""
        if self.by_node:
            return f"No node can take a task of it now. Type 'kos why {job.job}'."
        return f"No node of cluster {self._home.name!r} answers. {self.unreachable().hint}"

    # ---- nodelink.Listener

    def link_gone(self, link: NodeLink, why: str) -> None:
        """A node cannot be reached: what it held is lost."""
        if link.peer is not None and self.by_node.get(link.peer.id) is link:
            self.down(link.peer.id, why)

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        if isinstance(message, wire.Welcome):
            self._welcome(link, message)
        elif isinstance(message, wire.SyncData):
            self._sync(link, message)
        elif isinstance(message, wire.HelloWanted):
            link.greet()
        self._listener.node_said(link, message, payload)

    # ---- inside

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)

    def _hopeless(self) -> bool:
        """Whether waiting on is of no use: all refuse us, or all are of this machine and gone."""
        failures = [link.failure for link in self._links.values()]
        if self._file.embedded:
            return all(failures)
        return all(isinstance(failure, AuthError) for failure in failures)

    def _all_linked(self) -> bool:
        wanted = [m for m in self.members.values() if m.state is MemberState.ALIVE]
        failed = {link.address for link in self._links.values() if link.failure}
        return all(member.id in self.by_node or member.address in failed for member in wanted)

    def _member(self, node: str) -> Member | None:
        """The member of that name or id; a name may also be that of one that left, which gave it up."""
        found = [member for member in self.members.values() if node in (member.name, member.id)]
        return min(found, key=lambda member: member.state is MemberState.LEFT, default=None)

    def _no_link(self, node: str) -> NoSuchNodeError | UnreachableError:
        member = self._member(node)
        if member is None:
            known = ", ".join(sorted(m.name for m in self.members.values()))
            return NoSuchNodeError(f"No node is named {node!r}.", f"The cluster has {known}.")
        return UnreachableError(
            f"Node {member.name} ({member.state}) cannot be reached at {member.address}.",
            "Type 'kos cluster nodes' to see which nodes are alive.",
        )

    def _link_to(self, host: str, port: int) -> None:
        if f"{host}:{port}" not in self._links:
            self._links[f"{host}:{port}"] = NodeLink(
                self._context, self._credentials, host, port, self._hello, self, self._home
            )

    def _remember(self, members: Iterable[Member]) -> None:
        """Keep the addresses for the next start, when those that we know now may be gone."""
        standing = [m for m in members if m.state is not MemberState.LEFT]
        addresses = [member.address for member in standing[:BOOTSTRAP_LIMIT]]
        if addresses and addresses != self._file.bootstrap and not self._file.embedded:
            self._file = msgspec.structs.replace(self._file, bootstrap=addresses)
            try:
                self._home.write(self._file)
            except OSError as error:
                log.warning("The members' addresses could not be kept in %s: %s", self._home.path, error)

    def _welcome(self, link: NodeLink, message: wire.Welcome) -> None:
        member = message.member
        if link.peer is None or member.id != link.peer.id:
            return
        before = self._lives.get(member.id)
        if before is not None and before != member.started_ns:
            self.down(member.id, "its daemon was started anew")
        self._lives[member.id] = member.started_ns
        self.by_node[member.id] = link
        self.packages[member.name] = message.packages
        merge(self.members, [member])
        self._listener.node_up(self.members[member.id], message.packages)

    def _sync(self, link: NodeLink, message: wire.SyncData) -> None:
        if message.coordinator and message.term >= self._term:
            self.coordinator, self._term = message.coordinator, message.term
            self.voters = tuple(message.voters)
        if message.members is None or link.peer is None:
            return
        self._views[link.peer.id] = message.view
        merge(self.members, message.members)
        self._remember(self.members.values())
        for member in self.members.values():
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT):
                self._link_to(member.host, member.port)
                if member.id not in self.by_node:
                    self._links[member.address].hurry()
        self.give_up_dead()


def hello(instance: str, pid: int) -> wire.Hello:
    """How this process introduces itself."""
    return wire.Hello(instance, machine.versions(), pid, machine.boot_id(), machine.pid_namespace(), _program(pid))


def _program(pid: int) -> str:
    """What this process is, for people elsewhere. Its arguments are left out, which may be secrets."""
    path = sys.argv[0] if sys.argv else ""
    name = os.path.basename(path.removesuffix("/__main__.py"))
    if hasattr(builtins, "get_ipython"):
        name = NOTEBOOK
    elif name in ("", "-c", "-m"):
        name = "python"
    return f"{name}, process {pid} on {socket.gethostname()}"
