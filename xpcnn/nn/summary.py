"""The table that `Module.summary` returns, and what notebooks show of a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from xpcnn.errors import ConfigError, ShapeError
from xpcnn.nn.contexts import no_grad, trace
from xpcnn.nn.inquiries import is_ours
from xpcnn.nn.module import Module
from xpcnn.windows import integer

_HEADING = ("layer", "", "output", "parameters", "multiply-adds")


class Summary(str):
    """The table as text, which notebooks show as a table.

    Attributes
    ----------
    rows : list of tuple of str
        Heading, layers, total.
    """

    rows: list[tuple[str, ...]]

    def _repr_html_(self) -> str:
        return as_html(self.rows)


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


def summary(model: Module, input_shape: tuple[int, ...] | None = None) -> Summary:
    """Return a table of layers with output shapes, parameters and multiply-adds for one sample.

    Raises
    ------
    ConfigError
        No shape is given, and the model has not been called yet; or what is given is none.
    ShapeError
        It does not fit the network.
    """
    input_shape = model._sample_shape if input_shape is None else input_shape
    if input_shape is None:
        raise ConfigError(
            "input_shape: expected the shape of one sample, such as (1, 28, 28), for a model not called yet"
        )
    if not isinstance(input_shape, (tuple, list)):
        raise ConfigError(
            f"input_shape: expected the shape of one sample, such as (1, 28, 28), got {input_shape!r:.60}"
        )
    input_shape = tuple(integer("input_shape", size, 1) for size in input_shape)
    rows: list[tuple[str, ...]] = [_HEADING]
    try:
        table = costs(model, input_shape)
    except ShapeError as error:
        raise ShapeError(
            f"input_shape: expected the shape of one sample, without the batch, that fits the network, "
            f"got {input_shape}: {error}"
        ) from error
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
    made = Summary("\n".join(line.rstrip() for line in lines))
    made.rows = rows
    return made


def display(model: Module) -> str:
    """Return a network as an HTML table, with the shapes of the last call where there was one.

    Layers of the user's own, and hooks, are not called for that: they may count, or draw.
    """
    parameters = sum(parameter.size for parameter in model.parameters())
    title = f"{type(model).__name__}: {parameters:,} parameters, {'training' if model.training else 'evaluation'} mode"
    shape = model._sample_shape
    if shape is not None and all(is_ours(module) and not module._forward_hooks for module in model.modules()):
        title += f", input (N, {', '.join(map(str, shape))})"
        return f"<p>{escape(title)}</p>{as_html(summary(model, shape).rows)}"
    rows: list[tuple[str, ...]] = [("layer", "", "parameters")]
    for path, module in model.named_modules():
        if not list(module.children()):
            size = sum(parameter.size for parameter in module.parameters())
            rows.append((path, f"{type(module).__name__}({module.extra_repr()})", f"{size:,}"))
    return f"<p>{escape(title)}</p>{as_html([*rows, ('total', '', f'{parameters:,}')])}"


def as_html(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of which is a heading, as an HTML table; numbers stand on the right."""

    def line(tag: str, row: Sequence[str]) -> str:
        sides = ("right" if cell[:1].isdigit() and i > 1 else "left" for i, cell in enumerate(row))
        cells = (
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in zip(row, sides, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head, *body = rows
    return f"<table><thead>{line('th', head)}</thead><tbody>{''.join(line('td', row) for row in body)}</tbody></table>"
