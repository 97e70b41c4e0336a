"""A worker process: plays tapes over memory that it shares with the process that trains. Run by `worker.py` alone.

It imports NumPy and nothing of xpcnn, so that it is ready soon and takes little memory. Requests are lines of JSON on
standard input (an empty one only wakes it); everything else goes through counters in the shared memory.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import time
from functools import partial
from typing import Any

# Where counters lie in a helper's page, in words of 8 bytes; each writer has a cache line of its own.
GO, DONE, ASLEEP, ANSWERED, FAILED = 0, 8, 16, 17, 18
PAGE_WORDS = 512
TEXT = 1024  # bytes into the page: what went wrong, in UTF-8
TEXT_SIZE = 2048
# GO is a count times 2**20 plus the region, one word: two could be read one old, one new.
REGION_BITS = 20
REGIONS = (1 << REGION_BITS) - 1
MAIL = 0  # as a region: there is a request to read
SPIN_SECONDS = 2e-3  # a trainer's step leaves gaps of some 0.1 ms; to be woken costs 50 to 100 microseconds
GLANCE = 200  # turns of the spin between looks at the clock: some 5 microseconds
PARENT_SECONDS = 1.0  # a child of a fork may hold the pipe open: whether the parent is there is looked at this often


class Worker:
    """The loop, and the regions that it can play."""

    def __init__(self, file: int, size: int, index: int, parent: int) -> None:
        self.memory = mmap.mmap(file, size)
        self.words = memoryview(self.memory).cast("q")[index * PAGE_WORDS : (index + 1) * PAGE_WORDS]
        self.text = index * PAGE_WORDS * 8 + TEXT
        self.parent = parent
        self.rest = b""
        self.regions: dict[int, list[Any]] = {}

    def serve(self) -> None:
        """Wait for regions and play them, until the parent is gone."""
        words, regions = self.words, self.regions
        seen = 0
        while True:
            until = time.perf_counter() + SPIN_SECONDS
            while words[GO] == seen:
                for _ in range(GLANCE):
                    if words[GO] != seen:
                        break
                else:
                    os.sched_yield()
                    if time.perf_counter() > until:
                        self.sleep(seen)
                        until = time.perf_counter() + SPIN_SECONDS
            seen = words[GO]
            number = seen & REGIONS
            if number == MAIL:
                self.read()
            else:
                try:
                    for function, arguments in regions[number]:
                        function(*arguments)
                except Exception as error:
                    self.report(error)
            words[DONE] = seen

    def sleep(self, seen: int) -> None:
        words = self.words
        words[ASLEEP] = 1
        while words[GO] == seen and not self.has_mail(PARENT_SECONDS):
            if os.getppid() != self.parent:
                raise SystemExit
        words[ASLEEP] = 0
        self.read()

    def has_mail(self, seconds: float = 0.0) -> bool:
        return bool(select.select([0], [], [], seconds)[0])

    def read(self) -> None:
        """Do what the requests that are there say, and take wake-ups off the pipe; a request begun is waited for."""
        import json

        while self.rest or self.has_mail():
            new = os.read(0, 1 << 16)
            if not new:
                raise SystemExit
            *lines, self.rest = (self.rest + new).split(b"\n")
            for line in lines:
                if line:
                    self.do(json.loads(line))
                    self.words[ANSWERED] += 1

    def do(self, request: dict[str, Any]) -> None:
        if "path" in request:
            sys.path[:] = request["path"]
            import numpy as np

            np.seterr(all="ignore")
        for number in request.get("drop", ()):
            self.regions.pop(number, None)
        if "regions" in request:
            decoder = Decoder(self.memory, request["arrays"], request["functions"])
            for number, calls in request["regions"]:
                self.regions[number] = [decoder.call(*call) for call in calls]

    def report(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".encode()[:TEXT_SIZE]
        self.memory[self.text : self.text + len(text)] = text
        self.words[FAILED] = len(text)


class Decoder:
    """Makes calls of what `worker.Encoder` wrote."""

    def __init__(self, memory: mmap.mmap, arrays: list[Any], functions: list[Any]) -> None:
        import numpy as np

        self.np = np
        self.arrays = [
            np.ndarray(shape, np.dtype(kind), memory, offset, strides) for offset, shape, strides, kind in arrays
        ]
        self.functions = [self.function(*each) for each in functions]

    def function(self, name: str, refills: bool, options: list[Any]) -> Any:
        function = getattr(self.np, name)
        named = {key: self.value(value) for key, value in options}
        if refills:
            return partial(self.refill, function, named)
        return partial(function, **named) if named else function

    def refill(self, function: Any, options: dict[str, Any], result: Any, *arguments: Any) -> None:
        self.np.copyto(result, function(*arguments, **options))

    def call(self, function: int, arguments: list[Any]) -> tuple[Any, tuple[Any, ...]]:
        return self.functions[function], tuple(self.value(each) for each in arguments)

    def value(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, content = value
        if kind == "array":
            return self.arrays[content]
        if kind == "tuple":
            return tuple(self.value(each) for each in content)
        if kind == "dtype":
            return self.np.dtype(content)
        return self.np.frombuffer(bytes.fromhex(content), kind)[0]  # a scalar of NumPy's, by its dtype


if __name__ == "__main__":
    import signal

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to the whole group by terminals, batch systems
        signal.signal(each, signal.SIG_IGN)  # the parent hears it, finishes its step with this one's help, and ends it
    try:
        Worker(*map(int, sys.argv[1:])).serve()
    except SystemExit:
        os._exit(0)
    finally:
        os._exit(1)
