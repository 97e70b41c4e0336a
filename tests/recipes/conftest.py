import pytest

from .small import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Give a folder of 120 and 40 digits."""
    return write_digits(tmp_path_factory.mktemp("digits"), 120, 40)


@pytest.fixture(scope="session")
def more_digits(tmp_path_factory):
    """Give a folder of 300 and 90 digits, of which something can be learnt."""
    return write_digits(tmp_path_factory.mktemp("more-digits"))
