"""Dask's dataframes, and a larger array, on the cluster: the same numbers as from Dask's own scheduler."""

from __future__ import annotations

import numpy
import pytest

import kos_cluster as kos

pandas = pytest.importorskip("pandas", reason="pandas is not installed; type: make foreign")
dd = pytest.importorskip("dask.dataframe", reason="dask's dataframes are not installed; type: make foreign")
da = pytest.importorskip("dask.array")

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("cluster"), pytest.mark.filterwarnings("default")]


@pytest.fixture
def sales() -> object:
    frame = pandas.DataFrame({"shop": list("abcd") * 250, "day": range(1000), "sum": numpy.arange(1000.0) % 7})
    return dd.from_pandas(frame, npartitions=5)


def test_a_dataframe_is_grouped_joined_and_sorted(sales: dd.DataFrame) -> None:
    towns = pandas.DataFrame({"shop": list("abcd"), "town": ["x", "y", "x", "y"]})
    lazy = sales.merge(towns, on="shop").groupby("town")["sum"].mean()
    pandas.testing.assert_series_equal(
        lazy.compute(scheduler=kos.dask_get).sort_index(), lazy.compute(scheduler="sync").sort_index()
    )
    ordered = sales.sort_values("sum").compute(scheduler=kos.dask_get)["sum"].tolist()
    assert ordered == sorted(ordered)


def test_an_array_of_random_numbers_is_reduced() -> None:
    x = da.random.default_rng(7).normal(size=(2000, 2000), chunks=(500, 500))
    lazy = (x.T @ x).std(axis=0).max()
    assert float(lazy.compute(scheduler=kos.dask_get)) == pytest.approx(float(lazy.compute(scheduler="sync")))


def test_it_can_be_the_default_scheduler(sales: dd.DataFrame) -> None:
    import dask

    with dask.config.set(scheduler=kos.dask_get):
        assert sales["sum"].sum().compute() == sum(n % 7 for n in range(1000))
