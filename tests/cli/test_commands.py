"""evaluate, predict, recipes, info and gradcheck print what they promise."""

import re
import subprocess
import sys

import numpy as np
import pytest

from xpcnn import recipes
from xpcnn.cli import main
from xpcnn.datasets import load_mnist

Image = pytest.importorskip("PIL.Image")


def printed(capsys, *argv, status=0):
    assert main(argv) == status
    return capsys.readouterr().out


def test_evaluate_gives_the_accuracy_of_train(run_folder, capsys):
    text = printed(capsys, "evaluate", str(run_folder))
    done = recipes.load(run_folder)
    assert text.splitlines()[-1] == f"test accuracy: {done.metrics.accuracy:.4f}"
    rows = re.findall(r"^ +(\d)  +(\d+)  +(\d+)  +[01]\.\d{4}$", text, re.MULTILINE)
    assert sum(int(images) for _, images, _ in rows) == 90
    assert sum(int(right) for _, _, right in rows) / 90 == done.metrics.accuracy


def test_evaluate_on_other_data(run_folder, capsys):
    assert "10,000 test images" in printed(capsys, "evaluate", str(run_folder), "--data", "mnist")


def test_predict_dark_on_light_and_light_on_dark(run_folder, tmp_path, capsys):
    """The same digit, inverted and enlarged, gets the same answer."""
    digit = load_mnist()[1].images[0]
    large = np.kron(np.pad(digit, 10), np.ones((9, 9), np.uint8))
    Image.fromarray(large).save(tmp_path / "light.png")
    Image.fromarray(255 - large).save(tmp_path / "dark.jpg", quality=95)
    paths = [str(tmp_path / name) for name in ("light.png", "dark.jpg")]
    lines = printed(capsys, "predict", str(run_folder), *paths).splitlines()
    assert len(lines) == 2
    answers = [re.fullmatch(r"(\S+) +(\d)  ([01]\.\d{4})  \(else \d 0\.\d{4}, \d 0\.\d{4}\)", line) for line in lines]
    assert [answer[1] for answer in answers] == paths
    assert answers[0][2] == answers[1][2]
    assert abs(float(answers[0][3]) - float(answers[1][3])) < 0.2


def test_predict_agrees_with_the_network(run_folder, tmp_path, capsys):
    from xpcnn.datasets import load_image

    Image.fromarray(np.pad(load_mnist()[1].images[7], 20)).save(tmp_path / "a.png")
    model, recipe, _, kind = recipes.load_model(run_folder)
    shares = recipes.probabilities(model, recipe.transforms[kind](load_image(tmp_path / "a.png")[None]))[0]
    text = printed(capsys, "predict", str(run_folder), str(tmp_path / "a.png"))
    assert f"  {shares.argmax()}  {shares.max():.4f}  " in text


def test_recipes_are_listed_with_their_sizes(capsys):
    lines = printed(capsys, "recipes").splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == recipes.names()
    found = {line.split()[0]: line.split()[1:5] for line in lines[1:-1]}
    assert found["lenet5"][:2] == ["61,990", "416,520"]
    assert found["deep3"][0] == "113,162"
    assert found["lenet5"][3] == "1"
    assert found["conv8"][1] == f"{26 * 26 * 8 * 9 + 1352 * 10:,}"


@pytest.mark.parametrize("locked", [True, False])
def test_info_says_whether_python_has_a_lock(capsys, monkeypatch, locked):
    monkeypatch.setattr("xpcnn.information.has_lock", lambda: locked)
    assert ("(free-threaded)" in printed(capsys, "info")) is not locked


def test_info_measures_and_hints(capsys, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    text = printed(capsys, "info")
    rate = re.search(r"^products    (\d+) GFLOP/s", text, re.MULTILINE)
    assert int(rate[1]) > 0
    assert re.search(r"^hint .*unset OPENBLAS_CORETYPE", text, re.MULTILINE)
    assert re.search(r"^backend     numpy$", text, re.MULTILINE)


def test_gradcheck_lists_every_parameter(capsys):
    text = printed(capsys, "gradcheck", "tiny")
    rows = [line.split() for line in text.splitlines()[1:-1]]
    layers = [("0", "Conv2d"), ("4", "Linear"), ("6", "Linear")]
    expected = [[*layer, parameter] for layer in layers for parameter in ("weight", "bias")]
    assert [row[:3] for row in rows if row[0].isdigit()] == expected
    for row in rows:
        analytic, numerical, error, verdict = float(row[-4]), float(row[-3]), float(row[-2]), row[-1]
        assert verdict == "ok"
        assert error <= 1e-6
        assert abs(analytic - numerical) <= 1e-6 * max(1.0, abs(analytic))
    assert "all gradients are right" in text


@pytest.mark.parametrize("name", recipes.names())
def test_gradcheck_of_every_recipe(name, capsys):
    assert "all gradients are right" in printed(capsys, "gradcheck", name)


def test_gradcheck_on_another_backend(capsys):
    assert "all gradients are right" in printed(capsys, "gradcheck", "conv8", "--backend", "fake")


def test_gradcheck_finds_a_wrong_backward(capsys, monkeypatch):
    from xpcnn.nn import Linear

    backward = Linear.backward

    def wrong(layer, dy):
        dx = backward(layer, dy)
        layer.bias.grad[...] += 0.01
        return dx

    monkeypatch.setattr(Linear, "backward", wrong)
    text = printed(capsys, "gradcheck", "tiny", status=1)
    assert re.search(r"^4 Linear .* bias .*WRONG", text, re.MULTILINE)
    assert "at least one gradient is wrong" in text


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "xpcnn 0.2.0\n"
    assert main(["--help"]) == 0
    contents = capsys.readouterr().out
    assert [line for line in contents.splitlines() if line.endswith(":")][-3:] == [
        "Train:", "Use what was trained:", "Learn and look:"
    ]  # fmt: skip
    commands = re.findall(r"^  ([a-z]+)  +\S", contents, re.MULTILINE)
    assert {"train", "evaluate", "predict", "export", "guide", "recipes", "info", "gradcheck"} <= set(commands)
    for command in commands:
        assert main([command, "--help"]) == 0
        assert f"usage: xpcnn {command}" in capsys.readouterr().out


def test_a_reader_that_stops_early_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "xpcnn", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert (process.wait(), errors) == (0, "")


def test_the_command_imports_nothing_heavy_before_it_is_needed():
    code = "import sys, xpcnn.cli; print([m for m in ('matplotlib', 'tqdm', 'safetensors', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
