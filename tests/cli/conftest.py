"""The real `kos` command, run as a user runs it, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND_TIMEOUT_S = 30

Ran = subprocess.CompletedProcess[str]


@pytest.fixture
def kos(short_folder: Path) -> Callable[..., Ran]:
    """Runs `kos WORDS...`; whatever happens, there is never a traceback."""
    command = str(Path(sys.executable).with_name("kos"))

    def run(*words: str, **environ: str) -> Ran:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("KOS_")}
        done = subprocess.run(
            [command, *words],
            env=plain | {"KOS_HOME": str(short_folder)} | environ,
            cwd=short_folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
