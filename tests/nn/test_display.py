"""What notebooks show of a network."""

import re

import numpy as np
import pytest

from xpcnn import models, nn
from xpcnn.errors import ConfigError, ShapeError


class Own(nn.Module):
    calls = 0

    def forward(self, x):
        Own.calls += 1
        return x

    def extra_repr(self):
        return "<b>"


def cells(html):
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_a_summary_is_text_and_a_table():
    found = models.create("lenet5").summary((1, 32, 32))
    assert isinstance(found, str)
    rows = cells(found._repr_html_())
    assert rows[0] == ["layer", "", "output", "parameters", "multiply-adds"]
    assert rows[1] == ["0", "Conv2d", "6x28x28", "156", "117,600"]
    assert rows[-1] == ["total", "", "", "61,990", "416,520"]
    assert [line.split()[0] for line in found.splitlines()] == [row[0] for row in rows]


def test_the_shape_is_that_of_the_last_call(backend):
    model = models.create("lenet5")
    with pytest.raises(ConfigError, match="input_shape: expected the shape of one sample"):
        model.summary()
    for wrong in (784, "1x28x28"):
        with pytest.raises(ConfigError, match=r"input_shape: expected the shape of one sample, .* got"):
            model.summary(wrong)
    model(backend.asarray(np.zeros((2, 1, 32, 32), "float32")))
    model.forget()
    assert model.summary() == model.summary((1, 32, 32))
    with pytest.raises(
        ShapeError, match=r"^input_shape: expected .* one sample, without the batch, .* got \(1, 1, 32, 32\): "
    ):
        model.summary((1, 1, 32, 32))
    assert model.training


def test_a_network_that_was_called_and_one_that_was_not(backend):
    model = models.create("lenet5")
    rows = cells(model._repr_html_())
    assert rows[0] == ["layer", "", "parameters"]
    assert rows[1][:2] == ["0", "Conv2d(1, 6, (5, 5), stride=1, padding=0)"]
    assert rows[-1] == ["total", "", "61,990"]
    model(backend.asarray(np.zeros((2, 1, 32, 32), "float32")))
    html = model._repr_html_()
    assert "61,990 parameters, training mode, input (N, 1, 32, 32)" in html
    assert cells(html) == cells(model.summary()._repr_html_())
    assert len(model._forwards) == 1  # the call's own


def test_layers_of_ones_own_are_not_called_for_it():
    model = nn.Sequential(Own(), nn.Flatten())
    model(np.zeros((2, 1, 3, 3), "float32"))
    assert Own.calls == 1
    html = model._repr_html_()
    assert Own.calls == 1
    assert "Own(&lt;b&gt;)" in html
    hooked = nn.Sequential(nn.Flatten())
    hooked(np.zeros((2, 1, 3, 3), "float32"))
    seen = []
    hooked[0].register_forward_hook(lambda *given: seen.append(given))
    assert "Flatten" in hooked._repr_html_()
    assert not seen
