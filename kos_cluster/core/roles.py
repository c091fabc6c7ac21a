"""Who may do what: the one table of role x command. Everything that authorises reads it; the documentation prints it.

A role is written in a node's or client's certificate and is never taken from a message.
"""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """What a certificate entitles its holder to."""

    NODE = "node"
    CLIENT = "client"
    OBSERVER = "observer"
    ADMIN = "admin"


class Command(enum.StrEnum):
    """What a peer can ask of a node. Each request and each stream of messages belongs to exactly one command."""

    READ = "read"  # status, nodes, ps, logs, story
    SUBMIT = "submit"  # run and exec: makes a node unpickle and run code in a worker; cancel one's own work
    CANCEL_ANY = "cancel-any"  # cancel work of another identity
    MINT_TOKEN = "mint-token"
    STOP_NODE = "stop-node"
    BE_MEMBER = "be-member"  # register as a node and send heartbeats and load
    REMOVE_SELF = "remove-self"  # leave the cluster
    REMOVE_NODE = "remove-node"  # deny a node or client for good
    DRAIN_NODE = "drain-node"
    ROTATE = "rotate"  # have a node renew its certificate


_READERS = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
_SUBMITTERS = frozenset({Role.CLIENT, Role.ADMIN})

ALLOWED: dict[Command, frozenset[Role]] = {
    Command.READ: _READERS,
    Command.SUBMIT: _SUBMITTERS,
    Command.CANCEL_ANY: _ADMIN,
    Command.MINT_TOKEN: _ADMIN,
    Command.STOP_NODE: _ADMIN,
    Command.BE_MEMBER: frozenset({Role.NODE}),
    Command.REMOVE_SELF: frozenset({Role.NODE}),
    Command.REMOVE_NODE: _ADMIN,
    Command.DRAIN_NODE: _ADMIN,
    Command.ROTATE: _ADMIN,
}


def may(role: Role, command: Command) -> bool:
    """Whether a peer whose certificate carries `role` may give `command`."""
    return role in ALLOWED[command]
