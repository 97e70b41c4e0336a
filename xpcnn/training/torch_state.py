"""A model's numbers for PyTorch."""

from __future__ import annotations

import importlib
from typing import Any

from xpcnn.errors import BackendError
from xpcnn.nn import Module
from xpcnn.nn.state import aliases
from xpcnn.training.arrays import host_state


def to_torch_state_dict(model: Module) -> dict[str, Any]:
    """Return a model's parameters and buffers as PyTorch's `load_state_dict` takes them.

    Parameters
    ----------
    model : Module
        Layers that it holds twice have both their names, as in PyTorch.

    Returns
    -------
    dict of str to torch.Tensor
        Copies on the host, bit for bit: no later training of either side changes the other's.

    Raises
    ------
    BackendError
        PyTorch is not installed.

    Notes
    -----
    The arrays of `model.state_dict()` themselves go to `torch.from_dlpack`, and share their memory.

    Examples
    --------
    >>> from xpcnn import nn
    >>> from xpcnn.training import to_torch_state_dict
    >>> state = to_torch_state_dict(nn.Sequential(nn.Linear(4, 3)))  # doctest: +SKIP
    >>> torch.nn.Sequential(torch.nn.Linear(4, 3)).load_state_dict(state)  # doctest: +SKIP
    <All keys matched successfully>
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise BackendError(
            f"to_torch_state_dict: expected PyTorch, got {error}; pip install torch, or hand over model.state_dict(), "
            "whose arrays any library that speaks DLPack takes"
        ) from error
    state = {name: torch.from_numpy(array) for name, array in host_state(model).items()}
    state.update({alias: state[name] for alias, name in aliases(model).items()})
    return state
