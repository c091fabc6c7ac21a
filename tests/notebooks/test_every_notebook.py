"""Every notebook of the folder is executed by a test."""

from __future__ import annotations

from kos_cluster.services import demo
from tests.notebooks import test_engines, test_first_cluster, test_monitor


def test_every_notebook_is_executed_by_a_module_of_tests() -> None:
    """One that is new needs a module beside this one, which executes it and looks at what its cells show."""
    executed = {module.NOTEBOOK for module in (test_engines, test_first_cluster, test_monitor)}
    assert set(demo.NOTEBOOK.parent.rglob("*.ipynb")) == executed
