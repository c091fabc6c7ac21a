"""`kos sim --workload`: what it costs an owner to place tasks on 10, 100 and 1,000 nodes, beside what it may cost."""

from __future__ import annotations

import time

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.sim import placing
from kos_cluster.sim.placing import Placed

RATIO_LIMIT = 2.0  # the cost of a task on the most nodes to that on the fewest
COLUMNS = (
    Column("NODES", right=True),
    Column("TASKS", right=True),
    Column("COST A TASK", right=True),
    Column("RATIO", right=True),
    Column("REFUSED", right=True),
    Column("VIRTUAL TIME", right=True),
    Column("SLOTS USED", right=True),
)


def show(seed: int, tasks: int, console: Console) -> bool:
    """Measure each size, and print all of it; whether the aim was reached."""
    console.note(f"{tasks:,} tasks are placed on each of {', '.join(map(str, placing.SIZES))} nodes, one at a time.")
    found: list[Placed] = []
    for nodes in placing.SIZES:
        found.append(placing.measure(nodes, tasks, seed, time.process_time))
        console.note(f"{nodes} nodes: {found[-1].cost_us:.1f} us of the owner's processor a task")
    first, last = found[0], found[-1]
    console.table(COLUMNS, [_row(each, first) for each in found])
    ratio = last.cost_us / first.cost_us
    reached = ratio <= RATIO_LIMIT
    console.answer(
        f"seed {seed}: on {last.nodes:,} nodes a task costs {ratio:.2f} times what it costs on {first.nodes}; "
        f"{'the aim is' if reached else 'NOT reached:'} at most {RATIO_LIMIT:g}"
    )
    return reached


def _row(each: Placed, first: Placed) -> list[str]:
    return [
        f"{each.nodes:,}",
        f"{each.tasks:,}",
        f"{each.cost_us:.1f} us",
        f"{each.cost_us / first.cost_us:.2f}",
        f"{each.refused:,}",
        f"{each.took_s:,.0f} s",
        f"{100 * each.used_share:.0f}%",
    ]
