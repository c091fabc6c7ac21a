"""Seals: opened by the one recipient, for the one purpose, or not at all."""

from __future__ import annotations

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.errors import AuthError
from kos_cluster.net.sealing import SealContext, seal, unseal

CONTEXT = SealContext("lab", "authority", "0a1b")
PUBLIC, SECRET = zmq.curve_keypair()


@given(data=st.binary(max_size=5000))
def test_what_is_sealed_opens_for_its_recipient(data: bytes):
    assert unseal(seal(data, PUBLIC, CONTEXT), SECRET, CONTEXT) == data


def test_no_two_seals_are_equal_and_none_shows_what_is_in_it():
    sealed = [seal(b"the authority's key", PUBLIC, CONTEXT) for _ in range(2)]
    assert sealed[0] != sealed[1]
    assert all(b"authority" not in blob for blob in sealed)


def test_it_does_not_open_with_another_key():
    with pytest.raises(AuthError, match="does not open for 0a1b"):
        unseal(seal(b"x", PUBLIC, CONTEXT), zmq.curve_keypair()[1], CONTEXT)


@pytest.mark.parametrize("field", ["cluster", "purpose", "recipient"])
def test_it_does_not_open_in_another_context(field: str):
    other = msgspec.structs.replace(CONTEXT, **{field: "other"})
    with pytest.raises(AuthError, match="does not open"):
        unseal(seal(b"x", PUBLIC, CONTEXT), SECRET, other)


def test_contexts_do_not_run_into_each_other():
    with pytest.raises(AuthError):
        unseal(seal(b"x", PUBLIC, SealContext("ab", "c", "d")), SECRET, SealContext("a", "bc", "d"))


def test_any_changed_or_missing_byte_is_noticed():
    sealed = seal(b"x", PUBLIC, CONTEXT)
    for place in range(len(sealed)):
        with pytest.raises(AuthError):
            unseal(sealed[:place] + bytes((sealed[place] ^ 1,)) + sealed[place + 1 :], SECRET, CONTEXT)
        with pytest.raises(AuthError):
            unseal(sealed[:place], SECRET, CONTEXT)


@pytest.mark.parametrize(
    "key", [b"", b"short", b"\xff" * 40, PUBLIC[:35], b"0" * 40], ids=["empty", "short", "no text", "cut off", "zeros"]
)
def test_a_key_that_is_none_is_refused(key: bytes):
    with pytest.raises(AuthError, match="key is not good"):
        seal(b"x", key, CONTEXT)


def test_a_broken_secret_of_ones_own_gives_a_sentence():
    with pytest.raises(AuthError, match="does not open"):
        unseal(seal(b"x", PUBLIC, CONTEXT), b"short", CONTEXT)
