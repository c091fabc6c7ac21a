"""Sessions: a retry gets the first reply, what nobody can tell any more is refused, and all of it is bounded."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import sessions
from kos_cluster.core.replicated.sessions import SESSION_S
from tests.core.replicated.log import START_S, Log


def opened() -> tuple[Log, int]:
    log = Log()
    return log, log.reply(c.OpenSession("me")).session


def test_a_retry_gets_the_first_reply_and_applies_nothing():
    log, session = opened()
    first = log.apply(c.AcquireLock("x", "a", "ann", 10.0), session=session, serial=1)
    log.reply(c.ReleaseLock("x", "a"), session=session, serial=2)
    again = log.apply(c.AcquireLock("x", "a", "ann", 10.0), session=session, serial=1)
    assert again.repeated and again.reply == first.reply
    assert log.state.locks.get("x") is None


def test_a_refusal_is_repeated_too():
    log, session = opened()
    log.reply(c.SetSetting("x", "1"))
    refusal = log.apply(c.SwapSetting("x", "0", "2"), session=session, serial=1).reply
    log.reply(c.SetSetting("x", "0"))
    assert log.apply(c.SwapSetting("x", "0", "2"), session=session, serial=1).reply == refusal
    assert log.state.settings.get("x") == "0"


def test_serials_may_come_in_any_order():
    log, session = opened()
    serials = list(range(1, 40))
    random.Random(1).shuffle(serials)
    for serial in serials:
        assert not log.apply(c.SetSetting(f"s{serial}", "1"), session=session, serial=serial).repeated
    assert all(log.apply(c.Tick(), session=session, serial=serial).repeated for serial in serials)


def test_a_reply_that_is_no_longer_kept_is_refused_and_not_applied_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "OUTCOMES_LIMIT", 3)
    log, session = opened()
    for serial in (2, 3, 4, 5):
        log.reply(c.SetSetting("x", str(serial)), session=session, serial=serial)
    for serial in (1, 2):  # 1 was never applied, but nobody can tell
        refusal = log.refused(c.SetSetting("x", "again"), session=session, serial=serial)
        assert "no longer kept" in refusal.message
    assert log.apply(c.SetSetting("x", "again"), session=session, serial=3).repeated


def test_what_the_proposer_has_got_is_not_kept():
    log, session = opened()
    for serial in range(1, 200):
        log.reply(c.Tick(), session=session, serial=serial, answered_below=serial - 1)
    (entry,) = log.state.sessions.snapshot()
    assert sorted(entry.replies) == [198, 199]
    assert "no longer kept" in log.refused(c.Tick(), session=session, serial=197).message


def test_a_session_ends_by_silence_and_is_not_made_anew_by_its_number():
    log, session = opened()
    log.reply(c.Tick(), START_S + SESSION_S - 1, session=session, serial=1)
    log.reply(c.Tick(), START_S + 2 * SESSION_S - 2, session=session, serial=2)
    refusal = log.refused(c.SetSetting("x", "1"), START_S + 4 * SESSION_S, session=session, serial=3)
    assert "has ended" in refusal.message and "not known" in refusal.message
    assert len(log.state.sessions) == 0
    assert log.refused(c.Tick(), session=12345, serial=1).error == "StateError"


def test_the_session_that_was_silent_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "SESSIONS_LIMIT", 2)
    log, first = opened()
    second = log.reply(c.OpenSession("other")).session
    log.reply(c.Tick(), session=first, serial=1)
    third = log.reply(c.OpenSession("third")).session
    assert [entry.number for entry in log.state.sessions.snapshot()] == [first, third]
    log.refused(c.Tick(), session=second, serial=1)


def test_two_sessions_do_not_share_serials():
    log, first = opened()
    second = log.reply(c.OpenSession("other")).session
    log.reply(c.SetSetting("x", "first"), session=first, serial=1)
    log.reply(c.SetSetting("x", "second"), session=second, serial=1)
    assert log.state.settings.get("x") == "second"
