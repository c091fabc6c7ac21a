"""What the grammar is built with: a parser that raises instead of printing, and sub-commands with their actions.

Rules: see `grammar`, whose parts share these.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from kos_cluster.errors import UsageError


class Shown(Exception):
    """`--help` or `--version` was asked; `text` is the answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class _ShowHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise Shown(parser.format_help())


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises instead of printing and exiting."""

    before_command = False  # what stands after `--` is a command to run, and becomes `argv`

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "add_help": False, "allow_abbrev": False})
        self.add_argument("-h", "--help", action=_ShowHelp, nargs=0, default=argparse.SUPPRESS, help="show this help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(args or ())
        if not self.before_command:
            return super().parse_known_args(words, namespace)
        end = words.index("--") if "--" in words else len(words)
        parsed, unknown = super().parse_known_args(words[:end], namespace)
        parsed.argv = words[end + 1 :]
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", f"Type '{self.prog} --help'.")


class Commands:
    """Adds sub-commands that all take `--cluster`, and gives each its action."""

    def __init__(self, parser: Parser, *, required: bool = True) -> None:
        self._sub: argparse._SubParsersAction[Parser] = parser.add_subparsers(
            metavar="COMMAND", required=required, dest="_command"
        )

    def add(self, name: str, summary: str, action: str = "") -> Parser:
        parser = self._sub.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        if action:
            add_cluster(parser, argparse.SUPPRESS)
            parser.set_defaults(action=action, typed=parser.prog)
        return parser


def add_cluster(parser: argparse.ArgumentParser, default: str | None) -> None:
    """The option that all commands take."""
    parser.add_argument(
        "--cluster",
        metavar="NAME",
        default=default,
        help="the cluster to use, when this machine is in several (also: KOS_CLUSTER)",
    )


def add_json(parser: Parser) -> None:
    """The option of what gives records."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
