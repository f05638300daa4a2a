"""Data of your own become a data set with a card, or one line says what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from plastax import data
from plastax.errors import ConfigError
from plastax.output import plain
from plastax.streams import STREAMS, IncrementalCIFAR

N = 40
RNG = np.random.default_rng(0)
LABELS = np.array([7, -3, 12, 7])[np.arange(N) % 4]
SHAPES = [(5,), (6, 6), (6, 6, 3), (2, 3, 4, 5)]


def examples(*shape: int, dtype: Any = np.uint8, count: int = N) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape)).astype(dtype)


class Pairs:
    """A data set as torchvision's: Pillow images and integers."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(self.images[index]), int(self.labels[index])


class Rows(Pairs):
    """A data set as those of Hugging Face: a dictionary an example."""

    def __getitem__(self, index: int) -> Any:
        return dict(zip(("image", "label"), super().__getitem__(index)))


def same(found: data.Dataset, expected: data.Dataset) -> None:
    for name, a, b in zip(found._fields[:4], found, expected):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert found.card.checksum == expected.card.checksum
    assert found.card.labels == expected.card.labels


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int16, bool])
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_any_shape_and_type(shape, dtype):
    found = data.load((x := examples(*shape, dtype=dtype), LABELS))
    assert found.card.shape == ((*shape, 1) if len(shape) == 2 else shape)
    assert found.train_images.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
    assert found.card.classes == 3
    assert found.card.labels == (-3, 7, 12)
    assert (found.card.train, found.card.test) == (len(found.train_images), len(found.test_images))
    # Every example is where its label says, and none is lost.
    everything = np.concatenate([found.train_images, found.test_images]).reshape(N, -1)
    labels = np.array(found.card.labels)[np.concatenate([found.train_labels, found.test_labels])]
    given = sorted(zip(x.reshape(N, -1).astype(everything.dtype).tolist(), LABELS.tolist()))
    assert sorted(zip(everything.tolist(), labels.tolist())) == given


def test_labels_that_count_from_zero_are_not_renamed():
    card = data.load((examples(5), LABELS % 2)).card
    assert card.labels == ()
    assert "labels" not in card.to_json()
    assert data.load((examples(5), np.array(["b", "a"])[LABELS % 2])).card.labels == ("a", "b")


def test_the_split_takes_from_every_class_and_is_always_the_same():
    """Classes that alternate, classes in blocks, and small ones: no class is held out whole, and none is missing."""
    for labels in (np.arange(36) % 6, np.repeat(np.arange(6), 6), np.array([0] * 30 + [1] * 3 + [2] * 2 + [3])):
        found = data.load((np.arange(36.0)[:, None], labels))
        held_out = np.bincount(found.test_labels, minlength=4)
        total = np.bincount(labels)
        assert (np.where(total > 1, np.maximum(total // 6, 1), 0) == held_out).all()
        same(data.load((np.arange(36.0)[:, None], labels)), found)


def test_checksum_tells_shapes_and_types_apart():
    x = examples(12)
    kinds = [x, x.astype(np.float32), x.reshape(N, 2, 2, 3), x.reshape(N, 1, 1, 3, 4)]
    assert len({data.load((kind, LABELS)).card.checksum for kind in kinds}) == len(kinds)
    images = examples(4, 4, 3)
    held_out = data.load((images[:30], LABELS[:30] % 2, images[30:], LABELS[30:] % 2))
    parts = data.Arrays(images[:30], LABELS[:30] % 2, images[30:], LABELS[30:] % 2, 2)
    assert held_out.card.checksum == data.checksum(
        parts._replace(**{k: getattr(parts, k).astype(np.int32) for k in ("train_labels", "test_labels")})
    )


def test_every_form_gives_the_same(tmp_path: Path):
    x, y = examples(6, 6, 3), np.arange(N) % 2
    expected = data.load((x[:30], y[:30], x[30:], y[30:]))
    np.savez(tmp_path / "plain.npz", x=x[:30], y=y[:30], x_test=x[30:], y_test=y[30:])
    np.savez_compressed(tmp_path / "packed.npz", x_train=x[:30], y_train=y[:30, None], x_test=x[30:], y_test=y[30:])
    same(data.load(str(tmp_path / "plain.npz")), expected)
    same(data.load(tmp_path / "packed.npz"), expected)
    for kind in (Pairs, Rows):
        same(data.load({"train": kind(x[:30], y[:30]), "test": kind(x[30:], y[30:])}), expected)
        same(data.load(kind(x, y)), data.load((x, y)))
    same(data.load(lambda: (x, y)), data.load({"x": jnp.asarray(x), "y": jnp.asarray(y)}))
    same(data.load(data.own.entry((x, y), "mine")), data.load((x, y)))
    assert data.load(data.own.entry((x, y), "mine")).card.name == "mine"
    assert data.load(expected) is expected
    card = data.load(tmp_path / "plain.npz").card
    assert card.name == "plain"
    assert card.source == str(tmp_path / "plain.npz")
    assert json.loads(json.dumps(card.to_json())) == card.to_json()


def test_a_folder_of_images(tmp_path: Path):
    x = examples(6, 5, 3)
    for i, image in enumerate(x):
        part = tmp_path / ("train" if i < 30 else "test") / ("cat", "dog")[i % 2]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"{i:02}.{'png' if i % 3 else 'bmp'}")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    found = data.load(str(tmp_path))
    assert found.card.labels == ("cat", "dog")
    np.testing.assert_array_equal(found.train_images, np.concatenate([x[:30:2], x[1:30:2]]))
    np.testing.assert_array_equal(found.test_labels, [0] * 5 + [1] * 5)
    one = data.load(str(tmp_path / "train"))
    assert (one.card.train, one.card.test) == (26, 4)
    for i, image in enumerate(x):
        Image.fromarray(image[..., 0]).save(next(tmp_path.rglob(f"{i:02}.*")))
    assert data.load(str(tmp_path)).card.shape == (6, 5, 1)


X, Y = examples(5, dtype=np.float64), LABELS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((X, Y.astype(float)), r"y is float64 \(40,\); give classes .*astype\(int\)"),
        ((X, np.eye(3)[Y % 3]), r"y is float64 \(40, 3\).*argmax\(1\)"),
        ((X, Y[:7]), "40 examples x, 7 labels y"),
        ((X, Y * 0), "all labels are 0; give two classes"),
        ((X[:2], Y[:2]), "give x_test and y_test"),
        ((X * np.nan, Y), "x has NaN or infinite values"),
        ((X * 1e300, Y), "x has NaN or infinite values"),
        ((X[:0], Y[:0]), r"x is float64 \(0, 5\); give numbers"),
        ((X[:, 0], Y), r"x is float64 \(40,\); give numbers"),
        ((X.astype(str), Y), "x is <U"),
        ((X * 1j, Y), "x is complex128"),
        (([[1], [1, 2]], Y), "x is no array"),
        ((X, Y, X[:, :2], Y), r"x_test has examples float32 \(2,\), those of x are float32 \(5,\)"),
        ((X, Y, X.astype(np.uint8), Y), "x_test has examples uint8"),
        ((X, Y, X, None), "only one of x_test and y_test"),
        ((examples(3, 32, 32), Y), r"channels first; .*transpose\(0, 2, 3, 1\)"),
        ({"x": X}, r"has no y; it holds \['x'\]"),
        ({}, "has no x and no y"),
        ([], "the data set is empty"),
        ([(np.zeros((2, 2 + i)), i) for i in range(3)], r"item 1: float64 \(2, 3\), item 0 float64 \(2, 2\)"),
        ([{"image": X[0], "fine_label": 0}], "item 0: .*it has 'image', 'fine_label', and needs 'image' and 'label'"),
        (X, "item 0: ValueError"),
        (3, "an object of type int is given; give an .npz file"),
        (lambda: 3, "an object of type int is given"),
        (None, "an object of type NoneType"),
        ("minst", "'minst' is unknown .*did you mean 'mnist'.* or a folder of images"),
        ("nowhere.npz", "nowhere.npz does not exist; give an .npz file"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError, match=said) as refused:
        data.load(given)
    assert len(str(refused.value).splitlines()) == 1


def files() -> dict[str, tuple[str, bytes]]:
    """Name -> what is said of a damaged file, and its content."""
    import io

    def saved(save: Any = np.savez, **arrays: Any) -> bytes:
        file = io.BytesIO()
        save(file, **arrays)
        return file.getvalue()

    png = io.BytesIO()
    Image.fromarray(examples(6, 6, 3)[0]).save(png, "png")
    whole = saved(x=X, y=Y)
    shape = b"(40, 5), }"
    return {
        "objects.npz": ("not an .npz file of numbers .object", saved(x=np.array([{}] * N, object), y=Y)),
        "strings.npz": ("not an .npz file of numbers", saved(x=X, y=np.array(["a", "b"] * 20))),
        "only_x.npz": (r"has no y; it holds \['x'\]", saved(x=X)),
        "cut.npz": ("cut short", whole[:-200]),
        "text.npz": ("not an .npz file", b"hello"),
        "empty.npz": ("not an .npz file", b""),
        "huge.npz": ("not an .npz file of numbers", whole.replace(shape, b"(9**9,5), }"[: len(shape)])),
        "larger.npz": ("not an .npz file of numbers", whole.replace(shape, b"(90, 5), }")),
        "cat/cut.png": ("damaged, cut short or not an image", png.getvalue()[:-30]),
        "cat/text.png": ("damaged, cut short or not an image", b"hello"),
        "cat/script.png": ("damaged, cut short or not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    }


@pytest.mark.parametrize("name", files())
def test_damaged_files_are_refused(tmp_path: Path, name):
    said, content = files()[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = tmp_path if "/" in name else path
    with pytest.raises(data.DataError, match=said) as refused:
        data.load(given)
    assert plain(str(refused.value)) == str(refused.value)
    assert path.name in str(refused.value)


@pytest.mark.parametrize(
    ("image", "said"),
    [(np.zeros((6, 7), np.uint8), r"\(7, 6\) pixels, where 0.png has \(6, 6\)"), (np.zeros((6, 6), np.uint16), "I;16")],
)
def test_images_that_differ_are_refused(tmp_path: Path, image, said):
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.zeros((6, 6), np.uint8)).save(tmp_path / "cat" / "0.png")
    Image.fromarray(image).save(tmp_path / "cat" / "1.png")
    with pytest.raises(data.DataError, match=rf"1.png: .*{said}"):
        data.load(tmp_path)


def test_folders_named_by_numbers_are_in_the_order_of_numbers(tmp_path: Path):
    for name in ("10", "9", "2"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((2, 2), int(name), np.uint8)).save(tmp_path / name / f"{i}.png")
    found = data.load(tmp_path)
    assert found.card.labels == (2, 9, 10)
    assert np.array(found.card.labels)[found.test_labels].tolist() == found.test_images[:, 0, 0, 0].tolist()


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(data.DataError, match=r"holds no images <class>/\*.png"):
        data.load(tmp_path)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("name", [name for name, stream in STREAMS.items() if stream.needs_data])
def test_every_stream_works_on_own_data_or_says_what_it_needs(name, shape):
    """Values are those of the data set: none is scaled."""
    dataset = data.load((examples(*shape, dtype=np.float32), LABELS))
    stream = STREAMS[name]
    if hasattr(stream, "new_classes"):
        stream = IncrementalCIFAR(new_classes=1, standardise=True)
    elif stream.examples:
        with pytest.raises(ConfigError, match=rf"stream.examples: {stream.examples} .*own"):
            stream.build(dataset)
        stream = type(stream)(examples=20)
    if name == "rotating" and len(shape) == 1:
        with pytest.raises(ConfigError, match=r"stream: rotating needs images .*own are \(5,\)"):
            stream.build(dataset)
        return
    built = stream.build(dataset)
    task = built.task(jax.random.key(0), built.data, jnp.int32(1))
    found = built.train(task, built.data, jnp.arange(built.examples), jax.random.key(1))
    assert found.x.shape == (built.examples, *dataset.card.shape)
    assert found.x.dtype == np.float32
    if name == "permuted":
        known = {tuple(np.sort(x.ravel()).tolist()) for x in dataset.train_images}
        assert {tuple(np.sort(x.ravel()).tolist()) for x in np.asarray(found.x)} <= known
    elif name not in ("incremental_cifar", "rotating"):
        known = {tuple(x.ravel().tolist()) for x in dataset.train_images}
        assert {tuple(x.ravel().tolist()) for x in np.asarray(found.x)} <= known


def test_standardised_numbers_have_mean_zero_and_deviation_one():
    dataset = data.load((examples(5, dtype=np.float32) * [1, 2, 3, 4, 0], LABELS))
    stream = IncrementalCIFAR(new_classes=3, standardise=True).build(dataset)
    task = stream.task(jax.random.key(0), stream.data, jnp.int32(0))
    x = stream.train(task, stream.data, jnp.arange(stream.examples), jax.random.key(1)).x
    assert x[:, 4] == pytest.approx(0)
    with pytest.raises(ConfigError, match=r"stream.augment: True needs images .*own are \(5,\)"):
        IncrementalCIFAR(new_classes=1, augment=True).build(dataset)
