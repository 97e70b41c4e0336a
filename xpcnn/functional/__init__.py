"""The maths as pure functions: arrays in, arrays and a cache out, and `OP_backward(dy, cache)` for each.

Arrays are logically (N, C, H, W) or (N, D) on one backend, with any strides; results lie batch-last in memory
(`layout.py`). `reference` has the same functions as plain loops.
"""

from __future__ import annotations

import importlib
from typing import Any

from xpcnn.functional.activation import (
    elu,
    elu_backward,
    gelu,
    gelu_backward,
    hardswish,
    hardswish_backward,
    leaky_relu,
    leaky_relu_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    tanh,
    tanh_backward,
)
from xpcnn.functional.channel_padding import pad_channels, pad_channels_backward
from xpcnn.functional.columns import col2im, im2col
from xpcnn.functional.compositions import conv_relu, conv_relu_backward, conv_relu_pool, conv_relu_pool_backward
from xpcnn.functional.concatenation import concat, concat_backward
from xpcnn.functional.convolution import conv2d, conv2d_backward
from xpcnn.functional.dropout import dropout, dropout2d, dropout2d_backward, dropout_backward
from xpcnn.functional.elementwise_loss import binary_cross_entropy_with_logits, l1_loss, mse_loss
from xpcnn.functional.identity import identity, identity_backward
from xpcnn.functional.linear import linear, linear_backward
from xpcnn.functional.loss import cross_entropy
from xpcnn.functional.normalization import batch_norm, batch_norm_backward
from xpcnn.functional.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from xpcnn.functional.resampling import adaptive_avg_pool2d, adaptive_avg_pool2d_backward, upsample, upsample_backward
from xpcnn.functional.sample_normalization import group_norm, group_norm_backward, layer_norm, layer_norm_backward
from xpcnn.functional.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from xpcnn.functional.transposed_convolution import conv_transpose2d, conv_transpose2d_backward

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy_with_logits",
    "col2im",
    "concat",
    "concat_backward",
    "conv2d",
    "conv2d_backward",
    "conv_relu",
    "conv_relu_backward",
    "conv_relu_pool",
    "conv_relu_pool_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "cross_entropy",
    "dropout",
    "dropout2d",
    "dropout2d_backward",
    "dropout_backward",
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "group_norm",
    "group_norm_backward",
    "hardswish",
    "hardswish_backward",
    "identity",
    "identity_backward",
    "im2col",
    "l1_loss",
    "layer_norm",
    "layer_norm_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "log_softmax",
    "log_softmax_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "mse_loss",
    "pad_channels",
    "pad_channels_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
    "upsample",
    "upsample_backward",
]


def __getattr__(name: str) -> Any:
    if name == "reference":  # imported when it is asked for: training does without
        return importlib.import_module("xpcnn.functional.reference")
    raise AttributeError(f"module 'xpcnn.functional' has no attribute {name!r}")
