"""A state brought into a model: which names fit, PyTorch's included, and the copying of all arrays or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from xpcnn.backend import Array, backend_of
from xpcnn.backend.exchange import to_host
from xpcnn.errors import ConfigError, DTypeError, ShapeError, StateError

if TYPE_CHECKING:
    from xpcnn.nn.module import Module

_COUNTER, _BESIDE = "num_batches_tracked", "running_mean"
_WIDER = {"float16": ("float32", "float64"), "float32": ("float64",)}  # dtypes that hold every value of another


class IncompatibleKeys(NamedTuple):
    """What a state and a model did not have in common.

    Attributes
    ----------
    missing_keys : list of str
        Names of the model that the state does not hold: those arrays are as they were.
    unexpected_keys : list of str
        Names of the state that the model does not know.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def aliases(model: Module) -> dict[str, str]:
    """Return the further names of parameters that modules share, each with the name in `state_dict`.

    PyTorch's `state_dict` has an entry for each of them.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            full = f"{path}.{name}" if path else name
            if id(value) in own and own[id(value)] != full:
                found[full] = own[id(value)]
    return found


def known(model: Module, own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state, PyTorch's perhaps, by the names of `own`, the model's; names that it lacks as they are.

    Left out is `num_batches_tracked` of batch norms that do not count (see their `momentum`).
    """
    given = {}
    for name, value in state.items():
        path, _, last = name.rpartition(".") if isinstance(name, str) else ("", "", "")
        beside = f"{path}.{_BESIDE}" if path else _BESIDE
        if last != _COUNTER or name in own or beside not in own:
            given[name] = value
    for alias, name in aliases(model).items():
        if alias in given and alias not in own:
            given.setdefault(name, given.pop(alias))
    return given


def widens(found: Any, expected: Any) -> bool:
    """Say whether every value of one dtype is one of another."""
    return found == expected or str(expected) in _WIDER.get(str(found), ())


def _some(names: list[str]) -> str:
    """Return names as an error lists them, so many that it can be read."""
    if len(names) > 8:
        return f"{str(names[:8])[:-1]} and {len(names) - 8} more]"
    return str(names or "none")


def load(model: Module, state: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """Do what `Module.load_state_dict` says."""
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"state: expected names with their arrays, such as another model's state_dict(), got {type(state).__name__}"
        )
    parameters, own = dict(model.named_parameters()), model.state_dict()
    given = known(model, own, state)
    missing, unknown = sorted(own.keys() - given.keys()), sorted(map(str, given.keys() - own.keys()))
    if strict and (missing or unknown):
        raise StateError(
            f"state: expected the names of this model, missing {_some(missing)}, unknown {_some(unknown)}; "
            "was it saved from another model? strict=False takes what fits, and `xpcnn guide exchange` shows how names "
            "that differ are paired"
        )
    ready = {name: _fitting(name, array, given[name]) for name, array in own.items() if name in given}
    for name, value in ready.items():
        own[name][...] = value
        if name in parameters:
            parameters[name].mark_changed("load_state_dict")
    return IncompatibleKeys(missing, unknown)


def _fitting(name: str, array: Array, value: Any) -> Array:
    """Return `value` on the backend of `array`, or say why it does not fit."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise DTypeError(f"{name}: expected an array, got {type(value).__name__}")
    if tuple(value.shape) != tuple(array.shape):
        raise ShapeError(f"{name}: expected shape {tuple(array.shape)}, got {tuple(value.shape)}")
    backend = backend_of(array)
    if backend.owns(value) and backend_of(value) is backend and value.dtype == array.dtype:
        return value
    host = to_host(value, name)
    if not widens(host.dtype, array.dtype):
        raise DTypeError(
            f"{name}: expected dtype {array.dtype}, got {value.dtype}, which does not fit into it; "
            "change one of them first, this model with model.to(dtype=...)"
        )
    return backend.asarray(host, array.dtype)
