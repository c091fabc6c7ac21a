"""One seed from beginning to end, and many of them.

Theory of operation. A seed and its `Options` decide everything: the world's shape, the schedule of faults, and all that
happens. A run lets the faults do their work, heals the world, and asks for progress. Many seeds run in as many
processes as asked for; their order does not matter, so a failure is found again with its seed alone.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterable, Iterator, Sequence
from random import Random

import msgspec

from kos_cluster.core.raft.config import VOTERS_LIMIT
from kos_cluster.sim.disk import Crash
from kos_cluster.sim.faults import KINDS, Fault, draw, plan
from kos_cluster.sim.invariants import Violation
from kos_cluster.sim.linearizability import Outcome, check
from kos_cluster.sim.patching import SMALL_BOUNDS, patched
from kos_cluster.sim.replica import Doom
from kos_cluster.sim.sequential import Register
from kos_cluster.sim.trace import Trace
from kos_cluster.sim.world import Shape, World

HISTORY_STATES_LIMIT = 20_000  # searched for one history; one that needs more is not judged
CHUNK_SEEDS = 8  # that a process takes at once
DOWN_S = 1.0  # for which a host that died at a crash point stays down
SMALL_SHARE = 0.7  # of the seeds have small bounds; the others the product's
UNEXPECTED = "unexpected error"  # the rule that an exception of a machine breaks


class Options(msgspec.Struct, frozen=True):
    """What is the same for all seeds of a run."""

    nodes: int = 5
    seconds: float = 20.0  # until the world is healed
    kinds: tuple[str, ...] = tuple(KINDS)
    membership: bool = True


class Result(msgspec.Struct, frozen=True):
    """What came of a seed. `rule` is empty when every invariant held and progress came."""

    seed: int
    rule: str
    what: str
    at_s: float
    crashes: int
    faults: int
    terms: int
    committed: int
    answered: int
    retried: int
    reads: int
    kept_out: int
    messages: int
    actions: int
    healed_after_s: float


def shape_of(seed: int, options: Options) -> Shape:
    """Half of the worlds begin with all nodes as voters, the others with three and some that may join; half of them in
    the middle of an upgrade.
    """
    random = Random(f"{seed}/shape")
    everybody = 0 if options.nodes <= VOTERS_LIMIT else VOTERS_LIMIT
    voters = 3 if options.nodes > 3 and random.random() < 0.5 else everybody
    old = random.choice((0, 0, 1, 2))
    return Shape(options.nodes, voters, old, calm=not options.kinds, membership=options.membership)


def schedule_of(seed: int, options: Options) -> tuple[Fault, ...]:
    """What goes wrong in a seed."""
    return draw(Random(f"{seed}/faults"), options.kinds, options.nodes, options.seconds)


def run_seed(
    seed: int,
    options: Options,
    trace: Trace | None = None,
    schedule: Sequence[Fault] | None = None,
    doom: tuple[str, Doom] | None = None,
) -> Result:
    """Run one seed. A `schedule` replaces the one that the seed draws; `doom` strikes one host besides."""
    small = Random(f"{seed}/bounds").random() < SMALL_SHARE
    faults = schedule_of(seed, options) if schedule is None else tuple(schedule)
    with patched(SMALL_BOUNDS if small else ()):
        world = World(seed, shape_of(seed, options), trace or Trace())
        plan(world, faults)
        if doom is not None:
            world.replicas[doom[0]].doom = doom[1]
        return _run(seed, options, world, len(faults))


def crash_points(seed: int, options: Options, host: str, writes: int) -> Iterator[Result]:
    """Run a seed once for each of the first writes of a host and each point of it at which the host can die."""
    for write in range(writes):
        for crash in Crash:
            yield run_seed(seed, options, schedule=(), doom=(host, Doom(crash, write, DOWN_S)))


def _run(seed: int, options: Options, world: World, faults: int) -> Result:
    rule = what = ""
    healed_after_s = 0.0
    try:
        world.begin()
        world.run(options.seconds)
        world.heal()
        healed_after_s = world.progress()
        _check_histories(world)
    except Violation as violation:
        rule, what = violation.rule, str(violation)
        world.note("-", "VIOLATION", what)
    except Exception as error:  # of a machine: that is a finding as much as a violation is, and must not lose its seed
        rule, what = UNEXPECTED, _where(error)
        world.note("-", "VIOLATION", what)
    return _result(seed, world, rule, what, faults, healed_after_s)


def _check_histories(world: World) -> None:
    for name, history in world.workload.histories().items():
        verdict = check(history, Register(), HISTORY_STATES_LIMIT)
        if verdict.outcome is Outcome.NOT_LINEARIZABLE:
            raise Violation("linearizable history", f"of the setting {name!r}: {verdict}")


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = ", ".join(f"{frame.name} (line {frame.lineno} of {frame.filename.rpartition('/')[2]})" for frame in frames)
    return f"{UNEXPECTED}: {type(error).__name__}: {error} in {places}"


def _result(seed: int, world: World, rule: str, what: str, faults: int, healed_after_s: float) -> Result:
    workload = world.workload
    return Result(
        seed,
        rule,
        what,
        world.agenda.now_s,
        world.crashes,
        faults,
        max(world.rules.leaders, default=0),
        world.rules.frontier,
        workload.answered,
        workload.retried,
        workload.reads,
        workload.kept_out,
        world.messages,
        world.actions,
        healed_after_s,
    )


def run_many(seeds: Iterable[int], options: Options, processes: int = 1) -> Iterator[Result]:
    """Run seeds, in as many processes as given; results come as they are ready."""
    if processes <= 1:
        yield from (run_seed(seed, options) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_Runner(options), seeds, chunksize=CHUNK_SEEDS)


class _Runner:
    """What a process does with a seed; it can be pickled."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def __call__(self, seed: int) -> Result:
        return run_seed(seed, self._options)
