"""Parameters of several shapes, and the optimisers with their options."""

import numpy as np
import pytest

from xpcnn import optim
from xpcnn.backend import get_backend
from xpcnn.nn import Parameter

SHAPES = [(4, 2, 3, 3), (4,), (5, 7), (1,)]
OPTIMISERS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True, "shrink": 0.02}),
    (optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    (optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
]


@pytest.fixture(params=OPTIMISERS, ids=lambda case: case[0].__name__)
def make(request):
    """Give a function from parameters to an optimiser over them."""
    kind, options = request.param
    return lambda parameters: kind(parameters, **options)


def parameters(seed=0, dtype="float32", shapes=SHAPES):
    rng, backend = np.random.default_rng(seed), get_backend()
    return [
        Parameter(backend.asarray(rng.standard_normal(shape).astype(dtype)), f"p{i}") for i, shape in enumerate(shapes)
    ]


def give_gradients(members, seed):
    rng = np.random.default_rng(seed)
    for parameter in members:
        backend = get_backend()
        parameter.accumulate(backend.asarray(rng.standard_normal(parameter.shape).astype(str(parameter.data.dtype))))


def train(optimizer, members, seeds):
    for seed in seeds:
        give_gradients(members, seed)
        optimizer.step()
        optimizer.zero_grad()


def values(members):
    from xpcnn.backend import backend_of

    return [backend_of(parameter.data).to_numpy(parameter.data).copy() for parameter in members]
