"""`kos cluster create`, `token`, `join` and `leave`: who is in the cluster.

Rules: a token is a secret. It is printed on stdout for whoever asked for it, and never written to a file or to stderr.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.forming import declared
from kos_cluster.cli.grammar import TOKEN_TTL_LIMIT_S
from kos_cluster.cli.tables import ago
from kos_cluster.errors import UnreachableError, UsageError
from kos_cluster.home import Home
from kos_cluster.net import beacon
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.services import daemons, membership

BEACON_TIMEOUT_S = 5.0  # a node announces itself each two seconds


def create_(parsed: argparse.Namespace, console: Console) -> int:
    """Found a cluster on this machine."""
    home = Home()
    with daemons.changing(home):
        start = membership.create(home, parsed.name, parsed.listen, parsed.node, parsed.profile, declared(parsed))
    token = kos.connect(parsed.name).mint_token("node", TOKEN_TTL_LIMIT_S)
    console.note(f"Cluster {parsed.name!r} is founded; this machine is its first node. On the next machine type:")
    console.answer(f"kos cluster join {parsed.name} {_reached(start)} --token {token}")
    console.note("The token is for one machine, within 24 hours; 'kos cluster token' makes another.")
    return 0


def token_(parsed: argparse.Namespace, console: Console) -> int:
    """Make a join token."""
    token = kos.connect(parsed.cluster).mint_token(parsed.role, parsed.ttl)
    if parsed.json:
        console.json({"token": token, "role": parsed.role, "ttl_s": parsed.ttl})
        return 0
    console.answer(token)
    console.note(
        f"For one {parsed.role}, within {ago(parsed.ttl)}. Use it with 'kos cluster join NAME [HOST] --token'."
    )
    return 0


def join_(parsed: argparse.Namespace, console: Console) -> int:
    """Join a cluster."""
    home = Home()
    membership.new_cluster(home, parsed.name)  # refuses a name before the token is asked for
    token = JoinToken.parse(_token(parsed.token))
    hosts = _hosts(parsed.name, parsed.host, token)
    with daemons.changing(home):
        joined = membership.join(home, parsed.name, hosts, token, parsed.listen, parsed.node, declared(parsed))
    for warning in joined.warnings:
        console.note(f"kos: {warning}")
    if joined.start is None:
        console.answer(f"Joined cluster {parsed.name!r} as {joined.role}; this machine runs no node of it.")
    else:
        where = f"{joined.start.advertise}:{joined.start.port}"
        console.answer(f"Joined cluster {parsed.name!r}; this machine is its node {joined.node} at {where}.")
    return 0


def leave_(parsed: argparse.Namespace, console: Console) -> int:
    """Leave the cluster for good."""
    home = Home()
    cluster = home.cluster(parsed.cluster)
    nodes = cluster.read().nodes
    with daemons.changing(home):
        left = membership.leave(cluster)
    console.answer(f"This machine has left cluster {cluster.name!r}.")
    if left is membership.Left.UNTOLD:
        console.note(f"The cluster could not be told; it will list {', '.join(nodes)} as dead.")
    elif left is membership.Left.ENDED:
        console.note(
            "It was the last node, so the cluster has ended; who only submitted types 'kos cluster leave' too."
        )
    return 0


def _token(typed: str | None) -> str:
    """The token that was typed, or KOS_TOKEN, or what is typed when asked for. Raises UsageError."""
    token = typed or os.environ.get("KOS_TOKEN")
    if token:
        return token
    if not sys.stdin.isatty():
        raise UsageError(
            "A join token is needed.", "Give it with --token or KOS_TOKEN; 'kos cluster token' on a member prints one."
        )
    try:
        return getpass.getpass("Join token: ")
    except EOFError:  # Ctrl-D: nothing was typed
        sys.stderr.write("\n")  # after the prompt
        return ""


def _hosts(name: str, typed: tuple[str, int | None] | None, token: JoinToken) -> list[tuple[str, int]]:
    """Nodes of the cluster to try: the one that was typed, or those that are heard on the network."""
    if typed is not None:
        return [(typed[0], typed[1] or membership.CONTROL_PORT)]
    heard = beacon.find(name, token.ca_sha256, BEACON_TIMEOUT_S)
    if not heard:
        raise UnreachableError(
            f"No node of cluster {name!r} was heard on this network within {BEACON_TIMEOUT_S:.0f} s.",
            f"Name one: 'kos cluster join {name} HOST'. Beacons are UDP multicast, port {beacon.PORT}.",
        )
    return heard


def _reached(start: daemons.NodeStart) -> str:
    """The address for others to type; the usual port goes without saying."""
    host = f"[{start.advertise}]" if ":" in start.advertise else start.advertise
    return host if start.port == membership.CONTROL_PORT else f"{host}:{start.port}"
