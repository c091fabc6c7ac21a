"""What must be true of the membership after every event, and once the world is healed.

    rule              checked when                against
    own incarnation   a belief changes            the highest incarnation that the member itself has had
    precedence        a belief changes            the belief before, by (incarnation, alive to left)
    refutation        a belief changes            nobody believes itself suspect or dead
    honest peers      something is ignored        no honest peer forges, contradicts itself or accuses who is not known
    calm              a member is held dead       in a world without faults nobody is
    convergence       the world has healed        all hosts hold all hosts that are up to be alive, within a bound

Rules: as those of Raft, these look on and change nothing. A machine that was restarted may believe anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kos_cluster.core import swim
from kos_cluster.core.records import MemberState
from kos_cluster.core.swim.messages import precedence
from kos_cluster.sim.invariants import Violation

if TYPE_CHECKING:
    from kos_cluster.sim.member import Membership

_IMPOSSIBLE = (swim.Why.FORGED, swim.Why.MALFORMED, swim.Why.CONTRADICTS)


class SwimRules:
    """The rules of one world's membership. `calm`: nothing is going to fail in it."""

    def __init__(self, calm: bool) -> None:
        self._calm = calm
        self._own: dict[str, int] = {}
        self._beliefs: dict[tuple[str, str], int] = {}

    def booted(self, membership: Membership) -> None:
        name = membership.host.name
        for key in [key for key in self._beliefs if key[0] == name]:
            del self._beliefs[key]
        self._own[name] = max(self._own.get(name, 0), membership.incarnation)

    def changed(self, membership: Membership, effect: swim.MemberChanged) -> None:
        viewer, member = membership.host.name, effect.member
        if member.id == viewer:
            if member.state in (MemberState.SUSPECT, MemberState.DEAD):
                raise Violation("refutation", f"{viewer} believes itself {member.state}")
            self._own[viewer] = max(self._own[viewer], member.incarnation)
            membership.incarnation = max(membership.incarnation, member.incarnation)
        if member.incarnation > self._own.get(member.id, 0):
            raise Violation(
                "own incarnation", f"{viewer} believes {member.id} in {member.incarnation}, which it never had"
            )
        rank = precedence(member.incarnation, member.state)
        before = self._beliefs.get((viewer, member.id))
        if before is not None and rank < before:
            raise Violation("precedence", f"{viewer} goes back to {member.id} {member.state} in {member.incarnation}")
        self._beliefs[viewer, member.id] = rank
        if self._calm and member.state is MemberState.DEAD:
            raise Violation("calm", f"{viewer} holds {member.id} dead, and nothing has failed")

    def ignored(self, membership: Membership, effect: swim.Ignored) -> None:
        if effect.why in _IMPOSSIBLE:
            raise Violation("honest peers", f"{membership.host.name} ignored {effect.sender}: {effect.why}")

    @staticmethod
    def apart(memberships: dict[str, Membership]) -> str:
        """Who does not yet hold whom to be alive; empty when all agree. All hosts are up."""
        for viewer, membership in memberships.items():
            states = membership.states()
            for name in memberships:
                state = states.get(name)
                if state is not MemberState.ALIVE:
                    return f"{viewer} holds {name} to be {state or 'no member'}"
        return ""
