"""Optimisers and schedules step for step against torch.optim."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn import optim
from xpcnn.nn import Parameter

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPES = [(8, 1, 3, 3), (8,), (10, 72), (10,), (1,)]
CASES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "centered": True}),
    ("RMSprop", {"momentum": 0.5}),
    ("RMSprop", {"centered": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}),
]
SCHEDULES = [
    ("StepLR", {"step_size": 4, "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 30, "eta_min": 0.001}),
    ("MultiStepLR", {"milestones": [3, 8, 8, 20], "gamma": 0.5}),
    ("LinearLR", {}),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 12}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 25}),
    ("LambdaLR", {"lr_lambda": lambda step: 0.9**step + 0.1}),
    ("LambdaLR", {"lr_lambda": [lambda step: 1 / (1 + step)]}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": 30}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": 31, "pct_start": 0.2, "anneal_strategy": "linear"}),
    ("OneCycleLR", {"max_lr": 0.3, "total_steps": 30, "cycle_momentum": False, "final_div_factor": 10.0}),
]


def pair(name, options, dtype, rng):
    values = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [Parameter(value.copy()) for value in values]
    theirs = [torch.tensor(value, requires_grad=True) for value in values]
    return (
        ours,
        theirs,
        getattr(optim, name)(ours, **options),
        getattr(torch.optim, name)(theirs, **options),
    )


def step_both(ours, theirs, optimizers, rng):
    for mine, other in zip(ours, theirs, strict=True):
        # Some entries have no gradient at all: dead units are where a division by 0 would show.
        gradient = (rng.standard_normal(mine.shape) * (rng.random(mine.shape) > 0.1)).astype(str(mine.data.dtype))
        mine.grad = gradient
        other.grad = torch.tensor(gradient)
    for optimizer in optimizers:
        optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        eps = np.finfo(mine.data.dtype).eps
        np.testing.assert_allclose(mine.data, other.detach().numpy(), rtol=2000 * eps, atol=200 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_optimiser(name, options, dtype, rng):
    ours, theirs, mine, other = pair(name, options, dtype, rng)
    for _ in range(30):
        step_both(ours, theirs, (mine, other), rng)


@pytest.mark.parametrize(("schedule", "arguments"), SCHEDULES)
@pytest.mark.parametrize(("name", "options"), [("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"lr": 0.1})])
def test_schedule(name, options, schedule, arguments, rng):
    ours, theirs, mine, other = pair(name, options, "float64", rng)
    my_schedule = getattr(optim, schedule)(mine, **arguments)
    other_schedule = getattr(torch.optim.lr_scheduler, schedule)(other, **arguments)
    for _ in range(29):
        assert math.isclose(mine.lr, other.param_groups[0]["lr"], rel_tol=1e-12)
        for key in {"momentum", "betas"} & mine.param_groups[0].keys():
            assert mine.param_groups[0].get(key) == pytest.approx(other.param_groups[0].get(key), rel=1e-12)
        step_both(ours, theirs, (mine, other), rng)
        my_schedule.step()
        other_schedule.step()


SEQUENCES = {
    "warm-up, cosine": lambda lib, o: ([lib.LinearLR(o, 0.1, total_iters=5), lib.CosineAnnealingLR(o, 20)], [5]),
    "constant, steps": lambda lib, o: ([lib.LambdaLR(o, lambda step: 1.0), lib.StepLR(o, 3, 0.5)], [4]),
    "three": lambda lib, o: (
        [lib.LinearLR(o, 0.25, total_iters=3), lib.ExponentialLR(o, 0.8), lib.MultiStepLR(o, [2, 4], 0.3)],
        [6, 15],
    ),
    "one": lambda lib, o: ([lib.ExponentialLR(o, 0.9)], []),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_schedules_in_sequence(name, rng):
    _, _, mine, other = pair("SGD", {"lr": 0.1}, "float64", rng)
    here = optim.SequentialLR(mine, *SEQUENCES[name](optim, mine))
    there = torch.optim.lr_scheduler.SequentialLR(other, *SEQUENCES[name](torch.optim.lr_scheduler, other))
    other.step()
    for _ in range(29):
        assert math.isclose(mine.lr, other.param_groups[0]["lr"], rel_tol=1e-9)
        here.step()
        there.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 1, "factor": 0.5},
        {"patience": 0, "factor": 0.5, "cooldown": 3, "min_lr": 0.01},
        {"mode": "max", "patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
        {"mode": "max", "patience": 2, "threshold": 0.05},
        {"patience": 1, "threshold": 0.1, "threshold_mode": "abs", "min_lr": [0.02]},
        {"patience": 0, "eps": 0.005},
    ],
)
def test_plateau(options, rng):
    _, _, mine, other = pair("SGD", {"lr": 0.1}, "float64", rng)
    here = optim.ReduceLROnPlateau(mine, **options)
    there = torch.optim.lr_scheduler.ReduceLROnPlateau(other, **options)
    rates = set()
    for value in [*(1.0 + 0.3 * rng.standard_normal(30)), float("nan"), 0.0, -1.0, -1.0, -1.05, *rng.random(20)]:
        here.step(value)
        there.step(value)
        assert mine.lr == other.param_groups[0]["lr"]
        assert (here.best, here.num_bad_epochs, here.cooldown_counter) == (
            there.best, there.num_bad_epochs, there.cooldown_counter,
        )  # fmt: skip
        rates.add(mine.lr)
    assert len(rates) > 1


def test_groups_have_their_own_options(rng):
    values = [rng.standard_normal((4, 3)) for _ in range(3)]
    ours = [Parameter(value.copy()) for value in values]
    theirs = [torch.tensor(value, requires_grad=True) for value in values]

    def groups(parameters):
        return [
            {"params": parameters[:1], "lr": 0.5},
            {"params": parameters[1:], "momentum": 0.9, "weight_decay": 0.1},
        ]

    optimizers = optim.SGD(groups(ours), lr=0.1), torch.optim.SGD(groups(theirs), lr=0.1)
    for _ in range(5):
        step_both(ours, theirs, optimizers, rng)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm(max_norm, rng):
    ours, theirs, mine, _ = pair("SGD", {"lr": 0.1}, "float32", rng)
    for parameter, other in zip(ours, theirs, strict=True):
        parameter.grad = rng.standard_normal(parameter.shape).astype("float32")
        other.grad = torch.tensor(parameter.grad.copy())
    mine.collect()
    norm = optim.clip_grad_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert float(norm) == pytest.approx(float(expected), rel=1e-5)
    for parameter, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(parameter.grad, other.grad.numpy(), rtol=1e-5)


OPTIONS = {
    "SGD": {"momentum": [0.0, 0.9, 0.5], "weight_decay": [0.0, 0.1], "nesterov": [False, True]},
    "Adam": {"weight_decay": [0.0, 0.1], "betas": [(0.9, 0.999)]},
    "AdamW": {"weight_decay": [0.0, 0.1]},
    "RMSprop": {"weight_decay": [0.0, 0.1]},
    "Adagrad": {"weight_decay": [0.0, 0.1]},
}


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
def test_options_groups_and_frozen_parameters_that_change_between_steps(name, data):
    """Options turned, parameters frozen and added, in any order: torch does the same, its frozen ones have no grad."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(4) for _ in range(4)]
    mine = [Parameter(each.copy()) for each in start]
    theirs = [torch.nn.Parameter(torch.from_numpy(each.copy())) for each in start]
    update = getattr(optim, name)(mine[:3], lr=0.01)
    peer = getattr(torch.optim, name)(theirs[:3], lr=0.01)
    for _ in range(data.draw(st.integers(1, 8))):
        event = data.draw(st.sampled_from(["step", "option", "freeze", "thaw", "group", "lr"]))
        i = data.draw(st.integers(0, 3))
        if event == "option":
            option = data.draw(st.sampled_from(list(OPTIONS[name])))
            value = data.draw(st.sampled_from(OPTIONS[name][option]))
            group = update.param_groups[0]
            if option == "momentum" and not value and group.get("nesterov"):
                continue
            if option == "nesterov" and value and not group["momentum"]:
                continue
            group[option] = peer.param_groups[0][option] = value
        elif event in ("freeze", "thaw"):
            mine[i].requires_grad = event == "thaw"
        elif event == "group" and len(update.param_groups) == 1:
            update.add_param_group({"params": [mine[3]], "lr": 0.05})
            peer.add_param_group({"params": [theirs[3]], "lr": 0.05})
        elif event == "lr":
            update.param_groups[0]["lr"] = peer.param_groups[0]["lr"] = 0.02
        for ours, other in zip(mine, theirs, strict=True):
            gradient = rng.standard_normal(4)
            ours.accumulate(gradient)
            other.grad = torch.from_numpy(gradient) if ours.requires_grad else None
        update.step()
        update.zero_grad()
        peer.step()
        for ours, other in zip(mine, theirs, strict=True):
            ours.zero_grad()
            np.testing.assert_allclose(ours.data, other.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_grad_norm_of_what_is_not_finite(bad, dtype, rng):
    ours = [Parameter(rng.standard_normal((2, 3)).astype(dtype)) for _ in range(2)]
    theirs = [torch.tensor(np.asarray(p.data), requires_grad=True) for p in ours]
    for i, (parameter, other) in enumerate(zip(ours, theirs, strict=True)):
        gradient = rng.standard_normal((2, 3)).astype(dtype)
        gradient[0, 1] = bad if i else 1.0
        parameter.grad, other.grad = gradient, torch.tensor(gradient.copy())
    norm = optim.clip_grad_norm(ours, 0.5)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    np.testing.assert_array_equal(norm, expected.numpy())
    for parameter, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(parameter.grad, other.grad.numpy())
