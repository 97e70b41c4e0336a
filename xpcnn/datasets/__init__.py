"""Sets of images: MNIST, which the package carries, and readers that trust no file. Host side, never the network."""

from xpcnn.datasets.cifar import load_cifar10
from xpcnn.datasets.dataset import Dataset, concatenate, split, to_categorical
from xpcnn.datasets.idx import load_idx
from xpcnn.datasets.image import load_image
from xpcnn.datasets.lazy import LazyImages
from xpcnn.datasets.mnist import load_mnist, load_mnist_pickle
from xpcnn.datasets.mnist.folder import load_mnist_folder
from xpcnn.datasets.picture_folder import load_folder
from xpcnn.datasets.pictures import load_picture
from xpcnn.datasets.tables import load_csv, load_npz

__all__ = [
    "Dataset",
    "LazyImages",
    "concatenate",
    "load_cifar10",
    "load_csv",
    "load_folder",
    "load_idx",
    "load_image",
    "load_mnist",
    "load_mnist_folder",
    "load_mnist_pickle",
    "load_npz",
    "load_picture",
    "split",
    "to_categorical",
]
