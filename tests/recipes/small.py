"""A folder of a few hundred real digits, as IDX files, so that whole trainings take a second."""

from tests.datasets.makers import gzipped, idx_bytes
from xpcnn.datasets import load_mnist


def write_digits(folder, train=300, test=90, zipped=True):
    """Write the first digits of each part of MNIST; return the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, dataset, size in zip(("train", "t10k"), load_mnist(), (train, test), strict=True):
        for what, array in (("images-idx3", dataset.images), ("labels-idx1", dataset.labels)):
            content = idx_bytes(array[:size])
            path = folder / f"{part}-{what}-ubyte"
            path.with_name(path.name + ".gz" * zipped).write_bytes(gzipped(content) if zipped else content)
    return str(folder)
