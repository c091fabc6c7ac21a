"""Which node drives a detached job, and how its record is read."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core.driving import DRIVES_LIMIT, Kind, Node, Work, choose_driver, decode, encode, holders_of
from kos_cluster.core.records import Member, Versions
from kos_cluster.errors import StateError

VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def test_a_node_that_keeps_the_work_comes_first():
    assert choose_driver([Node("a", False, 0), Node("b", True, 3)]) == "b"


def test_among_equals_the_one_that_drives_least_then_the_first_by_id():
    assert choose_driver([Node("a", True, 2), Node("c", True, 1), Node("b", True, 1)]) == "b"


def test_the_node_that_failed_is_chosen_only_alone():
    failed, other = Node("a", True, 0), Node("b", False, 9)
    assert choose_driver([failed, other], avoid="a") == "b"
    assert choose_driver([failed], avoid="a") == "a"


def test_a_full_node_takes_no_more_and_without_nodes_the_job_waits():
    assert choose_driver([Node("a", True, DRIVES_LIMIT), Node("b", False, DRIVES_LIMIT - 1)]) == "b"
    assert choose_driver([Node("a", True, DRIVES_LIMIT)]) is None
    assert choose_driver([]) is None


def member(name: str, machine: str) -> Member:
    return Member(name, name, "h", 1, 1, VERSIONS, 1, boot_id=machine)


def test_the_second_holder_is_on_another_machine():
    members = [member("a", "m1"), member("b", "m1"), member("c", "m2")]
    for number in range(20):
        first, second, *_ = holders_of(f"{number:064x}", members)
        assert first.boot_id != second.boot_id


def test_holders_are_spread_by_the_hash_and_alike_for_all():
    members = [member(name, name) for name in "abcd"]
    firsts = {holders_of(f"{number:064x}", members)[0].id for number in range(50)}
    assert firsts == set("abcd")
    assert holders_of("0" * 64, members) == holders_of("0" * 64, members[::-1])


def test_who_has_a_part_stays_its_first_holder():
    members = [member("a", "m1"), member("b", "m1"), member("c", "m2")]
    assert [m.id for m in holders_of("0" * 64, members, first=members[1])][:2] == ["b", "c"]
    assert [m.id for m in holders_of("0" * 64, [], first=members[1])] == ["b"]
    assert holders_of("0" * 64, []) == []


def test_a_record_reads_as_it_was_written():
    work = Work(Kind.MAP, 20, "ab" * 32)
    assert decode(encode(work)) == work


@pytest.mark.parametrize("spec", [b"", b"\xff", b"x" * 100, msgspec.msgpack.encode({"kind": "map"})])
def test_a_damaged_record_is_refused(spec: bytes):
    with pytest.raises(StateError, match="cannot be read"):
        decode(spec)


def test_a_later_format_is_refused():
    with pytest.raises(StateError, match="cannot be read"):
        decode(encode(Work(Kind.MAP, 1, "ab" * 32, format=2)))
