"""Small networks for the tests, in a module that worker processes can import."""

from xpcnn import nn


def small(input_shape, num_classes):
    """Return a convolution and a dense layer."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * height * width, num_classes)
    )
