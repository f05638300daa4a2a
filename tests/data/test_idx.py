"""The idx reader on files written by the format's description, and the real MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax.data import DataError, idx, load
from tests.data.formats import idx_bytes


@pytest.fixture
def folder(tmp_path: Path, idx_files: dict[str, bytes]) -> Path:
    for name, content in idx_files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def rewrite(path: Path, array: np.ndarray) -> None:
    path.write_bytes(gzip.compress(idx_bytes(array)))


@pytest.mark.parametrize("spelling", [0, 1, 2, 3])
def test_files_are_read_in_every_spelling(folder, idx_files, spelling):
    for name in idx.FILES:
        content = gzip.decompress(idx_files[f"{name}.gz"])
        (folder / f"{name}.gz").unlink()
        spelled = folder / idx.spellings(name)[spelling]
        spelled.write_bytes(gzip.compress(content) if spelled.suffix == ".gz" else content)
    found = load("mnist", folder, verify=False)
    pixels = np.frombuffer(gzip.decompress(idx_files[f"{idx.TEST_IMAGES}.gz"])[16:], np.uint8)
    labels = list(gzip.decompress(idx_files[f"{idx.TRAIN_LABELS}.gz"])[8:])
    assert found.test_images.tobytes() == pixels.tobytes()
    assert found.train_labels.tolist() == labels
    assert found.train_images.shape == (20, 28, 28, 1)
    assert (found.train_images.dtype, found.train_labels.dtype) == (np.uint8, np.int32)
    assert "NOT verified" in found.card.notes


def test_content_decides_whether_a_file_is_compressed(folder, idx_files):
    whole = load("mnist", folder, verify=False).card.checksum
    for name in idx.FILES:
        content = gzip.decompress(idx_files[f"{name}.gz"])
        (folder / f"{name}.gz").write_bytes(content)  # unpacked by a browser, which left the name as it was
    assert load("mnist", folder, verify=False).card.checksum == whole
    for name in idx.FILES:
        (folder / f"{name}.gz").unlink()
        (folder / name).write_bytes(gzip.compress(gzip.decompress(idx_files[f"{name}.gz"])))
    assert load("mnist", folder, verify=False).card.checksum == whole


def test_the_published_files_are_compared_before_they_are_parsed(folder):
    (folder / f"{idx.TRAIN_IMAGES}.gz").write_bytes(b"no idx file")
    with pytest.raises(DataError, match="not the published file"):
        load("mnist", folder)
    with pytest.raises(DataError, match="not an idx file"):
        load("mnist", folder, verify=False)


@pytest.mark.parametrize("begin", [b"", gzip.compress(b"")], ids=["plain", "compressed"])
def test_a_file_that_is_too_large_is_not_even_begun(folder, begin):
    path = folder / f"{idx.TRAIN_IMAGES}.gz"
    path.write_bytes(begin)
    os.truncate(path, 1 << 36)
    with pytest.raises(DataError, match="68,719,476,736 bytes, where at most"):
        load("mnist", folder, verify=False)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that gives a read error")
def test_a_file_that_cannot_be_read_is_not_called_damaged(folder):
    path = folder / f"{idx.TRAIN_IMAGES}.gz"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot be read") as raised:
        load("mnist", folder)
    assert "delete" not in str(raised.value)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), cut=st.integers(1, 200), data=st.data())
def test_only_whole_files_parse(shape, cut, data):
    array = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    content = idx_bytes(array)
    np.testing.assert_array_equal(idx.parse(Path("f"), content, len(shape)), array)
    for wrong in (content[: max(0, len(content) - cut)], content + bytes(cut)):
        with pytest.raises(DataError, match=r"f: "):
            idx.parse(Path("f"), wrong, len(shape))
    with pytest.raises(DataError, match="not an idx file"):
        idx.parse(Path("f"), content, len(shape) + 1)


def test_a_header_that_promises_more_than_any_machine_holds_is_refused():
    header = bytes((0, 0, 8, 3)) + b"\xff" * 12
    with pytest.raises(DataError, match="0 values"):
        idx.parse(Path("f"), header, 3)


def test_damage_names_the_file_and_the_remedy(folder):
    path = folder / f"{idx.TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[: len(whole) // 2], bytes(flipped), b"<html>404</html>", b""):
        path.write_bytes(content)
        with pytest.raises(DataError) as raised:
            load("mnist", folder, verify=False)
        assert str(path) in str(raised.value)
        assert "get it again" in str(raised.value) or "replace it" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        (idx.TRAIN_LABELS, np.full(20, 10), "label 10"),
        (idx.TRAIN_LABELS, np.zeros(19), "20 images, but 19 labels"),
        (idx.TEST_IMAGES, np.zeros((10, 32, 32)), "32 x 32"),
        (idx.TEST_IMAGES, np.zeros((0, 28, 28)), "0 images"),
        (idx.TEST_LABELS, np.zeros((10, 1)), "not an idx file"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(folder, name, array, said):
    rewrite(folder / f"{name}.gz", array)
    with pytest.raises(DataError, match=said):
        load("mnist", folder, verify=False)


def test_a_missing_file_is_named(folder):
    (folder / f"{idx.TEST_LABELS}.gz").unlink()
    with pytest.raises(DataError, match=f"{idx.TEST_LABELS}: missing"):
        load("mnist", folder, verify=False)


def test_a_file_is_not_the_folder(folder):
    with pytest.raises(DataError, match=r"gz: no folder; the data set is the files train-images"):
        load("mnist", folder / f"{idx.TEST_LABELS}.gz")


def test_files_that_are_not_the_published_ones_need_a_word(folder):
    with pytest.raises(DataError, match=r"not the published file.*verify=False"):
        load("mnist", folder)


@pytest.mark.fetched
@pytest.mark.parametrize(
    ("name", "per_class", "mean", "first"),
    [
        ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 0.1307, [5, 0, 4, 1, 9]),
        ("fashion_mnist", [6000] * 10, 0.2860, [9, 0, 0, 3, 0]),
    ],
)
def test_the_real_data_are_what_the_literature_describes(dataset, name, per_class, mean, first):
    found = dataset(name)
    assert found.train_images.shape == (60000, 28, 28, 1)
    assert found.test_images.shape == (10000, 28, 28, 1)
    assert np.bincount(found.train_labels).tolist() == per_class
    assert found.train_images.mean() / 255 == pytest.approx(mean, abs=5e-5)
    assert found.train_labels[:5].tolist() == first
    assert not found.card.synthetic
