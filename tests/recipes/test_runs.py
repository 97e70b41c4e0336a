"""A recipe runs on every backend, leaves a folder, goes on where it was stopped, and is read back."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest

from tests.datasets.makers import gzipped, mnist_parts, mnist_pickle, write_cifar
from tests.mutations import check_reader
from tests.recipes.small import write_digits
from xpcnn import recipes
from xpcnn.backend import get_backend
from xpcnn.errors import ConfigError, DataError, DTypeError
from xpcnn.recipes import folder as folders
from xpcnn.recipes.table import RECIPES
from xpcnn.training import History

pytestmark = pytest.mark.usefixtures("backend")


class StopAt:
    """Presses Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def host(run):
    return {name: run.model.backend.to_numpy(value).copy() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in recipes.names() if name != "tiny"])
def test_every_recipe_runs_on_every_backend(backend, digits, name):
    batch_size = 1 if name == "conv8" else 30
    done = recipes.run(name, data=digits, epochs=1, batch_size=batch_size)
    assert done.model.backend is get_backend() is backend
    assert len(done.history) == {"conv8": 120}.get(name, 4)
    assert done.metrics.count == {"deep3": 46}.get(name, 40)
    assert 0.0 <= done.metrics.accuracy <= 1.0
    assert math.isfinite(done.metrics.loss)
    probabilities = backend.to_numpy(done.evaluation.probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_tiny_takes_its_2000_steps(backend, more_digits, monkeypatch):
    if backend.name != "numpy":  # a device, slow without one, learns a little from fewer
        monkeypatch.setitem(RECIPES, "tiny", replace(RECIPES["tiny"], steps_per_epoch=300))
    done = recipes.run("tiny", data=more_digits)
    steps, accuracy = (2000, 0.6) if backend.name == "numpy" else (300, 0.3)
    assert len(done.history) == steps
    assert done.metrics.accuracy > accuracy


def test_the_metrics_are_those_of_the_probabilities(digits, backend):
    done = recipes.run("lenet5", data=digits)
    labels = done.test.labels.astype(int)
    shares = backend.to_numpy(done.evaluation.probabilities)
    assert done.metrics.accuracy == np.mean(shares.argmax(axis=1) == labels)
    assert done.metrics.loss == pytest.approx(-np.mean(np.log(shares[np.arange(40), labels])), rel=1e-4)
    assert done.history.epochs["validation_accuracy"] == [done.metrics.accuracy]


def test_a_seed_fixes_everything(digits):
    first, same, other = (host(recipes.run("lenet5", data=digits, seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not np.array_equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize(("name", "highest"), [("lenet5", 0.02), ("lenet5-fast", 0.02), ("three-layer", 0.02)])
def test_the_learning_rate_is_the_highest_of_the_schedule(digits, name, highest):
    rates = recipes.run(name, data=digits, epochs=1, batch_size=12, lr=highest).history.steps["lr"]
    assert max(rates) == pytest.approx(highest, rel=0.05)


def test_a_run_goes_on_with_its_learning_rate(digits, tmp_path):
    options = {"data": digits, "batch_size": 50, "lr": 1e-3}
    with pytest.raises(KeyboardInterrupt):
        recipes.run("lenet5", out=tmp_path / "run", callbacks=[StopAt(2)], **options)
    resumed = recipes.run(out=tmp_path / "run", resume=True)
    assert list(resumed.history.steps["loss"]) == list(recipes.run("lenet5", **options).history.steps["loss"])
    assert resumed.settings.lr == 1e-3
    with pytest.raises(ConfigError, match=r"lr: expected 0.001 as the run in .* has it, got 0.1"):
        recipes.run(out=tmp_path / "run", resume=True, lr=0.1)


def test_the_folder_holds_what_a_run_was(digits, tmp_path, backend):
    done = recipes.run("lenet5", data=digits, epochs=2, seed=5, out=tmp_path / "new" / "run")
    content = json.loads((done.folder / "run.json").read_text())
    assert content["settings"] == {
        "recipe": "lenet5",
        "data": digits,
        "epochs": 2,
        "batch_size": 128,
        "seed": 5,
        "as_written": False,
        "precision": "float32",
        "image_size": None,
        "augment": None,
        "patience": None,
        "skip_broken": False,
        "lr": None,
    }
    assert content["state"] == "done"
    assert content["test"]["accuracy"] == done.metrics.accuracy
    assert [each["seconds"] > 0 for each in content["epochs"]] == [True, True]
    assert content["machine"]["backend"] == backend.name
    own = {"numpy": {"device", "numpy"}, "cupy": {"device", "cupy"}}.get(backend.name, set())
    assert {"python", "xpcnn"} | own <= set(content["machine"])
    assert len(History.load(done.folder / "history.json")) == len(done.history)
    assert not [path.name for path in done.folder.rglob("*.tmp")]


def test_a_run_is_read_back(digits, tmp_path, backend):
    done = recipes.run("lenet5", data=digits, out=tmp_path / "run")
    again = recipes.load(tmp_path / "run")
    assert again.model.backend is backend
    assert again.metrics == done.metrics
    assert not again.model.training
    assert host(again).keys() == host(done).keys()
    assert all(np.array_equal(host(again)[name], value) for name, value in host(done).items())


@pytest.mark.parametrize("step", [2, 3, 5])
def test_stopped_and_resumed_is_as_if_never_stopped(digits, tmp_path, step):
    """Three batches an epoch: in the middle of one, at its end, in the next."""
    options = {"data": digits, "epochs": 2, "batch_size": 48, "seed": 7}
    whole = recipes.run("lenet5", **options)
    with pytest.raises(KeyboardInterrupt):
        recipes.run("lenet5", **options, out=tmp_path / "run", callbacks=[StopAt(step)])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "training"
    resumed = recipes.run(out=tmp_path / "run", resume=True)
    assert resumed.metrics == whole.metrics
    assert list(resumed.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert all(np.array_equal(host(resumed)[name], value) for name, value in host(whole).items())


def test_a_finished_run_resumed_is_as_it_was(digits, tmp_path):
    done = recipes.run("lenet5", data=digits, out=tmp_path / "run")
    again = recipes.run(out=tmp_path / "run", resume=True)
    assert again.metrics == done.metrics
    assert len(again.history) == len(done.history)


def test_resume_begins_where_there_is_nothing(digits, tmp_path):
    done = recipes.run("conv8", data=digits, epochs=1, out=tmp_path / "run", resume=True)
    assert len(done.history) == 120


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 3),
        ("seed", 1),
        ("batch_size", 7),
        ("as_written", True),
        ("name", "tiny"),
        ("data", "mnist"),
        ("precision", "float16"),
    ],
)
def test_resume_refuses_other_settings(digits, tmp_path, option, value):
    recipes.run("lenet5", data=digits, out=tmp_path / "run")
    option_name = "recipe" if option == "name" else option
    with pytest.raises(ConfigError, match=f"{option_name}: expected .* as the run in .* leave it out"):
        recipes.run(out=tmp_path / "run", resume=True, **{option: value})


def test_a_run_is_not_written_over(digits, tmp_path):
    recipes.run("conv8", data=digits, epochs=1, out=tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(DataError, match="holds a run already; go on with it with --resume"):
        recipes.run("conv8", data=digits, epochs=1, out=tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_folder_with_files_of_the_user_s_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="expected a new or empty folder"):
        recipes.run("conv8", data=digits, out=tmp_path)
    with pytest.raises(DataError, match="expected to write it, got 'Not a directory'"):
        recipes.run("conv8", data=digits, out=tmp_path / "thesis.tex" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("option", "value"), [("epochs", 0), ("batch_size", -1), ("seed", -1), ("epochs", 1.5)])
def test_numbers_that_make_no_sense(option, value):
    with pytest.raises(ConfigError, match=f"{option}: expected an integer of"):
        recipes.run("lenet5", **{option: value})


# --- data ---------------------------------------------------------------------------------------------------------


def test_mnist_pickle_and_raw_files(tmp_path, rng):
    (tmp_path / "mnist.pkl.gz").write_bytes(gzipped(mnist_pickle(mnist_parts(rng, (40, 8, 6)), "python2")))
    done = recipes.run("lenet5", data=str(tmp_path / "mnist.pkl.gz"), batch_size=16)
    assert (len(done.history), done.metrics.count) == (3, 6)


@pytest.mark.parametrize("form", ["binary", "python2"])
def test_cifar10(tmp_path, rng, form):
    write_cifar(tmp_path / "cifar", rng, form, size=10)
    done = recipes.run("three-layer", data=str(tmp_path / "cifar"), epochs=1, out=tmp_path / "run")
    assert (done.kind, done.metrics.count, len(done.history)) == ("cifar10", 10, 1)
    assert recipes.load(tmp_path / "run").metrics == done.metrics


def test_data_that_is_not_there(tmp_path, rng):
    with pytest.raises(DataError, match=r"fetch cifar-10-python.tar.gz .* --data FOLDER"):
        recipes.run("three-layer", data="cifar10")
    with pytest.raises(DataError, match="expected mnist, or a folder or file that is there, got 'nowhere'"):
        recipes.run("lenet5", data="nowhere")
    with pytest.raises(DataError, match="of MNIST's four IDX files or of CIFAR-10's batches"):
        recipes.run("lenet5", data=str(tmp_path))


def test_networks_are_built_to_other_sets(tmp_path, rng):
    write_cifar(tmp_path / "cifar", rng, "binary")
    done = recipes.run("lenet5", data=str(tmp_path / "cifar"), epochs=1, batch_size=8, out=tmp_path / "run")
    assert recipes.load(tmp_path / "run").metrics == done.metrics
    assert done.model[0].weight.shape == (6, 3, 5, 5)


# --- folders that are damaged -------------------------------------------------------------------------------------


def test_a_damaged_folder_is_one_clear_error(digits, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(DataError, match="no such run folder"):
        recipes.load(folder)
    folder.mkdir()
    with pytest.raises(DataError, match=r"run.json is missing"):
        recipes.load(folder)
    recipes.run("conv8", data=digits, epochs=1, out=folder)
    parameters = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(parameters[:-100])
    with pytest.raises(DataError, match=r"model.safetensors: expected a safetensors file, got a damaged one"):
        recipes.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"model.safetensors: expected"):
        recipes.load(folder)
    (folder / "run.json").write_text('{"format": "xpcnn run 1"}')
    with pytest.raises(DataError, match=r"run.json: damaged"):
        recipes.load(folder)


def test_damaged_settings_end_in_a_clear_error(tmp_path):
    settings = folders.Settings("lenet5", None, 1, 128, 0, False)
    folders.write(tmp_path / "good", settings, {"state": "done"})
    content = (tmp_path / "good" / "run.json").read_bytes()
    (tmp_path / "bad").mkdir()
    check_reader(
        "run.json",
        lambda path: folders.read(path.parent)[0],
        content,
        tmp_path / "bad" / "run.json",
        check=lambda found: isinstance(found, folders.Settings),
    )


def test_the_commit_is_git_s(tmp_path, monkeypatch):
    """With a branch as a file, packed, and none at all."""
    package = tmp_path / "xpcnn" / "recipes"
    monkeypatch.setattr(folders, "__file__", str(package / "folder.py"))
    assert folders.commit() is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    assert folders.commit() == "a" * 40
    (git / "refs" / "heads" / "main").write_text(f"{'b' * 40}\n")
    assert folders.commit() == "b" * 40
    (git / "HEAD").write_text(f"{'c' * 40}\n")
    assert folders.commit() == "c" * 40


def test_float16_runs_stop_resume_and_read_back(digits, tmp_path, backend):
    options = {"data": digits, "epochs": 2, "batch_size": 48, "seed": 7, "precision": "float16"}
    whole = recipes.run("lenet5", **options)
    with pytest.raises(KeyboardInterrupt):
        recipes.run("lenet5", **options, out=tmp_path / "run", callbacks=[StopAt(4)])
    resumed = recipes.run(out=tmp_path / "run", resume=True)
    assert resumed.metrics == whole.metrics
    assert list(resumed.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert all(np.array_equal(host(resumed)[name], value) for name, value in host(whole).items())
    assert {str(value.dtype) for value in host(whole).values()} == {"float16", "float32"}  # batch norm
    again = recipes.load(tmp_path / "run")
    assert again.metrics == whole.metrics
    assert host(again).keys() == host(whole).keys()


def test_float16_begins_with_the_float32_values(digits):
    """The masters are the initial values of the float32 run, not their roundings."""
    seen, scales = [], []

    class Look:
        def on_fit_start(self, trainer):
            members = [p for group in trainer.optimizer.param_groups for p in group["params"]]
            state = trainer.optimizer.state_dict()
            seen.append([state.get(f"state.{i}.master") for i in range(len(members))])
            seen.append([trainer.model.backend.to_numpy(p.data).copy() for p in members])
            scales.append(trainer.scaler and trainer.scaler.get_scale())

    recipes.run("lenet5", data=digits, precision="float16", callbacks=[Look()])
    recipes.run("lenet5", data=digits, callbacks=[Look()])
    masters, halves, _, plain = seen
    assert scales == [65536.0, None]
    assert sum(half.dtype == np.float16 for half in halves) == 10
    for master, half, value in zip(masters, halves, plain, strict=True):
        np.testing.assert_array_equal(value if master is None else master, value)
        np.testing.assert_array_equal(half, value.astype(half.dtype))


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("float64", "precision: expected float32 or float16, got 'float64'"),
        ("bfloat16", "got bfloat16, which NumPy has not and CuPy 14 only in part"),
        ("f16", "dtype: expected float16, float32 or float64, got 'f16'"),
    ],
)
def test_other_precisions_are_refused(digits, tmp_path, precision, message):
    with pytest.raises((ConfigError, DTypeError), match=message):
        recipes.run("lenet5", data=digits, precision=precision, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_json_of_before_precision_is_float32(digits, tmp_path):
    recipes.run("lenet5", data=digits, out=tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    del content["settings"]["precision"]
    path.write_text(json.dumps(content))
    assert recipes.load(tmp_path / "run").settings.precision == "float32"
    content["settings"]["precision"] = "float8"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged: expected precision of a run, got 'float8'"):
        recipes.load(tmp_path / "run")


# --- data that has moved ------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_its_data_lies_now(tmp_path, digits):
    first, now = tmp_path / "first", tmp_path / "now"
    shutil.copytree(digits, first)
    options = {"data": str(first), "epochs": 2, "batch_size": 48, "seed": 7}
    whole = recipes.run("lenet5", **options)
    with pytest.raises(KeyboardInterrupt):
        recipes.run("lenet5", **options, out=tmp_path / "run", callbacks=[StopAt(4)])
    first.rename(now)
    with pytest.raises(DataError, match="first'; where the data of a run has moved, --data says where it is now"):
        recipes.run(out=tmp_path / "run", resume=True)
    resumed = recipes.run(out=tmp_path / "run", resume=True, data=str(now))
    assert list(resumed.history.steps["loss"]) == list(whole.history.steps["loss"])
    assert recipes.load(tmp_path / "run").metrics == whole.metrics, "the folder knows the new place"


def test_a_run_does_not_go_on_with_other_contents(tmp_path, digits):
    recipes.run("lenet5", data=digits, out=tmp_path / "run")
    other = write_digits(tmp_path / "other", train=119, test=40)
    with pytest.raises(ConfigError, match=r"data: expected the contents of .* as the run in .* got others in"):
        recipes.run(out=tmp_path / "run", resume=True, data=other)
