"""How a node comes to lead: timer, pre-vote, vote.

Source: Ongaro's thesis, 3.4, 3.6.1 and 9.6 (pre-vote), 4.2.3 (who hears a leader gives no vote), 3.10 (transfer).

    role            event                                next
    follower        no leader heard for the timeout      pre-candidate, if it may stand
    pre-candidate   a majority would vote for it         candidate in the next term
    pre-candidate   a majority would not                 follower
    candidate       a majority voted for it              leader
    candidate       a majority voted for others          follower
    any but leader  the timeout passes                   pre-candidate again
    follower        TimeoutNow from its leader           candidate at once
    any             a leader of its term, a later term   follower

Rules: a node votes once a term, and its vote leaves when it is durable; its vote for itself counts when it is durable.
A node that hears a leader takes no part in an election, unless that leader asked for it. Voters may stand, and one
whose removal from them is not committed. Asking for a pre-vote changes nothing anywhere, so a node that was cut off
raises no terms.
"""

from __future__ import annotations

from kos_cluster.core.raft.messages import WIRE_VERSION, TimeoutNow, VoteRequest, VoteResponse
from kos_cluster.core.raft.quorum import Outcome, vote_outcome
from kos_cluster.core.raft.state import State
from kos_cluster.core.raft.values import Role


class Elections:
    """The votes of the election that is on, and the answers to those of others."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._votes: dict[str, bool] = {}

    def tick(self) -> None:
        state = self._state
        if state.role is Role.LEADER or state.now < state.election_due_s:
            return
        state.follow(state.term, None)
        state.restart_timer()
        if state.may_stand:
            state.role = Role.PRE_CANDIDATE
            self._ask(state.term + 1, pre=True, transfer=False)
            self._votes = {state.node: True}
            self._count()

    def persisted(self) -> None:
        """This node's vote for itself counts from when it is durable."""
        state = self._state
        if state.role is Role.CANDIDATE and state.written >= state.hard_write:
            self._votes[state.node] = True
            self._count()

    # ---- messages

    def asked(self, sender: str, request: VoteRequest) -> None:
        state = self._state
        if state.hears_leader and not request.transfer:
            return
        if request.term > state.term and not request.pre:
            state.follow(request.term, None)
        if not self._would_vote(sender, request):
            self._answer(sender, state.term, granted=False, pre=request.pre)
        elif request.pre:
            self._answer(sender, request.term, granted=True, pre=True)
        else:
            state.vote(sender)
            state.restart_timer()
            self._answer(sender, state.term, granted=True, pre=False)

    def answered(self, sender: str, response: VoteResponse) -> None:
        state = self._state
        if response.term > state.term and not (response.pre and response.granted):
            state.follow(response.term, None)
            return
        expected = Role.PRE_CANDIDATE if response.pre else Role.CANDIDATE
        term = state.term + 1 if response.pre and response.granted else state.term
        if state.role is expected and response.term == term:
            self._votes.setdefault(sender, response.granted)
            self._count()

    def told_to_stand(self, sender: str, message: TimeoutNow) -> None:
        """The leader hands over: no pre-vote, and the others need not have missed the leader."""
        if not self._state.may_stand:
            self._state.ignore(sender, "it asked a node without a vote to stand for election")
            return
        self._campaign(transfer=True)

    # ---- steps

    def _would_vote(self, candidate: str, request: VoteRequest) -> bool:
        state = self._state
        if not state.log.is_covered_by(request.last_index, request.last_term):
            return False
        if request.pre:
            return request.term > state.term
        return request.term == state.term and (
            state.voted_for == candidate or (state.voted_for is None and state.leader is None)
        )

    def _campaign(self, transfer: bool) -> None:
        state = self._state
        state.enter_term(state.term + 1, state.node)
        state.role, state.leader = Role.CANDIDATE, None
        state.restart_timer()
        self._votes = {}
        self._ask(state.term, pre=False, transfer=transfer)

    def _count(self) -> None:
        state = self._state
        outcome = vote_outcome(state.membership.voters, self._votes)
        if outcome is Outcome.LOST:
            state.follow(state.term, None)
        elif outcome is Outcome.WON and state.role is Role.PRE_CANDIDATE:
            self._campaign(transfer=False)
        elif outcome is Outcome.WON:
            state.role, state.leader = Role.LEADER, state.node

    def _ask(self, term: int, pre: bool, transfer: bool) -> None:
        state = self._state
        request = VoteRequest(
            group=state.group,
            term=term,
            version=WIRE_VERSION,
            last_index=state.log.last_index,
            last_term=state.log.last_term,
            pre=pre,
            transfer=transfer,
        )
        for voter in state.membership.voters:
            if voter != state.node:
                state.send(voter, request)

    def _answer(self, to: str, term: int, granted: bool, pre: bool) -> None:
        state = self._state
        state.send(to, VoteResponse(group=state.group, term=term, version=WIRE_VERSION, granted=granted, pre=pre))
