"""Histories: what is written is what is read; anything else is told in a line."""

import csv
import json
import math
import sys

import pytest

from tests.mutations import check_reader
from xpcnn.errors import ConfigError, DataError
from xpcnn.training import History


def example():
    history = History()
    for step in range(5):
        history.add_step(1.0 / (step + 1), step / 10, 0.1)
    history.add_step(math.nan, 0.5, 0.1)
    history.add_epoch(step=6, loss=0.5, accuracy=0.25, seconds=1.5, images_per_second=100.0)
    return history


def same(a, b):
    assert json.dumps(a.to_dict()) == json.dumps(b.to_dict())


def test_there_and_back(tmp_path):
    example().save(tmp_path / "history.json")
    loaded = History.load(tmp_path / "history.json")
    same(example(), loaded)
    assert len(loaded) == 6
    assert math.isnan(loaded.steps["loss"][-1])
    assert math.isnan(loaded.epochs["validation_loss"][0])
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_csv_and_both(tmp_path):
    example().save(tmp_path / "both")
    same(example(), History.load(tmp_path / "both"))
    with open(tmp_path / "both.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[2]["loss"]) == 1.0 / 3
    example().save(tmp_path / "alone.csv")
    assert (tmp_path / "alone.csv").read_text() == (tmp_path / "both.csv").read_text()


def test_json_is_strict(tmp_path):
    example().save(tmp_path / "history.json")

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "history.json").read_text(), parse_constant=refuse)


def test_damaged_files(tmp_path):
    path = tmp_path / "history.json"
    example().save(path)
    check_reader("history", History.load, path.read_bytes(), path, bytes_per_byte=256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected the tables"),
        ('{"steps": {}}', "expected the columns loss, accuracy, lr in steps"),
        ('{"steps": {"loss": [1], "accuracy": [], "lr": []}}', "columns of one length in steps"),
        ('{"steps": {"loss": "abc", "accuracy": [], "lr": []}}', "expected a list as steps.loss"),
        ('{"steps": {"loss": ["1"], "accuracy": [1], "lr": [1]}}', "expected numbers, got '1'"),
        (f'{{"steps": {{"loss": [1{"0" * 400}], "accuracy": [1], "lr": [1]}}}}', "beyond the range"),
        ("[" * 100_000, "expected JSON"),
        ("", "expected JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "expected JSON"),
    ],
)
def test_other_files(content, message, tmp_path):
    path = tmp_path / "history.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        History.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_wrong_names(tmp_path):
    with pytest.raises(DataError, match=r"ends in .json or .csv"):
        example().save(tmp_path / "history.txt")
    with pytest.raises(DataError, match="expected a history to read"):
        History.load(tmp_path / "nothing.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder.json: expected"):
        example().save(tmp_path / "folder.json")
    assert list((tmp_path / "folder.json").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


# --- notebooks and tables --------------------------------------------------------------------------------------------


def a_history(epochs=3):
    history = History()
    for epoch in range(epochs):
        history.add_step(2.0 - epoch, 0.5, 0.1)
        history.add_epoch(step=epoch + 1, loss=2.0 - epoch, accuracy=0.5, seconds=0.25, images_per_second=100.0)
    return history


def test_a_notebook_shows_the_epochs():
    text = a_history()._repr_html_()
    assert text.startswith("<p>History(3 epochs, 3 steps; last: loss 0, accuracy 0.5)</p><table>")
    assert "<th>epoch</th><th>step</th><th>loss</th><th>accuracy</th><th>seconds</th><th>images per second</th>" in text
    assert "<tr><td>2</td><td>2</td><td>1.0000</td><td>0.5000</td><td>0.2500</td><td>100</td></tr>" in text
    assert "validation" not in text
    assert History()._repr_html_() == "<p>History(0 epochs, 0 steps)</p>"


def test_of_many_epochs_it_shows_the_first_and_the_last():
    text = a_history(50)._repr_html_()
    assert text.count("<tr>") == 22
    assert "<td>10</td>" in text
    assert "<td>41</td>" in text
    assert "<td>30</td>" not in text


def test_as_a_pandas_frame():
    pandas = pytest.importorskip("pandas")
    history = a_history()
    frame = history.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(history.epochs)
    assert list(frame.index) == [1, 2, 3]
    assert frame.index.name == "epoch"
    assert list(frame["loss"]) == [2.0, 1.0, 0.0]
    assert frame["validation_loss"].isna().all()
    steps = history.to_pandas("steps")
    assert list(steps.columns) == ["loss", "accuracy", "lr"]
    assert steps.index.name == "step"
    assert steps["lr"].dtype == "float64"
    assert len(History().to_pandas()) == 0
    with pytest.raises(ConfigError, match='table: expected "epochs" or "steps", got'):
        history.to_pandas("losses")


def test_without_pandas_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        ConfigError, match=r'to_pandas: needs pandas, which is not installed: pip install "\.\[pandas\]"'
    ):
        a_history().to_pandas()
