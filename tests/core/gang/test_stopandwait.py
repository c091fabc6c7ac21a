"""What a rank waits for: one answer at a time, and repeats that do not fill a slow link."""

from __future__ import annotations

from kos_cluster.core.gang.stopandwait import AGAIN_LIMIT_S, AGAIN_S, StopAndWait


def test_an_answer_to_an_earlier_message_changes_nothing() -> None:
    says = StopAndWait()
    says.say(b"first", 0.0)
    assert says.answered(0, 0.5)
    assert not says.answered(0, 0.6)
    says.say(b"second", 0.6)
    assert not says.answered(0, 0.7)
    assert says.said == b"second"
    assert says.answered(1, 0.8)
    assert says.said == b""


def test_an_owner_that_does_not_number_its_answers_is_believed() -> None:
    says = StopAndWait()
    says.say(b"said", 0.0)
    assert says.answered(None, 0.1)


def test_nothing_is_repeated_before_its_time_nor_after_its_answer() -> None:
    says = StopAndWait()
    says.say(b"said", 0.0)
    assert not says.again(AGAIN_S - 0.1)
    assert says.again(AGAIN_S)
    assert not says.again(AGAIN_S + 1.0)
    assert says.answered(0, AGAIN_S + 1.5)
    assert not says.again(100.0)


def test_each_repeat_waits_longer_until_answers_are_quick_again() -> None:
    says = StopAndWait()
    says.say(b"in place", -1.0)
    assert says.answered(0, -0.5)
    says.say(b"slow", 0.0)
    repeats = [now for now in range(1800) if says.again(float(now))]
    assert repeats == [2, 6, 14, 30, 62, 126, 254, 510, 1022, 1622]
    assert says.answered(1, 1800.0)
    says.say(b"next", 1800.0)
    assert not says.again(1800.0 + AGAIN_LIMIT_S - 1.0)
    assert says.answered(2, 1800.0 + AGAIN_LIMIT_S - 1.0)
    says.say(b"quick", 2400.0)
    assert says.answered(3, 2400.1)
    says.say(b"lost", 2401.0)
    assert says.again(2401.0 + AGAIN_S)


def test_a_gang_that_gathers_slowly_tells_nothing_of_the_link() -> None:
    """The first message waits for the other ranks; what is said after it may be lost, and is soon said again."""
    says = StopAndWait()
    says.say(b"in place", 0.0)
    assert [now for now in range(10) if says.again(float(now))] == [2, 4, 6, 8]
    assert says.answered(0, 50.0)
    says.say(b"a piece", 60.0)
    assert says.again(60.0 + AGAIN_S)
    unrepeated = StopAndWait()
    unrepeated.say(b"in place", 0.0)
    assert unrepeated.answered(0, 50.0)
    unrepeated.say(b"a piece", 60.0)
    assert unrepeated.again(60.0 + AGAIN_S)
