import io

import numpy as np
import pytest

from xpcnn import models, random
from xpcnn.data import Normalize
from xpcnn.datasets import load_mnist
from xpcnn.training import Predictor


def png(pixels, kind="PNG"):
    """Return an array as the bytes of a picture."""
    Image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="session")
def seven():
    """Give a test digit on paper, as a PNG."""
    return png(255 - np.kron(np.pad(load_mnist()[1].images[0], 6), np.ones((4, 4), np.uint8)))


@pytest.fixture(scope="session")
def predictor():
    """Give a network of digits that has learned nothing."""
    with random.fork_rng():
        random.manual_seed(3)
        model = models.create("tiny")
    return Predictor(model.eval(), transform=Normalize(0.13, 0.31), digits=True)


@pytest.fixture
def app(predictor):
    pytest.importorskip("starlette")
    from xpcnn.web import Inspector, create_app

    return create_app(Inspector(predictor, "tiny"))
