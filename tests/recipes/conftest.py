import pytest

from .small import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Give a folder of 300 and 90 digits."""
    return write_digits(tmp_path_factory.mktemp("digits"))
