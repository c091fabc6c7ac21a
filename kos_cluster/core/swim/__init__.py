"""Membership and failure detection: SWIM with Lifeguard, as a pure machine.

Sources: A. Das, I. Gupta, A. Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol", DSN 2002; A. Dadgar, J. Phillips, J. Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
Detection", DSN 2018.

    from kos_cluster.core.swim import LAN, Join, Received, Swim

    swim = Swim(member, LAN, rng, sign, verify, now)
    effects = swim.handle(Join(("host:7567",)), now)
    effects = swim.handle(Received(sender, message), now)
    effects = swim.tick(now)  # when `swim.deadline` has come

The theory of operation, the rules and the state table stand in `machine`.
"""

from kos_cluster.core.swim.events import (
    Effect,
    Event,
    Heard,
    Ignored,
    Join,
    Leave,
    LinkDown,
    MemberChanged,
    NameConflict,
    Received,
    Removed,
    Send,
    UpdateSelf,
    Why,
)
from kos_cluster.core.swim.machine import Swim
from kos_cluster.core.swim.messages import (
    Ack,
    Dead,
    Entry,
    Gossip,
    Known,
    Message,
    Nack,
    Ping,
    PingReq,
    Record,
    Suspect,
    SyncData,
    SyncDigest,
    SyncRequest,
)
from kos_cluster.core.swim.profile import FAST, LAN, Profile

__all__ = [
    "FAST",
    "LAN",
    "Ack",
    "Dead",
    "Effect",
    "Entry",
    "Event",
    "Gossip",
    "Heard",
    "Ignored",
    "Join",
    "Known",
    "Leave",
    "LinkDown",
    "MemberChanged",
    "Message",
    "Nack",
    "NameConflict",
    "Ping",
    "PingReq",
    "Profile",
    "Received",
    "Record",
    "Removed",
    "Send",
    "Suspect",
    "Swim",
    "SyncData",
    "SyncDigest",
    "SyncRequest",
    "UpdateSelf",
    "Why",
]
