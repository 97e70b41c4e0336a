"""Layers, containers and losses: parameters and caches around the functions of `functional`."""

from xpcnn.nn import init
from xpcnn.nn.activation import ELU, GELU, Hardswish, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from xpcnn.nn.channel_pad import ChannelPad
from xpcnn.nn.concat import Concat
from xpcnn.nn.contexts import no_grad
from xpcnn.nn.convolution import Conv2d
from xpcnn.nn.dropout import Dropout, Dropout2d
from xpcnn.nn.flatten import Flatten
from xpcnn.nn.identity import Identity
from xpcnn.nn.inference import Inference
from xpcnn.nn.linear import Linear
from xpcnn.nn.loss import BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss
from xpcnn.nn.module import Module
from xpcnn.nn.normalization import BatchNorm1d, BatchNorm2d
from xpcnn.nn.objective import loss_and_gradients
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d
from xpcnn.nn.residual import Residual
from xpcnn.nn.sample_normalization import GroupNorm, LayerNorm
from xpcnn.nn.sequential import Sequential
from xpcnn.nn.transposed_convolution import ConvTranspose2d
from xpcnn.nn.upsample import Upsample

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "ChannelPad",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Hardswish",
    "Identity",
    "Inference",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "Upsample",
    "init",
    "loss_and_gradients",
    "no_grad",
]
