"""What must be the same on all ranks is compared, and an error names the rank that has something else."""

from __future__ import annotations

from typing import Any

from xpcnn.distributed.communicator import Communicator
from xpcnn.errors import ConfigError


def agree(communicator: Communicator, mine: dict[str, Any]) -> None:
    """Raise ConfigError on all ranks, naming one, where a rank has something else than rank 0 under a name."""
    every = communicator.gather(mine)
    first = every[0]
    for rank, other in enumerate(every):
        for name in [*first, *(name for name in other if name not in first)]:
            if other.get(name) != first.get(name):
                raise ConfigError(
                    f"rank {rank}: {name}: expected {first.get(name)!r:.80} as rank 0 has it, got "
                    f"{other.get(name)!r:.80}; start all ranks with the same program, data and seed"
                )
