import pytest

from tests.recipes.small import write_digits
from xpcnn.cli import main


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Give a folder of 300 and 90 digits."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, digits):
    """Give the folder of a finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "lenet5"
    assert main(["train", "lenet5", "--data", digits, "--out", str(folder), "--epochs", "3"]) == 0
    return folder
