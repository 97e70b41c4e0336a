"""The table that `Module.summary` returns."""

from __future__ import annotations

from typing import NamedTuple

from xpcnn.nn.module import Module, no_grad, trace


class Cost(NamedTuple):
    """One call of one layer on a single sample."""

    path: str
    layer: str
    out_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def costs(model: Module, input_shape: tuple[int, ...]) -> list[Cost]:
    """Return the cost of every layer that holds no others, in the order of the calls, for one sample."""
    paths = {id(module): path for path, module in model.named_modules()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        backend = model.backend
        dtype = next((p.data.dtype for p in model.parameters()), "float32")
        with no_grad(), trace() as calls:
            model(backend.zeros((1, *input_shape), dtype))
    finally:
        for module, mode in modes:
            module.training = mode
    return [
        Cost(
            paths.get(id(module), ""),
            type(module).__name__,
            tuple(y.shape[1:]),
            sum(parameter.size for parameter in module.parameters()),
            module.multiply_adds(tuple(x.shape), tuple(y.shape)),
        )
        for module, x, y in calls
        if not list(module.children())
    ]


def summary(model: Module, input_shape: tuple[int, ...]) -> str:
    """Return a table of layers with output shapes, parameters and multiply-adds for one sample."""
    rows = [("layer", "", "output", "parameters", "multiply-adds")]
    table = costs(model, input_shape)
    for cost in table:
        shape = "x".join(map(str, cost.out_shape))
        rows.append((cost.path, cost.layer, shape, f"{cost.parameters:,}", f"{cost.multiply_adds:,}"))
    total = sum(parameter.size for parameter in model.parameters())
    rows.append(("total", "", "", f"{total:,}", f"{sum(cost.multiply_adds for cost in table):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
