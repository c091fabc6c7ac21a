"""What users read and write in the cluster's registers, as any node carries it out by agreement.

Rules: who may ask is decided before (`answers`). A read answers with everything that was decided before it came. A
write is checked against what is applied here, then decided by the voters; that a register holds something else than
was expected is an answer, not an error.
"""

from __future__ import annotations

from kos_cluster.core import registers
from kos_cluster.core.replicated import commands
from kos_cluster.errors import ConflictError
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.node.consensus import Consensus


async def read(consensus: Consensus, asked: RegistersAsked) -> dict[str, str | None]:
    """The one that was asked for, or all that are set. Raises UnreachableError, UsageError."""
    if not asked.name:
        return {**registers.registers((await consensus.read()).settings.snapshot())}
    setting = registers.setting_of(asked.name)
    return {asked.name: (await consensus.read()).settings.get(setting)}


async def write(consensus: Consensus, asked: RegisterWritten) -> bool:
    """Whether it was written. Raises UnreachableError, UsageError, LimitError."""
    setting = registers.setting_of(asked.name)
    registers.check_room(consensus.state.settings.snapshot(), asked.name, asked.value)
    command: commands.Command = commands.SetSetting(setting, asked.value)
    if asked.compare:
        command = commands.SwapSetting(setting, asked.expected, asked.value)
    try:
        await consensus.propose(command)
    except ConflictError:
        return False
    return True
