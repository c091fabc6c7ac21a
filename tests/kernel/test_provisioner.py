"""A kernel that runs on a node and is used as if local: three real nodes, and Jupyter's own client on the laptop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager

import kos_cluster as kos_package
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, KosError, NoSuchTaskError, UnreachableError
from kos_cluster.home import Home
from kos_cluster.net import kernels as asks
from kos_cluster.tasks import kernels as remote_kernels
from kos_cluster.tasks.kernels import KernelSpec
from kos_cluster.tasks.options import Options
from kos_kernel import provisioner
from tests.kernel import conformance, lasting
from tests.kernel.clusters import add_user, cluster_of, kos
from tests.kernel.kernels import Kernel
from tests.kernel.laptop import Laptop

WAIT_S = 30.0
NAME = "kos-remote"
SHOWN = 2000  # messages


def until(condition: Callable[[], object], what: str = "the condition did not come about") -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Three nodes, and a kernelspec for them; the KOS_HOME."""
    folder = tmp_path_factory.mktemp("jupyter")
    with cluster_of(3) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(folder))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        done = kos("kernel", "install", "--user", "--remote", "--cpus", "1", "--memory", "1G", home=found)
        assert done.returncode == 0, done.stderr
        yield found
        kos_package.connect(home=Path(found)).close()


@pytest.fixture(scope="module")
def laptop() -> Iterator[Laptop]:
    """Made before the first kernel, so that it has all links."""
    with pytest.MonkeyPatch.context() as patch:
        yield Laptop(patch)


@pytest.fixture(scope="module")
def kernel(home: str, laptop: Laptop) -> Iterator[Kernel]:
    """One for all tests that leave it as they found it."""
    started = Kernel({}, name=NAME)
    yield started
    started.stop()


def folder_of(home: str, kernel: Kernel) -> Path:
    """What the kernel's node keeps of it."""
    found = there(kernel)
    return Home(Path(home)).cluster().run(found.node_name) / "kernels" / found.id


def there(kernel: Kernel) -> remote_kernels.RemoteKernel:
    found = kernel.manager.provisioner._kernel
    assert found is not None
    return found


def test_the_kernelspec_says_what_it_needs(tmp_path: Path) -> None:
    """Without a cluster nobody can say whether a node can run it."""
    words = ("--prefix", str(tmp_path), "--remote", "--cpus", "4", "--memory", "8G", "--on", "node2")
    done = kos("kernel", "install", *words, home=str(tmp_path / "none"))
    assert "4 cores, 8 GiB on node2" in done.stdout
    assert done.stderr.startswith("kos: whether a node can run it is seen when it starts: ")
    assert done.stderr.count("\n") == 1
    spec = json.loads((tmp_path / "share" / "jupyter" / "kernels" / NAME / "kernel.json").read_text())
    assert spec["metadata"]["kernel_provisioner"] == {
        "provisioner_name": "kos-provisioner",
        "config": {"cluster": "", "cpus": 4, "memory": 8 << 30, "on": "node2"},
    }
    assert spec["interrupt_mode"] == "message"


def test_it_runs_on_a_node(home: str, kernel: Kernel) -> None:
    node = kernel.value("__import__('os').environ['KOS_NODE']")
    assert node in ("node1", "node2", "node3") and node == there(kernel).node_name
    (job,) = [job for job in json.loads(kos("ps", "--json", home=home).stdout) if job["job"] == there(kernel).id]
    assert job["running"] == 1 and job["name"].startswith("kernel of ")
    (row,) = [row for row in json.loads(kos("nodes", "--json", home=home).stdout) if row["name"] == node]
    assert row["running"] == 1  # its slot is taken


def test_its_tasks_run_on_the_cluster(kernel: Kernel) -> None:
    cell = kernel.run("import kos_cluster as kos\nprint(sum(kos.connect().map(abs, [-1, -2, -3])))")
    assert cell.text() == "6\n", cell.shown()


def test_it_asks_its_user(kernel: Kernel) -> None:
    cell = kernel.start("name = input('Who? ')\nprint('Hello', name)")
    asked = kernel.client.get_stdin_msg(timeout=WAIT_S)
    assert asked["content"]["prompt"] == "Who? "
    kernel.client.input("Ada")
    kernel.wait(lambda: cell.idle)
    assert cell.text() == "Hello Ada\n"


def test_an_interrupt_reaches_it(kernel: Kernel) -> None:
    cell = kernel.start("import time\nprint('asleep', flush=True)\ntime.sleep(600)")
    kernel.wait(lambda: "asleep" in cell.text())
    kernel.interrupt()
    kernel.wait(lambda: cell.idle)
    assert cell.error["ename"] == "KeyboardInterrupt"
    assert kernel.value("1 + 1") == "2"


def test_an_interrupt_stops_its_tasks(home: str, kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    cell = kernel.start(lasting.code(path, "list(cluster.map(work, [path] * 2, fresh=True))"))
    pids = lasting.processes(path, 2)
    kernel.interrupt()
    lasting.wait_gone(pids)
    kernel.wait(lambda: cell.idle)
    assert cell.error["ename"] == "KeyboardInterrupt"
    until(lambda: running(home) == {there(kernel).id}, "a task is held to run")
    assert kernel.value("1 + 1") == "2"


def running(home: str) -> set[str]:
    """The jobs of which something runs."""
    return {job["job"] for job in json.loads(kos("ps", "--json", home=home).stdout) if job["running"]}


def test_a_node_keeps_it_to_itself(home: str, kernel: Kernel) -> None:
    """The connection file is 0600 in a 0700 folder, the channels are UNIX sockets, and no port is open to others.

    ipykernel has one loopback port of its own, for what forked children print.
    """
    folder = folder_of(home, kernel)
    file = folder / "connection.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert json.loads(file.read_text())["transport"] == "ipc"
    process = psutil.Process(int(kernel.value("__import__('os').getpid()")))
    ports = [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert ports in ([], ["127.0.0.1"])
    assert sorted(path.name for path in folder.iterdir() if path.is_socket()) == [f"k-{n}" for n in range(1, 6)]
    ours = Path(kernel.manager.connection_file)
    assert stat.S_IMODE(ours.stat().st_mode) == 0o600 and json.loads(ours.read_text())["ip"] == "127.0.0.1"


def test_the_laptop_sleeps_and_nothing_is_lost(kernel: Kernel, laptop: Laptop, tmp_path: Path) -> None:
    """What a cell shows meanwhile, and that it has ended, is there when the laptop is awake again.

    It is more than what a plain kernel keeps for a client that does not read (1,000 messages), or a tunnel.
    """
    go, done = tmp_path / "go", tmp_path / "done"
    cell = kernel.start(
        "import pathlib, time\nprint('before', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists():\n    time.sleep(0.01)\n"
        f"for number in range({SHOWN}):\n    display(number)\n"
        f"pathlib.Path({str(done)!r}).touch()"
    )
    kernel.wait(lambda: bool(cell.text()))
    laptop.asleep = True
    laptop.cut()
    go.touch()
    until(done.exists)
    assert not cell.idle and kernel.manager.is_alive()
    laptop.asleep = False
    kernel.wait(lambda: cell.idle)
    assert cell.shown() == ["before\n", *(f"[display_data] {number}" for number in range(SHOWN))]
    assert kernel.value("number") == str(SHOWN - 1)


def test_another_process_of_jupyter_goes_on_with_it(kernel: Kernel) -> None:
    """As after a restart of the server: it has kept the connection file, and what the provisioner has told."""
    kernel.run("kept = 1")
    ours = kernel.manager.provisioner
    info = json.loads(json.dumps(asyncio.run(ours.get_provisioner_info()), default=bytes.decode))
    ours._tunnels.close()
    other = type(ours)(parent=kernel.manager, kernel_spec=kernel.manager.kernel_spec, kernel_id=ours.kernel_id)
    asyncio.run(other.load_provisioner_info(info))
    kernel.manager.provisioner = other
    kernel.client.wait_for_ready(timeout=WAIT_S)  # its sockets connect again, one by one
    assert kernel.value("kept") == "1" and kernel.manager.is_alive()


def test_restart_and_shutdown_leave_nothing(home: str, tmp_path: Path) -> None:
    """With the manager that JupyterLab has; tasks are in flight, for which a cell waits or none does."""
    run = Home(Path(home)).cluster().run
    hosts, others = hosts_now(), running(home)

    async def value(client: Any, expression: str) -> str:
        reply = await client.execute("", user_expressions={"value": expression}, reply=True, timeout=WAIT_S)
        return str(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])

    async def submitted(client: Any, name: str, code: str) -> set[int]:
        client.execute(lasting.code(tmp_path / name, code))
        return await asyncio.to_thread(lasting.processes, tmp_path / name, 1)

    async def use() -> None:
        manager = AsyncKernelManager(kernel_name=NAME)
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=WAIT_S)
        first, ports = manager.provisioner._kernel, manager.get_connection_info()
        pids = [int(await value(client, "[before := 1, __import__('os').getpid()][1]"))]
        pids += await submitted(client, "first", "kept = cluster.submit(work, path, fresh=True)")
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=WAIT_S)
        second = manager.provisioner._kernel
        assert await value(client, "'before' in globals()") == "False"
        assert second.id != first.id and manager.get_connection_info() == ports and await manager.is_alive()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "a restart leaves something")
        pids = [int(await value(client, "__import__('os').getpid()"))]
        pids += await submitted(client, "second", "kept = cluster.submit(work, path, fresh=True)\nwhile True: pass")
        client.stop_channels()
        await manager.shutdown_kernel()
        assert not await manager.is_alive() and first.ended() and second.ended()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "a shutdown leaves something")
        until(lambda: hosts_now() <= hosts, "a host goes on")
        assert not any((run(each.node_name) / "kernels" / each.id).exists() for each in (first, second))
        assert not Path(manager.connection_file).exists()
        for name in ("shell", "iopub", "stdin", "control", "hb"):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", ports[f"{name}_port"])) != 0
        jobs = json.loads(kos("ps", "--json", home=home).stdout)
        assert not {first.id, second.id} & {job["job"] for job in jobs}
        until(lambda: running(home) <= others, "a task is held to run")

    asyncio.run(use())


def hosts_now() -> set[int]:
    """The processes that have kernels on nodes."""
    found = psutil.process_iter(["cmdline"])
    return {process.pid for process in found if "kos_cluster.tasks.kernelhost" in (process.info["cmdline"] or [])}


@pytest.fixture(scope="module")
def others(home: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Role, Path]]:
    """Two more users of the cluster, by their role: the KOS_HOME of each."""
    homes = {role: tmp_path_factory.mktemp(role) for role in (Role.CLIENT, Role.OBSERVER)}
    for role, folder in homes.items():
        add_user(Path(home), role, folder)
    yield homes
    for folder in homes.values():
        kos_package.connect(home=folder).close()


def test_another_user_does_not_get_to_it(kernel: Kernel, others: dict[Role, Path]) -> None:
    known = there(kernel)
    theirs = kos_package.connect(home=others[Role.CLIENT]).kernel(known.id, known.node, known.node_name)
    for call in (lambda: theirs.dial("shell", "t", new=True, received=0), theirs.stop):
        with pytest.raises(AuthError, match="belongs to"):
            call()
    ours = kos_package.connect(home=known._mesh.home.home.path)
    with pytest.raises(NoSuchTaskError, match="knows no kernel 'nothing'"):
        ours.kernel("nothing", known.node, known.node_name).dial("shell", "t", new=True, received=0)
    with pytest.raises(KosError, match="no socket 'other'"):
        known.dial("other", "t", new=True, received=0)
    assert kernel.value("1 + 1") == "2"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such node": ({"on": "attic"}, "No node is named 'attic'. The cluster has node1, node2, node3."),
    "too many cores": ({"cpus": 999}, "needs 999 slots, it has"),
    "too much memory": ({"memory": "900T"}, "needs 921600 GiB, the largest is"),
    "no cores": ({"cpus": 0}, "cpus=0 is not a whole number from 1"),
    "no amount": ({"memory": "much"}, "'much' is not an amount of memory"),
    "no such cluster": ({"cluster": "elsewhere"}, "not in a cluster named 'elsewhere'"),
}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--cpus", "999"), "needs 999 slots, it has 1"),
        (("--memory", "900T"), "needs 921600 GiB, the largest is"),
        (("--on", "attic"), "No node is named 'attic'. The cluster has node1, node2, node3."),
    ],
)
def test_what_the_cluster_can_never_run_is_not_installed(
    home: str, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = kos("kernel", "install", "--prefix", str(tmp_path), "--remote", *words, home=home)
    assert done.returncode != 0 and sentence in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(case: str) -> None:
    """As JupyterLab shows it: the text of the exception that starting a kernel raises."""
    config, sentence = REFUSED[case]
    manager = KernelManager(kernel_name=NAME)
    manager.kernel_spec.metadata["kernel_provisioner"]["config"].update(config)
    with pytest.raises(RuntimeError) as refused:
        manager.start_kernel()
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    manager.cleanup_resources()


def test_who_may_only_look_starts_no_kernel(others: dict[Role, Path]) -> None:
    cluster = kos_package.connect(home=others[Role.OBSERVER])
    with pytest.raises(AuthError, match=r"The role observer of .* may look, but not run work"):
        cluster.start_kernel(KernelSpec("k", "hmac-sha256", Options()))
    for ask in (asks.StartKernel("k", 1, 0, "k", "hmac-sha256", {}, ""), asks.KernelOf("k"), asks.StopKernel("k")):
        with pytest.raises(AuthError, match="The role observer of"):  # and the node does not take their word
            cluster._mesh.request(ask, bool)


class Lost:
    """A kernel on a node that is cut off: held to be dead, and running."""

    id, node, node_name = "k", "node-9", "node9"

    def __init__(self) -> None:
        self.cut_off = True
        self.stopped = False

    def ended(self) -> str:
        return "the node is dead"

    def stop(self) -> bool:
        if self.cut_off:
            raise UnreachableError("Node node9 cannot be reached.")
        self.stopped = True
        return True


def test_a_kernel_whose_node_comes_back_is_ended_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioner, "STOP_AGAIN_S", 0.0)
    lost, ours = Lost(), provisioner.KosProvisioner(kernel_id="x")
    ours._kernel = lost

    async def polled() -> list[int | None]:
        codes = [await ours.poll(), await ours.poll()]
        assert not lost.stopped
        lost.cut_off = False
        return [*codes, await ours.poll()]

    assert asyncio.run(polled()) == [1, 1, 1] and lost.stopped


class TestConformance(conformance.Conformance):
    kernel_name = NAME


def test_a_node_that_dies_is_reported_and_the_kernel_starts_elsewhere(
    home: str, kernel: Kernel, tmp_path: Path, caplog: Any
) -> None:
    """The last test: a node less. Where a kernel dies no task of it is left, be it on a node that lives."""
    kernel.run(lasting.code(tmp_path / "pids", "kept = cluster.map(work, [path] * 2, fresh=True)"))
    tasks = lasting.processes(tmp_path / "pids", 2)
    pid = int(kernel.value("[before := 1, __import__('os').getpid()][1]"))
    lost = there(kernel)
    (row,) = [row for row in json.loads(kos("nodes", "--json", home=home).stdout) if row["name"] == lost.node_name]
    with caplog.at_level(logging.ERROR, logger=kernel.manager.log.name):
        os.kill(row["pid"], signal.SIGKILL)
        until(lambda: not kernel.manager.is_alive(), "its death is not seen")
    assert f"Kernel {lost.id} has died, which ran on node {lost.node_name}: the node is dead." in caplog.text
    until(lambda: not psutil.pid_exists(pid), "the kernel outlives its node")
    lasting.wait_gone(tasks)
    kernel.restart()
    assert there(kernel).node_name != lost.node_name
    cell = kernel.run("print('before' in globals())")
    assert cell.text() == "False\n"
    last = f"without the variables of the last, which ran on node {lost.node_name}: the node is dead."
    assert cell.text("stderr") == f"kos: this kernel is a new one, {last}\n"
    assert kernel.run("1").text("stderr") == ""
    with caplog.at_level(logging.ERROR, logger=kernel.manager.log.name):
        kernel.run(lasting.code(tmp_path / "more", "kept = cluster.submit(work, path, fresh=True)"))
        tasks = lasting.processes(tmp_path / "more", 1)
        kernel.start("__import__('os')._exit(3)")  # and as it may end anywhere
        until(lambda: not kernel.manager.is_alive(), "its end is not seen")
    lasting.wait_gone(tasks)
    ended = there(kernel)
    assert (
        f"Kernel {ended.id} has died, which ran on node {ended.node_name}: its process ended (exit code 3"
        in caplog.text
    )
