"""Batch normalisation layers; formulas and source in `functional/normalization.py`."""

from __future__ import annotations

from typing import Any, ClassVar

from xpcnn.backend import Array, backend_of, get_backend
from xpcnn.functional.channelwise import ChannelOp
from xpcnn.functional.normalization import BatchNormOp, check_eps, check_momentum
from xpcnn.functional.synchronised import SyncBatchNormOp, is_synchronised
from xpcnn.nn import init
from xpcnn.nn.channelwise import ChannelLayer
from xpcnn.nn.weights import new_parameter
from xpcnn.windows import integer


class _BatchNorm(ChannelLayer):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, per channel.

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Above 0.
    momentum : float or None
        running = (1 - momentum) * running + momentum * batch; None for the average of all batches so far.
    dtype : str or dtype
        float16 means float32 here.

    Attributes
    ----------
    weight, bias : Parameter (C,)
        gamma and beta.
    running_mean, running_var : array (C,)
        Used in evaluation mode.
    num_batches_tracked : array, 0-d, int64
        How many batches they average; with `momentum=None` alone. It lies on the backend and changes in place, so that
        a recorded step counts too.
    """

    ndim: ClassVar[int]
    keeps_float32 = True  # sums over a batch, and what they scale, have no room in float16
    running_mean: Array
    running_var: Array
    num_batches_tracked: Array | None = None

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, dtype: Any = "float32"
    ) -> None:
        super().__init__()
        num_features = integer("num_features", num_features, 1)
        self.num_features, self.eps, self.momentum = num_features, check_eps(eps), check_momentum(momentum)
        dtype = "float32" if str(dtype) == "float16" else dtype
        self.weight = new_parameter("weight", init.ones, (num_features,), dtype)
        self.bias = new_parameter("bias", init.zeros, (num_features,), dtype)
        backend, dtype = get_backend(), self.weight.data.dtype
        self.register_buffer("running_mean", backend.zeros((num_features,), dtype))
        self.register_buffer("running_var", backend.zeros((num_features,), dtype) + 1)
        if momentum is None:
            self.register_buffer("num_batches_tracked", backend.asarray(0, "int64"))

    def channel_op(self) -> ChannelOp:
        """Return the operation of one call."""
        kind = SyncBatchNormOp if self.training and is_synchronised() else BatchNormOp
        return kind(
            self.weight.data,
            self.bias.data,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=check_momentum(self.momentum),
            eps=check_eps(self.eps),
            ndim=self.ndim,
            batches=self.num_batches_tracked,
        )

    def prepare_backward(self, op: Any) -> None:
        """Make room for the gradients of gamma and beta, where the parameters have theirs if that is free."""
        target, other = self.weight.gradient_target(), self.bias.gradient_target()
        op.make_gradients(backend_of(self.weight.data), target, other)

    def finish_backward(self, op: Any) -> None:
        """Add the gradients of gamma and beta."""
        self.weight.accumulate(op.dgamma)
        self.bias.accumulate(op.dbeta)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return f"{self.weight.size}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Batch norm of features (N, C).

    Examples
    --------
    >>> nn.BatchNorm1d(6)(np.ones((4, 6), "float32")).shape
    (4, 6)
    """

    __doc__ = f"{__doc__}\n\n{_BatchNorm.__doc__}"
    ndim = 2


class BatchNorm2d(_BatchNorm):
    """Batch norm of images (N, C, H, W).

    Examples
    --------
    >>> x = np.ones((2, 3, 8, 8), "float32")
    >>> layer = nn.BatchNorm2d(3)
    >>> layer(x).shape, layer.running_mean.round(3)
    ((2, 3, 8, 8), array([0.1, 0.1, 0.1], dtype=float32))
    >>> layer.eval()(x).shape  # by the running statistics now
    (2, 3, 8, 8)
    """

    __doc__ = f"{__doc__}\n\n{_BatchNorm.__doc__}"
    ndim = 4
