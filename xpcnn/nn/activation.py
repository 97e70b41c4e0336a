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

    Examples
    --------
    >>> layer = nn.ReLU()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([0., 1., 2.])
    >>> layer.backward(np.ones(3)).round(3)
    array([0., 1., 1.])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return RELU


class LeakyReLU(ChannelLayer):
    """y = x where x > 0, else negative_slope * x; `inplace` as in `ReLU`.

    Examples
    --------
    >>> layer = nn.LeakyReLU()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.02,  1.  ,  2.  ])
    >>> layer.backward(np.ones(3)).round(3)
    array([0.01, 1.  , 1.  ])
    """

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
    """y = 1 / (1 + exp(-x)).

    Examples
    --------
    >>> layer = nn.Sigmoid()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([0.119, 0.731, 0.881])
    >>> layer.backward(np.ones(3)).round(3)
    array([0.105, 0.197, 0.105])
    """

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return SigmoidOp()


class Tanh(ChannelLayer):
    """y = tanh(x).

    Examples
    --------
    >>> layer = nn.Tanh()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.964,  0.762,  0.964])
    >>> layer.backward(np.ones(3)).round(3)
    array([0.071, 0.42 , 0.071])
    """

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return TanhOp()


class GELU(ChannelLayer):
    """y = x times the normal distribution function of x; `approximate`, as in PyTorch, can only be "none".

    Examples
    --------
    >>> layer = nn.GELU()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.046,  0.841,  1.954])
    >>> layer.backward(np.ones(3)).round(3)
    array([-0.085,  1.083,  1.085])
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate != "none":
            raise ConfigError(f'approximate: expected "none", got {approximate!r}; GELU is exact here')
        self.approximate = approximate

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return GELUOp()


class SiLU(ChannelLayer):
    """y = x / (1 + exp(-x)), also called swish; `inplace` as in `ReLU`.

    Examples
    --------
    >>> layer = nn.SiLU()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.238,  0.731,  1.762])
    >>> layer.backward(np.ones(3)).round(3)
    array([-0.091,  0.928,  1.091])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return SiLUOp()


class Hardswish(ChannelLayer):
    """y = x min(max(x + 3, 0), 6) / 6; `inplace` as in `ReLU`.

    Examples
    --------
    >>> layer = nn.Hardswish()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.333,  0.667,  1.667])
    >>> layer.backward(np.ones(3)).round(3)
    array([-0.167,  0.833,  1.167])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        return HardswishOp()


class ELU(ChannelLayer):
    """y = x where x > 0, else alpha (exp(x) - 1); `inplace` as in `ReLU`.

    Examples
    --------
    >>> layer = nn.ELU()
    >>> layer(np.array([-2.0, 1.0, 2.0])).round(3)
    array([-0.865,  1.   ,  2.   ])
    >>> layer.backward(np.ones(3)).round(3)
    array([0.135, 1.   , 1.   ])
    """

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

    Examples
    --------
    >>> nn.Softmax()(np.zeros((1, 4), "float32"))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
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
