"""Which modules travel, and that they arrive as their files are now."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kos_cluster.errors import LimitError
from kos_cluster.tasks import modules
from kos_cluster.tasks.environment import ShippedModule, serve_modules
from kos_cluster.tasks.modules import installed_imports, local_modules, third_party


def write(folder: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    before, finders = dict(sys.modules), list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def shipped(*names: str) -> dict[str, ShippedModule]:
    return {name: msgspec.msgpack.decode(part, type=ShippedModule) for name, part in local_modules(names).items()}


def test_only_the_users_own_modules_travel(project: Path) -> None:
    write(project, {"mine.py": "import json, numpy, msgspec, pytest\nfrom kos_cluster import errors\nX = 1\n"})
    importlib.import_module("mine")
    found = shipped("mine", "os.path", "json", "numpy.linalg", "kos_cluster.errors", "__main__", "no_such", "builtins")
    assert set(found) == {"mine"}
    assert found["mine"] == ShippedModule("mine.py", False, (project / "mine.py").read_bytes())


def test_what_a_module_imports_travels_with_it_loaded_or_not(project: Path) -> None:
    write(
        project,
        {
            "top.py": "import middle\nfrom pkg.sub import leaf\n\ndef later():\n    import lazy\n    return lazy.X\n",
            "middle.py": "from pkg import value\n",
            "lazy.py": "import lazier\nX = 1\n",
            "lazier.py": "",
            "unused.py": "",
            "pkg/__init__.py": "from .other import value\n",
            "pkg/other.py": "value = 1\n",
            "pkg/unused.py": "",
            "pkg/sub/__init__.py": "",
            "pkg/sub/leaf.py": "from .. import other\nfrom . import twig\n",
            "pkg/sub/twig.py": "",
        },
    )
    importlib.import_module("top")
    assert set(shipped("top")) == {
        "top", "middle", "lazy", "lazier", "pkg", "pkg.other", "pkg.sub", "pkg.sub.leaf", "pkg.sub.twig"
    }  # fmt: skip
    assert shipped("top")["pkg.sub"].path == "pkg/sub/__init__.py"
    assert shipped("top")["pkg.sub"].is_package
    assert "lazy" not in sys.modules  # finding out runs nothing


def test_what_was_imported_by_name_at_run_time_travels(project: Path) -> None:
    write(project, {"loader.py": "import importlib\nplugin = importlib.import_module('plugin')\n", "plugin.py": ""})
    importlib.import_module("loader")
    assert set(shipped("loader")) == {"loader", "plugin"}


def test_a_package_without_init_travels(project: Path) -> None:
    write(project, {"space/inner.py": "X = 1\n"})
    importlib.import_module("space.inner")
    found = shipped("space.inner")
    assert found["space"] == ShippedModule("space/__init__.py", True, b"")
    assert found["space.inner"].source == b"X = 1\n"


def test_an_edited_module_travels_as_edited(project: Path) -> None:
    write(project, {"edited.py": "X = 1\n"})
    importlib.import_module("edited")
    first = local_modules(["edited"])
    assert local_modules(["edited"]) == first
    write(project, {"edited.py": "import extra\nX = 22\n", "extra.py": ""})
    assert shipped("edited")["edited"].source == b"import extra\nX = 22\n"
    assert "extra" in shipped("edited")


def test_a_module_that_does_not_parse_travels_and_a_vanished_one_does_not(project: Path) -> None:
    write(project, {"broken.py": "x = = 1\n", "gone.py": ""})
    importlib.import_module("gone")
    (project / "gone.py").unlink()
    assert set(shipped("broken", "gone")) == {"broken"}


def test_installed_code_is_not_followed(project: Path) -> None:
    write(project, {"site-packages/lib.py": "import mine2\n", "mine2.py": ""})
    sys.path.insert(0, os.fspath(project / "site-packages"))
    importlib.import_module("lib")
    assert shipped("lib") == {}


def test_the_size_of_sources_is_bounded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, {"large.py": "X = '" + "x" * 5000 + "'\n", "small.py": "import large\n"})
    monkeypatch.setattr(modules, "MODULES_LIMIT_BYTES", 4000)
    with pytest.raises(LimitError, match=r"over the limit of 4,000.*large \("):
        local_modules(["small"])


def test_modules_arrive_where_the_files_are_not(project: Path) -> None:
    write(
        project,
        {"pack/__init__.py": "from .inner import value\n", "pack/inner.py": "value = 41\n", "uses.py": "import pack\n"},
    )
    importlib.import_module("uses")
    arrived = shipped("uses")
    for name in [*arrived, "pack.inner"]:
        sys.modules.pop(name, None)
    for path in project.rglob("*.py"):
        path.unlink()
    serve_modules(arrived)
    assert importlib.import_module("uses").pack.value == 41


def test_the_packages_that_a_script_imports(project: Path) -> None:
    write(
        project,
        {
            "script.py": "import os, numpy.linalg, helper, pkg.x\nfrom sklearn import svm\nimport kos_cluster\n"
            "def f():\n    import pandas\n"
        },
    )
    local = {"helper.py", "pkg", "pkg/x.py"}
    assert installed_imports(os.fspath(project / "script.py"), local) == ("numpy", "pandas", "sklearn")
    assert third_party(["numpy.linalg", "json", "kos_cluster.tasks"]) == ("numpy",)
