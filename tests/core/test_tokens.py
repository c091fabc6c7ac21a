"""Join tokens: redeemed once, never by a wrong secret, never late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import REMEMBER_S, TOKENS_LIMIT, TTL_LIMIT_S, TokenTable
from kos_cluster.errors import JoinError, LimitError, UsageError

roles = st.sampled_from(list(Role))
ttls = st.floats(1, TTL_LIMIT_S)


@given(role=roles, ttl=ttls, part=st.floats(0, 0.99))
def test_a_token_gives_its_role_once(role: Role, ttl: float, part: float) -> None:
    table = TokenTable()
    table.add("a", "secret", role, ttl, now=1000.0)
    now = 1000.0 + ttl * part
    assert table.redeem("a", "secret", now) is role
    with pytest.raises(JoinError, match="used already"):
        table.redeem("a", "secret", now)


@given(wrong=st.lists(st.text().filter(lambda text: text != "secret"), max_size=5))
def test_wrong_secrets_do_not_use_a_token_up(wrong: list[str]) -> None:
    table = TokenTable()
    table.add("a", "secret", Role.NODE, 60, now=0)
    before = table.snapshot()
    for secret in wrong:
        with pytest.raises(JoinError, match="not one of this cluster's"):
            table.redeem("a", secret, 1)
    assert table.snapshot() == before
    assert table.redeem("a", "secret", 1) is Role.NODE


@given(ttl=ttls, late=st.floats(0, 1e6))
def test_an_expired_token_says_so(ttl: float, late: float) -> None:
    table = TokenTable()
    entry = table.add("a", "secret", Role.NODE, ttl, now=0)
    with pytest.raises(JoinError, match="expired"):
        table.redeem("a", "secret", entry.expires_s + late)


def test_an_unknown_id_reads_like_a_wrong_secret() -> None:
    table = TokenTable()
    table.add("a", "secret", Role.NODE, 60, now=0)
    messages = []
    for id_, secret in (("b", "secret"), ("a", "guess")):
        with pytest.raises(JoinError) as caught:
            table.redeem(id_, secret, 1)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("ttl", [0, -1, TTL_LIMIT_S + 1, float("nan"), float("inf")])
def test_a_lifetime_out_of_range_is_refused(ttl: float) -> None:
    with pytest.raises(UsageError, match="cannot be valid"):
        TokenTable().add("a", "secret", Role.NODE, ttl, now=0)


def test_a_restored_table_remembers_what_was_used() -> None:
    table = TokenTable()
    table.add("a", "secret", Role.CLIENT, 60, now=0)
    table.add("b", "other", Role.NODE, 60, now=0)
    table.redeem("a", "secret", 1)
    restored = TokenTable(table.snapshot())
    with pytest.raises(JoinError, match="used already"):
        restored.redeem("a", "secret", 2)
    assert restored.redeem("b", "other", 2) is Role.NODE


def test_no_secret_is_kept() -> None:
    table = TokenTable()
    table.add("a", "very-secret", Role.CLIENT, 60, now=0)
    assert "very-secret" not in repr(table.snapshot())


def test_the_table_is_bounded_and_expired_entries_make_room() -> None:
    table = TokenTable()
    for number in range(TOKENS_LIMIT):
        table.add(str(number), "secret", Role.NODE, 60, now=0)
    with pytest.raises(LimitError):
        table.add("one more", "secret", Role.NODE, 60, now=1)
    table.add("one more", "secret", Role.NODE, 60, now=61)
    assert [entry.id for entry in table.snapshot()] == ["one more"]


def test_an_expired_entry_is_dropped_in_the_end() -> None:
    table = TokenTable()
    table.add("old", "secret", Role.NODE, 60, now=0)
    table.add("new", "secret", Role.NODE, 60, now=61)
    assert len(table.snapshot()) == 2
    table.add("newer", "secret", Role.NODE, 60, now=61 + REMEMBER_S)
    assert "old" not in [entry.id for entry in table.snapshot()]
