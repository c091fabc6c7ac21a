"""A real JupyterLab, and Voila, in a headless Chromium; one cluster, server and browser for all tests of this folder.

Rules: a file leaves three nodes that are alive, unless it is the last. Playwright keeps an event loop running in the
thread that uses it, so it ends with the folder: nothing else could run a loop of its own in that process. Chromium is
the distribution's, given to Playwright by its path; where there is none the tests are skipped, and say so. The cluster
and the kernels belong to the machine of the test; the server's folders lie in its home. Pictures of what was seen are
kept in `artefacts/`, which is not under version control.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kos_cluster.services.engines import lazily
from tests.browser.lab import TOKEN, Lab, Notebook, Server, free_port
from tests.browser.watching import CELLS, LOAD, MONITOR, NAME
from tests.e2e.conftest import Machine, _until
from tests.kernel import laptop

START_TIMEOUT_S = 120.0
# Parts of Lab that ask their server for what takes it long, each time that a page is opened.
NOT_USED = ("@jupyterlab/notebook-extension:export", "@jupyterlab/notebook-extension:update-raw-mimetype")
PICTURES = Path(__file__).parents[2] / "artefacts" / "browser"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine: 'make test' installs it as root with apt")
    return found


@pytest.fixture(scope="package")
def machine() -> Iterator[Machine]:
    """A machine; `server` starts an embedded cluster of three nodes on it."""
    made = Machine()
    yield made
    made.kos("down")
    made.end()


@pytest.fixture(scope="package")
def server(chromium: str, machine: Machine) -> Iterator[Server]:
    """A JupyterLab on that machine, with Voila in it, under /voila.

    It finds the kernels "Python 3 (KOS)" as 'kos kernel install' has written them. The links to kernels on nodes can be
    cut, see `tests.kernel.laptop`. The cluster is started while Lab loads.
    """
    port = free_port()
    folders = {name: str(machine.home / "jupyter") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    folders["JUPYTER_PATH"] = str(machine.home / "prefix" / "share" / "jupyter")
    words = [sys.executable, laptop.__file__, "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0"]
    words += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={machine.work}"]
    words += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
    words += [f"--LabApp.user_settings_dir={machine.home}/jupyter/settings", f"--LabApp.workspaces_dir={machine.home}"]
    news = machine.home / "jupyter/settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    page = machine.home / "jupyter/labconfig/page_config.json"
    page.parent.mkdir()
    page.write_text(json.dumps({"buildCheck": False, "disabledExtensions": dict.fromkeys(NOT_USED, True)}))
    folders |= lazily.put_beneath(os.environ)  # the server imports jsonschema
    log = machine.home / "lab.log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, env=machine.environ | folders, cwd=machine.work, stdout=out, stderr=out)
    try:
        machine.ok("up", "-n", "3", "--profile", "fast")
        for remote in ((), ("--remote",)):
            machine.ok("kernel", "install", "--prefix", str(machine.home / "prefix"), *remote)
        address = f"http://127.0.0.1:{port}"
        _until(
            lambda: _answers(f"{address}/api?token={TOKEN}") or process.poll() is not None,
            "Lab answers",
            START_TIMEOUT_S,
        )
        assert process.poll() is None, log.read_text()
        yield Server(address, process.pid, log)
    finally:
        process.kill()  # its kernels end with the machine
        process.wait(20)


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture(scope="package")
def lab(chromium: str, server: Server, machine: Machine) -> Iterator[Lab]:
    """The browser, at that server."""
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield Lab(browser.new_context(), server, machine, PICTURES)
        browser.close()


@pytest.fixture(scope="package")
def notebook(lab: Lab) -> Iterator[Notebook]:
    """The notebook whose cells stand in `watching`, with its monitor."""
    lab.write(NAME, *CELLS)
    opened = lab.open(NAME, 1280, 1000)
    opened.run(LOAD)
    opened.run(MONITOR)
    opened.monitor.wait_for()
    yield opened
    opened.close()
