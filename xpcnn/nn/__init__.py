"""Layers, containers and losses: parameters and caches around the functions of `functional`."""

from xpcnn.nn import init
from xpcnn.nn.activation import GELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from xpcnn.nn.convolution import Conv2d
from xpcnn.nn.dropout import Dropout
from xpcnn.nn.flatten import Flatten
from xpcnn.nn.inference import Inference
from xpcnn.nn.linear import Linear
from xpcnn.nn.loss import CrossEntropyLoss, MSELoss
from xpcnn.nn.module import Module, no_grad
from xpcnn.nn.normalization import BatchNorm1d, BatchNorm2d
from xpcnn.nn.objective import loss_and_gradients
from xpcnn.nn.parameter import Parameter
from xpcnn.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from xpcnn.nn.residual import Residual
from xpcnn.nn.sequential import Sequential

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Inference",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "init",
    "loss_and_gradients",
    "no_grad",
]
