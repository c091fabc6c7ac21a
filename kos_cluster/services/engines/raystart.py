"""The `ray` command, in a process of its own, with two things otherwise: see `rayenvironment`."""

from __future__ import annotations

START_TIMEOUT_S = 150.0

if __name__ == "__main__":
    from ray.scripts.scripts import main

    from kos_cluster.services.engines.rayenvironment import keep_loopback, patient

    keep_loopback()
    patient(START_TIMEOUT_S)
    main()
