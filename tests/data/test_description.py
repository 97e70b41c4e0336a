"""Transforms are described by their arguments, and made again from them."""

import json

import numpy as np
import pytest

from xpcnn import data
from xpcnn.data import ChannelsFirst, Compose, Normalize, Pad, Repeat, ToFloat
from xpcnn.data.description import describe_transform, for_evaluation, restore_transform
from xpcnn.data.transforms import Transform
from xpcnn.errors import ConfigError, DataError

EXAMPLES = {
    "CenterCrop": data.CenterCrop((3, 4), 0.5),
    "ChannelsFirst": ChannelsFirst(),
    "ColorJitter": data.ColorJitter(0.1, (0.5, 2), 0.3, 0.05),
    "Compose": Compose(Pad(1), Compose(Normalize((0.1, 0.2, 0.3), 2), Repeat(1)), ToFloat()),
    "MixUp": data.MixUp(0.2, 10),
    "Normalize": Normalize((0.5, np.float32(0.25)), 0.125),
    "Pad": Pad((1, np.int64(2)), 0.5),
    "RandomAffine": data.RandomAffine(10, (0.1, 0.2), (0.5, 2), fill=0.5),
    "RandomCrop": data.RandomCrop((3, 4), 2, padding_mode="edge"),
    "RandomErasing": data.RandomErasing(0.2, (0.1, 0.2), (0.5, 2), 0.5),
    "RandomHorizontalFlip": data.RandomHorizontalFlip(0.3),
    "Repeat": Repeat(3),
    "Resize": data.Resize((5, 6)),
    "ToFloat": ToFloat(),
}
CLASSES = [
    name
    for name in data.__all__
    if isinstance(getattr(data, name), type) and issubclass(getattr(data, name), Transform)
]


def again(transform, custom=None):
    return restore_transform(json.loads(json.dumps(describe_transform(transform))), custom or {})


@pytest.mark.parametrize("name", CLASSES)
def test_there_and_back(name):
    assert name in EXAMPLES, f"give {name} an example in EXAMPLES of {__file__}"
    kept = for_evaluation(EXAMPLES[name])
    if kept is None:
        return  # drawn at random: for training alone
    found = again(kept)
    assert type(found) is type(kept)
    assert repr(found) == repr(kept)
    assert describe_transform(found) == describe_transform(kept)


def double(batch):
    return batch * 2


class Triple:
    def __call__(self, batch):
        return batch * 3


class Own(Transform):
    pass


def test_ones_own_are_kept_by_name():
    own = {"double": double, "Triple": Triple(), "Own": Own()}
    found = again(Compose(*own.values(), ToFloat()), own)
    assert found.transforms[:3] == tuple(own.values())
    for missing in own:
        rest = {name: each for name, each in own.items() if name != missing}
        with pytest.raises(DataError, match=f"transform: {missing} is not a transform of xpcnn.data; hand it over"):
            again(Compose(*own.values()), rest)
    with pytest.raises(ConfigError, match="got '<lambda>'"):
        describe_transform(lambda batch: batch)


def test_what_is_drawn_at_random_is_left_out():
    class Flip(Transform):
        is_random = True

    assert for_evaluation(Flip()) is None
    assert repr(for_evaluation(Compose(Flip(), Pad(1), Flip()))) == repr(Compose(Pad(1)))
    assert repr(for_evaluation(Pad(1))) == repr(Pad(1))


@pytest.mark.parametrize(
    "description",
    [
        None, 3, "Pad", [], {}, {"name": None}, {"name": ["Pad"]}, {"name": "Compose", "transforms": 3},
        {"name": "Compose", "transforms": [{"name": "Compose", "transforms": []}]}, {"name": "Transform"},
        {"name": "Normalize", "mean": [], "std": 1}, {"name": "Normalize", "mean": 0, "std": [[[[[[1]]]]]]},
        {"name": "Normalize", "mean": "a", "std": 1}, {"name": "ToFloat", "more": 1}, {"custom": None},
        {"name": "Pad", "padding": 1e400}, {"custom": "eval"},
    ],
)  # fmt: skip
def test_a_description_that_is_none(description):
    with pytest.raises(DataError) as found:
        restore_transform(description, {})
    assert "\n" not in str(found.value)
