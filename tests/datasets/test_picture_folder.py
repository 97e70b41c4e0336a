"""Folders of pictures as people have them: every form is brought to one, and every fault is one line that names it."""

import functools
import os

import numpy as np
import pytest

from xpcnn.data import DataLoader
from xpcnn.datasets import LazyImages, concatenate, load_folder, load_picture
from xpcnn.datasets.dataset import fingerprint
from xpcnn.errors import ConfigError, DataError, XpcnnError

Image = pytest.importorskip("PIL.Image")


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path, rng):
    """Give a folder of 3 cats, 2 dogs and what lies about, all 5 high and 7 wide."""
    root = tmp_path / "pictures"
    for name, count in (("dog", 2), ("cat", 3)):
        for i in range(count):
            save(root / name / f"{i}.png", noise(rng, 5, 7, 3))
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "cat" / "._0.png").write_text("left by macOS")
    (root / ".hidden").mkdir()
    (root / "readme.md").write_text("beside the classes")
    return root


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def test_one_sub_folder_a_class(folder):
    found = load_folder(folder)
    assert found.images.shape == (5, 3, 5, 7)
    assert found.images.dtype == np.uint8
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.labels.dtype == np.int64
    assert found.classes == ["cat", "dog"]
    assert found.paths == [
        os.fspath(folder / name) for name in ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png")
    ]
    for image, path in zip(found.images, found.paths, strict=True):
        np.testing.assert_array_equal(image, pixels_of(path))


def test_classes_and_paths_stay_with_their_images(folder):
    found = load_folder(folder)
    part = found.subset([4, 0])
    assert (part.classes, part.paths) == (found.classes, [found.paths[4], found.paths[0]])
    assert found.split(2)[1].paths == found.paths[2:]
    joined = concatenate([part, found.subset(slice(1))])
    assert (joined.classes, joined.paths) == (found.classes, [found.paths[i] for i in (4, 0, 0)])
    assert "2 classes" in repr(joined)


def test_nested_sub_folders_and_upper_case_belong_to_their_class(folder, rng):
    save(folder / "dog" / "big" / "more.PNG", noise(rng, 5, 7, 3))
    assert load_folder(folder).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert load_folder(folder, extensions=[".PNG"]).paths == load_folder(folder).paths
    with pytest.raises(DataError, match="got none of 'cat'"):
        load_folder(folder, extensions=[".jpg"])


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "gif", "webp", "tif", "ppm"])
def test_every_kind_of_file(tmp_path, rng, kind):
    for name in "ab":
        save(tmp_path / name / f"0.{kind}", np.full((16, 16, 3), 40 if name == "a" else 200, np.uint8))
    found = load_folder(tmp_path)
    np.testing.assert_allclose(found.images[0], 40, atol=3)
    np.testing.assert_allclose(found.images[1], 200, atol=3)


# --- modes --------------------------------------------------------------------------------------------------------


def mixed(rng):
    """Return pictures of one grey ramp in every mode, which must all come out alike."""
    ramp = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    grey = Image.fromarray(ramp)
    wide = Image.fromarray((ramp.astype(np.uint16) * 257).astype(np.uint16))
    return ramp, {
        "L": grey,
        "RGB": grey.convert("RGB"),
        "P": grey.convert("P"),
        "RGBA": grey.convert("RGBA"),
        "LA": grey.convert("LA"),
        "I;16": wide,
    }


def test_all_modes_become_one(tmp_path, rng):
    ramp, pictures = mixed(rng)
    for name, picture in pictures.items():
        (tmp_path / ("a" if len(name) > 2 else "b")).mkdir(exist_ok=True)
        picture.save(tmp_path / ("a" if len(name) > 2 else "b") / f"{name.replace(';', '')}.png")
    colours = load_folder(tmp_path)
    assert colours.images.shape == (6, 3, 4, 8)
    np.testing.assert_array_equal(colours.images, np.broadcast_to(ramp, (6, 3, 4, 8)))
    greys = load_folder(tmp_path, mode="L")
    np.testing.assert_array_equal(greys.images, np.broadcast_to(ramp, (6, 4, 8)))
    four = load_folder(tmp_path, mode="RGBA")
    np.testing.assert_array_equal(four.images[:, 3], 255)
    assert load_folder(tmp_path, mode="auto").images.shape == (6, 3, 4, 8)


def test_auto_keeps_grey_what_is_grey(tmp_path, rng):
    for name in "ab":
        save(tmp_path / name / "0.png", noise(rng, 4, 6))
    assert load_folder(tmp_path, mode="auto").images.shape == (2, 4, 6)
    assert load_folder(tmp_path).images.shape == (2, 3, 4, 6)


def test_what_is_transparent_shows_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = 10, 20, 30, 255
    pixels[0, 1] = 0, 0, 0, 128  # half black on white
    path = save(tmp_path / "0.png", pixels)
    found = load_picture(path)
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    np.testing.assert_allclose(found[:, 0, 1], 127, atol=1)
    assert (found[:, 1] == 255).all()
    assert (load_picture(path, mode="L")[1] == 255).all()


def test_exif_turns_and_says_its_size_in_advance(tmp_path, rng):
    upright = noise(rng, 4, 6, 3)
    lying = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1), 2: upright[:, ::-1]}
    for tag, pixels in lying.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        save(tmp_path / ("a" if tag < 4 else "b") / f"{tag}.png", np.ascontiguousarray(pixels), exif=exif)
    found = load_folder(tmp_path)
    for image in found.images:
        np.testing.assert_array_equal(image, upright.transpose(2, 0, 1))


# --- sizes --------------------------------------------------------------------------------------------------------


def test_several_sizes_want_a_size(folder, rng):
    save(folder / "cat" / "odd.png", noise(rng, 9, 8, 3))
    with pytest.raises(DataError, match=r"one size .*, got 5 of 5x7, 1 of 9x8; .*such as size=32"):
        load_folder(folder)
    assert load_folder(folder, size=4).images.shape == (6, 3, 4, 4)
    assert load_folder(folder, size=(4, 6)).images.shape == (6, 3, 4, 6)


def test_how_other_shapes_are_fitted(tmp_path):
    """White left third, black rest, 2 high and 6 wide, to 2x2."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = 255
    path = save(tmp_path / "0.png", pixels)

    def columns(fit):
        return load_picture(path, size=(20, 20), mode="L", fit=fit)

    assert (columns("crop") <= 2).all(), "the middle third is black"
    stretched = columns("stretch")
    assert (stretched[:, :6] == 255).all()
    assert (stretched[:, 8:] == 0).all()
    padded = columns("pad")
    assert (padded[:6] == 0).all()
    assert (padded[14:] == 0).all()
    assert (padded[8:12, :6] == 255).all()


def test_a_large_jpeg_is_averaged_not_sampled(tmp_path, rng):
    """Stripes of one pixel come out grey, with draft and without."""
    stripes = np.zeros((1600, 1600, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("0.jpg", "0.png"):
        path = save(tmp_path / name, stripes)
        np.testing.assert_allclose(load_picture(path, size=16).astype(int), 127, atol=12)


def test_a_picture_larger_than_memory_allows_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "0.png", np.zeros((40, 40), np.uint8))
    monkeypatch.setattr("xpcnn.datasets.pictures._MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="40x40 pixels are too many"):
        load_picture(path, size=8)


# --- parts and tables ---------------------------------------------------------------------------------------------


def test_parts(tmp_path, rng):
    counts = {"train": (3, 2), "test": (1, 0), "val": (1, 1)}
    for part, each in counts.items():
        for name, count in zip("ab", each, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png", noise(rng, 4, 4, 3))
    train, validation, test = load_folder(tmp_path)
    assert [each.labels.tolist() for each in (train, validation, test)] == [[0, 0, 0, 1, 1], [0, 1], [0]]
    assert train.classes == validation.classes == test.classes == ["a", "b"]
    assert load_folder(tmp_path, part="test").paths == test.paths
    with pytest.raises(DataError, match="part: expected one of train, validation, test, got 'rest'"):
        load_folder(tmp_path, part="rest")
    save(tmp_path / "test" / "c" / "0.png", noise(rng, 4, 4, 3))
    with pytest.raises(DataError, match=r"test: expected the training part's classes, 'a', 'b', got also 'c'"):
        load_folder(tmp_path)


def test_classes_called_train_and_bus_are_classes(tmp_path, rng):
    for name in ("train", "bus"):
        save(tmp_path / name / "0.png", noise(rng, 4, 4, 3))
    assert load_folder(tmp_path).classes == ["bus", "train"]
    with pytest.raises(DataError, match="part: expected none, for the set has no parts, got 'train'"):
        load_folder(tmp_path, part="train")


def test_a_table_tells_the_classes(tmp_path, rng):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", noise(rng, 4, 4, 3))
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,label\nimages/2.png,dog\nimages/0.png,cat\nimages/1.png,dog\n")
    found = load_folder(tmp_path)
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [0, 1, 1])
    assert [os.path.basename(path) for path in found.paths] == ["0.png", "1.png", "2.png"]
    for rows, message in (
        ("file_name,a,b\nx,1,2\n", "expected columns file_name and label, got 'file_name', 'a', 'b'"),
        ("file_name,label\n../x.png,a\n", "row 2: expected the name of a picture in the folder"),
        ("file_name,label\n/etc/x.png,a\n", "row 2: expected the name of a picture in the folder"),
        ("file_name,label\nx.png\n", "row 2: expected the name"),
        ("file_name,label\n", "expected a row for each picture, got none"),
        ("file_name,label\nimages/0.png,a\nimages/9.png,b\n", "1 of 2 pictures cannot be read: .*9.png: no such file"),
    ):
        table.write_text(rows)
        with pytest.raises(DataError, match=message):
            load_folder(tmp_path)


# --- bad folders --------------------------------------------------------------------------------------------------


def test_broken_files_are_listed_in_one_error_or_left_out(folder, rng):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "page.jpg").write_text("<html>not found</html>")
    (folder / "dog" / "empty.gif").write_bytes(b"")
    save(folder / "dog" / "dot.png", noise(rng, 1, 1, 3))
    for lazy in (False, True):
        with pytest.raises(DataError) as error:
            load_folder(folder, lazy=lazy)
        text = str(error.value)
        assert len(text.splitlines()) == 1
        assert "dog/page.jpg: no picture: a web page (HTML)" in text
        assert "dog/empty.gif: no picture: an empty file" in text
        assert "dog/dot.png: a picture of 1x1 pixel" in text
        assert 'broken="skip" (--skip-broken)' in text
    assert load_folder(folder, broken="skip").labels.tolist() == [0, 0, 0, 1, 1]
    for name in ("page.jpg", "empty.gif", "dot.png"):
        (folder / "dog" / name).unlink()
    with pytest.raises(DataError, match=r"1 of 6 pictures cannot be read: cat/cut.png: a damaged PNG picture"):
        load_folder(folder)


def test_many_broken_files_are_counted(folder):
    for i in range(30):
        (folder / "cat" / f"x{i:02}.png").write_text("no")
    with pytest.raises(
        DataError, match=r"30 of 35 pictures cannot be read: cat/x00.png, cat/x01.png, .*: .*; and 20 more; repair"
    ):
        load_folder(folder)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_pictures_in_formats_that_are_not_read_are_told_of(folder):
    (folder / "cat" / "a.HEIC").write_bytes(HEIC)
    (folder / "cat" / "b.heic").write_bytes(HEIC)
    (folder / "dog" / "c.jpg").write_bytes(HEIC)  # as phones name them too
    (folder / "dog" / "d.jpg").write_bytes(HEIC.replace(b"heic", b"isom", 1))
    (folder / "dog" / "raw.nef").write_bytes((folder / "dog" / "0.png").read_bytes())
    (folder / "dog" / "notes.txt").write_text("no picture, and not meant as one")
    for read in (load_folder, functools.partial(load_folder, lazy=True)):
        with pytest.raises(DataError) as error:
            read(folder)
        assert str(error.value).endswith(
            "pictures: 5 of 10 pictures cannot be read: cat/a.HEIC, cat/b.heic, dog/c.jpg: HEIC is not read; save as "
            "JPEG or PNG; dog/d.jpg: no picture: a film; dog/raw.nef: NEF is not read; save as JPEG or PNG; repair or "
            'remove them, or leave them out with broken="skip" (--skip-broken)'
        )
    assert load_folder(folder, broken="skip").labels.tolist() == [0, 0, 0, 1, 1]
    assert len(load_folder(folder, extensions=(".png",))) == 5
    for path in (folder / "dog").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load_folder(folder)


def test_a_class_of_broken_files_alone_is_an_error_even_where_they_are_skipped(folder):
    for path in (folder / "dog").iterdir():
        path.write_text("no")
    with pytest.raises(DataError, match="no picture of class 'dog' can be read"):
        load_folder(folder, broken="skip")


def test_folders_of_another_form(folder, tmp_path, rng):
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match=r"of every class, got none of 'fox': the folder is empty; put some in"):
        load_folder(folder)
    with pytest.raises(DataError, match=r"one sub-folder of pictures a class; it holds 2 .png files"):
        load_folder(folder / "dog")
    with pytest.raises(DataError, match="expected a folder of pictures, got nothing there"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a folder of pictures, got file"):
        load_folder(folder / "readme.md")
    (folder / "fox").rmdir()
    with pytest.raises(DataError, match="got one, 'pictures'; it has sub-folders itself: name pictures instead"):
        load_folder(tmp_path)
    save(tmp_path / "one" / "dog" / "0.png", noise(rng, 4, 4))
    with pytest.raises(DataError, match="expected two or more classes, got one, 'dog'; add another"):
        load_folder(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="a class; the folder is empty"):
        load_folder(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected 1 or more"),
        ({"size": "big"}, "size: expected integers"),
        ({"mode": "BGR"}, "mode: expected one of L, RGB, RGBA, got 'BGR'"),
        ({"fit": "zoom"}, "fit: expected one of crop, pad, stretch, got 'zoom'"),
        ({"broken": "ignore"}, "broken: expected raise or skip, got 'ignore'"),
        ({"extensions": ["png"]}, r'extensions: expected names such as ".png"'),
        ({"extensions": []}, r'extensions: expected names such as ".png"'),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(XpcnnError, match=message):
        load_folder(folder, **options)
    assert issubclass(ConfigError, ValueError)


def test_pillow_missing_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r'needs Pillow, which is not installed: pip install "\.\[cli\]"'):
        load_folder(folder)


# --- lazily -------------------------------------------------------------------------------------------------------


def test_lazy_images_are_those_of_the_whole_set(folder):
    whole, lazy = load_folder(folder), load_folder(folder, lazy=True)
    assert isinstance(lazy.images, LazyImages)
    assert (lazy.images.shape, lazy.images.dtype, lazy.images.nbytes) == (
        whole.images.shape,
        whole.images.dtype,
        whole.images.nbytes,
    )
    np.testing.assert_array_equal(np.asarray(lazy.images), whole.images)
    np.testing.assert_array_equal(lazy.images[-1], whole.images[-1])
    np.testing.assert_array_equal(lazy.images[[3, 1]], whole.images[[3, 1]])
    np.testing.assert_array_equal(lazy.images[1:4:2], whole.images[1:4:2])
    assert lazy.images[:0].shape == (0, 3, 5, 7)
    np.testing.assert_array_equal(np.asarray(lazy.subset([4, 0]).images), whole.images[[4, 0]])
    assert len(list(lazy.images)) == 5
    with pytest.raises(IndexError):
        lazy.images[5]
    with pytest.raises(ValueError, match="read into a new array"):
        np.asarray(lazy.images, copy=False)


def test_a_loader_gives_the_same_batches_from_the_disk(folder, backend):
    loaders = [
        DataLoader(each.images, each.labels, 2, seed=3)
        for each in (load_folder(folder), load_folder(folder, lazy=True))
    ]
    for _ in range(2):
        for (x, labels), (y, same) in zip(*loaders, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(x), backend.to_numpy(y))
            np.testing.assert_array_equal(backend.to_numpy(labels), backend.to_numpy(same))
    half = iter(loaders[1])
    next(half)
    state = loaders[1].state_dict()
    rest = [backend.to_numpy(labels).tolist() for _, labels in half]
    loaders[0].load_state_dict(state)
    assert [backend.to_numpy(labels).tolist() for _, labels in loaders[0]] == rest


def test_a_file_that_goes_away_during_training_is_named(folder):
    found = load_folder(folder, lazy=True)
    (folder / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"dog/1.png: cannot be read: no such file"):
        list(DataLoader(found.images, found.labels, 2))


def test_no_more_than_a_few_batches_are_read_ahead(tmp_path):
    read = []

    def one(i):
        read.append(i)
        return np.full((2, 2), i, np.uint8)

    images = LazyImages(one, range(100), (2, 2))
    batches = images.batches([np.arange(i, i + 10) for i in range(0, 100, 10)])
    np.testing.assert_array_equal(next(batches)[:, 0, 0], np.arange(10))
    batches.close()
    assert len(read) <= 40


def test_a_set_on_the_disk_has_a_fingerprint_of_its_files(folder, rng):
    first = fingerprint(load_folder(folder, lazy=True))
    assert fingerprint(load_folder(folder, lazy=True)) == first
    assert fingerprint(load_folder(folder)) != first
    save(folder / "dog" / "2.png", noise(rng, 5, 7, 3))
    assert fingerprint(load_folder(folder, lazy=True)) != first
