"""What a machine may lack, pretended in the daemons that a test starts: GPUs, and whatever else its source changes.

Rules: the daemons run `source` as their sitecustomize, beneath `if "kos_cluster.node"`; workers are not changed.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

_GPUS = """
import sys

if "kos_cluster.node" in sys.orig_argv:  # not in workers
    import os, pathlib
    from kos_cluster.node import machine

    folder, gpus = pathlib.Path(os.environ["PRETENDED"]), machine.gpus
    machine.gpus = lambda visible: gpus(folder, folder, visible)
"""


def pretend(patch: pytest.MonkeyPatch, folder: Path, gpus: int, source: str = "") -> None:
    """Let daemons that are started while `patch` holds see so many GPUs; `source` finds `folder` under that name."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_GPUS + textwrap.indent(source, "    "))
    for number in range(gpus):
        (folder / f"nvidia{number}").touch()
    patch.setenv("PRETENDED", str(folder))
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
