"""Who votes: which nodes keep the cluster's log and elect its coordinator, changed one node at a time.

Theory of operation (Ongaro, 2014, section 4). Any two majorities of two voter sets that differ by one node have a
node in common, so voters change one by one, each change being an entry of the log. The coordinator asks
`choose_voters` now and then, and gives the step to Raft; there is at most one step under way.

How many. 3 voters outlive one loss and 5 outlive two, so 3 from three nodes on and 5 from seven. With two nodes one
votes and the other follows: with two voters the loss of either stops agreement, with one voter only the loss of that
one does. Neither goes on by itself after the wrong loss; that needs a third node.

Rules: a voter that left goes at once. One that is dead for `GRACE_S` goes when another can take its place, the dead
one first: the set without it never needs more votes than the set with it, while a larger set may need one that is not
there. Even sets are only passed through, with the next step ready. A node on a machine without a voter is preferred,
and replaces one of two voters on the same machine. The leader is never dropped: when it is drained it hands over
first. No step is made that leaves fewer voters alive than agreement needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from kos_cluster.core.records import MemberState

GRACE_S = 30.0  # for which a dead voter may come back before it is replaced
FIVE_VOTERS_FROM_NODES = 7
THREE_VOTERS_FROM_NODES = 3


class Candidate(msgspec.Struct, frozen=True):
    """A node as the coordinator sees it. `machine`: what it shares with nodes that die with it (the machine's boot id).

    `ready`: it has caught up with the log, and its disk takes entries. `drained`: it is not to be chosen.
    """

    id: str
    name: str
    machine: str
    state: MemberState
    since_s: float  # when it came into this state
    ready: bool
    drained: bool = False


class Promote(msgspec.Struct, frozen=True):
    id: str
    why: str


class Demote(msgspec.Struct, frozen=True):
    id: str
    why: str


class HandOver(msgspec.Struct, frozen=True):
    """Transfer leadership to this voter."""

    id: str
    why: str


class Blocked(msgspec.Struct, frozen=True):
    """A step is due, but would leave the cluster without agreement; the sentence has the arithmetic."""

    reason: str


Step = Promote | Demote | HandOver | Blocked


def voters_wanted(nodes: int) -> int:
    """How many voters a cluster of so many nodes (that have not left) should have."""
    if nodes >= FIVE_VOTERS_FROM_NODES:
        return 5
    return 3 if nodes >= THREE_VOTERS_FROM_NODES else 1


def majority(voters: int) -> int:
    """How many of so many voters must agree."""
    return voters // 2 + 1


def choose_voters(candidates: Sequence[Candidate], voters: Collection[str], leader: str, now: float) -> Step | None:
    """The next step towards the voters that should be; None when there is none, or it has to wait."""
    return _Choice(candidates, voters, leader, now).step()


def change_refused(voters: Collection[str], alive: Collection[str], *, add: str = "", remove: str = "") -> str:
    """Why a change of voters must not be made, or an empty string."""
    after = (set(voters) | ({add} if add else set())) - {remove}
    if not after:
        return "It is the last voter; without it the cluster could agree on nothing any more."
    reachable, needed = len(after & set(alive)), majority(len(after))
    if reachable >= needed:
        return ""
    return f"Of {_voters(len(after))} {needed} would have to agree, but only {reachable} would be reachable."


def undecided_sentence(voters: int, reachable: int) -> str:
    """Why nothing was decided in time."""
    if not voters:
        return "The cluster could not decide in time: this node does not know yet who votes."
    needed = majority(voters)
    if reachable < needed:
        have = f"and only {reachable} can be reached" if reachable else "and none can be reached"
    else:
        have = f"{reachable} can be reached, and they did not within the time"
    return f"The cluster could not decide: {needed} of its {_voters(voters)} must agree, {have}."


def loss_sentence(voters: int, taking_part: int, nodes: int) -> str:
    """What the loss of a node would mean, for `kos cluster status`, when so many voters answer and can decide."""
    needed, spare = majority(voters), taking_part - majority(voters)
    have = f"{_voters(voters)}, {taking_part} taking part, {needed} needed"
    if spare < 0:
        missing = "1 more does" if spare == -1 else f"{-spare} more do"
        return f"{have}: nothing can be agreed on until {missing}; running work goes on."
    if voters == 1 and nodes == 1:
        return f"{have}: this is the only node, and its loss is the cluster's."
    if voters == 1:
        return (
            f"{have}: if the voter is lost, nothing can be agreed on (joins, locks, tokens) until it is back; running "
            "work goes on. The loss of the other node stops nothing. With a third node any one loss stops nothing."
        )
    if spare == 0:
        return f"{have}: the loss of one more voter stops agreement (joins, locks, tokens); running work goes on."
    return f"{have}: the cluster outlives the loss of {'any one voter' if spare == 1 else f'any {spare} voters'}."


class _Choice:
    """One look at the cluster. `standing` are those that have not left, in a fixed order."""

    def __init__(self, candidates: Sequence[Candidate], voters: Collection[str], leader: str, now: float) -> None:
        self.standing = sorted((c for c in candidates if c.state is not MemberState.LEFT), key=lambda c: c.id)
        self.known = {c.id: c for c in self.standing}
        self.voters = sorted(voters)
        self.leader = leader
        self.now = now
        self.alive = {c.id for c in self.standing if c.state is MemberState.ALIVE} | {leader}
        self.wanted = voters_wanted(len(self.standing))
        self.machines = Counter(self.known[id].machine for id in self.voters if id in self.known)
        self.fresh = self._ranked_replacements()

    def step(self) -> Step | None:
        reachable, needed = len(self.alive & set(self.voters)), majority(len(self.voters))
        if reachable < needed:
            return Blocked(f"Of {_voters(len(self.voters))} {needed} must agree, but only {reachable} are reachable.")
        gone = [id for id in self.voters if id not in self.known and id != self.leader]
        if gone:
            return self._demote(gone[0], "it has left the cluster")
        handed_over = self._hand_over()
        if handed_over is not None:
            return handed_over
        if len(self.voters) > self.wanted:
            return self._shrink()
        return self._replace() or self._grow() or self._spread()

    def _hand_over(self) -> Step | None:
        leading = self.known.get(self.leader)
        if leading is None or not leading.drained:
            return None
        heirs = [self.known[id] for id in self.voters if id in self.known and self._able(self.known[id])]
        if heirs:
            return HandOver(min(heirs, key=lambda c: (c.since_s, c.id)).id, f"{leading.name} is drained")
        return self._promote(self.fresh[0], f"it is to lead instead of {leading.name}") if self.fresh else None

    def _shrink(self) -> Step | None:
        worst = max((id for id in self.voters if id != self.leader), key=self._badness)
        return self._demote(worst, f"{self.wanted} voters are enough for {len(self.standing)} nodes")

    def _replace(self) -> Step | None:
        for id in self.voters:
            voter = self.known.get(id)
            if voter is None or id == self.leader or not self.fresh:
                continue
            if voter.state is MemberState.DEAD and self.now - voter.since_s >= GRACE_S:
                return self._demote(id, f"it is dead, and {self.fresh[0].name} takes its place")
            if voter.drained:
                return self._demote(id, f"it is drained, and {self.fresh[0].name} takes its place")
        return None

    def _grow(self) -> Step | None:
        missing = self.wanted - len(self.voters)
        # From an odd set to an even one only when the next odd one can be reached.
        if missing <= 0 or not self.fresh or (len(self.voters) % 2 == 1 and len(self.fresh) < 2):
            return None
        return self._promote(self.fresh[0], f"{len(self.standing)} nodes should have {self.wanted} voters")

    def _spread(self) -> Step | None:
        crowded = [id for id in self.voters if id in self.known and self.machines[self.known[id].machine] > 1]
        if not any(id != self.leader for id in crowded) or len(self.voters) != self.wanted:
            return None
        elsewhere = [c for c in self.fresh if c.machine not in self.machines]
        return self._promote(elsewhere[0], "two voters are on one machine") if elsewhere else None

    def _ranked_replacements(self) -> list[Candidate]:
        """Nodes that could become voters, those on machines without a voter first."""
        able = [c for c in self.standing if c.id not in self.voters and self._able(c)]
        return sorted(able, key=lambda c: (self.machines[c.machine], c.since_s, c.id))

    def _able(self, c: Candidate) -> bool:
        return c.state is MemberState.ALIVE and c.ready and not c.drained

    def _badness(self, id: str) -> tuple[bool, bool, bool, int, float, str]:
        c = self.known[id]
        dead, suspect = c.state is MemberState.DEAD, c.state is MemberState.SUSPECT
        return dead, suspect, c.drained, self.machines[c.machine], c.since_s, c.id

    def _promote(self, candidate: Candidate, why: str) -> Step:
        refusal = change_refused(self.voters, self.alive, add=candidate.id)
        return Blocked(f"{candidate.name} cannot become a voter. {refusal}") if refusal else Promote(candidate.id, why)

    def _demote(self, id: str, why: str) -> Step:
        refusal = change_refused(self.voters, self.alive, remove=id)
        name = self.known[id].name if id in self.known else id
        return Blocked(f"{name} cannot stop being a voter. {refusal}") if refusal else Demote(id, why)


def _voters(count: int) -> str:
    return "1 voter" if count == 1 else f"{count} voters"
