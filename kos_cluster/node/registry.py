"""The membership that a node holds: kept by the founding node (`Keeper`), followed from it by the others (`Follower`).

Rules. Both give the same view: `members`, `loads`, `sync_data`. What the keeper decides (a member, a token) is on its
disk before it is told to anyone. A later membership protocol replaces both behind the same interface.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec

from kos_cluster.core.members import Departed, Heard, MemberRefused, Registry, ViewChanged
from kos_cluster.core.records import Load, Member, MemberState
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenEntry, TokenTable
from kos_cluster.errors import StateError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.node.store import Store

log = logging.getLogger(__name__)

KEEPER_SILENT_S = 5.0  # after which a follower takes the keeper for dead
NAME_PROMISE_S = 120.0  # for which a name stays with a joiner that has not been heard yet


class Keeper:
    """The registry's keeper. `changed` is called after each new view."""

    def __init__(self, store: Store, ca_sha256: str, changed: Callable[[], None]) -> None:
        self._store = store
        self._ca_sha256 = ca_sha256
        self._changed = changed
        saved = store.get("members")
        members = msgspec.msgpack.decode(saved, type=list[Member]) if saved else []
        self._registry = Registry(members, time.monotonic(), first_view=int(time.time()))
        tokens = store.get("tokens")
        self.tokens = TokenTable(msgspec.msgpack.decode(tokens, type=list[TokenEntry]) if tokens else ())
        self._promised: dict[str, float] = {}  # names given to joiners that were not heard yet -> until when

    @property
    def view(self) -> int:
        return self._registry.view

    def members(self) -> list[Member]:
        return self._registry.members()

    def loads(self) -> dict[str, tuple[Load, float]]:
        return self._registry.loads(time.monotonic())

    def sync_data(self, view: int) -> wire.SyncData:
        return wire.SyncData(self.view, self.members() if view != self.view else None, self.loads())

    def heard(self, member: Member, load: Load) -> None:
        self._promised.pop(member.name, None)
        self._apply(self._registry.handle(Heard(member, load), time.monotonic()))

    def departed(self, id_: str, left: bool) -> None:
        self._apply(self._registry.handle(Departed(id_, left), time.monotonic()))

    def tick(self) -> None:
        self._apply(self._registry.tick(time.monotonic()))

    def free_name(self, wanted: str) -> str:
        """The wanted name, or the next free `nodeN` when it is taken or none is wanted. Kept for a while."""
        now = time.monotonic()
        self._promised = {name: until for name, until in self._promised.items() if until > now}
        name, number = wanted, len(self.members()) + 1
        while not name or self.taken(name):
            name, number = f"node{number}", number + 1
        self._promised[name] = now + NAME_PROMISE_S
        return name

    def taken(self, name: str) -> bool:
        """Whether a member, or a joiner that was promised it, has this name."""
        return name in self._promised or self._registry.name_taken(name)

    def mint(self, role: str, ttl_s: float) -> str:
        """A new join token, on the disk before it is given away. Raises UsageError, LimitError, StateError."""
        if role not in list(Role):
            raise UsageError(f"There is no role {role!r}.", f"Choose one of {', '.join(Role)}.")
        now = time.time()
        token = JoinToken.mint(self._ca_sha256)
        self.tokens.add(token.id, token.secret, Role(role), ttl_s, now)
        self.save_tokens()
        return str(token)

    def save_tokens(self) -> None:
        self._store.put({"tokens": msgspec.msgpack.encode(self.tokens.snapshot())})

    def _apply(self, effects: list[ViewChanged | MemberRefused]) -> None:
        changed = False
        for effect in effects:
            if isinstance(effect, MemberRefused):
                log.warning("A heartbeat of %s was refused: %s.", effect.id, effect.reason)
            else:
                changed = True
                log.info("%s is %s (was %s).", effect.member.name, effect.member.state, effect.was or "unknown")
        if changed:
            try:
                self._store.put({"members": msgspec.msgpack.encode(self.members())})
            except StateError as error:
                log.warning("%s The members are kept in memory only.", error)
            self._changed()


class Follower:
    """A node that follows the keeper's view, and notices by itself when the keeper falls silent."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._members: dict[str, Member] = {}
        self._loads: dict[str, tuple[Load, float]] = {}
        self._loads_at = time.monotonic()
        self._heard_s = time.monotonic()
        self.view = 0

    def members(self) -> list[Member]:
        """As the keeper told them; the keeper itself is dead when it has been silent."""
        silent = time.monotonic() - self._heard_s >= KEEPER_SILENT_S
        return [
            msgspec.structs.replace(m, state=MemberState.DEAD) if silent and m.founder else m
            for m in self._members.values()
        ]

    def loads(self) -> dict[str, tuple[Load, float]]:
        passed = time.monotonic() - self._loads_at
        return {id_: (load, age + passed) for id_, (load, age) in self._loads.items()}

    def sync_data(self, view: int) -> wire.SyncData:
        return wire.SyncData(self.view, self.members() if view != self.view else None, self.loads())

    def told(self, data: wire.SyncData) -> None:
        """Take in the keeper's view."""
        self._heard_s = self._loads_at = time.monotonic()
        self._loads = data.loads
        if data.members is not None and data.view != self.view:
            self._members = {member.id: member for member in data.members}
            self.view = data.view
            self._changed()

    def tick(self) -> None:
        """Nothing is decided here: silence shows in `members`."""
