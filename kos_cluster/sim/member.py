"""A host's part in the membership: its SWIM machine, and what it keeps of the others for the next start.

Rules: signatures are hashes under the signer's name, so forging one is as impossible as it is with real keys, for
machines that do not try. Incarnations are the wall clock in nanoseconds, as in the daemon, and never fewer than the one
kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from kos_cluster.core import swim
from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.swim.profile import Profile
from kos_cluster.sim.disk import Crash
from kos_cluster.sim.host import Host

if TYPE_CHECKING:
    from kos_cluster.sim.world import World

PORT = 7567
# The LAN profile, with the rare things less rare, so that short runs see them.
PROFILE = Profile(probe_s=1.0, probe_timeout_s=0.4, gossip_s=0.2, suspicion_factor=2.5, sync_s=6.0, reconnect_s=2.0)
_VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def signature(id_: str, data: bytes) -> bytes:
    """What stands for a signature by this member."""
    return hashlib.blake2b(data, key=id_.encode(), digest_size=16).digest()


def verify(id_: str, data: bytes, given: bytes) -> bool:
    """Whether this member signed the data."""
    return signature(id_, data) == given


class Membership:
    """The carrier of one SWIM machine. `machine` is None while the host is down."""

    name = "swim"

    def __init__(self, host: Host, world: World, random: Random) -> None:
        self.host = host
        self.machine: swim.Swim | None = None
        self.known: list[swim.Known] = []
        self.incarnation = 0
        self._view = 1
        self._world = world
        self._random = random

    @property
    def deadline(self) -> float:
        return self.machine.deadline if self.machine else float("inf")

    def start(self) -> None:
        wall_ns = int(self.host.clock.wall_s(self._world.agenda.now_s) * 1e9)
        self.incarnation = max(wall_ns, self.incarnation + 1)
        name = self.host.name
        member = Member(name, name, name, PORT, 1, _VERSIONS, self.incarnation)
        self.machine = swim.Swim(
            member,
            PROFILE,
            Random(self._random.getrandbits(64)),
            lambda data: signature(name, data),
            verify,
            self.host.now,
            self.known,
            self._view,
        )
        self._world.swim_rules.booted(self)
        addresses = tuple(f"{other}:{PORT}" for other in self._world.names if other != name)
        self._carry(self.machine.handle(swim.Join(addresses), self.host.now))

    def stop(self, crash: Crash) -> None:
        self.machine = None

    def take(self, sender: str, message: Any) -> None:
        if self.machine is not None:
            self._carry(self.machine.handle(swim.Received(sender, message), self.host.now))
            self.host.watch(self)

    def tick(self) -> None:
        if self.machine is not None:
            self._carry(self.machine.tick(self.host.now))

    def states(self) -> dict[str, MemberState]:
        """What this host believes of everybody."""
        return {member.id: member.state for member in self.machine.members()} if self.machine else {}

    def _carry(self, effects: Sequence[swim.Effect]) -> None:
        machine = self.machine
        assert machine is not None
        changed = False
        for effect in effects:
            if isinstance(effect, swim.Send):
                to = effect.id or effect.address.rpartition(":")[0]
                self._world.send(self.host, to, self.name, effect.message)
            elif isinstance(effect, swim.MemberChanged):
                changed = True
                self._world.note(
                    self.host.name, "sees", effect.member.id, str(effect.member.state), effect.member.incarnation
                )
                self._world.swim_rules.changed(self, effect)
            elif isinstance(effect, swim.Ignored):
                self._world.swim_rules.ignored(self, effect)
        if changed:
            self.known, self._view = machine.known(), machine.view + 1
