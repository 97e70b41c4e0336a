"""From pictures as people have them to names with probabilities."""

import copy
import pickle
import threading

import numpy as np
import pytest

from xpcnn import functional as F
from xpcnn import nn, optim
from xpcnn.backend import backend_of, get_backend
from xpcnn.data import ChannelsFirst, Compose, DataLoader, Normalize, Pad, RandomCrop, RandomHorizontalFlip, Repeat
from xpcnn.datasets import load_image, load_mnist, load_picture
from xpcnn.errors import ConfigError, DataError, ShapeError
from xpcnn.training import Prediction, Predictor, Trainer

from .common import net, trainer

Image = pytest.importorskip("PIL.Image")


def colour_net(size=6, classes=3, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size**2, classes))


def photos(count=5, size=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype("uint8")


def expected(model, x):
    """Return softmax(model(x)) by plain NumPy, in float64."""
    backend = model.backend
    logits = backend.to_numpy(model.eval()(backend.asarray(x))).astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def host_shares(predictor, images):
    """Return the probabilities on the host."""
    found = predictor.probabilities(images)
    return backend_of(found).to_numpy(found)


def scaled(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype("float32") / 255


def test_arrays(backend):
    model = colour_net()
    images = photos()
    found = Predictor(model, classes=["a", "b", "c"])(images)
    assert [type(each) for each in found] == [Prediction] * 5
    wanted = expected(model, scaled(images))
    for each, shares in zip(found, wanted, strict=True):
        label, probability, probabilities = each
        assert label == "abc"[shares.argmax()]
        np.testing.assert_allclose(probabilities, shares, rtol=1e-5, atol=1e-7)
        assert probability == probabilities.max()
        assert isinstance(probabilities, np.ndarray)
        assert isinstance(probability, float)


def test_numbers_where_classes_have_no_names(backend):
    model = colour_net()
    found = Predictor(model)(photos())
    assert [each.label for each in found] == expected(model, scaled(photos())).argmax(axis=1).tolist()
    assert all(type(each.label) is int for each in found)


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_large_inputs_go_in_batches(backend, size):
    model = colour_net()
    whole = Predictor(model).probabilities(photos(7))
    sizes = []

    def spy(batch):
        sizes.append(len(batch))
        return get_backend().asarray(scaled(get_backend().to_numpy(batch)))

    found = Predictor(model, transform=spy, image_shape=(6, 6, 3), batch_size=size).probabilities(photos(7))
    np.testing.assert_allclose(backend.to_numpy(found), backend.to_numpy(whole), rtol=1e-5, atol=1e-7)
    assert sizes == [size] * (7 // size) + [7 % size] * (7 % size > 0)
    assert backend.owns(found)


def test_one_or_several_in_any_form(backend, tmp_path):
    predictor = Predictor(colour_net(), image_shape=(3, 6, 6))
    images = photos(3)
    paths = []
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    wanted = host_shares(predictor, images)

    def same(given, rows):
        np.testing.assert_allclose(host_shares(predictor, given), wanted[rows], rtol=1e-5, atol=1e-7)

    same(paths, slice(3))
    same([str(path) for path in paths], slice(3))
    same((path for path in paths), slice(3))
    same(str(paths[1]), slice(1, 2))
    same(paths[2], slice(2, 3))
    same(Image.fromarray(images[0]), slice(1))
    same([Image.fromarray(image) for image in images], slice(3))
    same(images[0], slice(1))
    same(list(images), slice(3))
    same(images.transpose(0, 3, 1, 2), slice(3))
    same(images[1].transpose(2, 0, 1), slice(1, 2))
    same([paths[0], images[1], Image.fromarray(images[2])], slice(3))
    assert predictor([]) == []
    assert predictor(images[:0]) == []


def test_pictures_of_any_size_and_mode(backend, tmp_path):
    rgb, grey = Predictor(colour_net(), image_shape=(3, 6, 6)), Predictor(net(), image_shape=(6, 6))
    first, second = photos(2, 40)
    pictures = [Image.fromarray(first).resize((80, 33)), Image.fromarray(second)]
    for mode in ("RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16"):
        for i, picture in enumerate(pictures):
            made = picture.convert("L").convert(mode) if mode in ("I;16", "LA") else picture.convert(mode)
            path = tmp_path / f"{i}-{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
            made.save(path)
            for predictor, channels in ((rgb, "RGB"), (grey, "L")):
                image = load_picture(path, size=6, mode=channels)
                np.testing.assert_array_equal(host_shares(predictor, path), host_shares(predictor, image))
                if mode != "CMYK":
                    np.testing.assert_array_equal(host_shares(predictor, made), host_shares(predictor, image))
    array = np.asarray(pictures[0])
    np.testing.assert_array_equal(host_shares(rgb, array), host_shares(rgb, pictures[0]))
    both = host_shares(rgb, [array, array[:20]])
    np.testing.assert_allclose(both[:1], host_shares(rgb, pictures[0]), rtol=1e-5)


def test_fit_is_as_for_a_folder(backend, tmp_path):
    Image.fromarray(photos(1, 40)[0]).resize((80, 33)).save(tmp_path / "a.png")
    found = []
    for fit in ("crop", "pad", "stretch"):
        predictor = Predictor(colour_net(), image_shape=(3, 6, 6), fit=fit)
        image = load_picture(tmp_path / "a.png", size=6, fit=fit)
        np.testing.assert_array_equal(host_shares(predictor, tmp_path / "a.png"), host_shares(predictor, image))
        found.append(image)
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("channels", "transform", "shape"),
    [
        (3, None, (3, 6, 6)),
        (3, Pad((1, 2)), (3, 4, 2)),
        (3, Compose(Normalize((0.1, 0.2, 0.3), 0.5), Pad(1)), (3, 4, 4)),
        (3, Repeat(3), (1, 6, 6)),
        (3, ChannelsFirst(), (6, 6, 3)),
        (3, Compose(ChannelsFirst(), Pad(2)), (2, 2, 3)),
        (1, Pad(1), (1, 4, 4)),
        (3, lambda batch: 1 / 0, None),
    ],
)
def test_the_size_follows_from_what_the_model_was_called_with(backend, channels, transform, shape):
    model = colour_net(channels=channels)
    assert Predictor(model, transform=transform).image_shape == (channels, None, None)
    model(backend.zeros((2, channels, 6, 6), "float32"))
    predictor = Predictor(model, transform=transform)
    assert predictor.image_shape == shape
    if shape is not None:
        assert len(predictor(Image.fromarray(photos(1, 30)[0]))) == 1


def test_after_a_training_no_size_need_be_said(backend):
    done = trainer()
    from .common import loader

    done.fit(loader(), epochs=1)
    assert Predictor(done.model).image_shape == (6, 6)
    assert len(Predictor(done.model)(Image.fromarray(photos(1, 50)[0]))) == 1


def test_after_a_training_on_parts_of_images_whole_ones_are_taken(backend):
    """A crop takes images of many sizes: which one they had, the loader knew."""
    model = colour_net()
    optimizer = optim.SGD(model.parameters(), 0.01)
    transform = Compose(RandomHorizontalFlip(), RandomCrop(6), Normalize(0.5, 0.5))
    images = photos(8, 10)
    Trainer(model, optimizer, nn.CrossEntropyLoss()).fit(DataLoader(images, np.arange(8) % 3, 4, transform=transform))
    predictor = Predictor(model, transform=transform)
    assert predictor.image_shape == (10, 10, 3)
    wanted = expected(model, (scaled(images[:, 2:8, 2:8]) - 0.5) / 0.5)
    for given in (images, images.transpose(0, 3, 1, 2), [Image.fromarray(image) for image in images]):
        np.testing.assert_allclose(host_shares(predictor, given), wanted, rtol=1e-4, atol=1e-6)


def test_where_no_size_is_known_pictures_stay_as_they_are(backend, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(4, 2))
    pictures = [Image.fromarray(photos(1, size)[0]) for size in (9, 9, 12)]
    found = host_shares(Predictor(model), pictures)
    for i, picture in enumerate(pictures):
        np.testing.assert_allclose(found[i : i + 1], expected(model, scaled(np.asarray(picture)[None])), rtol=1e-5)


def test_photographed_digits(backend, tmp_path):
    _, test = load_mnist()
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    predictor = Predictor(model, digits=True)
    photo = Image.fromarray(255 - test.images[0]).resize((200, 200)).convert("RGB")
    photo.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    for given in (tmp_path / "a.png", photo, np.asarray(photo)):
        np.testing.assert_array_equal(host_shares(predictor, given), host_shares(predictor, image))
    assert not np.array_equal(image, test.images[0])
    wanted = expected(model, test.images[:3, None].astype("float32") / 255)
    np.testing.assert_allclose(host_shares(predictor, test.images[:3]), wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(DataError, match="images: no digit found: "):
        predictor(Image.new("L", (50, 50)))


def test_features(backend):
    model = nn.Sequential(nn.Linear(4, 3))
    model(backend.zeros((1, 4), "float32"))
    x = np.random.default_rng(0).normal(size=(5, 4))
    predictor = Predictor(model)
    np.testing.assert_allclose(host_shares(predictor, x), expected(model, x.astype("float32")), rtol=1e-5)
    assert len(predictor(x[0])) == 1
    with pytest.raises(ShapeError, match=r"images: expected images of shape \(4,\), one or several, got \(5, 3\)"):
        predictor(x[:, :3])


def test_probabilities_and_a_single_logit(backend):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    plain = nn.Linear(4, 3)
    ended = nn.Sequential(nn.Sequential(plain, nn.Softmax()))
    for model in (plain, ended):
        model(backend.asarray(x))
    np.testing.assert_allclose(host_shares(Predictor(ended), x), host_shares(Predictor(plain), x), rtol=1e-5)
    single = nn.Sequential(nn.Linear(4, 1))
    logit = backend.to_numpy(single(backend.asarray(x)))
    second = 1 / (1 + np.exp(-logit.astype(float)))
    found = Predictor(single, classes=["no", "yes"])
    np.testing.assert_allclose(host_shares(found, x), np.concatenate([1 - second, second], axis=1), rtol=1e-5)
    assert [each.label for each in found(x)] == ["yes" if share > 0.5 else "no" for share in second[:, 0]]


def test_modes_are_given_back_and_no_cache_is_kept(backend):
    class Spy(nn.Module):
        def forward(self, x):
            modes.append(self.training)
            return x

    modes = []
    model = colour_net()
    model.append(nn.Dropout(0.5))
    model[1].eval()
    spied = nn.Sequential(Spy(), *model)
    for each in (model, spied):
        before = [module.training for module in each.modules()]
        Predictor(each)(photos())
        assert [module.training for module in each.modules()] == before
        assert not each._forwards
    assert modes == [False]


def test_what_the_library_changes_in_the_model_is_seen(backend):
    model = colour_net()
    predictor = Predictor(model)
    other, optimizer = colour_net(), optim.SGD(model.parameters(), 0.5)
    for change in (
        lambda: None,
        optimizer.step,
        lambda: model.load_state_dict(other.state_dict()),
        lambda: setattr(model[3].weight, "data", other[3].weight.data * 2),
        lambda: model.__setitem__(1, nn.Tanh()),
    ):
        for parameter in model.parameters():
            parameter.accumulate(parameter.data + 0.5)
        change()
        for _ in range(3):
            found = backend.to_numpy(predictor.probabilities(photos()))
            np.testing.assert_allclose(found, expected(model, scaled(photos())), rtol=1e-4, atol=1e-6)


def test_the_form_of_use_is_made_once(backend, monkeypatch):
    from xpcnn.training import predictor as module

    made = []
    monkeypatch.setattr(module, "fastest_forward", lambda model: made.append(1) or nn.Inference(model))
    predictor = Predictor(colour_net())
    for _ in range(3):
        predictor(photos())
    assert len(made) == 1


def test_float16_models(backend):
    model = colour_net()
    wanted = backend.to_numpy(Predictor(model).probabilities(photos()))
    found = Predictor(model.half()).probabilities(photos())
    assert str(found.dtype) == "float32"
    np.testing.assert_allclose(backend.to_numpy(found), wanted, atol=5e-3)


def test_copies_pickles_and_threads(backend):
    predictor = Predictor(colour_net(), classes=["a", "b", "c"], transform=Normalize(0.5, 0.5))
    wanted = host_shares(predictor, photos())
    for again in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        np.testing.assert_array_equal(host_shares(again, photos()), wanted)
        assert again.classes == ["a", "b", "c"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(host_shares(predictor, photos()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        np.testing.assert_array_equal(each, wanted)
    one = pickle.loads(pickle.dumps(predictor(photos())[0]))
    assert one.top() == predictor(photos())[0].top()


def test_top_and_what_notebooks_show():
    one = Prediction("<b>", 0.75, np.array([0.25, 0.75]))
    one.classes = ["a", "<b>"]
    assert one.top(1) == [("<b>", 0.75)]
    assert one.top() == [("<b>", 0.75), ("a", 0.25)]
    assert "&lt;b&gt;" in one._repr_html_()
    assert "<b>" not in one._repr_html_()
    assert repr(one) == "Prediction('<b>', 0.7500)"
    assert Prediction(1, 0.75, np.array([0.25, 0.75])).top() == [(1, 0.75), (0, 0.25)]


def test_mistakes(backend, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    predictor = Predictor(colour_net(), image_shape=(3, 6, 6))
    for given, error, text in (
        (tmp_path / "none.png", DataError, r"none.png: "),
        ([tmp_path / "a.png"], DataError, r"a.png: "),
        (3, DataError, r"images: expected paths, PIL images or arrays, got int"),
        ([3], DataError, r"images: expected paths, PIL images or arrays, got int"),
        ([[1, 2]], DataError, r"images: expected paths, PIL images or arrays, got list"),
        (np.zeros((2, 5, 5, 3)), ShapeError, r"images: expected images of shape \(3, 6, 6\), one or several, got"),
        ([np.zeros((5, 5, 3))], ShapeError, r"expected images of shape \(3, 6, 6\), got \(5, 5, 3\) of float64; those"),
        (np.zeros((2, 5, 9, 9), "uint8"), ShapeError, r"images: expected pictures of 1, 3 or 4 channels"),
        (np.zeros((), "uint8"), ShapeError, r"images: expected images of shape"),
    ):
        with pytest.raises(error, match=text):
            predictor(given)
    with pytest.raises(ShapeError, match=r"classes: expected 3, as many as the model tells apart, got \['a'\]"):
        Predictor(colour_net(), classes=["a"])(photos())
    with pytest.raises(ShapeError, match=r"layer '3' \(Linear\): "):
        Predictor(colour_net(), image_shape=(3, 5, 5))(photos(1, 5))
    with pytest.raises(ShapeError, match=r"model: expected one that gives logits \(N, K\), got an array of shape"):
        Predictor(nn.Sequential(nn.Conv2d(3, 2, 1)))(photos())
    with pytest.raises(DataError, match="images: expected one or more, got none"):
        predictor.probabilities([])
    with pytest.raises(ShapeError, match=r"expected arrays of shape \(5, 6, 6\), got a picture"):
        Predictor(colour_net(channels=5), image_shape=(5, 6, 6))(Image.new("L", (3, 3)))
    for options, text in (
        ({"model": 3}, "model: expected an nn.Module"),
        ({"transform": 3}, "transform: expected a callable"),
        ({"batch_size": 0}, "batch_size: expected 1 or more"),
        ({"image_shape": "6"}, "image_shape: expected"),
        ({"fit": "x"}, "fit: expected one of"),
    ):
        with pytest.raises((ConfigError, ShapeError), match=text):
            Predictor(**{"model": net(), **options})


def test_softmax_is_the_library_s(backend):
    model = colour_net()
    y = model(backend.asarray(scaled(photos())))
    wanted = backend.to_numpy(F.softmax(y))
    np.testing.assert_allclose(backend.to_numpy(Predictor(model).probabilities(photos())), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("compile", ["auto", False])
def test_a_training_is_seen(backend, compile):
    from .common import loader

    done = trainer(compile=compile)
    predictor = Predictor(done.model, image_shape=(6, 6))
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6)).astype("uint8")
    before = backend.to_numpy(predictor.probabilities(images))
    for _ in range(3):
        done.fit(loader(), epochs=1)
        found = backend.to_numpy(predictor.probabilities(images))
        assert abs(found - before).max() > 1e-4
        np.testing.assert_allclose(found, expected(done.model, images[:, None].astype("float32") / 255), rtol=1e-4)
        done.model.train()
        before = found


def test_a_trainer_predicts_images_as_its_loaders_have_them(backend):
    from .common import images, labels

    done = trainer()
    transform = Normalize(0.5, 0.25)
    stored = images()
    x = (stored[:, None].astype("float32") / 255 - 0.5) / 0.25
    with pytest.raises(ShapeError):
        done.predict(np.zeros((2, 2), "uint8"))
    done.fit(DataLoader(stored, labels(), 8, transform=transform), epochs=1)
    done.model.train()
    done.model[5].eval()
    modes = [module.training for module in done.model.modules()]
    found = done.predict(stored)
    assert backend.owns(found)
    assert [module.training for module in done.model.modules()] == modes
    wanted = expected(copy.deepcopy(done.model), x)
    for given in (stored, x, backend.asarray(x), list(stored)):
        np.testing.assert_allclose(backend.to_numpy(done.predict(given)), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(backend.to_numpy(done.predict(stored, batch_size=5)), wanted, rtol=1e-4, atol=1e-6)
    for again in (copy.deepcopy(done), pickle.loads(pickle.dumps(done))):
        np.testing.assert_allclose(backend.to_numpy(again.predict(stored)), wanted, rtol=1e-4, atol=1e-6)
    floats = stored.astype("float32") / 255
    done.fit(DataLoader(floats, labels(), 8, transform=transform), epochs=1)
    wanted = expected(copy.deepcopy(done.model), x)
    np.testing.assert_allclose(backend.to_numpy(done.predict(floats)), wanted, rtol=1e-4, atol=1e-6)
