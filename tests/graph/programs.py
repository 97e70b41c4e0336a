"""Programs drawn by hypothesis: a network, an optimiser, a schedule, and events between the steps.

Two copies of a program run side by side, one compiled and one as written; whatever they leave must be equal bit by bit.
"""

import copy

import numpy as np
from hypothesis import strategies as st

import xpcnn
from xpcnn import nn, optim

CHANNELS, SIZE, CLASSES = 3, 8, 4


class Swish(nn.Module):
    """A layer of the user's own, with operators and NumPy's functions inside."""

    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = beta

    def forward(self, x):
        s = 1 / (1 + xpcnn.backend.backend_of(x).xp.exp(-self.beta * x))
        self.keep((x, s))
        return x * s

    def backward(self, dy):
        x, s = self.take()
        return dy * s * (1 + self.beta * x * (1 - s))


class Scale(nn.Module):
    """A parameter and a buffer of the user's own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(xpcnn.get_backend().asarray(np.float32([1.5]), "float32"))
        self.register_buffer("seen", xpcnn.get_backend().zeros((1,), "float32"))

    def forward(self, x):
        self.seen += x.mean()
        self.keep(x)
        return x * self.gain.data

    def backward(self, dy):
        x = self.take()
        self.gain.accumulate((dy * x).sum().reshape(1))
        return dy * self.gain.data


def layer(name, channels):
    makers = {
        "conv": lambda: nn.Conv2d(channels, channels, 3, padding=1),
        "pointwise": lambda: nn.Conv2d(channels, channels, 1),
        "norm": lambda: nn.BatchNorm2d(channels),
        "relu": nn.ReLU,
        "leaky": lambda: nn.LeakyReLU(0.1),
        "tanh": nn.Tanh,
        "dropout": lambda: nn.Dropout(0.4),
        "pool": lambda: nn.MaxPool2d(3, stride=1, padding=1),
        "average": lambda: nn.AvgPool2d(3, stride=1, padding=1),
        "swish": Swish,
        "scale": Scale,
        "residual": lambda: nn.Residual(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        ),
    }  # fmt: skip
    return makers[name]()


LAYERS = [
    "conv",
    "pointwise",
    "norm",
    "relu",
    "leaky",
    "tanh",
    "dropout",
    "pool",
    "average",
    "swish",
    "scale",
    "residual",
]
OPTIMISERS = {
    "sgd": lambda p: optim.SGD(p, 0.05),
    "momentum": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, 0.01),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.01),
}
SCHEDULES = {
    "none": lambda o: None,
    "step": lambda o: optim.StepLR(o, 2, 0.5),
    "cosine": lambda o: optim.CosineAnnealingLR(o, 50),
}
EVENTS = [
    "step",
    "step",
    "step",
    "step",
    "small",
    "large",
    "option",
    "eval",
    "train",
    "bn_eval",
    "freeze",
    "thaw",
    "append",
    "replace",
    "seed",
    "error",
    "threads",
    "copy",
    "momentum",
    "lr",
    "smoothing",
    "data",
    "accumulate",
    "winograd",
]

programs = st.fixed_dictionaries(
    {
        "layers": st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4),
        "optimiser": st.sampled_from(sorted(OPTIMISERS)),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "events": st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 7)), min_size=4, max_size=14),
    }
)


class Program:
    """One copy: a model with its optimiser, and a step that is compiled or runs as written."""

    def __init__(self, drawn, compiled):
        xpcnn.manual_seed(1)
        body = [layer(name, CHANNELS) for name in drawn["layers"]]
        self.model = nn.Sequential(*body, nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, CLASSES))
        self.optimiser = OPTIMISERS[drawn["optimiser"]](self.model.parameters())
        self.schedule = SCHEDULES[drawn["schedule"]](self.optimiser)
        self.criterion = nn.CrossEntropyLoss()
        self.compiled = compiled
        self.make_step()

    def make_step(self):
        def step(x, labels):
            loss = self.criterion(self.model(x), labels)
            self.model.backward(self.criterion.backward())
            self.optimiser.step()
            self.optimiser.zero_grad()
            return loss, self.model

        def accumulate(x, labels):
            loss = self.criterion(self.model(x), labels)
            self.model.backward(self.criterion.backward(), input_gradient=False)
            return loss

        wrapped = xpcnn.compile if self.compiled else as_recorded
        self.step, self.accumulate = wrapped(step), wrapped(accumulate)

    def state(self, backend):
        found = {name: p.data for name, p in self.model.named_parameters()}
        found |= {f"{name}.grad": p.grad for name, p in self.model.named_parameters() if not p.grad_is_zero}
        found |= dict(self.model.named_buffers())
        host = {name: backend.to_numpy(array).copy() for name, array in found.items()}
        return host | {name: value for name, value in self.optimiser.state_dict().items() if hasattr(value, "shape")}


def as_recorded(function):
    """Run a function as written, cut as it is where it is recorded."""

    def call(x, labels):
        backend = xpcnn.backend.backend_of(x)
        with backend.as_recorded(), backend.errstate():
            return function(x, labels)

    return call


def run(drawn, backend, rng, compiled):
    """Run a program; return everything that it leaves, step by step."""
    program = Program(drawn, compiled)
    left = []
    for number, (event, k) in enumerate(drawn["events"]):
        model, optimiser = program.model, program.optimiser
        size = {"small": 3, "large": 6}.get(event, 5)
        x = backend.asarray(rng.standard_normal((size, CHANNELS, SIZE, SIZE)).astype("float32"))
        labels = backend.asarray(rng.integers(0, CLASSES, size))
        one = model[k % len(model)]
        if event == "option":
            change_option(one, k)
        elif event == "eval":
            model.eval()
        elif event == "train":
            model.train()
        elif event == "bn_eval":
            one.eval()
        elif event in ("freeze", "thaw"):
            one.requires_grad_(event == "thaw")
        elif event == "append":
            insert = layer(LAYERS[k], CHANNELS)
            model.insert(0, insert)
            if insert.parameters():
                optimiser.add_param_group({"params": insert.parameters()})
        elif event == "replace" and type(model[0]).__name__ in ("ReLU", "Tanh", "LeakyReLU", "Swish"):
            model[0] = layer(("relu", "tanh", "swish")[k % 3], CHANNELS)
        elif event == "seed":
            xpcnn.manual_seed(k)
        elif event == "error":
            labels = backend.asarray(np.full(size, CLASSES + 1))
        elif event == "threads":
            xpcnn.set_num_threads(1 + k % 2)
        elif event == "winograd":
            xpcnn.set_winograd(k % 2 == 0)
        elif event == "copy":
            program.model, program.optimiser, program.schedule = copy.deepcopy((model, optimiser, program.schedule))
        elif event == "momentum" and "momentum" in optimiser.param_groups[0]:
            optimiser.param_groups[0]["momentum"] = (0.0, 0.5, 0.9)[k % 3]
        elif event == "lr":
            optimiser.lr = 0.01 * (1 + k)
        elif event == "smoothing":
            program.criterion.label_smoothing = 0.1 * (k % 2)
        elif event == "data":
            parameter = model.parameters()[k % len(model.parameters())]
            parameter.data = backend.copy(parameter.data * 0.5)
        step = program.accumulate if event == "accumulate" else program.step
        for _ in range(1 + k % 3):
            try:
                result = step(x, labels)
                loss = result[0] if isinstance(result, tuple) else result
                left.append((number, event, float(backend.to_numpy(loss))))
            except (xpcnn.errors.DataError, xpcnn.errors.StateError) as error:
                left.append((number, event, type(error).__name__))
                program.model.forget()
                break
            if program.schedule is not None:
                program.schedule.step()
        left.append((number, event, program.state(backend)))
    return left


def change_option(module, k):
    """Change an option that a forward or backward reads."""
    if isinstance(module, nn.Dropout):
        module.p = (0.0, 0.2, 0.7)[k % 3]
    elif isinstance(module, nn.BatchNorm2d):
        module.momentum, module.eps = (0.1, 0.3)[k % 2], (1e-5, 1e-3)[k % 2]
    elif isinstance(module, nn.LeakyReLU):
        module.negative_slope = 0.1 * (k % 3)
    elif isinstance(module, Swish):
        module.beta = 1.0 + k % 3
    elif isinstance(module, nn.Linear):
        module.bias = None if k % 2 else module.bias


def same(mine, other):
    """Hold everything that two copies have left against each other, bit by bit."""
    assert len(mine) == len(other)
    for (number, event, a), (_, _, b) in zip(mine, other, strict=True):
        where = f"event {number}, {event}"
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for name, value in a.items():
                np.testing.assert_array_equal(value, b[name], err_msg=f"{where}, {name}")
        else:
            assert a == b or (a != a and b != b), (where, a, b)
