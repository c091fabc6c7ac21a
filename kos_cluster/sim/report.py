"""What a run tells people: the story of one seed, what many came to, and how a failure is replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from kos_cluster.core.records import MemberState
from kos_cluster.sim.faults import KINDS
from kos_cluster.sim.run import Options, Result
from kos_cluster.sim.trace import Note, Trace

TAIL_LINES = 40  # of the trace, shown with a failure
_NOTABLE = frozenset({"fault", "crashed", "started", "halts", "leader", "restored", "healed", "change", "VIOLATION"})
_HELD = {str(MemberState.DEAD), str(MemberState.LEFT)}


def is_notable(note: Note) -> bool:
    """Whether a note belongs into the story: what failed, who led, who was held dead."""
    _, _, what, values = note
    return what in _NOTABLE or (what == "sees" and values[1] in _HELD)


def replay(seed: int, options: Options) -> str:
    """The command line that runs a seed again."""
    kinds = "all" if options.kinds == tuple(KINDS) else ",".join(options.kinds) or "none"
    minutes = f"{options.seconds / 60:.6f}".rstrip("0").rstrip(".")
    return f"kos sim --nodes {options.nodes} --seed {seed} --faults {kinds} --minutes {minutes}"


def story(result: Result, options: Options) -> Iterator[str]:
    """What a seed came to."""
    yield (
        f"seed {result.seed}: {result.at_s:.1f} virtual seconds on {options.nodes} hosts, {result.faults} faults, "
        f"{result.crashes} crashes"
    )
    yield (
        f"raft: {result.terms} terms, {result.committed} entries committed, {result.answered} requests answered "
        f"({result.retried} asked again, {result.reads} reads), {result.kept_out} late holders of a lock kept out"
    )
    yield f"work: {result.actions} actions, {result.messages} messages"
    if not result.rule:
        yield f"every invariant held; {result.healed_after_s:.1f} s after healing all had caught up"


def failure(result: Result, options: Options, trace: Trace) -> Iterator[str]:
    """What was violated, what came before, and how to see it again."""
    yield "the last that happened:"
    yield from list(trace.tail())[-TAIL_LINES:]
    yield f"VIOLATED after {result.at_s:.3f} s: {result.what}"
    yield f"to replay: {replay(result.seed, options)}"


def summary(results: Sequence[Result]) -> Iterator[str]:
    """What many seeds came to."""
    failed = [result for result in results if result.rule]
    healed = sorted(result.healed_after_s for result in results if not result.rule)
    yield (
        f"{len(results)} seeds: {len(failed)} failed; {sum(r.crashes for r in results)} crashes "
        f"(at least {min(r.crashes for r in results)} a seed), {sum(r.faults for r in results)} faults, "
        f"{sum(r.committed for r in results)} entries committed, {sum(r.actions for r in results)} actions"
    )
    if healed:
        yield f"progress after healing: median {median(healed):.1f} s, longest {healed[-1]:.1f} s"
    rules = sorted({result.rule for result in failed})
    for rule in rules:
        seeds = sorted(result.seed for result in failed if result.rule == rule)
        yield f"{rule}: seeds {', '.join(map(str, seeds[:10]))}"
