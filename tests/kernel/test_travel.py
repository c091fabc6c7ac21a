"""Variables travel to another process and back."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kos_cluster.errors import LimitError, NotPicklableError
from kos_kernel.magics.digest import digest
from kos_kernel.magics.travel import Packing, Parcel, Unpacking, pack_what_can

Notebook = Callable[[str], dict[str, Any]]

THERE = """
import pickle, sys
from kos_kernel.magics.running import RemoteCell
parcel, source = pickle.load(sys.stdin.buffer)
answer = RemoteCell(source, parcel)()
sys.stdout.flush()
pickle.dump(answer, open(sys.argv[1], "wb"))
"""


def send(namespace: dict[str, Any], *names: str) -> Parcel:
    packing = Packing(namespace)
    packing.add_all(names)
    return packing.parcel()


def receive(parcel: Parcel) -> dict[str, Any]:
    """Unpack beside the first namespace, as if elsewhere."""
    there: dict[str, Any] = {"__name__": "__main__"}
    there.update(Unpacking(parcel, there))
    return there


def test_what_variables_share_stays_shared(notebook: Notebook) -> None:
    there = receive(send(notebook("a = [1]; b = {'a': a}; a.append(b)"), "a", "b"))
    assert there["b"]["a"] is there["a"] and there["a"][1] is there["b"]


def test_variables_follow_the_functions_and_classes_that_read_them(notebook: Notebook) -> None:
    namespace = notebook(
        "import math\nk = 2\nunused = 3\ndef g(): return k\ndef f(): return g() * math.pi\n"
        "class C:\n  def m(self): return f()\nc = C()"
    )
    parcel = send(namespace, "c")
    assert set(parcel.sizes) == {"c", "f", "g", "k", "math"}
    assert "math" in parcel.modules


def test_functions_see_the_variables_of_where_they_are(notebook: Notebook) -> None:
    namespace = notebook("k = 2\ndef f(): return k")
    there = receive(send(namespace, "f"))
    there["k"] = 5
    assert there["f"]() == 5 and namespace["f"]() == 2
    assert there["f"].__globals__ is there


def test_unpacking_keeps_the_namespaces_own_builtins(notebook: Notebook) -> None:
    parcel = send(notebook("def f(): return 1"), "f")
    there: dict[str, Any] = {"__builtins__": "its own"}
    dict(Unpacking(parcel, there))
    assert there["__builtins__"] == "its own"


def test_builtins_and_unknown_names_are_left_out(notebook: Notebook) -> None:
    namespace = notebook("x = 1")
    namespace["print"] = print
    assert set(send(namespace, "print", "x", "nowhere", "len", "get_ipython").sizes) == {"x"}


def test_a_redefined_builtin_travels(notebook: Notebook) -> None:
    assert set(send(notebook("def print(x): return x"), "print").sizes) == {"print"}


def test_too_much_is_refused_with_the_largest_named(notebook: Notebook) -> None:
    namespace = notebook("import numpy\nbig = numpy.zeros(90 << 17)\nhalf = numpy.zeros(20 << 17)\nsmall = 1")
    with pytest.raises(LimitError) as refused:
        send(namespace, "small", "half", "big")
    assert "110.0 MiB" in refused.value.message
    assert refused.value.message.index("big 90.0 MiB") < refused.value.message.index("half 20.0 MiB")


def test_what_cannot_travel_is_named_with_its_type(notebook: Notebook) -> None:
    namespace = notebook("import threading\nmine = [threading.Lock()]\ndef f(): return mine")
    with pytest.raises(NotPicklableError) as refused:
        send(namespace, "f")
    assert "'mine' (list, 64 bytes)" in refused.value.message and "lock" in refused.value.message


def test_packing_what_can_travel_names_the_rest(notebook: Notebook) -> None:
    namespace = notebook("import threading\nshared = [1]\na = (shared, 1)\nb = threading.Lock()\nc = (shared, 2)")
    parcel, left_out = pack_what_can(namespace, {name: namespace[name] for name in "abc"}, [])
    there = receive(parcel)
    assert set(parcel.sizes) == {"a", "c"} and there["a"][0] is there["c"][0]
    assert list(left_out) == ["b"] and "lock" in left_out["b"]


def test_an_answer_refers_to_known_objects_instead_of_copying_them(notebook: Notebook) -> None:
    namespace = notebook("import numpy\nx = numpy.ones(1 << 17)\ny = [x, 'more', ('and', 'more')]")
    parcel, _ = pack_what_can(namespace, {"y": namespace["y"]}, [namespace["x"]])
    assert len(parcel.data) < 1000
    replacement = "here"
    assert dict(Unpacking(parcel, namespace, [replacement])) == {"y": ["here", "more", ("and", "more")]}


def test_a_module_that_is_missing_here_leaves_only_its_variable_out(notebook: Notebook, monkeypatch: Any) -> None:
    module = type(sys)("only_there")
    module.Thing = type("Thing", (), {"__module__": "only_there"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_there", module)
    namespace = notebook("import only_there\na = 1\nthing = [only_there.Thing()]\nz = (1, 2)")
    parcel = send(namespace, "a", "only_there", "thing", "z")
    monkeypatch.delitem(sys.modules, "only_there")
    lenient = Unpacking(parcel, {}, lenient=True)
    assert dict(lenient) == {"a": 1, "z": (1, 2)}
    assert set(lenient.missing) == {"only_there", "thing"}
    with pytest.raises(ImportError, match="'only_there'"):
        dict(Unpacking(parcel, {}))


def test_namespaces_cross_to_another_process_and_back(notebook: Notebook, tmp_path: Any) -> None:
    namespace = notebook(
        "import numpy as np\nk = 1\nkept = [1]\nchanged = [1]\nalias = changed\n"
        "class Point:\n  def __init__(self, x): self.x = x\n  def up(self): return self.x + k\n"
        "p = Point(3)\ndef f(): return k"
    )
    packing = Packing(namespace)
    packing.add_all(["f", "p", "Point", "kept", "changed", "alias", "np"])
    source = (
        "k = 10\nlow = f() + p.up()\nchanged.append(kept)\nsame = kept\nq = Point(5)\n"
        "def g(): return k + 100\narray = np.arange(3)\nprint(alias is changed)"
    )
    path = tmp_path / "answer"
    done = subprocess.run(
        [sys.executable, "-c", THERE, str(path)],
        input=pickle.dumps((packing.parcel(), source)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"True\n"
    answer = pickle.loads(path.read_bytes())
    objects = packing.objects()
    method = namespace["Point"].up
    back = dict(Unpacking(answer.parcel, namespace, [objects[position] for position in answer.known]))
    assert set(back) == {"k", "low", "changed", "alias", "same", "q", "g", "array"}
    assert back["low"] == 10 + 13
    assert back["same"] is namespace["kept"] and back["changed"][1] is namespace["kept"]
    assert back["alias"] is back["changed"]
    assert type(back["q"]) is namespace["Point"] and namespace["Point"].up is method
    assert back["g"].__globals__ is namespace and namespace["k"] == 1
    assert back["array"].tolist() == [0, 1, 2]


VALUES = {
    "list": ([1], lambda v: v.append(2)),
    "dict": ({"a": [1]}, lambda v: v["a"].append(2)),
    "set": ({1}, lambda v: v.add(2)),
    "array": (np.zeros(9), lambda v: v.__setitem__(3, 1)),
    "strided array": (np.zeros((9, 9))[:, ::2], lambda v: v.__setitem__((8, 4), 1)),
    "bytearray": (bytearray(b"abc"), lambda v: v.__setitem__(0, 0)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_digest_changes_exactly_with_the_value(kind: str) -> None:
    value, change = VALUES[kind]
    before = digest(value, {})
    assert before is not None and digest(value, {}) == before
    change(value)
    assert digest(value, {}) != before


def test_a_digest_of_what_cannot_be_pickled_is_none() -> None:
    assert digest((item for item in "ab"), {}) is None


def test_a_function_is_unchanged_when_only_a_global_that_it_reads_changes(notebook: Notebook) -> None:
    namespace = notebook("k = [1]\ndef f(): return k")
    before = digest(namespace["f"], namespace)
    namespace["k"] = [2]
    assert digest(namespace["f"], namespace) == before
    namespace["f"].note = 1
    assert digest(namespace["f"], namespace) != before
