"""What is known of an engine's head beside its supervisor's word: whether its node is there, and how long it lasts.

Theory of operation. A node that dies with the head of an engine may have had its supervisor, too. Until another node
has taken that one's place, its record says that the engine serves; who looks at a record is told all the same what
the cluster knows of the node. And an engine's certificates end: a record says when, and who looks is told ahead.

Rules. Pure; what is shown is a record as it is seen now, and is never written.

Limits: the end of certificates is told `AHEAD_S` before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from kos_cluster.core.records import Member, MemberState
from kos_cluster.services.engines.spec import Record, State, lost_with, shortened

SILENT_S = 3.0  # without an answer of the head, after which a supervisor says so
AHEAD_S = 3 * 86400.0
_THERE = (MemberState.ALIVE, MemberState.SUSPECT)


def as_seen(record: Record, members: Iterable[Member], now_s: float) -> Record:
    """A record with what is known beside it. `members`: the nodes as they were heard of; `now_s`: Unix seconds."""
    if record.state is not State.SERVING:
        return record
    states = {member.state for member in members if member.name == record.node}
    if states and states.isdisjoint(_THERE):
        why = f"node {record.node}, where its head was, is lost; lost: {lost_with(record)}"
        return msgspec.structs.replace(record, state=State.LOST, workers=0, why=shortened(why), why_s=now_s)
    told = []
    if states and MemberState.ALIVE not in states:
        told.append(f"node {record.node} does not answer, with its head; lost if it is: {lost_with(record)}")
    elif record.silent:
        told.append(f"its head has not answered for more than {SILENT_S:g} s")
    told.append(ending(record, now_s))
    if not any(told):
        return record
    why = "; ".join(filter(None, [*told, f"before: {record.why}" if record.why else ""]))
    return msgspec.structs.replace(record, why=shortened(why), why_s=now_s)


def ending(record: Record, now_s: float) -> str:
    """That its certificates end soon, or have; empty: there is time."""
    left_s = record.until_s - now_s
    if not record.until_s or left_s > AHEAD_S:
        return ""
    what = f"type 'kos engine stop {record.name}', then start it again"
    if left_s <= 0:
        return f"its certificates ended on {told_time(record.until_s)}, and it takes no new links: {what}"
    return f"its certificates end on {told_time(record.until_s)}, and it takes no new links then: {what} before"


class Ends:
    """The end of a life's certificates, as its log is told of it: once ahead, and once when it is there."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._told = 0

    def news(self, now_s: float) -> str:
        """What is to be told now that was not before; empty: nothing."""
        steps = (self._record.until_s - AHEAD_S, self._record.until_s)
        come = sum(step <= now_s for step in steps) if self._record.until_s else 0
        if come <= self._told:
            return ""
        self._told = come
        return ending(self._record, now_s)


def told_time(at_s: float) -> str:
    """A moment that may be weeks away."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
