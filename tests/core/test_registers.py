"""Registers of users: apart from what the cluster keeps for itself, and small in all."""

from __future__ import annotations

import pytest

from kos_cluster.core import registers
from kos_cluster.core.names import NAME_LIMIT_CHARACTERS
from kos_cluster.core.registers import check_room, setting_of
from kos_cluster.core.replicated import settings
from kos_cluster.core.replicated.settings import VALUE_LIMIT_BYTES, Settings
from kos_cluster.errors import LimitError, UsageError


def test_a_register_is_no_setting_that_the_cluster_reads():
    held = {"profile": "fast", "drained/n1": "yes", setting_of("profile"): "mine", setting_of("a/b"): "2"}
    assert registers.registers(held) == {"a/b": "2", "profile": "mine"}


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * (NAME_LIMIT_CHARACTERS + 1), "ä", "x\n"])
def test_a_strange_name_is_refused(name: str):
    with pytest.raises(UsageError, match="cannot be the name of a register"):
        setting_of(name)


def test_what_a_register_may_be_a_setting_may_be():
    held = Settings({})
    held.set(setting_of("x" * NAME_LIMIT_CHARACTERS), "v" * VALUE_LIMIT_BYTES)
    assert registers.REGISTERS_LIMIT <= settings.SETTINGS_LIMIT // 2, "there is room for what the cluster keeps"


def test_one_value_all_values_and_their_number_are_bounded():
    with pytest.raises(LimitError, match=r"of the register x takes 4,097 bytes; the limit is 4,096"):
        check_room({}, "x", "ä" * (VALUE_LIMIT_BYTES // 2) + "b")
    full = {setting_of(f"r{number:02}"): "v" * VALUE_LIMIT_BYTES for number in range(15)}
    check_room(full, "r00", "v" * VALUE_LIMIT_BYTES)
    with pytest.raises(LimitError, match=r"would take 65,\d+ bytes; the limit is 65,536"):
        check_room(full, "x", "v" * VALUE_LIMIT_BYTES)
    check_room(full, "x", None)
    many = {setting_of(f"r{number}"): "" for number in range(registers.REGISTERS_LIMIT)}
    check_room(many, "r0", "1")
    with pytest.raises(LimitError, match="256 registers already"):
        check_room(many, "x", "1")
    check_room(dict.fromkeys(map(str, range(400)), "kept by the cluster"), "x", "1")
