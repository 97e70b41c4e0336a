"""float16 against PyTorch's on the CPU: the scaler step for step, and layers and a training to a rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import nn, optim
from xpcnn.backend import get_backend
from xpcnn.training import Trainer

pytestmark = pytest.mark.parity


@settings(max_examples=20)
@given(
    st.lists(st.booleans(), max_size=20), st.integers(1, 4), st.sampled_from([2.0, 4.0]), st.sampled_from([0.5, 0.25])
)
def test_the_scaler_is_torchs(history, interval, growth, backoff):
    torch = pytest.importorskip("torch")
    arguments = {"init_scale": 1024.0, "growth_factor": growth, "backoff_factor": backoff, "growth_interval": interval}
    ours, theirs = optim.GradScaler(**arguments), torch.amp.GradScaler("cpu", **arguments)
    backend = get_backend()
    ours.place(backend)
    parameter = torch.nn.Parameter(torch.ones(2))
    update = torch.optim.SGD([parameter], 0.1)
    theirs.scale(torch.ones(1))
    for ok in history[:12]:
        parameter.grad = torch.full((2,), 1.0 if ok else float("inf"))
        theirs.step(update)
        theirs.update()
        ours.update(backend.asarray([ok]))
        assert ours.get_scale() == max(theirs.get_scale(), 2.0**-14)
        if ours.get_scale() == 2.0**-14:
            return
    if history:
        assert ours.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1, "groups": 2}])
def test_convolutions_are_torchs_to_a_rounding(torch, rng, options):
    layer = nn.Conv2d(4, 6, 3, **options).half()
    theirs = torch.nn.Conv2d(4, 6, 3, **options).half()
    with torch.no_grad():
        for mine, its in zip(layer.parameters(), theirs.parameters(), strict=True):
            its.copy_(torch.from_numpy(np.array(mine.data)))
    x = rng.normal(size=(3, 4, 9, 8)).astype("float16")
    given_x = torch.from_numpy(x).requires_grad_()
    y, expected = layer(x), theirs(given_x)
    dy = rng.normal(size=y.shape).astype("float16")
    dx = layer.backward(dy)
    expected.backward(torch.from_numpy(dy))
    pairs = [(y, expected.detach()), (dx, given_x.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(layer.parameters(), theirs.parameters(), strict=True)]
    for mine, its in pairs:
        a, b = np.asarray(mine, "float64"), its.numpy().astype("float64")
        assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b)


def test_a_training_is_that_of_autocast(torch, rng):
    """Twelve steps of float32 parameters under torch.autocast with its GradScaler, and ours with float32 masters."""
    ours = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    with torch.no_grad():
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            its.copy_(torch.from_numpy(np.array(mine.data)))
    x, labels = rng.normal(size=(16, 1, 8, 8)).astype("float32"), rng.integers(0, 5, 16)
    update = optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    ours.half()
    trainer = Trainer(ours, update, nn.CrossEntropyLoss(), scaler=optim.GradScaler(2.0**16, growth_interval=3))
    trainer.fit([(x, labels)] * 12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    its_update = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        its_update.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = theirs(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.from_numpy(labels))
        scaler.scale(loss).backward()
        scaler.step(its_update)
        scaler.update()
        losses.append(float(loss.detach()))
    assert trainer.history.steps["loss"] == pytest.approx(losses, abs=5e-3)
    state = update.state_dict()
    for i, its in enumerate(theirs.parameters()):
        b = its.detach().numpy()
        assert np.linalg.norm(state[f"state.{i}.master"] - b) < 5e-3 * np.linalg.norm(b)
