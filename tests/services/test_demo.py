"""The demo leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

RUN = """
import pathlib, sys
import kos_cluster.services.demo as demo

demo.NOTEBOOK = pathlib.Path(sys.argv[1])
sys.exit(demo.main())
"""
STARTED_WITHIN_S = 60.0


def notebook(folder: Path, code: str) -> Path:
    cells = [nbformat.v4.new_code_cell("%load_ext kos_kernel"), nbformat.v4.new_code_cell(code)]
    cells[-1].metadata["tags"] = ["summary"]
    path = folder / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def left_of(temporary: Path) -> list[str]:
    """Files in the folder of temporary files, and processes that have it in their environment."""
    found = [str(path) for path in temporary.iterdir() if path.name.startswith("kos-")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(temporary).encode() in environ:
                found.append(f"process {entry.name}")
    return found


@pytest.mark.parametrize(
    ("code", "expected"),
    [("print('all is well')", 0), ("raise ValueError('no')", 1), ("import time; time.sleep(600)", 130)],
    ids=["to its end", "by a failing cell", "by SIGTERM"],
)
def test_the_demo_leaves_nothing_however_it_ends(code: str, expected: int, tmp_path: Path, short_folder: Path) -> None:
    temporary, seen = short_folder, tmp_path / "runs"
    shown = f"open({str(seen)!r}, 'w').close()\n{code}"
    command = [sys.executable, "-c", RUN, str(notebook(tmp_path, shown))]
    environ = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        if expected == 130:
            deadline = time.monotonic() + STARTED_WITHIN_S
            while not seen.exists():
                assert time.monotonic() < deadline, "the cell has not begun"
                time.sleep(0.02)
            demo.send_signal(signal.SIGTERM)
        out, err = demo.communicate(timeout=100)
    assert demo.returncode == expected, out + err
    assert left_of(temporary) == []
