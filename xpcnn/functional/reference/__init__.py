"""Every operation of `xpcnn.functional` as plain loops in float64: to read, and as oracle of the tests.

Names, signatures and results are those of `xpcnn.functional`; the arrays are NumPy's and nothing is checked. N images,
C channels, F filters, K kernel taps and H, W sizes; `oh`, `ow` count output rows and columns, `kh`, `kw` kernel taps.
"""

from xpcnn.functional.reference.activation import (
    gelu,
    gelu_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    tanh,
    tanh_backward,
)
from xpcnn.functional.reference.convolution import (
    col2im,
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    im2col,
)
from xpcnn.functional.reference.linear import (
    dropout,
    dropout_backward,
    linear,
    linear_backward,
)
from xpcnn.functional.reference.loss import (
    cross_entropy,
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from xpcnn.functional.reference.normalization import (
    batch_norm,
    batch_norm_backward,
)
from xpcnn.functional.reference.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from xpcnn.functional.reference.windows import output_size, sides

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cross_entropy",
    "dropout",
    "dropout_backward",
    "gelu",
    "gelu_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "im2col",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "log_softmax",
    "log_softmax_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "output_size",
    "relu",
    "relu_backward",
    "sides",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]
