"""What travels, what does not, and what the error says."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
import threading
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from kos_cluster.errors import NotPicklableError
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks import framing, serialise


def in_new_python(code: str, data: bytes) -> str:
    """Run code in an interpreter that shares nothing with this one; `data` is its stdin."""
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


LOAD = "import sys; from kos_cluster.tasks import serialise; value = serialise.loads(sys.stdin.buffer.read())\n"


def main_module(source: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A `__main__` as a notebook has it."""
    module = types.ModuleType("__main__")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@dataclass
class Holder:
    name: str
    _lock: Any = field(default_factory=threading.Lock)


class TestRoundTrips:
    @pytest.mark.parametrize("value", [None, 1, "a", b"b" * (2 * BULK_BYTES), [1, {"k": (2, 3)}], "__main__", range(5)])
    def test_a_result_comes_back_equal(self, value: Any) -> None:
        assert serialise.loads_result(joined(serialise.dumps_result(value))) == value

    def test_arguments_come_back_as_args_and_kwargs(self) -> None:
        assert serialise.loads(serialise.dumps_args((1, "x"), {"y": [2]})) == ((1, "x"), {"y": [2]})

    def test_small_payloads_are_plain_pickles(self) -> None:
        assert pickle.loads(serialise.dumps_args((np.arange(10),), {}))[0][0].sum() == 45

    def test_a_closure_travels_to_another_process(self) -> None:
        factor = 3
        data = serialise.dumps_callable(lambda x: x * factor)
        assert in_new_python(LOAD + "print(value(14))", data) == "42\n"

    def test_what_main_defines_travels_by_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main = main_module(
            "class Point:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x", monkeypatch
        )
        data = serialise.dumps_args((main.Point(21),), {})
        assert in_new_python(LOAD + "print(value[0][0].twice())", data) == "42\n"

    def test_an_instance_that_comes_home_is_of_the_same_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main = main_module("class Point: pass", monkeypatch)
        data = serialise.dumps_args((main.Point(),), {})
        code = LOAD + "sys.stdout.write(serialise.dumps_result(value[0][0]).hex())"
        assert type(serialise.loads_result(bytes.fromhex(in_new_python(code, data)))) is main.Point


class TestLargeArrays:
    array = np.arange(BULK_BYTES // 4, dtype=np.float64)

    def test_the_array_is_not_copied_into_the_pickle(self) -> None:
        segments = serialise.dumps_result({"a": self.array})
        assert isinstance(segments, list)
        assert any(isinstance(part, memoryview) and np.shares_memory(np.asarray(part), self.array) for part in segments)

    def test_reading_from_a_writable_buffer_copies_nothing_and_can_be_written_to(self) -> None:
        data = bytearray(joined(serialise.dumps_result({"a": self.array})))
        back = serialise.loads_result(data)["a"]
        np.testing.assert_array_equal(back, self.array)
        assert np.shares_memory(back, np.frombuffer(data, np.uint8))
        back[0] = 7.0

    def test_reading_from_bytes_gives_an_array_that_can_be_written_to(self) -> None:
        back = serialise.loads_result(joined(serialise.dumps_result(self.array)))
        back[0] = 7.0
        assert back[1] == self.array[1]

    def test_a_read_only_array_stays_read_only(self) -> None:
        array = self.array.copy()
        array.flags.writeable = False
        back = serialise.loads_result(bytearray(joined(serialise.dumps_result(array))))
        assert not back.flags.writeable

    def test_its_memory_is_aligned(self) -> None:
        data = joined(serialise.dumps_result(["odd", self.array]))
        (found,) = [data.index(self.array[:100].tobytes())]
        assert found % framing.ALIGN_BYTES == 0

    def test_as_an_argument(self) -> None:
        (back,), _ = serialise.loads(serialise.dumps_args((self.array,), {}))
        np.testing.assert_array_equal(back, self.array)


class TestWhatCannotTravel:
    def message(self, *args: Any, **kwargs: Any) -> str:
        with pytest.raises(NotPicklableError) as caught:
            serialise.dumps_args(args, kwargs)
        return caught.value.message

    def test_the_path_leads_to_the_object(self) -> None:
        message = self.message({"lock": Holder("a")})
        assert message == "The call cannot be pickled: argument 1, key 'lock', attribute _lock: a _thread.lock."

    def test_a_keyword_argument_by_name(self) -> None:
        assert "argument 'items', item 2: a generator" in self.message(1, items=[1, 2, (x for x in [])])

    def test_an_enclosed_variable_of_a_function(self) -> None:
        lock = threading.Lock()

        def guarded() -> None:
            with lock:
                pass

        with pytest.raises(NotPicklableError, match=r"guarded.*enclosed variable lock: a _thread\.lock"):
            serialise.dumps_callable(guarded)

    def test_a_global_of_a_function_that_it_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        main = main_module(
            "import threading\nL = threading.Lock()\ndef low(): return L\ndef top(): return low()", monkeypatch
        )
        with pytest.raises(NotPicklableError, match=r"'top'.*global low, global L: a _thread\.lock"):
            serialise.dumps_callable(main.top)

    def test_inside_a_partial(self) -> None:
        assert "argument 1, argument 'x': a generator" in self.message(functools.partial(print, x=(i for i in [])))

    def test_an_object_that_refuses_by_itself(self) -> None:
        class Refusing:
            def __reduce__(self) -> str:
                raise RuntimeError("not today")

        assert "argument 1, item 0: a " in self.message([Refusing()])
        assert "not today" in self.message([Refusing()])

    def test_a_cycle_ends(self) -> None:
        loop: list[Any] = [threading.Lock()]
        loop.insert(0, loop)
        assert "a _thread.lock" in self.message(loop)

    def test_a_result(self) -> None:
        with pytest.raises(NotPicklableError, match="The result cannot be pickled: a generator"):
            serialise.dumps_result(x for x in [])

    def test_the_hint_says_what_to_do(self) -> None:
        with pytest.raises(NotPicklableError) as caught:
            serialise.dumps_result(threading.Lock())
        assert "Make it inside the task" in caught.value.hint


class TestModulesOf:
    def test_classes_functions_and_modules_that_it_refers_to(self) -> None:
        used = json

        def fn() -> Any:
            return used, np.zeros

        assert {"json", "numpy"} <= serialise.modules_of(serialise.dumps_callable(fn))

    def test_imports_inside_functions_sent_by_value(self) -> None:
        def outer() -> Any:
            def inner() -> Any:
                from sklearn.linear_model import Ridge

                return Ridge

            return inner

        assert "sklearn.linear_model" in serialise.modules_of(serialise.dumps_callable(outer))

    def test_large_arrays(self) -> None:
        payload = serialise.dumps_args((TestLargeArrays.array,), {})
        assert any(name.startswith("numpy") for name in serialise.modules_of(payload))

    def test_nothing_is_executed(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Loud:
            def __reduce__(self) -> Any:
                return print, ("executed",)

        assert serialise.modules_of(pickle.dumps([Loud(), {1, 2}, Holder("a", None)])) == {__name__}
        assert capsys.readouterr().out == ""


def joined(pickled: bytes | serialise.Segments) -> bytes:
    return pickled if isinstance(pickled, bytes) else b"".join(pickled)
