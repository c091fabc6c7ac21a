"""A cell at its node, in this process: only the way to the owner is replaced."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kos_cluster.tasks import context
from kos_kernel.magics.running import VALUE, Answer, CellError, RemoteCell
from kos_kernel.magics.travel import Packing, Parcel, Unpacking

Notebook = Callable[[str], dict[str, Any]]


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "display", lambda content: None)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What the cell has shown: prints on fd 1 and displays, in order."""
    parts: list[str] = []

    def display(content: dict[str, Any]) -> None:
        parts.append(capfd.readouterr().out)
        parts.append(f"[{content['kind']}] {content.get('data', {}).get('text/plain', '')}")

    monkeypatch.setattr(context, "display", display)

    def ordered() -> list[str]:
        parts.append(capfd.readouterr().out)
        return [part for part in parts if part]

    return ordered


def pack(namespace: dict[str, Any], *names: str) -> Packing:
    packing = Packing(namespace)
    packing.add_all(names)
    return packing


def run(source: str, namespace: dict[str, Any] | None = None, *names: str) -> dict[str, Any]:
    """Run a cell that reads `names`; what comes back."""
    namespace = {} if namespace is None else namespace
    packing = pack(namespace, *names)
    answer: Answer = RemoteCell(source, packing.parcel())()
    objects = packing.objects()
    return dict(Unpacking(answer.parcel, namespace, [objects[position] for position in answer.known], lenient=True))


def test_every_kind_of_assignment_comes_back() -> None:
    back = run(
        "import json as j\nfrom os import path\nfor i in range(3): pass\nwith open('/dev/null') as f: f.close()\n"
        "def g(): pass\nclass C: pass\nn = 1\nn += 1\n(w := 4)\n[(v := u) for u in (5,)]\na, *b = 1, 2\nx: int = 7\n"
        "def h():\n  global deep\n  deep = 1\nh()\ngone = 1\ndel gone"
    )
    assert set(back) == {"j", "path", "i", "g", "C", "n", "w", "v", "a", "b", "x", "h", "deep"}
    assert (back["n"], back["w"], back["v"], back["b"], back["x"]) == (2, 4, 5, [2], 7)


def test_only_what_was_changed_comes_back(notebook: Notebook) -> None:
    namespace = notebook("import numpy as np\na = [1]\nb = [2]\narray = np.zeros(4)\nc = 3")
    back = run("a.append(b)\narray[1:] = 5\nc", namespace, "a", "b", "array", "c", "np")
    assert set(back) == {"a", "array"}
    assert back["array"].tolist() == [0, 5, 5, 5]


def test_what_cannot_travel_back_is_named() -> None:
    answer = RemoteCell("import threading\nlock = threading.Lock()\nx = 1", Packing({}).parcel())()
    assert set(answer.parcel.sizes) == {"threading", "x"}
    assert "'lock' (_thread.lock, " in answer.left_out["lock"]


def test_outputs_come_in_order(shown: Callable[[], list[str]]) -> None:
    run(
        "from IPython.display import display, HTML, clear_output\nprint('a')\ndisplay(HTML('<b>'))\nprint('b')\n"
        "h = display(1, display_id='d')\nh.update(2)\n!echo c\nclear_output()\n'last'"
    )
    assert shown() == [
        "a\n",
        "[display_data] <IPython.core.display.HTML object>",
        "b\n",
        "[display_data] 1",
        "[update_display_data] 2",
        "c\n",
        "[clear_output] ",
        "[execute_result] 'last'",
    ]


def test_a_semicolon_silences_the_last_expression(shown: Callable[[], list[str]]) -> None:
    run("1 + 1;")
    assert shown() == []


def test_figures_are_shown_when_the_cell_ends(shown: Callable[[], list[str]]) -> None:
    run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('before')\nNone")
    assert shown() == ["before\n", "[display_data] <Figure size 640x480 with 1 Axes>"]


def test_magics_and_the_shell_are_there(shown: Callable[[], list[str]]) -> None:
    back = run("lines = !echo one; echo two\n%time y = 3\nname = type(get_ipython()).__name__")
    assert list(back["lines"]) == ["one", "two"] and back["y"] == 3 and back["name"] == "CellShell"


def test_what_is_displayed_may_hold_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[dict[str, Any]] = []
    monkeypatch.setattr(context, "display", contents.append)
    run("class P:\n  def _repr_png_(self): return b'\\x89PNG'\nP()")
    assert contents[0]["data"]["image/png"].strip() == "iVBORw=="


def failed(source: str, namespace: dict[str, Any] | None = None, *names: str) -> CellError:
    with pytest.raises(CellError) as caught:
        run(source, namespace, *names)
    return pickle.loads(pickle.dumps(caught.value))


def test_an_error_shows_the_users_frames_only(notebook: Notebook) -> None:
    error = failed("def outer():\n    return inner(0)\nx = outer()", notebook("def inner(x):\n  return 1 / x"), "inner")
    assert error.text.splitlines()[0] == "Traceback (most recent call last):"
    assert 'File "<kos cell>", line 2, in outer\n    return inner(0)' in error.text
    assert error.text.endswith("ZeroDivisionError: division by zero")
    assert "IPython" not in error.text and "kos_kernel" not in error.text


def test_an_error_is_itself_again_at_home(notebook: Notebook) -> None:
    namespace = notebook("class Mine(Exception):\n  def __init__(self, code): self.code = code")
    packing = pack(namespace, "Mine")
    with pytest.raises(CellError) as caught:
        RemoteCell("raise Mine(7)", packing.parcel())()
    answer = caught.value.answer
    assert answer is not None
    objects = packing.objects()
    error = dict(Unpacking(answer.parcel, namespace, [objects[position] for position in answer.known]))[VALUE]
    assert type(error) is namespace["Mine"] and error.code == 7


def test_an_error_that_cannot_travel_is_told_by_its_text() -> None:
    error = failed("import threading\nclass E(Exception): pass\nraise E(threading.Lock())")
    assert error.answer is None and "E: <unlocked _thread.lock" in error.text


def test_syntax_errors_and_exits_are_errors() -> None:
    assert "SyntaxError" in failed("x = = 1").text
    assert "SystemExit: 3" in failed("import sys\nsys.exit(3)").text


@pytest.mark.parametrize("ask", ["input('Name: ')", "import getpass; getpass.getpass()"])
def test_asking_for_input_is_refused_in_a_sentence(ask: str) -> None:
    assert "cannot ask for input" in failed(ask).summary


def test_the_process_is_left_as_it_was() -> None:
    main, asking = sys.modules["__main__"], input
    run("import sys\nassert sys.modules['__main__'].__dict__ is globals()")
    assert sys.modules["__main__"] is main and input is asking


def item(namespace: dict[str, Any], value: Any) -> Parcel:
    packing = Packing(namespace)
    packing.add("item", value)
    return packing.parcel()


def value_of(answer: Answer, packing: Packing, namespace: dict[str, Any]) -> Any:
    objects = packing.objects()
    return dict(Unpacking(answer.parcel, namespace, [objects[position] for position in answer.known]))[VALUE]


def test_elements_share_variables_but_not_each_others_assignments(notebook: Notebook) -> None:
    namespace = notebook("k = 2\ndef f(x): return x * k")
    packing = pack(namespace, "f")
    cell = RemoteCell(
        "seen = 'y' in globals()\ny = f(item)\n(index, y, seen, 'f' in globals())", packing.parcel(), True
    )
    answers = [cell(index, item(namespace, value)) for index, value in enumerate([10, 20])]
    assert [value_of(answer, packing, namespace) for answer in answers] == [(0, 20, False, True), (1, 40, False, True)]


def test_an_element_that_changes_a_variable_changes_it_for_no_other(notebook: Notebook) -> None:
    namespace = notebook("shared = [0]\nother = [0]")
    packing = pack(namespace, "shared", "other")
    cell = RemoteCell("if item: shared.append(item)\nlist(shared)", packing.parcel(), True)
    answers = [cell(index, item(namespace, value)) for index, value in enumerate([1, 2, 0])]
    assert [value_of(answer, packing, namespace) for answer in answers] == [[0, 1], [0, 2], [0]]
    assert [answer.changed for answer in answers] == [["shared"], ["shared"], []]


def test_without_out_an_elements_value_is_shown(notebook: Notebook, shown: Callable[[], list[str]]) -> None:
    answer = RemoteCell("item + 1", Packing({}).parcel())(0, item({}, 4))
    assert shown() == ["[execute_result] 5"] and not answer.parcel.sizes
