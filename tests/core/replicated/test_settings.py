"""Settings: set, swapped only if they are as expected, and small."""

from __future__ import annotations

import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import settings
from kos_cluster.core.replicated.settings import VALUE_LIMIT_BYTES
from tests.core.replicated.log import Log


def test_a_setting_is_set_read_and_removed():
    log = Log()
    assert log.state.settings.get("a/b") is None
    log.reply(c.SetSetting("a/b", "1"))
    assert log.state.settings.get("a/b") == "1"
    log.reply(c.SetSetting("a/b", None))
    assert log.state.settings.snapshot() == {}
    log.reply(c.SetSetting("a/b", None))


def test_of_two_swaps_from_one_value_the_second_is_refused():
    log = Log()
    log.reply(c.SwapSetting("x", None, "1"))
    assert "is '1' by now, not not set" in log.refused(c.SwapSetting("x", None, "2")).message
    assert log.refused(c.SwapSetting("x", None, "2")).error == "ConflictError"
    log.reply(c.SwapSetting("x", "1", "2"))
    assert log.state.settings.get("x") == "2"
    log.reply(c.SwapSetting("x", "2", None))
    assert log.state.settings.get("x") is None


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 129, "ä", "x\n"])
def test_a_strange_name_is_refused(name: str):
    assert log_refusal(c.SetSetting(name, "1")) == "UsageError"


def test_size_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch):
    assert log_refusal(c.SetSetting("x", "ä" * (VALUE_LIMIT_BYTES // 2) + "b")) == "LimitError"
    monkeypatch.setattr(settings, "SETTINGS_LIMIT", 1)
    log = Log()
    log.reply(c.SetSetting("x", "1"))
    assert log.refused(c.SetSetting("y", "1")).error == "LimitError"
    log.reply(c.SetSetting("x", "2"))


def log_refusal(command: c.Command) -> str:
    return Log().refused(command).error
