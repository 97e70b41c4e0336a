"""Recording: a function that runs once is a graph of its calls, and later runs are replays of the graph.

The life of a graph: *eager*, the function runs as written a few times; *traced*, it runs once more while the backend
notes its calls (`numpy/trace.py`) or CUDA captures them (`cupy/capture.py`); *bound*, the calls lie over fixed memory,
or, for lone operations, over the memory of each call (`numpy/plans.py`); *shared*, worker processes play a part of it
(`numpy/regions.py`). `compiled.py` is the door, `xpcnn.compile`, and `halves.py` a graph that waits in the middle for
one more array; `guards.py` says what a graph depends on that is no array, `tracing.py` what a function does on the host
while it is traced, `stand_ins.py` puts what stands for arrays in their places, `code.py` tells what code may read.
"""

from xpcnn.backend.graph.compiled import Compiled, compile
from xpcnn.backend.graph.guards import Guarded, changed
from xpcnn.backend.graph.halves import Halves
from xpcnn.backend.graph.tracing import Tracing, host, is_captured, is_tracing, see, traces, tracing

__all__ = [
    "Compiled",
    "Guarded",
    "Halves",
    "Tracing",
    "changed",
    "compile",
    "host",
    "is_captured",
    "is_tracing",
    "see",
    "traces",
    "tracing",
]
