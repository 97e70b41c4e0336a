"""Layer and group normalisation layers; formulas and sources in `functional/sample_normalization.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpcnn.backend import Array
from xpcnn.errors import ShapeError
from xpcnn.functional.normalization import check_eps
from xpcnn.functional.sample_normalization import check_normalized_shape, group_norm, layer_norm, layer_norm_backward
from xpcnn.nn import init
from xpcnn.nn.module import Module
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.weights import new_parameter
from xpcnn.windows import integer


class _SampleNorm(Module):
    keeps_float32 = True  # as batch norm
    weight: Parameter | None
    bias: Parameter | None

    def _make(self, shape: tuple[int, ...], weight: bool, bias: bool, dtype: Any) -> None:
        dtype = "float32" if str(dtype) == "float16" else dtype
        self.weight = new_parameter("weight", init.ones, shape, dtype) if weight else None
        self.bias = new_parameter("bias", init.zeros, shape, dtype) if weight and bias else None

    def _affine(self) -> tuple[Array | None, Array | None]:
        weight, bias = self.weight, self.bias
        return None if weight is None else weight.data, None if bias is None else bias.data

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx for dy, both like x."""
        dx, dweight, dbias = layer_norm_backward(dy, self.take())
        for parameter, gradient in ((self.weight, dweight), (self.bias, dbias)):
            if parameter is not None:
                parameter.accumulate(gradient)
        return dx if input_gradient else None


class LayerNorm(_SampleNorm):
    """y = weight (x - mean) / sqrt(variance + eps) + bias over the last axes of every sample.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Those axes: D for features, (C, H, W) for whole images.
    eps : float
        Above 0.
    elementwise_affine : bool
        Whether there are weights at all.
    bias : bool
        Whether there is a bias beside them.
    dtype : str or dtype
        float16 means float32 here.

    Attributes
    ----------
    weight, bias : Parameter of `normalized_shape`, or None

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.LayerNorm((3, 8, 8))(x).shape
    (2, 3, 8, 8)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        self.normalized_shape, self.eps = check_normalized_shape(normalized_shape), check_eps(eps)
        self.elementwise_affine = elementwise_affine
        self._make(self.normalized_shape, elementwise_affine, bias, dtype)

    def forward(self, x: Array) -> Array:
        """Return y like x."""
        y, cache = layer_norm(x, self.normalized_shape, *self._affine(), self.eps)
        self.keep(cache)
        return y

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(_SampleNorm):
    """y = weight (x - mean) / sqrt(variance + eps) + bias over the channels of a group and their pixels, per image.

    Parameters
    ----------
    num_groups, num_channels : int
        The first divides the second.
    eps : float
        Above 0.
    affine : bool
        Whether there are weights and biases.
    dtype : str or dtype
        float16 means float32 here.

    Attributes
    ----------
    weight, bias : Parameter (num_channels,), or None

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> nn.GroupNorm(3, 3)(x).shape
    (2, 3, 8, 8)
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, dtype: Any = "float32"
    ) -> None:
        super().__init__()
        self.num_groups = integer("num_groups", num_groups, 1)
        self.num_channels = integer("num_channels", num_channels, 1)
        if self.num_channels % self.num_groups:
            raise ShapeError(f"num_groups: expected a divisor of {num_channels} channels, got {num_groups}")
        self.eps, self.affine = check_eps(eps), affine
        self._make((self.num_channels,), affine, affine, dtype)

    def forward(self, x: Array) -> Array:
        """Return y like x, (N, C) or (N, C, ...)."""
        if getattr(x, "ndim", 0) > 1 and x.shape[1] != self.num_channels:
            raise ShapeError(f"x: expected {self.num_channels} channels, got {x.shape[1]} in shape {tuple(x.shape)}")
        y, cache = group_norm(x, self.num_groups, *self._affine(), self.eps)
        self.keep(cache)
        return y

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
