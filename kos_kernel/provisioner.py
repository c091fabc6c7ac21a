"""The kernel provisioner "kos-provisioner": Jupyter's kernel runs on a node of the cluster, and is used as if local.

Theory of operation. Jupyter asks a provisioner to start, watch and end the process of a kernel; all else it says to the
kernel itself, over five sockets. Here the process is a kernel on a node (`tasks.kernels`), chosen as tasks are placed,
and the sockets are loopback ports that lead there (`kos_kernel.tunnels`). An interrupt is a message on the control
channel, as the kernelspec says. The ports outlive a restart, so Jupyter's clients find the new kernel at the old
address, wherever it runs.

Rules. What Jupyter keeps in its connection file is of this machine: the loopback ports and the key of the messages. A
kernel is dead when its node says so, or the cluster says so of its node; a laptop that has slept says nothing of it. A
kernel whose node could not be told to end it is told later, when it is back.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Int, Unicode
from traitlets import Union as Either

import kos_cluster as kos
from kos_cluster.errors import KosError, UsageError
from kos_cluster.tasks.kernels import KernelSpec, RemoteKernel
from kos_cluster.tasks.options import Options
from kos_kernel.remote import NOTICE
from kos_kernel.tunnels import CHANNELS, LOOPBACK, Tunnels

POLL_S = 0.2  # between two looks at the kernel
STOP_AGAIN_S = 10.0  # between two tries to end a kernel whose node could not be told
LEFT_LIMIT = 16  # of such kernels; the oldest is given up
SHUTDOWN_WAIT_S = 10.0  # for a kernel to end by itself; half of it before it is stopped
STABLE_START_S = 20.0  # for which it must run before its death counts as one of a new row
_OWN = ("KOS_HOME", "KOS_CLUSTER")  # variables that mean something else on another machine


class KosProvisioner(KernelProvisionerBase):
    """See the module. Its traits are the `config` of the kernelspec's provisioner."""

    cluster = Unicode("", config=True, help="The cluster to run on; empty: the current one.")
    cpus = Int(1, config=True, help="Slots that the kernel takes on its node.")
    memory = Either([Int(), Unicode()], default_value=0, config=True, help="Memory that it needs, as 8G or in bytes.")
    on = Unicode("", config=True, help="The name of the node to run on; empty: any.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernel: RemoteKernel | None = None
        self._tunnels: Tunnels | None = None
        self._ended = ""  # where the kernel ran and how it ended, to be said of it
        self._looked_s = 0.0
        self._looking = threading.Lock()
        self._expected = False  # somebody has asked for its end
        self._left: list[RemoteKernel] = []  # that are still to be stopped
        self._tried_s = 0.0

    # ---- the life of the kernel

    @property
    def has_process(self) -> bool:
        return self._kernel is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        extra = kwargs.pop("extra_arguments", [])
        kwargs.pop("transport_encryption", None)
        manager = self.parent
        if manager is None:
            raise UsageError("The KOS provisioner works for a KernelManager.", "Start the kernel through Jupyter.")
        if self._tunnels is None:
            self._tunnels = Tunnels()
        manager.transport, manager.ip = "tcp", LOOPBACK
        for channel, port in self._tunnels.ports.items():
            setattr(manager, f"{channel}_port", port)
        manager.write_connection_file(jupyter_session=kwargs.get("env", {}).get("JPY_SESSION_NAME", ""))
        self.connection_info = manager.get_connection_info()
        return await super().pre_launch(cmd=manager.format_kernel_cmd(extra_arguments=extra), **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel on a node. Raises RuntimeError with a sentence for the user."""
        before, self._kernel = self._kernel, None
        if before is not None:
            self._leave(before)
        assert self._tunnels is not None and self.parent is not None
        session = self.parent.session
        try:
            options = Options(cpus=self.cpus, memory=self.memory, on=self.on, env=self._environ(kwargs.get("env", {})))
            spec = KernelSpec(session.key.decode(), session.signature_scheme, options, str(kwargs.get("cwd") or ""))
            self._kernel = await self._started(spec)
        except KosError as error:
            if before is None and not self._ended:  # Jupyter forgets a kernel that has never run
                await self.cleanup()
            raise RuntimeError(str(error)) from None
        self._ended, self._expected, self._looked_s = "", False, time.monotonic()
        self.log.info("Kernel %s runs on node %s.", self._kernel.id, self._kernel.node_name)
        self._tunnels.serve(self._kernel)
        return self.connection_info

    async def poll(self) -> int | None:
        kernel = self._kernel
        if kernel is None:
            return 0
        if not self._ended:
            await asyncio.to_thread(self._look, kernel)
        await self._stop_left()
        return None if not self._ended else int(not self._expected)

    async def wait(self) -> int | None:
        while (code := await self.poll()) is None:
            await asyncio.sleep(POLL_S)
        self._kernel = None
        return code

    async def send_signal(self, signum: int) -> None:
        """An end is the only signal that travels; interrupts are messages."""
        if self._kernel is None or signum == 0:
            return
        if signum not in (signal.SIGTERM, signal.SIGKILL):
            self.log.warning("Signal %d is not sent to a kernel on a node.", signum)
            return
        if self._ended:
            return
        self._expected = True
        if not await asyncio.to_thread(_stopped, self._kernel):
            self._leave(self._kernel)
            self._ended = (
                f"which ran on node {self._kernel.node_name}: that could not be told to end it, and is told later"
            )

    async def kill(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        self._expected = not self._ended

    async def cleanup(self, restart: bool = False) -> None:
        if self._tunnels is not None:
            await asyncio.to_thread(self._tunnels.rest if restart else self._tunnels.close)
        if not restart:
            self._tunnels = None

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        return max(recommended, SHUTDOWN_WAIT_S)

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        return max(recommended, STABLE_START_S)

    # ---- another process of Jupyter goes on with it

    async def get_provisioner_info(self) -> dict[str, Any]:
        info = await super().get_provisioner_info()
        kernel = self._kernel
        if kernel is not None and self._tunnels is not None:
            info["kos"] = {"id": kernel.id, "node": kernel.node, "name": kernel.node_name}
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        known = provisioner_info.get("kos")
        if known:
            cluster = await asyncio.to_thread(self._connect)
            self._kernel = cluster.kernel(known["id"], known["node"], known["name"])
            ports = dict(self.connection_info)
            self._tunnels = Tunnels({channel: int(str(ports[f"{channel}_port"])) for channel in CHANNELS})
            self._tunnels.serve(self._kernel)

    # ---- inside

    def _connect(self) -> kos.Cluster:
        home = self.kernel_spec.env.get("KOS_HOME")
        return kos.connect(self.cluster or None, home=Path(home) if home else None)

    async def _started(self, spec: KernelSpec) -> RemoteKernel:
        """Start a kernel; it is ended again when nobody waits for it any more."""
        starting = asyncio.ensure_future(asyncio.to_thread(lambda: self._connect().start_kernel(spec)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_end_unwanted)
            raise

    def _environ(self, given: dict[str, str]) -> dict[str, str]:
        """The variables that the kernel is to have: those of the kernelspec, not those of this machine."""
        names = ("JPY_SESSION_NAME", *self.kernel_spec.env)
        environ = {name: given[name] for name in names if name in given and name not in _OWN}
        if self._ended and not self._expected:
            environ[NOTICE] = f"this kernel is a new one, without the variables of the last, {self._ended}."
        return environ

    def _look(self, kernel: RemoteKernel) -> None:
        """See whether the kernel has ended, unless somebody has just looked."""
        with self._looking:
            if self._ended or time.monotonic() - self._looked_s < POLL_S:
                return
            why = kernel.ended()
            self._looked_s = time.monotonic()
            if why:
                self._ended = f"which ran on node {kernel.node_name}: {why}"
                if not self._expected:
                    self.log.error("Kernel %s has died, %s.", kernel.id, self._ended)
                    self._leave(kernel)

    def _leave(self, kernel: RemoteKernel) -> None:
        """Remember a kernel that may run on."""
        self._left = [*self._left, kernel][-LEFT_LIMIT:]

    async def _stop_left(self) -> None:
        if self._left and time.monotonic() - self._tried_s >= STOP_AGAIN_S:
            self._tried_s = time.monotonic()
            self._left = [kernel for kernel in self._left if not await asyncio.to_thread(_stopped, kernel)]


def _end_unwanted(starting: asyncio.Future[RemoteKernel]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        threading.Thread(target=_stopped, args=(starting.result(),), name="kos-unwanted").start()


def _stopped(kernel: RemoteKernel) -> bool:
    """Have it ended; False when its node cannot be told."""
    try:
        kernel.stop()
    except KosError:
        return False
    return True
