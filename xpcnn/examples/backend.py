"""A backend of one's own: the least that the library asks for, over an array type that counts what is computed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

import xpcnn
from xpcnn import nn, optim
from xpcnn.backend import Array
from xpcnn.data import DataLoader
from xpcnn.examples.few import mnist

calls: Counter[str] = Counter()


class Counting(np.ndarray):
    """NumPy's array, except that what is computed with it is counted."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        calls[ufunc.__name__] += 1
        plain = [each.view(np.ndarray) if isinstance(each, Counting) else each for each in inputs]
        if "out" in options:
            options["out"] = tuple(each.view(np.ndarray) for each in options["out"])
        return counting(getattr(ufunc, method)(*plain, **options))


class Namespace:
    """What `backend.xp` is: NumPy, whose functions give `Counting`."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, (np.ufunc, type)) or not callable(value):
            return value
        return lambda *args, **options: counting(value(*args, **options))


def counting(result: Any) -> Any:
    """Return arrays as `Counting`, and what is no array as it is."""
    return result.view(Counting) if type(result) is np.ndarray else result


class CountingBackend(xpcnn.Backend):
    """The five methods and two attributes that a backend must have; the rest has a portable default."""

    name = "counting"
    xp = Namespace()

    def owns(self, array: Any) -> bool:
        return isinstance(array, Counting)

    def asarray(self, a: Any, dtype: Any = None) -> Array:
        return np.asarray(a, dtype).view(Counting)

    def to_numpy(self, a: Array) -> Any:
        return np.asarray(a)

    def synchronize(self) -> None:
        """Do nothing: every result is there when its call returns."""


def main() -> Counter[str]:
    """Train two batches on the backend, and return how often what was called."""
    if "counting" not in xpcnn.available_backends():
        xpcnn.register_backend(CountingBackend())
    train, _ = mnist()
    calls.clear()
    with xpcnn.use_backend("counting"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 13 * 13, 10))
        criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.05)
        for x, y in DataLoader(train.images[:64], train.labels[:64], 32):
            loss = criterion(model(x), y)
            model.backward(criterion.backward())
            optimizer.step()
            optimizer.zero_grad()
            print(f"loss {float(loss):.4f}")
    print("called most often:", ", ".join(f"{name} {count}" for name, count in calls.most_common(6)))
    return calls


if __name__ == "__main__":
    main()
