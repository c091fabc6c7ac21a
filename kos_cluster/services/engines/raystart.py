"""The `ray start` command in a process of its own, with three things otherwise for which Ray has no setting.

It takes 127.0.0.1 as it is, see `rayenvironment.keep_loopback`. It waits longer for its raylet to be known: Ray has
30 s, in which a busy machine does not load all of Ray's Python processes. And it writes down for the raylet that its
agent serves no HTTP, as the agent does later: the raylet waits 15 s for that and then ends.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
from typing import Any

START_TIMEOUT_S = 150.0
LOOK_S = 0.1


def _be_patient() -> None:
    from ray._private import services

    ask, start = services.get_node, services.start_raylet
    raylets = []

    def start_raylet(*args: Any, **keywords: Any) -> Any:
        told = inspect.signature(start).bind(*args, **keywords).arguments
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.persist_port(told["session_dir"], told["node_id"], raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME, -1)
        raylets.append(start(*args, **keywords))
        return raylets[-1]

    def get_node(*args: Any) -> Any:
        until_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return ask(*args)
            except RuntimeError:  # it is not known yet
                if time.monotonic() > until_s:
                    raise
                if any(raylet.process.poll() is not None for raylet in raylets):
                    print("The raylet has ended while it started.", file=sys.stderr, flush=True)
                    os._exit(1)
                time.sleep(LOOK_S)

    services.start_raylet, services.get_node = start_raylet, get_node


if __name__ == "__main__":
    from ray.scripts.scripts import main

    from kos_cluster.services.engines.rayenvironment import keep_loopback

    keep_loopback()
    _be_patient()
    main()
