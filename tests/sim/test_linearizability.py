"""The checker: small histories with known verdicts, and random ones against an object and against brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.errors import LimitError, UsageError
from kos_cluster.sim import recording
from kos_cluster.sim.linearizability import SHOWN_LIMIT, Model, Operation, Outcome, check
from kos_cluster.sim.recording import Recorder
from kos_cluster.sim.sequential import Append, CompareAndSet, Get, KeyValue, Put, Read, Register, Write

EXAMPLES = settings(max_examples=200, deadline=None, database=None)


def op(called: float, returned: float | None, input: Hashable, output: Hashable = None, process: int = -1) -> Operation:
    """An operation; without a process it has one of its own."""
    return Operation(f"p{called:g}" if process < 0 else process, called, returned, input, output)


def explains(order: Sequence[Operation], history: Sequence[Operation], model: Model[Any]) -> bool:
    """Whether an order is a linearization of a part of the history, judged from the definition alone."""
    missing = [operation for operation in history if operation not in order]
    if any(operation.returned is not None for operation in missing) or len(set(order)) != len(order):
        return False
    for earlier, later in itertools.combinations(order, 2):
        if later.returned is not None and later.returned < earlier.called:
            return False
    state = model.init()
    for operation in order:
        fits, state = model.step(state, operation)
        if not fits:
            return False
    return True


def some_order_explains(history: Sequence[Operation], model: Model[Any]) -> bool:
    """The same question by trying every order of every choice of unknown operations."""
    known = [operation for operation in history if operation.returned is not None]
    unknown = [operation for operation in history if operation.returned is None]
    return any(
        explains(order, history, model)
        for count in range(len(unknown) + 1)
        for used in itertools.combinations(unknown, count)
        for order in itertools.permutations([*known, *used])
    )


IMPOSSIBLE = op(1000, 1001, Read(), -1)  # nobody writes that, so everything is searched


# ---- a register


def test_an_empty_history_is_linearizable():
    assert check([], Register()).outcome is Outcome.LINEARIZABLE
    assert check([], KeyValue()).outcome is Outcome.LINEARIZABLE


@pytest.mark.parametrize(
    ("history", "fits"),
    [
        pytest.param([op(0, 1, Write(1)), op(2, 3, Read(), 1)], True, id="read-what-was-written"),
        pytest.param([op(0, 1, Write(1)), op(2, 3, Read(), None)], False, id="stale-read"),
        pytest.param(
            [op(0, 9, Write(1)), op(1, 2, Read(), None), op(3, 4, Read(), 1)], True, id="write-takes-its-time"
        ),
        pytest.param([op(0, 9, Write(1)), op(1, 2, Read(), 1), op(3, 4, Read(), None)], False, id="read-goes-back"),
        pytest.param([op(0, 2, Write(1)), op(1, 3, Write(2)), op(4, 5, Read(), 1)], True, id="either-of-two-writes"),
        pytest.param(
            [op(0, 2, Write(1)), op(1, 3, Write(2)), op(4, 5, Read(), 1), op(6, 7, Read(), 2)], False, id="not-both"
        ),
        pytest.param([op(0, 1, Write(1)), op(1, 2, Read(), None)], True, id="same-instant-counts-as-overlap"),
        pytest.param([op(0, 1, Read(), 7)], False, id="read-from-nowhere"),
        pytest.param(
            [op(0, 1, Write(1)), op(2, 5, CompareAndSet(1, 2), True), op(3, 6, CompareAndSet(1, 3), False)],
            True,
            id="one-of-two-compare-and-sets",
        ),
        pytest.param(
            [op(0, 1, Write(1)), op(2, 5, CompareAndSet(1, 2), True), op(3, 6, CompareAndSet(1, 3), True)],
            False,
            id="token-redeemed-twice",
        ),
        pytest.param(
            [op(0, 1, Write(1)), op(2, 3, CompareAndSet(1, 2), False)], False, id="refused-although-it-matched"
        ),
    ],
)
def test_a_register_s_history(history: list[Operation], fits: bool):
    verdict = check(history, Register())
    assert (verdict.outcome is Outcome.LINEARIZABLE) is fits, str(verdict)
    assert explains(verdict.order, history, Register()) is fits


@pytest.mark.parametrize(
    ("history", "fits"),
    [
        pytest.param([op(0, None, Write(1)), op(5, 6, Read(), None)], True, id="never"),
        pytest.param([op(0, None, Write(1)), op(5, 6, Read(), 1)], True, id="at-once"),
        pytest.param(
            [op(0, None, Write(1)), op(5, 6, Read(), None), op(7, 8, Write(2)), op(9, 10, Read(), 1)], True, id="late"
        ),
        pytest.param(
            [op(0, None, Write(1)), op(5, 6, Read(), 1), op(7, 8, Write(2)), op(9, 10, Read(), 1)], False, id="twice"
        ),
        pytest.param([op(5, 6, Read(), 1), op(7, None, Write(1))], False, id="before-its-call"),
        pytest.param([op(0, 1, Write(1)), op(2, None, CompareAndSet(2, 3)), op(3, 4, Read(), 3)], False, id="mismatch"),
        pytest.param([op(0, 1, Write(1)), op(2, None, CompareAndSet(1, 3)), op(3, 4, Read(), 3)], True, id="match"),
        pytest.param([op(0, None, Read(), 9), op(1, 2, Read(), None)], True, id="the-answer-of-a-lost-read-is-nothing"),
    ],
)
def test_an_unknown_outcome_takes_effect_later_or_never(history: list[Operation], fits: bool):
    verdict = check(history, Register())
    assert (verdict.outcome is Outcome.LINEARIZABLE) is fits, str(verdict)


def test_two_lost_calls_that_ask_for_the_same_count_twice_and_no_more():
    reads = [op(10, 11, Read(), 1), op(12, 13, Write(2)), op(14, 15, Read(), 1)]
    lost = [op(0, None, Write(1)), op(1, None, Write(1))]
    more = [op(16, 17, Write(2)), op(18, 19, Read(), 1)]
    assert check([*lost, *reads], Register()).outcome is Outcome.LINEARIZABLE
    assert check([*lost, *reads, *more], Register()).outcome is Outcome.NOT_LINEARIZABLE


def test_a_register_starts_with_what_it_is_told():
    assert check([op(0, 1, Read(), 7)], Register(7)).outcome is Outcome.LINEARIZABLE


# ---- a store


def test_the_keys_of_a_store_are_judged_apart_and_the_bad_one_is_named():
    good = [op(0, 5, Append("a", "x")), op(1, 6, Append("a", "y")), op(7, 8, Get("a"), "yx")]
    bad = [op(2, 3, Put("b", "x")), op(9, 10, Get("b"), "")]
    assert check(good, KeyValue()).outcome is Outcome.LINEARIZABLE
    verdict = check([*good, *bad], KeyValue())
    assert verdict.outcome is Outcome.NOT_LINEARIZABLE and verdict.part == "key 'b'"
    assert verdict.blocked == bad[1] and "key 'b'" in str(verdict)
    worse = op(11, 12, Get("c"), "from nowhere")
    assert check([*good, *bad, worse], KeyValue()) == verdict  # the first that is found ends the search


def test_a_lost_append_shows_up_late_but_once():
    late = [op(0, None, Append("a", "x")), op(1, 2, Get("a"), ""), op(3, 4, Get("a"), "x"), op(5, 6, Get("a"), "xx")]
    assert check(late[:3], KeyValue()).outcome is Outcome.LINEARIZABLE
    assert check(late, KeyValue()).blocked == late[3]


def test_a_bad_key_decides_even_when_another_is_not_decided():
    hard = [op(n, 100 + n, Put("a", str(n))) for n in range(8)] + [op(200, 201, Get("a"), "none of them")]
    bad = [op(300, 301, Get("b"), "x")]
    verdict = check([*hard, *bad], KeyValue(), states_limit=20)
    assert verdict.outcome is Outcome.UNKNOWN and verdict.part == "key 'a'"
    easy_first = [op(300, 301, Get("A"), "x")]
    assert check([*hard, *easy_first], KeyValue(), states_limit=20).outcome is Outcome.NOT_LINEARIZABLE


# ---- what a verdict shows


def test_a_counter_example_shows_the_longest_order_and_what_has_no_room_in_it():
    history = [
        op(0, 1, Write(1)),
        op(2, 3, Read(), 1),
        op(4, 9, Write(2), process=7),
        op(5, 6, Read(), 2),
        op(7, 8, Read(), 1, process=8),
        op(10, 11, Read(), 2),
    ]
    verdict = check(history, Register())
    assert verdict.outcome is Outcome.NOT_LINEARIZABLE
    assert verdict.order == (history[0], history[1], history[2], history[3])
    assert verdict.blocked == history[4] and verdict.open == () and verdict.state == "2"
    page = str(verdict)
    assert "process 8: Read() -> 1 (7 to 8)" in page and "process 7: Write(value=2)" in page
    assert "state 2" in page


def test_a_counter_example_is_short_however_long_the_history():
    lost = [op(n, None, Write(100 + n)) for n in range(30)]
    known = [op(100 + 2 * n, 101 + 2 * n, Write(n)) for n in range(200)]
    verdict = check([*lost, *known, op(2000, 2001, Read(), -1)], Register())
    assert verdict.outcome is Outcome.NOT_LINEARIZABLE and len(verdict.order) >= 200 and len(verdict.open) <= 30
    assert len(str(verdict).splitlines()) <= 2 * SHOWN_LIMIT + 6


def test_a_search_ends_at_its_limit_and_says_that_it_does_not_know():
    writes = [op(n, 100 + n, Write(n)) for n in range(12)]
    history = [*writes, op(200, 201, Read(), -1)]
    verdict = check(history, Register(), states_limit=100)
    assert verdict.outcome is Outcome.UNKNOWN and verdict.states == 100
    assert "not decided after 100 states" in str(verdict)
    assert check(history, Register()).outcome is Outcome.NOT_LINEARIZABLE


def test_long_histories_need_few_states_each():
    """2,000 operations of 5 processes, 200 of them lost: states grow with the length, not with the orders."""
    history = served(random.Random(1), Register(0), register_call, count=2000, processes=5, lost_share=0.1)
    verdict = check(history, Register(0))
    assert verdict.outcome is Outcome.LINEARIZABLE
    assert verdict.states <= 4 * len(history)


def test_many_lost_calls_need_few_states():
    """Tried in every order these would be 12! and more than 10^40 states."""
    appends = [op(n, None, Append("a", f"<{n}>")) for n in range(12)]
    seen = [op(20, 21, Get("a"), "<5><3><2>"), op(22, 23, Get("a"), "<5><3><2><9>")]
    assert check([*appends, *seen], KeyValue(), states_limit=100).outcome is Outcome.LINEARIZABLE
    twice = op(24, 25, Get("a"), "<5><3><2><9><9>")
    assert check([*appends, *seen, twice], KeyValue(), states_limit=100).outcome is Outcome.NOT_LINEARIZABLE
    writes = [op(n, None, Write(n)) for n in range(40)]
    assert check([*writes, IMPOSSIBLE], Register(), states_limit=100).outcome is Outcome.NOT_LINEARIZABLE


def test_lost_calls_that_ask_for_the_same_are_not_told_apart():
    """Ten of twenty: 184,756 choices, if it mattered which."""
    lost = [op(n, None, Write(1)) for n in range(20)]
    rounds = [
        o for n in range(10) for o in (op(100 + 4 * n, 101 + 4 * n, Read(), 1), op(102 + 4 * n, 103 + 4 * n, Write(2)))
    ]
    assert check([*lost, *rounds, IMPOSSIBLE], Register(), states_limit=100).outcome is Outcome.NOT_LINEARIZABLE


def test_lost_calls_are_not_searched_in_every_order():
    """Each pair of them leads from 0 to 9 once. Which pairs were used matters, in which order does not: 2^8, not 8!."""
    lost = [o for n in range(1, 9) for o in (op(n, None, CompareAndSet(0, n)), op(n + 0.5, None, CompareAndSet(n, 9)))]
    rounds = [
        o for n in range(8) for o in (op(100 + 4 * n, 101 + 4 * n, Read(), 9), op(102 + 4 * n, 103 + 4 * n, Write(0)))
    ]
    assert check([*lost, *rounds, IMPOSSIBLE], Register(0), states_limit=6000).outcome is Outcome.NOT_LINEARIZABLE


@pytest.mark.parametrize(("input", "output"), [(Read(), 0), (CompareAndSet(1, 2), False)])
def test_what_only_looks_is_placed_without_a_choice(input: Hashable, output: Hashable):
    """Forty at once: 2^40 states, if each could also wait."""
    looks = [op(n, 100 + n, input, output) for n in range(40)]
    assert check([*looks, IMPOSSIBLE], Register(0), states_limit=100).outcome is Outcome.NOT_LINEARIZABLE


# ---- bad input


@pytest.mark.parametrize(
    ("history", "sentence"),
    [
        ([op(2, 1, Read())], "returned before its call"),
        ([op(0, 5, Read(), process=1), op(3, 6, Read(), process=1)], "before its last call returned"),
        ([op(0, 1, Get("a"), "")], "a register does not have"),
    ],
)
def test_a_history_that_nothing_could_have_recorded_is_refused(history: list[Operation], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        check(history, Register())


def test_a_store_refuses_a_register_s_operations():
    with pytest.raises(UsageError, match="a key-value store does not have"):
        check([op(0, 1, Read())], KeyValue())


def test_a_recorder_turns_events_into_operations(monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder()
    recorder.call(1, Write(1), 0.0)
    recorder.call(2, Write(2), 1.0)
    recorder.call(3, Write(3), 2.0)
    recorder.call(4, Read(), 3.0)
    recorder.ok(1, None, 4.0)
    recorder.failed(2)
    recorder.unknown(3)
    recorder.call(3, Read(), 5.0)
    assert recorder.history() == [
        Operation(1, 0.0, 4.0, Write(1)),
        Operation(3, 2.0, None, Write(3)),
        Operation(4, 3.0, None, Read()),
        Operation(3, 5.0, None, Read()),
    ]
    with pytest.raises(UsageError, match="Process 4 calls while"):
        recorder.call(4, Read(), 6.0)
    with pytest.raises(UsageError, match="process 1 ends"):
        recorder.ok(1, None, 6.0)
    monkeypatch.setattr(recording, "OPERATIONS_LIMIT", 4)
    with pytest.raises(LimitError, match="4 operations"):
        recorder.call(1, Read(), 7.0)


# ---- random histories


def register_call(rng: random.Random) -> Hashable:
    value = rng.randrange(4)
    return rng.choice([Read(), Write(value), CompareAndSet(rng.randrange(4), value)])


def store_call(rng: random.Random) -> Hashable:
    key, value = rng.choice("ab"), rng.choice("xyz")
    return rng.choice([Get(key), Put(key, value), Append(key, value)])


def answer(model: Model[Any], state: Hashable, input: Hashable) -> tuple[Hashable, Hashable]:
    """What the object answers, found by asking the model of each answer there is."""
    for output in (None, True, False, state):
        if not (output is None and isinstance(input, Read | Get)) or state is None:
            fits, after = model.step(state, Operation(0, 0, 0, input, output))
            if fits:
                return output, after
    raise AssertionError(f"no answer to {input} in {state!r}")


def served(
    rng: random.Random, model: Model[Any], call: Any, count: int, processes: int, lost_share: float = 0.2
) -> list[Operation]:
    """A history of an object that takes each call in one instant between call and return, or later if it is lost."""
    states: dict[str, Hashable] = {}
    recorder = Recorder()
    called: dict[int, Hashable] = {}  # by process: not served yet
    answers: dict[int, Hashable] = {}  # by process: served, not returned yet
    lost: list[Hashable] = []

    def serve(input: Hashable) -> Hashable:
        (part,) = model.partition([Operation(0, 0, 0, input)])
        output, states[part] = answer(model, states.get(part, model.init()), input)
        return output

    made = 0
    for now in itertools.count():
        process = rng.randrange(processes)
        if lost and rng.random() < 0.1:
            serve(lost.pop(rng.randrange(len(lost))))
        if process in answers:
            output = answers.pop(process)
            if rng.random() < lost_share:
                recorder.unknown(process)
            else:
                recorder.ok(process, output, now)
        elif process in called:
            input = called.pop(process)
            if rng.random() < lost_share:
                recorder.unknown(process)
                lost.append(input)
            else:
                answers[process] = serve(input)
        elif made < count:
            made += 1
            called[process] = call(rng)
            recorder.call(process, called[process], now)
        elif not called and not answers:
            return recorder.history()
    raise AssertionError("unreachable")


OBJECTS = pytest.mark.parametrize(
    ("model", "call"),
    [pytest.param(Register(0), register_call, id="register"), pytest.param(KeyValue(), store_call, id="store")],
)


@OBJECTS
@EXAMPLES
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60), processes=st.integers(1, 6))
def test_what_an_atomic_object_did_is_always_accepted(model: Any, call: Any, seed: int, count: int, processes: int):
    history = served(random.Random(seed), model, call, count, processes)
    verdict = check(history, model)
    assert verdict.outcome is Outcome.LINEARIZABLE, str(verdict)
    if isinstance(model, Register):
        assert explains(verdict.order, history, model)


@EXAMPLES
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), processes=st.integers(1, 6))
def test_a_read_of_what_nobody_wrote_is_rejected(seed: int, count: int, processes: int):
    rng = random.Random(seed)
    history = served(rng, Register(0), register_call, count, processes)
    reads = [i for i, o in enumerate(history) if isinstance(o.input, Read) and o.returned is not None]
    if reads:
        chosen = rng.choice(reads)
        good = history[chosen]
        history[chosen] = Operation(good.process, good.called, good.returned, good.input, 99)
        verdict = check(history, Register(0))
        assert verdict.outcome is Outcome.NOT_LINEARIZABLE
        assert (verdict.blocked.returned if verdict.blocked else math.inf) <= (good.returned or 0)


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    """Up to 6 operations of a register with any times and answers, sound or not."""
    history: list[Operation] = []
    for process in range(draw(st.integers(1, 6))):
        called = draw(st.integers(0, 10))
        returned = draw(st.none() | st.integers(called, 12))
        input = draw(
            st.just(Read())
            | st.builds(Write, st.integers(0, 2))
            | st.builds(CompareAndSet, st.integers(0, 2), st.integers(0, 2))
        )
        output = draw(st.integers(0, 2) if isinstance(input, Read) else st.booleans())
        history.append(Operation(process, called, returned, input, output))
    return history


@settings(EXAMPLES, max_examples=600)
@given(history=small_histories())
def test_the_verdict_is_that_of_brute_force(history: list[Operation]):
    verdict = check(history, Register(0))
    assert (verdict.outcome is Outcome.LINEARIZABLE) is some_order_explains(history, Register(0)), str(verdict)
    if verdict.blocked is not None:
        before = [o for o in history if ends_before(o, verdict.blocked)]
        assert all(o in verdict.order for o in before), str(verdict)
        assert explains(verdict.order, [*before, *verdict.order], Register(0)), str(verdict)


def ends_before(one: Operation, other: Operation) -> bool:
    return one.returned is not None and other.returned is not None and one.returned < other.returned


@st.composite
def small_stores(draw: st.DrawFn) -> list[Operation]:
    """Up to 5 operations of one key with any times and answers, sound or not."""
    history: list[Operation] = []
    for process in range(draw(st.integers(1, 5))):
        called = draw(st.integers(0, 6))
        returned = draw(st.none() | st.integers(called, 8))
        texts = st.sampled_from(["", "x", "y"])
        input = draw(st.just(Get("a")) | st.builds(Put, st.just("a"), texts) | st.builds(Append, st.just("a"), texts))
        output = draw(st.sampled_from(["", "x", "y", "xx", "xy", "yx"]))
        history.append(Operation(process, called, returned, input, output))
    return history


@EXAMPLES
@given(history=small_stores())
def test_the_verdict_on_a_store_is_that_of_brute_force(history: list[Operation]):
    verdict = check(history, KeyValue())
    assert (verdict.outcome is Outcome.LINEARIZABLE) is some_order_explains(history, KeyValue()), str(verdict)
