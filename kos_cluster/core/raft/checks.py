"""Which messages cannot be: they are dropped before they change anything.

An authenticated member may still run a faulty or a newer version, or lie. Whatever it sends, the machine goes on. A
message that is merely late is not impossible and is no concern of this module.

Rules: an answer is taken only from a member. A leader's message or a request for a vote is taken from anybody whom the
transport let in, because a node that was away does not know the newest members (thesis 4.1).
"""

from __future__ import annotations

from kos_cluster.core.raft import config
from kos_cluster.core.raft.log import SNAPSHOT_LIMIT_BYTES
from kos_cluster.core.raft.messages import (
    OLDEST_WIRE_VERSION,
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadRequest,
    SnapshotChunk,
    SnapshotResponse,
    TimeoutNow,
    VoteResponse,
)
from kos_cluster.core.raft.progress import SNAPSHOT_CHUNK_BYTES
from kos_cluster.core.raft.state import State, is_known
from kos_cluster.core.raft.values import ENTRY_VERSION, Role

NUMBER_LIMIT = 1 << 62  # of terms and indexes: they fit the storage, and adding to them stays within 64 bits
FROM_LEADER = (Append, Heartbeat, SnapshotChunk, TimeoutNow)
TO_LEADER = (AppendResponse, HeartbeatResponse, SnapshotResponse, ReadRequest)


def why_impossible(state: State, sender: str, message: Message) -> str:
    """Why the message cannot be, or ""."""
    if message.group != state.group:
        return f"it is of the group {message.group!r}, this node of {state.group!r}"
    if message.version < OLDEST_WIRE_VERSION:
        return f"it speaks version {message.version}; {OLDEST_WIRE_VERSION} is the oldest that is understood"
    if sender == state.node:
        return "it says that this node sent it"
    for field in message.__struct_fields__:
        value = getattr(message, field)
        if isinstance(value, int) and not 0 <= value <= NUMBER_LIMIT:
            return f"its {field} is {value}"
    if isinstance(message, FROM_LEADER):
        return _why_not_leader(state, sender, message) or _why_malformed(message)
    if isinstance(message, (*TO_LEADER, VoteResponse)) and not _is_member(state, sender):
        return "its sender is not a member"
    return ""


def _is_member(state: State, sender: str) -> bool:
    return sender in state.membership.members or sender in state.memberships.previous.members


def _why_not_leader(state: State, sender: str, message: Message) -> str:
    if message.term == 0:
        return "there is no leader in term 0"
    if message.term == state.term and (state.role is Role.LEADER or state.leader not in (None, sender)):
        return f"it claims to lead in term {message.term}, as {state.leader} does"
    return ""


def _why_malformed(message: Message) -> str:
    if isinstance(message, Append):
        return _why_bad_entries(message)
    if isinstance(message, SnapshotChunk):
        return _why_bad_chunk(message)
    return ""


def _why_bad_entries(message: Append) -> str:
    index, term = message.prev_index, message.prev_term
    for entry in message.entries:
        if entry.version > ENTRY_VERSION:
            return f"its entry {entry.index} is of version {entry.version}; {ENTRY_VERSION} is the newest known"
        if not is_known(entry):
            return f"its entry {entry.index} is of no known kind, or names no membership"
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            return f"its entry {entry.index} of term {entry.term} follows entry {index} of term {term}"
        index, term = entry.index, entry.term
    return ""


def _why_bad_chunk(chunk: SnapshotChunk) -> str:
    if chunk.total_bytes > SNAPSHOT_LIMIT_BYTES:
        return f"its snapshot has {chunk.total_bytes} bytes; {SNAPSHOT_LIMIT_BYTES} are allowed"
    if len(chunk.data) > SNAPSHOT_CHUNK_BYTES or chunk.offset + len(chunk.data) > chunk.total_bytes:
        return f"its part of {len(chunk.data)} bytes at {chunk.offset} does not fit the snapshot"
    if chunk.index < 1 or not 1 <= chunk.index_term <= chunk.term or not config.is_valid(chunk.membership):
        return f"its snapshot at entry {chunk.index} of term {chunk.index_term} cannot be"
    return ""
