"""joblib's backend "kos" under joblib's own cases for a backend, which come with joblib, and under scikit-learn.

Rules. Each case of `joblib.test.test_parallel` that takes a backend is run with "kos" in the place of joblib's own; the
code stays where it is. What cannot apply is skipped with its reason.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any

import joblib
import numpy
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

test_parallel = pytest.importorskip("joblib.test.test_parallel", reason="joblib came without its tests")

import kos_cluster.joblib  # noqa: E402, F401  # registers it

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("cluster"), pytest.mark.filterwarnings("default")]

MANAGER = "it shares a manager of this machine with its tasks"
MEMORY_MAP = "arrays travel by value, and are not mapped from files"
PROGRAM = "it writes a program that names the backend without importing what registers it"
NOT_APPLICABLE = {
    "test_dispatch_multiprocessing": MANAGER,
    "test_initializer_context": MANAGER,
    "test_initializer_parallel": MANAGER,
    "test_auto_memmap_on_arrays_from_generator": MEMORY_MAP,
    "test_memmapping_leaks": MEMORY_MAP,
    "test_parallel_with_interactively_defined_functions": PROGRAM,
    "test_parallel_with_unpicklable_functions_in_args": PROGRAM,
    "test_nested_parallel_warnings": "it is about warnings of joblib's own backends",
    "test_background_thread_parallelism": "it never uses the backend that it takes",
    "test_multiple_generator_call_separated_gc": "it is about the one executor that all of loky's calls share",
    "test_nested_exception_dispatch": "joblib expects it to fail",
    "test_nested_parallelism_limit": "it makes the class of the backend out of its name",
    "test_parallel_thread_limit": "it needs a helper that is compiled with OpenMP",
    "test_dispatch_one_job": "with one job no backend is used",
}
BACKENDS = {"backend", "parent_backend", "child_backend", "outer_backend", "inner_backend"}


def _cases() -> Iterator[tuple[str, types.FunctionType]]:
    for name, function in vars(test_parallel).items():
        if name.startswith("test_") and BACKENDS & _parameters(function).keys():
            yield name, function


def _parameters(function: types.FunctionType) -> dict[str, list[Any]]:
    """What each parameter takes, with "kos" as every backend."""
    taken: dict[str, list[Any]] = {}
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            names, values = mark.args[:2]
            if "," in names:  # a backend with what it is known to do
                taken.update({name.strip(): ["kos"] for name in names.split(",")})
            else:
                taken[names] = ["kos"] if names in BACKENDS else list(values)
    return taken


def _with_kos(name: str, function: types.FunctionType) -> Any:
    if name in NOT_APPLICABLE:

        def cannot() -> None:
            pytest.skip(NOT_APPLICABLE[name])

        return cannot

    @functools.wraps(function)
    def case(*args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)

    parameters = _parameters(function)
    case.pytestmark = [mark for mark in function.pytestmark if mark.name == "skipif"]  # type: ignore[attr-defined]
    rows = list(itertools.product(*parameters.values()))
    return pytest.mark.parametrize(tuple(parameters), rows)(case)


def test_a_grid_search_finds_what_a_serial_one_finds() -> None:
    x, y = load_digits(return_X_y=True)
    search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.001, 0.01]}, cv=3)
    serial = search.fit(x, y).cv_results_["mean_test_score"]
    with joblib.parallel_config("kos"):
        assert numpy.array_equal(search.fit(x, y).cv_results_["mean_test_score"], serial)
    forest = RandomForestClassifier(20, random_state=0)
    with joblib.parallel_config("kos", n_jobs=2):
        assert forest.fit(x, y).score(x, y) == RandomForestClassifier(20, random_state=0).fit(x, y).score(x, y)


globals().update({name: _with_kos(name, function) for name, function in _cases()})
