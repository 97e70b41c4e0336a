"""Batches for training: a loader that checks once and draws its order on the host, and transforms on any backend."""

from xpcnn.data.loader import DataLoader
from xpcnn.data.transforms import ChannelsFirst, Compose, Normalize, Pad, Repeat, ToFloat, describe

__all__ = ["ChannelsFirst", "Compose", "DataLoader", "Normalize", "Pad", "Repeat", "ToFloat", "describe"]
