"""What the owner sees of a task's exception."""

from __future__ import annotations

import enum
import importlib.metadata
import pickle
import traceback
from concurrent.futures import CancelledError
from typing import Any

import pytest

from kos_cluster.tasks import failures
from kos_cluster.tasks.failures import (
    RemoteError,
    TaskExitedError,
    failure_of,
    fold,
    name_missing_package,
    to_exception,
)


def travelled(exc: BaseException, **settings: Any) -> BaseException:
    """Raise it, send it, rebuild it."""
    try:
        raise exc
    except BaseException as caught:
        failure = failure_of(caught, node="node-a", task="j.3", attempt=1, **settings)
    return to_exception(pickle.loads(pickle.dumps(failure)))


def shown(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


class NeedsTwo(Exception):
    """Pickles, but cannot be rebuilt: its `args` do not fit its constructor."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class ReducesItself(Exception):
    """Its own way to be pickled fails, as that of tblib does for the deep traceback of an endless recursion."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RecursionError


def test_the_original_type_and_arguments() -> None:
    exc = travelled(FileNotFoundError(2, "No such file", "data.csv"))
    assert type(exc) is FileNotFoundError
    assert exc.filename == "data.csv"


def test_the_header_and_the_remote_traceback_show_once() -> None:
    text = shown(travelled(ValueError("bad")))
    assert text.count("node node-a, task j.3, attempt 1") == 1
    assert "raise exc" in text
    assert text.rstrip().endswith("ValueError: bad")


@pytest.mark.parametrize(
    ("exc", "cause"),
    [
        (ValueError("bad\n  row"), "ValueError: bad row"),
        (StopIteration(), "StopIteration"),
        (NeedsTwo("a", "b"), f"{__name__}.NeedsTwo: a and b"),
        (ValueError("x" * 500), f"ValueError: {'x' * 185}..."),
    ],
)
def test_a_story_has_it_in_one_bounded_line(exc: Exception, cause: str) -> None:
    assert failure_of(exc, node="node-a", task="j.3", attempt=1).cause == cause


def test_notes_travel() -> None:
    exc = ValueError("bad")
    exc.add_note("row 17")
    assert "row 17" in shown(travelled(exc))


def test_the_chain_of_causes_is_in_the_remote_traceback() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as caught:
        text = shown(travelled(caught))
    assert text.index("KeyError: 'first'") < text.index("direct cause") < text.rindex("ValueError: second")


def test_an_exception_whose_constructor_wants_other_arguments_keeps_its_type() -> None:
    exc = travelled(NeedsTwo("a", "b"))
    assert type(exc) is NeedsTwo
    assert str(exc) == "a and b"
    assert "node node-a" in shown(exc)


def test_the_type_and_arguments_are_kept_where_its_own_pickle_fails() -> None:
    exc = travelled(ReducesItself("bad", 7))
    assert type(exc) is ReducesItself
    assert exc.args == ("bad", 7)


def test_an_exception_that_cannot_be_pickled_keeps_its_name_and_text() -> None:
    bad = ValueError("bad")
    bad.handle = (x for x in [])  # type: ignore[attr-defined]
    exc = travelled(bad)
    assert isinstance(exc, RemoteError)
    assert "ValueError: bad" in str(exc)


def test_an_exception_with_a_broken_text() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(Broken):
        raise travelled(Broken())


def test_nothing_of_the_users_types_is_unpickled_with_it() -> None:
    class Text(str):
        pass

    class Code(enum.IntEnum):
        BAD = 3

    class Odd(Exception):
        def __str__(self) -> str:
            return Text("odd")

    failure = failure_of(Odd(), node="node-a", task="j.0", attempt=1)
    assert (failure.message, type(failure.message)) == ("odd", str)
    exited = failure_of(SystemExit(Code.BAD), node="node-a", task="j.0", attempt=1)
    assert (exited.exit_code, type(exited.exit_code)) == (3, int)


def test_what_it_holds_is_bounded() -> None:
    failure = failure_of(ValueError("x" * 10_000_000), node="n", task="j.0", attempt=1)
    assert len(pickle.dumps(failure)) < 1 << 20
    exc = to_exception(failure)
    assert isinstance(exc, ValueError) and "characters left out" in str(exc)


def test_a_large_exception_that_needs_more_than_a_text_is_named() -> None:
    failure = failure_of(ExceptionGroup("g", [ValueError("x" * 10_000_000)]), node="n", task="j.0", attempt=1)
    assert len(pickle.dumps(failure)) < 1 << 20
    with pytest.raises(RemoteError, match="ExceptionGroup: g"):
        raise to_exception(failure)


def test_exit_says_so_and_keeps_the_code() -> None:
    exc = travelled(SystemExit(3))
    assert isinstance(exc, TaskExitedError)
    assert exc.exit_code == 3
    assert "j.3 on node node-a ended itself with sys.exit(3)" in str(exc)
    assert pickle.loads(pickle.dumps(exc)).exit_code == 3


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), ("a message", 1)])
def test_exit_codes_as_the_interpreter_gives_them(code: Any, expected: int) -> None:
    exc = travelled(SystemExit(code))
    assert isinstance(exc, TaskExitedError)
    assert exc.exit_code == expected


def test_cancelled() -> None:
    exc = travelled(KeyboardInterrupt(), cancelled=True)
    assert isinstance(exc, CancelledError)
    assert "node node-a" in str(exc)


def test_a_missing_package_names_node_package_and_command() -> None:
    exc = ModuleNotFoundError("No module named 'sklearn'", name="sklearn.linear_model")
    failures.name_missing_package(exc, "node-a")
    back = travelled(exc)
    assert type(back) is ModuleNotFoundError
    assert back.name == "sklearn.linear_model"
    assert "node 'node-a'" in str(back)
    assert str(back).endswith(f"-m pip install scikit-learn=={importlib.metadata.version('scikit-learn')}")


def test_equal_failures_fold() -> None:
    summary = fold([ValueError("bad")] * 97 + [KeyError("k")] * 2 + [OSError("disk")])
    assert summary.splitlines() == ["97 times: ValueError: bad", "2 times: KeyError: 'k'", "OSError: disk"]


def test_a_fold_of_all_different_failures_is_bounded() -> None:
    lines = fold(ValueError(number) for number in range(1000)).splitlines()
    assert len(lines) == failures.FOLD_LIMIT + 1
    assert lines[-1] == "and 990 more of 990 other kinds"


def test_a_missing_package_is_named_with_the_version_that_the_submitter_has() -> None:
    lacking = ModuleNotFoundError("No module named 'cloudpickle'", name="cloudpickle")
    name_missing_package(lacking, "node7")
    version = importlib.metadata.version("cloudpickle")
    text = str(travelled(lacking))
    assert f"on node 'node7'; here it is cloudpickle {version}. Type there: " in text
    assert text.endswith(f"-m pip install cloudpickle=={version}")
