"""What is forged, replayed, older, malformed or about nobody is ignored and counted; the rest of a message is not."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.swim import (
    LAN,
    Ack,
    Dead,
    Effect,
    Entry,
    Gossip,
    Ignored,
    MemberChanged,
    Message,
    Nack,
    NameConflict,
    Ping,
    PingReq,
    Profile,
    Received,
    Record,
    Removed,
    Suspect,
    Swim,
    SyncData,
    SyncDigest,
    SyncRequest,
    UpdateSelf,
    Why,
)
from kos_cluster.core.swim.messages import INCARNATION_LIMIT, RECORD_LIMIT_BYTES, Update, body_of, precedence, sealed
from kos_cluster.errors import LimitError
from tests.core.swim.harness import machine, member, record, sends, sign

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def hear(swim: Swim, *updates: Update, sender: str = "id1", now: float = 0.0) -> list[Effect]:
    return swim.handle(Received(sender, Gossip(updates)), now)


def whys(effects: list[Effect]) -> list[Why]:
    return [effect.why for effect in effects if isinstance(effect, Ignored)]


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (record(member(2, 101), signer="id1"), Why.FORGED),
        (record(member(9, 101), signer="id1"), Why.FORGED),
        (record(member(2, 99)), Why.OLDER),
        (record(member(2, 100, slots=9)), Why.CONTRADICTS),
        (record(member(2, INCARNATION_LIMIT)), Why.MALFORMED),
        (record(member(2, -1)), Why.MALFORMED),
        (record(member(2, 101, state=DEAD)), Why.MALFORMED),
        (record(member(2, 101, id="")), Why.MALFORMED),
        (record(member(2, 101, id="x" * 65)), Why.MALFORMED),
        (record(member(2, 101, host="h" * RECORD_LIMIT_BYTES)), Why.MALFORMED),
        (Record(b"\xc1", b""), Why.MALFORMED),
        (Record(b"\xa2\xff\xfe", b""), Why.MALFORMED),
        (Suspect("id2", 99, ("id1",)), Why.OLDER),
        (Suspect("id2", 101, ("id1",)), Why.AHEAD),
        (Suspect("id2", 100, ("stranger",)), Why.STRANGER),
        (Suspect("id2", 100, ()), Why.STRANGER),
        (Suspect("id9", 100, ("id1",)), Why.AHEAD),
        (Dead("id2", 99, "id1"), Why.OLDER),
        (Dead("id2", 101, "id1"), Why.AHEAD),
        (Dead("id2", 100, "stranger"), Why.STRANGER),
        (Suspect("id0", 99, ("id1",)), Why.OLDER),
        (Dead("id0", 101, "id1"), Why.AHEAD),
    ],
)
def test_what_is_not_to_be_believed_changes_nothing(update: Update, why: Why):
    swim = machine()
    before, view = swim.members(), swim.view
    effects = hear(swim, update)
    assert whys(effects) == [why]
    assert (swim.members(), swim.view) == (before, view)
    assert swim.ignored[why] == 1
    assert not [e for e in effects if isinstance(e, MemberChanged)]


def test_a_replayed_record_does_not_undo_a_death_or_a_farewell():
    swim = machine()
    hear(swim, Dead("id2", 100, "id1"))
    hear(swim, record(member(2, 100)))
    assert swim.member("id2").state is DEAD
    hear(swim, record(member(3, 101, state=LEFT)))
    assert whys(hear(swim, record(member(3, 100)))) == [Why.OLDER]
    assert swim.member("id3").state is LEFT


def test_the_good_part_of_a_message_is_taken():
    swim = machine()
    hear(swim, Record(b"", b""), record(member(2, 101, slots=7)))
    assert swim.member("id2").slots == 7


def test_a_record_that_is_known_already_is_no_news_and_no_offence():
    swim = machine()
    assert hear(swim, record(member(2))) == []
    assert not swim.ignored


def test_whom_the_hearer_holds_dead_accuses_nobody():
    swim = machine()
    hear(swim, Dead("id3", 100, "id1"))
    assert whys(hear(swim, Suspect("id2", 100, ("id3",)))) == [Why.STRANGER]
    assert swim.member("id2").state is ALIVE


def test_a_forged_accusation_cannot_push_an_incarnation_far():
    swim = machine()
    hear(swim, Suspect("id0", INCARNATION_LIMIT - 1, ("id1",)))
    assert swim.members()[0].incarnation == 100
    hear(swim, Suspect("id0", 100, ("id1",)))
    assert swim.members()[0].incarnation == 101


def test_a_node_outdoes_an_earlier_life_of_its_own_whose_clock_was_ahead():
    swim = machine()
    hear(swim, record(member(0, 500)))
    assert swim.members()[0].incarnation == 501
    hear(swim, record(member(0, 900), signer="id1"))
    assert swim.members()[0].incarnation == 501 and swim.ignored[Why.FORGED] == 1


def test_malformed_sums_and_digests_are_ignored():
    swim = machine()
    for message in (
        SyncRequest(record(member(1)), 3, (1, 2)),
        SyncRequest(record(member(1)), -1, ()),
        SyncRequest(record(member(1)), 60, (1,)),
        SyncDigest(60, (1,), {}),
    ):
        assert whys(swim.handle(Received("id1", message), 0.0)) == [Why.MALFORMED]


def test_who_was_removed_is_not_heard_again():
    swim = machine()
    effects = swim.handle(Removed("id2"), 0.0)
    assert [e.member.state for e in effects if isinstance(e, MemberChanged)] == [LEFT]
    assert whys(hear(swim, record(member(2, 10**9)))) == [Why.FORGOTTEN]
    assert whys(swim.handle(Received("id2", Ping(1)), 0.0)) == [Why.FORGOTTEN]
    assert swim.member("id2").state is LEFT
    swim.handle(Removed("id0"), 0.0)
    assert swim.members()[0].state is ALIVE


def test_one_name_for_two_is_told_and_decided_by_nobody():
    swim = machine()
    effects = hear(swim, record(member(9, name="node2")))
    assert [e for e in effects if isinstance(e, NameConflict)] == [NameConflict("node2", ("id2", "id9"))]
    assert swim.member("id9").state is ALIVE
    effects = hear(swim, record(member(8, name="node0")))
    assert [e for e in effects if isinstance(e, NameConflict)] == [NameConflict("node0", ("id0", "id8"))]
    assert swim.name_taken("node2") and swim.name_taken("node0") and not swim.name_taken("node7")
    effects = hear(swim, record(member(2, 101, state=LEFT)), record(member(7, name="node2")))
    assert [e for e in effects if isinstance(e, NameConflict)] == [NameConflict("node2", ("id9", "id7"))]


def test_the_number_of_live_members_is_bounded():
    profile = msgspec.structs.replace(LAN, members_limit=4)
    assert isinstance(profile, Profile)
    swim = machine(others=3, profile=profile)
    assert whys(hear(swim, record(member(9)))) == [Why.FULL]
    hear(swim, Dead("id3", 100, "id1"))
    hear(swim, record(member(9)))
    assert swim.member("id9").state is ALIVE
    assert whys(hear(swim, record(member(3, 101)))) == [Why.FULL]


def test_a_record_of_its_own_that_is_too_large_is_refused_with_a_sentence():
    swim = machine()
    with pytest.raises(LimitError, match="node0 takes"):
        swim.handle(UpdateSelf(member(0, host="h" * RECORD_LIMIT_BYTES)), 0.0)
    assert swim.members()[0].host == "host0"


def test_a_node_changes_its_record_under_a_new_incarnation():
    swim = machine()
    swim.handle(UpdateSelf(member(0, slots=5)), 0.0)
    own = swim.members()[0]
    assert (own.slots, own.incarnation) == (5, 101)
    (ack,) = sends(swim.handle(Received("id1", Ping(1)), 0.0), object)
    (told,) = ack.message.gossip
    assert told == record(own) and told.body == body_of(own)


def test_a_record_of_another_version_is_believed_and_passed_on_unharmed():
    swim = machine()
    fields = msgspec.msgpack.decode(body_of(member(9))) | {"colour": "blue"}
    body = msgspec.msgpack.encode(fields)
    newer = Record(body, sign("id9", sealed(body)))
    hear(swim, newer)
    assert swim.member("id9") == member(9)
    (ack,) = sends(swim.handle(Received("id1", Ping(1)), 0.0), object)
    assert ack.message.gossip == (newer,)


@pytest.mark.parametrize(
    "message",
    [
        Ping(2**32 - 1, (record(member(1)), Suspect("a", 2**62, ("b", "c")), Dead("a", 1, "b"))),
        Ack(1),
        PingReq(1, "id2"),
        Nack(1),
        Gossip((Dead("a", 1, "b"),)),
        SyncRequest(record(member(1)), 1, (0, 2**64 - 1)),
        SyncDigest(1, (0, 1), {"a": precedence(INCARNATION_LIMIT - 1, LEFT)}),
        SyncData((Entry(record(member(1))), Entry(record(member(2)), Suspect("id2", 1, ("a",)))), ("x",)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_survives_the_wire(message: Message):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message
