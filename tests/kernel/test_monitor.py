"""`%kos monitor` in a real kernel: without a cluster, its help, and what the package carries."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kos_kernel.dashboard import module
from kos_kernel.dashboard.panes import PANES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%kos monitor", "kos up"),
        ("%kos monitor --cluster nowhere", "nowhere"),
        ("%kos monitor --fast", "--fast"),
        ("import kos_kernel; kos_kernel.monitor()", "kos up"),
    ],
)
def test_without_a_cluster_or_with_a_wrong_option_it_is_a_sentence(kernel: Any, line: str, said: str) -> None:
    error = kernel.run(line).error
    assert len(error["traceback"]) == 1
    assert said in error["traceback"][0]


def test_its_help_is_printed(kernel: Any) -> None:
    cell = kernel.run("%kos monitor --help")
    assert not cell.error
    assert "usage: kos monitor" in cell.text()


def test_the_files_of_the_front_end_are_in_the_package() -> None:
    package = ROOT / "kos_kernel"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kos_kernel"]
    files = [str(path.relative_to(package)) for path in (package / "dashboard" / "static").rglob("*") if path.is_file()]
    assert len(files) >= 3 + len(PANES)
    assert [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


def test_the_module_is_one_without_imports_and_names_every_pane() -> None:
    source = module.source()
    assert source.count("export default") == 1
    assert "\nimport " not in source and "://" not in source.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\b(fetch|WebSocket|EventSource|XMLHttpRequest|sendBeacon|eval)\b", source)  # but the comm
    assert f"const panes = [{', '.join(f'{pane.NAME}Pane' for pane in PANES)}];" in source


def test_a_pane_file_without_its_export_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(module.STATIC, tmp_path / "static")
    (tmp_path / "static" / "panes" / "nodes.js").write_text("const lost = 1;\n")
    monkeypatch.setattr(module, "STATIC", tmp_path / "static")
    with pytest.raises(ValueError, match=r"nodes\.js has 0"):
        module.source.__wrapped__()


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js, which only checks the syntax here")
def test_each_file_is_a_module_of_its_own() -> None:
    for path in module.STATIC.rglob("*.js"):
        words = ["node", "--input-type=module", "--check"]
        done = subprocess.run(words, input=path.read_text(), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
