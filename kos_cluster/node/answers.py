"""The answers to requests: nodes, jobs, logs, stories, cancelling, tokens, stopping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kos_cluster.core.records import JobSummary, Load
from kos_cluster.core.roles import Command, Role, may
from kos_cluster.errors import AuthError, KosError
from kos_cluster.net import wire
from kos_cluster.net.identity import Peer
from kos_cluster.node.history import History
from kos_cluster.node.owners import Owners, OwnerState
from kos_cluster.node.registry import Follower, Keeper

COMMAND_OF: dict[type, Command] = {
    wire.Nodes: Command.READ,
    wire.Jobs: Command.READ,
    wire.Logs: Command.READ,
    wire.Stories: Command.READ,
    wire.CancelWork: Command.SUBMIT,
    wire.MintToken: Command.MINT_TOKEN,
    wire.StopNode: Command.STOP_NODE,
}
WORDS_OF: dict[type, str] = {
    wire.CancelWork: "cancel work",
    wire.MintToken: "make join tokens",
    wire.StopNode: "stop nodes",
}  # the rest is reading, which every role may do


class Answers:
    """Answers requests of authenticated peers; a refusal is an answer too."""

    def __init__(
        self,
        registry: Keeper | Follower,
        owners: Owners,
        history: History,
        tell_owner: Callable[[OwnerState, wire.Message], None],
        own_load: Callable[[], tuple[str, Load]],
        stop: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._owners = owners
        self._history = history
        self._tell_owner = tell_owner
        self._own_load = own_load
        self._stop = stop

    def reply(self, peer: Peer, request: wire.Request) -> wire.Reply:
        try:
            self._authorise(peer, request.ask)
            value = msgspec.Raw(msgspec.msgpack.encode(self._answer(peer, request.ask)))
            return wire.Reply(request.id, value)
        except KosError as error:
            return wire.Reply(request.id, error=(type(error).__name__, error.message, error.hint))

    def _authorise(self, peer: Peer, ask: wire.Asked) -> None:
        command = COMMAND_OF[type(ask)]
        if not may(peer.role, command):
            wanted = " or ".join(role for role in Role if may(role, command))
            raise AuthError(
                f"The role {peer.role} of {peer.name} may not {WORDS_OF.get(type(ask), command)}.",
                f"It takes a token of the role {wanted}: an admin makes one with 'kos cluster token --role'.",
            )

    def _answer(self, peer: Peer, ask: wire.Asked) -> Any:
        match ask:
            case wire.Nodes():
                return self._nodes()
            case wire.Jobs():
                return self._jobs()
            case wire.Logs(id_):
                return self._history.logs(id_)
            case wire.Stories(id_):
                return self._history.stories(id_)
            case wire.CancelWork(id_):
                return self._cancel(peer, id_)
            case wire.MintToken(role, ttl_s):
                return self._mint(role, ttl_s)
            case wire.StopNode():
                self._stop()
                return True

    def _nodes(self) -> wire.SyncData:
        """The view, with this node's own load as it is now."""
        data = self._registry.sync_data(-1)
        id_, load = self._own_load()
        return wire.SyncData(data.view, data.members, {**data.loads, id_: (load, 0.0)})

    def _jobs(self) -> list[JobSummary]:
        return [msgspec.structs.replace(job, user=state.peer.name) for state in self._owners for job in state.jobs]

    def _cancel(self, peer: Peer, id_: str) -> bool:
        """Pass the wish on to the owner of the job, who knows all of its tasks."""
        job, _, index = id_.partition(".")
        having = [state for state in self._owners if state.has(job)]
        mine = [state for state in having if state.peer.id == peer.id or may(peer.role, Command.CANCEL_ANY)]
        if having and not mine:
            raise AuthError(
                f"Job {job} belongs to {having[0].peer.name}; the role {peer.role} may only cancel its own work.",
                "Ask its owner, or use an admin's identity.",
            )
        for state in mine:
            self._tell_owner(state, wire.CancelWanted(job, _number(index), peer.name))
        return bool(mine)

    def _mint(self, role: str, ttl_s: float) -> str:
        if isinstance(self._registry, Keeper):
            return self._registry.mint(role, ttl_s)
        founder = next((m for m in self._registry.members() if m.founder), None)
        where = f"{founder.name} ({founder.address})" if founder else "the founding node"
        raise KosError(f"Tokens are made by {where}, not by this node.", "Type the command again when it is alive.")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
