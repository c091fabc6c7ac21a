"""However strange a command is, it is applied, or refused with a sentence; it never halts a node."""

from __future__ import annotations

import contextlib
import enum
import types
import typing

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.replies import Refusal
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.errors import KosError
from tests.core.replicated.log import START_S, founded

texts = st.one_of(st.sampled_from(("", "n1", "n2", "u1", "x", "job1", "a" * 64, "0" * 64)), st.text(max_size=300))
numbers = st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**64 - 1))
reals = st.one_of(st.sampled_from((0.0, 1.0, 10.0, START_S + 1e6)), st.floats())
blobs = st.one_of(st.sampled_from((b"", b"k" * 40)), st.binary(max_size=50))
PLAIN = {str: texts, int: numbers, float: reals, bytes: blobs, bool: st.booleans(), type(None): st.none()}


def anything(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Values of a type that a command is made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(anything, arguments))
    if origin is tuple:
        return st.lists(anything(arguments[0]), max_size=4).map(tuple)
    if origin is dict:
        return st.dictionaries(anything(arguments[0]), anything(arguments[1]), max_size=4)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    assert issubclass(kind, msgspec.Struct)
    return st.builds(kind, **{name: anything(of) for name, of in typing.get_type_hints(kind).items()})


@settings(max_examples=400, deadline=None)
@given(commands=st.lists(anything(c.Command), min_size=1, max_size=6))
def test_any_command_gets_a_reply(commands: list[c.Command]):
    log = founded()
    for command in commands:
        try:
            reply = log.apply(command).reply
        except KosError:  # not even proposed
            continue
        if isinstance(reply, Refusal):
            assert reply.message.endswith("."), reply
            assert len(reply.message) < 1000
    snapshot = log.state.snapshot()
    assert ClusterState.restore(snapshot).snapshot() == snapshot


@settings(max_examples=200, deadline=None)
@given(proposal=anything(c.Proposal))
def test_any_proposal_gets_a_reply(proposal: c.Proposal):
    log = founded()
    log.reply(c.OpenSession("me"))
    try:
        entry = c.encode(proposal)
    except KosError:
        return
    log.state.apply(log.state.applied_index + 1, entry)
    assert ClusterState.restore(log.state.snapshot()).snapshot() == log.state.snapshot()


@settings(max_examples=300, deadline=None)
@given(entry=st.binary(max_size=200).map(lambda rest: bytes((c.FORMAT,)) + rest))
@example(entry=bytes((c.FORMAT,)) + b"\x81\xa5\x00\x00\x00\x00\x80")  # a name that is not UTF-8
def test_any_bytes_are_understood_or_halt_with_a_sentence(entry: bytes):
    state = founded().state
    before = state.snapshot()
    try:
        state.apply(state.applied_index + 1, entry)
    except c.UnknownEntryError:
        assert state.snapshot() == before


@settings(max_examples=300, deadline=None)
@given(rest=st.binary(max_size=200))
@example(rest=b"\x81\xa5\x00\x00\x00\x00\x80")
def test_any_snapshot_is_restored_or_refused_with_a_sentence(rest: bytes):
    with contextlib.suppress(KosError):
        ClusterState.restore(bytes((c.FORMAT,)) + rest)
