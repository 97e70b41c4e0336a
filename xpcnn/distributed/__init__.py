"""Past one process: ranks that a launcher starts train one model together, each on its share of every batch."""

from xpcnn.distributed.communicator import Communicator
from xpcnn.distributed.start import init, joined

__all__ = ["Communicator", "init", "joined"]
