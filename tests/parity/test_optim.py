"""Every optimiser and schedule, step by step, against PyTorch's."""

import numpy as np
import pytest

from xpcnn import nn, optim

pytestmark = pytest.mark.parity

SHAPES = [(4, 3), (5,), (2, 3, 2, 2)]
OPTIMISERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5}),
    ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
]


def both(torch, rng, dtype="float64"):
    """Make the same parameters here and in PyTorch."""
    starts = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    ours = [nn.Parameter(start.copy(), str(i)) for i, start in enumerate(starts)]
    theirs = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    return ours, theirs


def give_gradients(torch, rng, ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        gradient = rng.normal(size=mine.shape).astype(mine.data.dtype)
        mine.grad = gradient.copy()
        other.grad = torch.tensor(gradient)


def check(ours, theirs, tolerance=1e-12):
    for mine, other in zip(ours, theirs, strict=True):
        expected = other.detach().numpy()
        assert np.max(np.abs(mine.data - expected)) <= tolerance * max(1.0, np.max(np.abs(expected)))


@pytest.mark.parametrize(("name", "options"), OPTIMISERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 5e-6)])
def test_optimisers(torch, rng, name, options, dtype, tolerance):
    ours, theirs = both(torch, rng, dtype)
    mine, other = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(12):
        if step == 6:  # a schedule writes the rate
            mine.lr = mine.lr / 2
            other.param_groups[0]["lr"] /= 2
        give_gradients(torch, rng, ours, theirs)
        mine.step()
        other.step()
        check(ours, theirs, tolerance)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_defaults_are_pytorchs(torch, rng, name):
    ours, theirs = both(torch, rng)
    start = {"lr": 0.1} if name == "SGD" else {}
    mine, other = getattr(optim, name)(ours, **start), getattr(torch.optim, name)(theirs, **start)
    for option, value in mine.param_groups[0].items():
        if option not in ("params", "shrink"):
            assert value == pytest.approx(other.param_groups[0][option]), option


def test_groups_have_options_of_their_own(torch, rng):
    ours, theirs = both(torch, rng)

    def groups(parameters):
        return [{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:], "weight_decay": 0.3}]

    mine = optim.SGD(groups(ours), 0.1, momentum=0.9)
    other = torch.optim.SGD(groups(theirs), 0.1, momentum=0.9)
    for _ in range(5):
        give_gradients(torch, rng, ours, theirs)
        mine.step()
        other.step()
        check(ours, theirs)


SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("CosineAnnealingLR", {"T_max": 10}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 31}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 31, "pct_start": 0.5, "anneal_strategy": "linear"}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 31, "div_factor": 5.0, "final_div_factor": 100.0,
                    "base_momentum": 0.7, "max_momentum": 0.9}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), SCHEDULES)
@pytest.mark.parametrize("optimiser", ["SGD", "Adam"])
def test_schedules(torch, rng, name, options, optimiser):
    ours, theirs = both(torch, rng)
    settings = {"lr": 0.1, "momentum": 0.9} if optimiser == "SGD" else {"lr": 0.1}
    mine, other = getattr(optim, optimiser)(ours, **settings), getattr(torch.optim, optimiser)(theirs, **settings)
    schedule = getattr(optim, name)(mine, **options)
    oracle = getattr(torch.optim.lr_scheduler, name)(other, **options)
    for step in range(30):
        group = other.param_groups[0]
        assert mine.lr == pytest.approx(group["lr"], rel=1e-9), step
        for option in ("momentum", "betas"):
            if option in group:
                assert mine.param_groups[0][option] == pytest.approx(group[option], rel=1e-9), step
        give_gradients(torch, rng, ours, theirs)
        mine.step()
        other.step()
        schedule.step()
        oracle.step()
    check(ours, theirs, 1e-10)


def test_a_schedule_scales_every_group(torch, rng):
    ours, theirs = both(torch, rng)
    mine = optim.SGD([{"params": ours[:1], "lr": 0.5}, {"params": ours[1:]}], 0.1)
    other = torch.optim.SGD([{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:]}], 0.1)
    schedule = optim.ExponentialLR(mine, 0.5)
    oracle = torch.optim.lr_scheduler.ExponentialLR(other, 0.5)
    for _ in range(3):
        give_gradients(torch, rng, ours, theirs)
        mine.step()
        other.step()
        schedule.step()
        oracle.step()
    assert [group["lr"] for group in mine.param_groups] == pytest.approx([g["lr"] for g in other.param_groups])


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm(torch, rng, max_norm):
    ours, theirs = both(torch, rng)
    give_gradients(torch, rng, ours, theirs)
    norm = optim.clip_grad_norm(ours, max_norm)
    assert float(norm) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)))
    for mine, other in zip(ours, theirs, strict=True):
        assert np.allclose(mine.grad, other.grad.numpy(), rtol=1e-12, atol=0)
