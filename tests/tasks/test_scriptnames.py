"""What is read off a script's text."""

from __future__ import annotations

import textwrap

import pytest

from kos_cluster.tasks.scriptnames import ScriptNames, read


def names_of(source: str) -> ScriptNames:
    return read(textwrap.dedent(source).encode(), "script.py")


def test_what_loading_binds_is_told_from_what_stands_under_the_guard() -> None:
    names = names_of(
        """
        import os.path, json as j
        from math import pi as p
        try:
            import fast
        except ImportError:
            fast = None
        for i, (k, *rest) in ():
            with open(j) as file:
                w = (z := 3)
        def f(): inner = 1
        class C:
            attribute = 1
        match w:
            case {"a": a, **more}: pass
            case [first, *others]: pass
        listed = [inside for inside in () if (seen := inside)]
        if __name__ != "__main__":
            loaded = 1
        else:
            late = 1
        if __name__ == "__main__":
            import later_module
            if late:
                def later(): pass
        elif True:
            other = 1
        """
    )
    assert " ".join(sorted(names.loaded)) == (
        "C a f fast file first i j k listed loaded more os other others p rest seen w z"
    )
    assert names.later == {"late", "later_module", "later"}
    assert names.comes_by_loading("f")
    assert not names.comes_by_loading("late")
    assert not names.comes_by_loading("unheard_of")


@pytest.mark.parametrize(
    "guard",
    [
        '"__main__" == __name__',
        '__name__ == "__main__" and sys.argv',
        'not __name__ != "__main__"',
        "(__name__ == '__main__')",
    ],
)
def test_a_guard_is_known_in_each_form(guard: str) -> None:
    names = names_of(f"import sys\nif {guard}:\n    late = 1\nelse:\n    loaded = 1")
    assert (names.loaded, names.later) == ({"sys", "loaded"}, {"late"})


def test_what_a_function_declares_global_may_be_bound_later() -> None:
    names = names_of(
        """
        table = None
        class C:
            def method(self):
                global table, made
        """
    )
    assert names.later == {"table", "made"}
    assert not names.comes_by_loading("table")


def test_names_of_a_star_are_taken_to_come_by_loading() -> None:
    names = names_of("from math import *\nif __name__ == '__main__':\n    tau = 7")
    assert names.comes_by_loading("pi")
    assert not names.comes_by_loading("tau")


def test_who_uses_what_is_followed_from_definition_to_definition() -> None:
    names = names_of(
        """
        def first(x):
            local = x.attribute
            return second(local) + (lambda: deep)()
        def second(x):
            return [offset + y for y in x]
        class C:
            size = width
            def method(self): return first
        """
    )
    assert {name: set(used) for name, used in names.uses.items()} == {
        "first": {"second", "deep"},
        "second": {"offset"},
        "C": {"__name__", "width", "first"},
    }
    assert names.reached(["second"]) == {"second", "offset"}
    assert names.reached(["C"]) >= {"C", "first", "second", "offset", "deep", "width"}
    assert names.used == {"second", "deep", "offset", "__name__", "width", "first"}


def test_attributes_that_are_set_anywhere_are_told_with_their_owner() -> None:
    names = names_of(
        """
        helper.setting = 5
        def f():
            C.count += 1
            self.x.y = 1
        """
    )
    assert names.set_later == {("helper", "setting"), ("C", "count")}
