"""Batches for training: a loader that checks once and draws its order on the host, and transforms on any backend."""

from xpcnn.data.affine import RandomAffine
from xpcnn.data.colour import ColorJitter
from xpcnn.data.compose import Compose, describe
from xpcnn.data.cropping import CenterCrop, RandomCrop, RandomErasing, RandomHorizontalFlip
from xpcnn.data.loader import DataLoader
from xpcnn.data.mixup import MixUp
from xpcnn.data.resize import Resize
from xpcnn.data.transforms import ChannelsFirst, Normalize, Pad, Repeat, ToFloat

__all__ = [
    "CenterCrop",
    "ChannelsFirst",
    "ColorJitter",
    "Compose",
    "DataLoader",
    "MixUp",
    "Normalize",
    "Pad",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "Repeat",
    "Resize",
    "ToFloat",
    "describe",
]
