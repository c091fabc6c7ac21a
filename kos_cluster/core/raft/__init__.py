"""Raft: a group of nodes agrees on one log, and each applies it. A pure machine.

## Theory of operation

A *leader*, elected for a *term*, alone appends to the log. An entry that a majority of the *voters* holds durably is
*committed*: it is in the log of every later leader, so every node applies the same entries in the same order. A group
of 2n+1 voters goes on while n of them are lost. *Learners* receive the log and have no vote. Old entries are replaced
by a *snapshot* of the state they led to.

Source: D. Ongaro, "Consensus: Bridging Theory and Practice", Stanford 2014, cited as "thesis". Taken from it: elections
with pre-vote and check-quorum, one change of the voters at a time, snapshots, read-index, leader transfer, pipelining.

    values       entries, hard state, snapshots, membership, timing
    messages     what nodes say to each other
    events       what goes into the machine (events) and comes out (effects)
    quorum       what a majority has agreed on
    config       the membership, and which change of it may be made
    log          the log in memory, and how much of it is durable
    state        what a node knows; the effects of the present step
    elections    timer, pre-vote, vote                            (all roles)
    following    the leader's messages                            (follower)
    leadership   proposals, commitment, quorum, handing over      (leader)
    replication  appends, heartbeats, snapshots                   (leader)
    progress     what is known of one other member                (leader)
    reads        read-index                                       (leader, and who asks it)
    checks       which messages cannot be
    machine      hands each event to its part

## The contract with the caller

    ordering = Ordering()  # kos_cluster.core.ordering
    raft = Raft(node, group, restored, random, now)
    actions = ordering.take(raft.start())
    actions = ordering.take(raft.handle(event, now))         # also raft.tick(now), when raft.deadline has come
    actions = ordering.written(number) + ordering.take(raft.handle(Persisted(number), now))    # a Write is durable

- Writes are carried out in order, each whole or not at all; a message never leaves before the write it names.
- After a write that failed the caller gives `WriteFailed` and nothing more. The leader hands over, the machine halts;
  it is built anew from what the disk holds.
- Messages may be lost, doubled, reordered and late. The sender is the authenticated one, not one that a message names.
- Time is only for liveness: a clock that stops, jumps or drifts delays the group and breaks nothing.
- Commands are opaque. Whoever proposes again after a lost answer may have the command twice in the log. That it is
  applied once is the business of the replicated state above, which keeps a table of its clients' sessions in what it
  applies.

## Rules

- Nothing leaves before the term and vote it was said under are durable; no entry is acknowledged or counted before it
  is durable where it is counted. Appends may leave beside the leader's own write.
- An entry is applied when it is committed, and durable here.
- A leader commits by counting only entries of its own term.
- A read is answered after a majority has confirmed the leader since the read was asked.
- What cannot be is dropped and told (`Ignored`); an entry that this version does not know is never stored from a
  message, and stops the machine (`Halt`) when it is on the disk. Nothing is skipped.
- A node that was removed while it was cut off asks for pre-votes for ever. Nobody that hears a leader answers, so it
  disturbs nobody; the layer above revokes it.
- A node that lost its disk is removed before it joins again: one that forgot its vote or an acknowledged entry breaks
  what the others rely on.
- All memory is bounded by named constants: `leadership` (uncommitted entries), `progress` (appends and chunks under
  way), `reads`, `config` (members), `following` (a snapshot that comes in), `log` (the tail behind a snapshot).
"""

from kos_cluster.core.raft.config import founding
from kos_cluster.core.raft.events import (
    Accepted,
    AddLearner,
    Apply,
    Change,
    ChangeConfig,
    Compact,
    Demote,
    Effect,
    Event,
    Halt,
    Ignored,
    MembershipChanged,
    Persist,
    Persisted,
    Promote,
    Propose,
    ReadIndex,
    ReadReady,
    Received,
    Refused,
    Remove,
    RestoreSnapshot,
    RoleChanged,
    Send,
    Transfer,
    WriteFailed,
)
from kos_cluster.core.raft.machine import Raft
from kos_cluster.core.raft.messages import Message
from kos_cluster.core.raft.replication import Follower
from kos_cluster.core.raft.values import (
    Entry,
    HardState,
    Kind,
    Membership,
    Restored,
    Role,
    Snapshot,
    Timing,
)

__all__ = [
    "Accepted",
    "AddLearner",
    "Apply",
    "Change",
    "ChangeConfig",
    "Compact",
    "Demote",
    "Effect",
    "Entry",
    "Event",
    "Follower",
    "Halt",
    "HardState",
    "Ignored",
    "Kind",
    "Membership",
    "MembershipChanged",
    "Message",
    "Persist",
    "Persisted",
    "Promote",
    "Propose",
    "Raft",
    "ReadIndex",
    "ReadReady",
    "Received",
    "Refused",
    "Remove",
    "RestoreSnapshot",
    "Restored",
    "Role",
    "RoleChanged",
    "Send",
    "Snapshot",
    "Timing",
    "Transfer",
    "WriteFailed",
    "founding",
]
