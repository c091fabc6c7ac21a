"""Creating, joining and leaving a cluster of several machines: what is written here, and which daemon is started.

Rules: a flow that fails half-way leaves this machine as it was. What the user typed is checked before anything is
written or sent, and ports are tried first, so that a taken one costs no token. Call all within `daemons.changing`.
"""

from __future__ import annotations

import contextlib
import enum
import ipaddress
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from kos_cluster.core.capacity import Declared
from kos_cluster.core.roles import Role
from kos_cluster.errors import PortTakenError, StateError, UnreachableError, UsageError
from kos_cluster.home import EMBEDDED_NAME, ClusterFile, ClusterHome, Home, checked_name
from kos_cluster.net import joining
from kos_cluster.net.identity import Credentials
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.node import machine
from kos_cluster.node.machine import primary_address
from kos_cluster.services import sweeping
from kos_cluster.services.daemons import DEFAULT_PROFILE, NodeStart, read_start, start_all, write_start
from kos_cluster.services.founding import found, host_name, user_name
from kos_cluster.services.ports import check_free, free_pairs

CONTROL_PORT = 7567
WILDCARDS = ("0.0.0.0", "::")

NOTHING = Declared()

Listen = tuple[str, int | None]  # the port is None when it was not typed


def create(
    home: Home,
    name: str,
    listen: Listen | None,
    node: str | None,
    profile: str = DEFAULT_PROFILE,
    declared: Declared = NOTHING,
) -> NodeStart:
    """Found a cluster whose first node runs on this machine, and start that; gives how it is reached."""
    cluster = new_cluster(home, name)
    node = checked_name(node or host_name())
    start = msgspec.structs.replace(placement(listen), profile=profile, declared=declared)
    with _undone(cluster):
        found(cluster, [node], [f"{start.advertise}:{start.port}"], embedded=False)
        write_start(cluster, node, start)
        start_all(cluster, [node])
    home.set_current(name)
    return start


@dataclass(frozen=True)
class Joined:
    """What a join brought. `start` is None when the token's role runs no node."""

    role: Role
    node: str
    start: NodeStart | None
    warnings: list[str]


def join(
    home: Home,
    name: str,
    hosts: Sequence[joining.Address],
    token: JoinToken,
    listen: Listen | None,
    node: str | None,
    declared: Declared = NOTHING,
) -> Joined:
    """Join through the first of these nodes that answers; with a node token, start this machine's node.

    Raises JoinError, UnreachableError, IncompatibleError, PortTakenError.
    """
    cluster = new_cluster(home, name)
    start = msgspec.structs.replace(placement(listen, searching=listen is None), declared=declared)
    result = _admitted(hosts, token, name, checked_name(node or host_name()), start, insist=node is not None)
    with _undone(cluster):
        result.client.save(cluster.client)
        nodes = [result.node_name] if result.node else []
        cluster.write(ClusterFile(name, result.ca_sha256, False, result.bootstrap, nodes))
        if result.node:
            result.node.save(cluster.node(result.node_name))
            advertise = result.source_host if start.host in WILDCARDS else start.host
            start = msgspec.structs.replace(
                start, advertise=advertise, bootstrap=result.bootstrap, profile=result.profile or start.profile
            )
            write_start(cluster, result.node_name, start)
            start_all(cluster, nodes)
    home.set_current(name)
    return Joined(result.role, result.node_name, start if result.node else None, result.warnings)


def _admitted(
    hosts: Sequence[joining.Address], token: JoinToken, cluster: str, name: str, start: NodeStart, *, insist: bool
) -> joining.JoinResult:
    """Ask the nodes in turn; the first that answers decides."""
    for place, (host, port) in enumerate(hosts, 1):
        try:
            return joining.join(
                host,
                port,
                token,
                cluster,
                versions=machine.versions(),
                name=name,
                user=user_name(),
                listen_host="" if start.host in WILDCARDS else start.host,
                listen_port=start.port,
                insist=insist,
            )
        except UnreachableError:
            if place == len(hosts):
                raise
    raise AssertionError("there is at least one host to ask")


def new_cluster(home: Home, name: str) -> ClusterHome:
    """The place for a cluster of that name. Raises UsageError or StateError when it cannot be used."""
    cluster = ClusterHome(home, checked_name(name))
    if name == EMBEDDED_NAME:
        raise UsageError(f"{name!r} is the name of the cluster that 'kos up' makes.", "Choose another name.")
    if cluster.exists():
        raise StateError(
            f"This machine is in a cluster named {name!r} already.",
            f"Choose another name, or type 'kos cluster leave --cluster {name}' first.",
        )
    return cluster


def placement(listen: Listen | None, *, searching: bool = False) -> NodeStart:
    """Where a node of this machine listens, and the address that others reach it at.

    Raises PortTakenError; when `searching`, other ports are taken instead.
    """
    host, port = listen or (WILDCARDS[0], None)
    port = port or CONTROL_PORT
    try:
        check_free(host, port)
    except PortTakenError:
        if not searching:
            raise
        (port,) = free_pairs(1, host)
    advertise = primary_address() if host in WILDCARDS else host
    return NodeStart(host, port, advertise, beacon=not _is_loopback(advertise))


class Left(enum.Enum):
    """How the cluster goes on without this machine."""

    TOLD = enum.auto()  # it knows that this machine's nodes, if any, have left
    UNTOLD = enum.auto()  # it could not be told, and will list them as dead
    ENDED = enum.auto()  # it does not: the last node was here


def leave(cluster: ClusterHome) -> Left:
    """Let this machine's nodes leave for good, and forget the cluster. It works without the cluster, too.

    Raises StateError or UnreachableError when the cluster cannot do without one of them; nothing has changed then.
    """
    nodes = cluster.read().nodes
    told = [_tell(cluster, node) for node in nodes]
    sweeping.stop(cluster, nodes)
    sweeping.sweep(cluster)
    shutil.rmtree(cluster.path)
    return max(told, key=lambda left: left.value, default=Left.TOLD)


def _tell(cluster: ClusterHome, node: str) -> Left:
    from kos_cluster.services.leaving import tell_left

    own = sweeping.alive(cluster, node)
    others = [*read_start(cluster, node).bootstrap, *cluster.read().bootstrap]
    addresses = [f"{own.host}:{own.port}"] if own is not None else list(dict.fromkeys(others))
    try:
        credentials = Credentials.load(cluster.node(node))
    except StateError:  # the node has lost its identity, and cannot speak for itself
        return Left.UNTOLD
    goes_on = tell_left(credentials, addresses)
    if goes_on is None:
        return Left.UNTOLD
    return Left.TOLD if goes_on else Left.ENDED


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return host == "localhost"


@contextlib.contextmanager
def _undone(cluster: ClusterHome) -> Iterator[None]:
    """Remove what was written when the flow fails."""
    try:
        yield
    except BaseException:
        sweeping.sweep(cluster)
        shutil.rmtree(cluster.path, ignore_errors=True)
        raise
