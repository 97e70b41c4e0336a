"""The fully connected layer."""

from __future__ import annotations

from typing import Any

from xpcnn.backend import Array
from xpcnn.functional.linear import linear, linear_backward
from xpcnn.nn import init
from xpcnn.nn.module import Module
from xpcnn.nn.weights import new_parameter
from xpcnn.windows import integer


class Linear(Module):
    """y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    weight_init, bias_init : callable
        From `nn.init`, or any function of a shape; He normal and zeros by default.
    dtype : str or dtype

    Attributes
    ----------
    weight : Parameter (out_features, in_features)
    bias : Parameter (out_features,) or None

    Examples
    --------
    >>> layer = nn.Linear(6, 4)
    >>> layer(np.ones((2, 6), "float32")).shape, layer.weight.shape
    ((2, 4), (4, 6))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_init: init.Initializer = init.he_normal,
        bias_init: init.Initializer = init.zeros,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        in_features, out_features = integer("in_features", in_features, 1), integer("out_features", out_features, 1)
        self.in_features, self.out_features = in_features, out_features
        self.weight = new_parameter("weight", weight_init, (out_features, in_features), dtype)
        self.bias = new_parameter("bias", bias_init, (out_features,), dtype) if bias else None

    def forward(self, x: Array) -> Array:
        """Return y (N, out_features) for x (N, in_features)."""
        y, cache = linear(x, self.weight.data, None if self.bias is None else self.bias.data)
        self.keep(cache)
        return y

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx (N, in_features) for dy (N, out_features)."""
        dx, dweight, dbias = linear_backward(
            dy,
            self.take(),
            input_gradient=input_gradient,
            weight_gradient=self._learns(),
            dweight=self.weight.gradient_target(),
            dbias=None if self.bias is None else self.bias.gradient_target(),
        )
        if dweight is not None:
            self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)
        return dx

    def _learns(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """Return those of one sample: one per weight."""
        return self.weight.size

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"
