"""What accompanies a training, against PyTorch's."""

import numpy as np
import pytest

from xpcnn import nn
from xpcnn.training import ModelAverage

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("use_buffers", [False, True])
def test_model_average(use_buffers):
    rng = np.random.default_rng(0)
    ours = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    average = ModelAverage(0.9, use_buffers=use_buffers)
    other = torch.optim.swa_utils.AveragedModel(
        theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=use_buffers
    )
    for _ in range(6):
        values = {name: rng.random(array.shape).astype("float32") for name, array in ours.state_dict().items()}
        ours.load_state_dict(values)
        renamed = {name.replace("gamma", "weight").replace("beta", "bias"): value for name, value in values.items()}
        theirs.load_state_dict({name: torch.tensor(value) for name, value in renamed.items()}, strict=False)
        average.update(ours)
        other.update_parameters(theirs)
    average.copy_to(ours)
    found = other.module.state_dict()
    for name, array in ours.state_dict().items():
        name = name.replace("gamma", "weight").replace("beta", "bias")
        np.testing.assert_allclose(array, found[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
