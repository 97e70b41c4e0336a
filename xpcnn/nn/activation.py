"""Activation layers; formulas and sources in `functional/activation.py`."""

from __future__ import annotations

from xpcnn.backend import Array
from xpcnn.errors import ConfigError
from xpcnn.functional.activation import RELU, ELUOp, GELUOp, HardswishOp, LeakyReLUOp, SigmoidOp, SiLUOp, TanhOp
from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.softmax import softmax, softmax_backward
from xpcnn.nn.channelwise import ChannelLayer
from xpcnn.nn.module import Module


class ReLU(ChannelLayer):
    """y = max(x, 0).

    Parameters
    ----------
    inplace : bool
        Means nothing, here as in the other layers that take it for PyTorch's sake: x is never written to, and memory
        between layers is used again without being asked.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return RELU


class LeakyReLU(ChannelLayer):
    """y = x where x > 0, else negative_slope * x; `inplace` as in `ReLU`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = LeakyReLUOp(negative_slope).negative_slope, inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return LeakyReLUOp(self.negative_slope)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"negative_slope={self.negative_slope}"


class Sigmoid(ChannelLayer):
    """y = 1 / (1 + exp(-x))."""

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return SigmoidOp()


class Tanh(ChannelLayer):
    """y = tanh(x)."""

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return TanhOp()


class GELU(ChannelLayer):
    """y = x times the normal distribution function of x; `approximate`, as in PyTorch, can only be "none"."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate != "none":
            raise ConfigError(f'approximate: expected "none", got {approximate!r}; GELU is exact here')
        self.approximate = approximate

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return GELUOp()


class SiLU(ChannelLayer):
    """y = x / (1 + exp(-x)), also called swish; `inplace` as in `ReLU`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return SiLUOp()


class Hardswish(ChannelLayer):
    """y = x min(max(x + 3, 0), 6) / 6; `inplace` as in `ReLU`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return HardswishOp()


class ELU(ChannelLayer):
    """y = x where x > 0, else alpha (exp(x) - 1); `inplace` as in `ReLU`."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = ELUOp(alpha).alpha
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return ELUOp(self.alpha)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"alpha={self.alpha}"


class Softmax(Module):
    """y = exp(x) / sum of exp(x) along `dim`.

    For training, leave it out: `CrossEntropyLoss` takes logits.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Array) -> Array:
        """Return y like x."""
        y = softmax(x, axis=self.dim)
        self.keep(y)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx = y (dy - sum of dy y)."""
        dx = softmax_backward(dy, self.take(), axis=self.dim)
        return dx if input_gradient else None

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"dim={self.dim}"
