"""Sets of images: MNIST, which the package carries, and readers that trust no file. Host side, never the network."""

from xpcnn.datasets.cifar import load_cifar10
from xpcnn.datasets.dataset import Dataset, concatenate, split, to_categorical
from xpcnn.datasets.idx import load_idx
from xpcnn.datasets.image import load_image
from xpcnn.datasets.mnist import load_mnist, load_mnist_pickle

__all__ = [
    "Dataset",
    "concatenate",
    "load_cifar10",
    "load_idx",
    "load_image",
    "load_mnist",
    "load_mnist_pickle",
    "split",
    "to_categorical",
]
