"""Event files hold the numbers of the history, each once, whatever ended a training in between."""

import sys

import pytest

from xpcnn.errors import ConfigError, DataError
from xpcnn.training import Checkpointer, TensorBoard

from .common import StopAfter, loader, trainer

pytest.importorskip("tensorboardX")


TAGS = {
    "loss": "epoch/loss", "accuracy": "epoch/accuracy", "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy", "images_per_second": "epoch/images_per_second",
}  # fmt: skip


def events(folder):
    """Return (tag, step) -> value of all event files; later files hide what they purge, as TensorBoard does."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            if event.session_log.status == 1:  # START: what is at or after this step is hidden
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found


def expected(history, every=1):
    numbers = {}
    for i in range(0, len(history), every):
        for name in ("loss", "accuracy", "lr"):
            numbers[f"train/{name}", i + 1] = history.steps[name][i]
    for i, step in enumerate(history.epochs["step"]):
        for name, tag in TAGS.items():
            value = history.epochs[name][i]
            if value == value:
                numbers[tag, step] = value
    return numbers


@pytest.mark.parametrize("every", [1, 4])
def test_the_numbers_of_the_history(backend, tmp_path, every):
    made = trainer(callbacks=[TensorBoard(tmp_path, every)])
    made.fit(loader(), loader(shuffle=False), epochs=2)
    assert events(tmp_path) == pytest.approx(expected(made.history, every), rel=1e-6)
    assert len(expected(made.history, every)) > 12


def test_a_second_fit_goes_on(backend, tmp_path):
    made = trainer(callbacks=[TensorBoard(tmp_path)])
    made.fit(loader(), epochs=1)
    made.fit(loader(), epochs=1)
    assert events(tmp_path) == pytest.approx(expected(made.history), rel=1e-6)


@pytest.mark.parametrize("stop", [4, 6, 9])
def test_a_resumed_training_writes_each_number_once(backend, tmp_path, stop):
    def made(*others):
        callbacks = [TensorBoard(tmp_path / "board"), *others]
        return trainer(callbacks=callbacks, checkpoint=Checkpointer(tmp_path / "run", every_steps=2))

    with pytest.raises(StopAfter.Stopped):
        made(StopAfter(stop)).fit(loader(), loader(shuffle=False), epochs=3)
    resumed = made()
    resumed.fit(loader(), loader(shuffle=False), epochs=3, resume=True)
    found, wanted = events(tmp_path / "board"), expected(resumed.history)
    for numbers in (found, wanted):  # what an epoch took is another time's
        for key in [key for key in numbers if "per_second" in key[0]]:
            del numbers[key]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_without_tensorboardx_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'pip install "\.\[tensorboard\]"'):
        TensorBoard(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    made = trainer(callbacks=[TensorBoard(tmp_path / "file")])
    with pytest.raises(DataError, match="folder: expected one that can be written, got"):
        made.fit(loader())


@pytest.mark.parametrize("change", [{"steps": -1}, {"epochs": 1.5}, {"more": 1}])
def test_damaged_state(tmp_path, change):
    board = TensorBoard(tmp_path)
    with pytest.raises(DataError, match="tensorboard state: expected"):
        board.load_state_dict({**board.state_dict(), **change})


def test_wrong_numbers(tmp_path):
    with pytest.raises(ConfigError, match="every: expected an integer of 1 or more, got 0"):
        TensorBoard(tmp_path, 0)
