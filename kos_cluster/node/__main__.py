"""`python -m kos_cluster.node`: runs one node until SIGTERM. `kos up`, `kos node` and others start it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

import uvloop

from kos_cluster.errors import KosError
from kos_cluster.home import Home
from kos_cluster.node import machine
from kos_cluster.node.daemon import PROFILES, Daemon, Start


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 after an orderly stop, a KosError's own otherwise."""
    parser = argparse.ArgumentParser(prog="python -m kos_cluster.node")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--advertise", default="", metavar="HOST")
    parser.add_argument("--bootstrap", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="lan")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--share", default="1/1", metavar="K/N")
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--resource", action="append", default=[], metavar="NAME=N")
    parser.add_argument("--no-beacon", action="store_true")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        uvloop.run(_serve(_start(options)))
    except KosError as error:
        logging.critical("%s", error)
        return error.exit_code
    return 0


def _start(options: argparse.Namespace) -> Start:
    host, port = _address(options.listen)
    advertised = options.advertise or (machine.primary_address() if host in ("0.0.0.0", "::") else host)
    return Start(
        cluster=Home().cluster(options.cluster),
        node=options.node,
        host=host,
        port=port,
        advertised=advertised,
        bootstrap=tuple(options.bootstrap),
        profile=options.profile,
        slots=options.slots or len(os.sched_getaffinity(0)),
        share=_share(options.share),
        beacon=not options.no_beacon,
        labels=_pairs(options.label),
        resources={name: int(count) for name, count in _pairs(options.resource).items()},
    )


def _share(text: str) -> tuple[int, int]:
    place, _, sharers = text.partition("/")
    return int(place), int(sharers)


def _pairs(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


async def _serve(start: Start) -> None:
    daemon = Daemon(start)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    await daemon.run()


if __name__ == "__main__":
    sys.exit(main())
