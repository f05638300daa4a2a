"""ImageNet-32 from generated class files and official batches: the same images either way."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest

from plastax.data import DataError, load
from plastax.errors import ConfigError
from tests.data.formats import imagenet_batches

COUNTS = {"train_per_class": 6, "test_per_class": 2}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 32, 32, 3), np.uint8)


def class_files(folder, images=IMAGES):
    (folder / "classes").mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(images):
        np.save(folder / "classes" / f"{k}.npy", one.transpose(0, 3, 1, 2))


def pickled(folder, images=IMAGES):
    for k, batch in enumerate(imagenet_batches(images, 10)):
        (folder / f"train_data_batch_{k + 1}").write_bytes(pickle.dumps(batch, 2))


def npz(folder, images=IMAGES):
    for k, batch in enumerate(imagenet_batches(images, 10)):
        np.savez(folder / f"train_data_batch_{k + 1}.npz", **batch)


def zipped(write, name):
    def pack(folder):
        (folder / "unpacked").mkdir()
        write(folder / "unpacked")
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in (folder / "unpacked").iterdir():
                archive.write(path, path.name)

    return pack


FORMS = {
    "class files": class_files,
    "pickles": pickled,
    "npz": npz,
    "zip of pickles": zipped(pickled, "Imagenet32_train.zip"),
    "zip of npz": zipped(npz, "Imagenet32_train_npz.zip"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_sorted_by_class(tmp_path, form):
    FORMS[form](tmp_path)
    found = load("imagenet32", tmp_path, **COUNTS)
    np.testing.assert_array_equal(found.train_images, IMAGES[:, :6].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(found.test_images, IMAGES[:, 6:].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(found.train_labels, np.repeat(np.arange(12), 6))
    np.testing.assert_array_equal(found.test_labels, np.repeat(np.arange(12), 2))
    assert (found.train_images.dtype, found.train_labels.dtype, found.card.classes) == (np.uint8, np.int32, 12)


def test_by_default_a_class_gives_600_training_and_100_held_out_images(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 700, 32, 32, 3), np.uint8)
    class_files(tmp_path, images)
    found = load("imagenet32", tmp_path / "classes")
    np.testing.assert_array_equal(found.train_images, images[:, :600].reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(found.test_images, images[:, 600:].reshape(-1, 32, 32, 3))


@pytest.mark.parametrize("form", ["class files", "npz"])
def test_the_first_classes_can_be_asked_for(tmp_path, form):
    FORMS[form](tmp_path)
    found = load("imagenet32", tmp_path, classes=3, **COUNTS)
    np.testing.assert_array_equal(found.train_images, IMAGES[:3, :6].reshape(-1, 32, 32, 3))
    with pytest.raises(DataError, match=r"classes=13|class 13 has 0"):
        load("imagenet32", tmp_path, classes=13, **COUNTS)


def test_the_same_images_have_the_same_checksum(tmp_path):
    cards = []
    for form in ("class files", "npz"):
        (tmp_path / form).mkdir()
        FORMS[form](tmp_path / form)
        cards.append(load("imagenet32", tmp_path / form, **COUNTS).card)
    assert cards[0].checksum == cards[1].checksum
    assert cards[0].origin != cards[1].origin


@pytest.mark.parametrize("form", FORMS)
def test_damage_names_the_file_and_the_remedy(tmp_path, form):
    FORMS[form](tmp_path)
    path = next(p for p in sorted(tmp_path.rglob("*")) if p.is_file() and "unpacked" not in p.parts)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[: len(whole) - 30], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="get it again") as raised:
            load("imagenet32", tmp_path, **COUNTS)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("form", ["class files", "npz"])
def test_a_class_with_too_few_images_is_named(tmp_path, form):
    FORMS[form](tmp_path)
    with pytest.raises(DataError, match=r"8 images.* 7 \+ 2"):
        load("imagenet32", tmp_path, train_per_class=7, test_per_class=2)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 32, 32, 3), np.uint8), "expected uint8"),
        (np.full((8, 3, 32, 32), 0.5), "whole numbers"),
        (np.full((8, 3, 32, 32), 256), "whole numbers"),
        (np.full((8, 3, 32, 32), np.nan), "whole numbers"),
        (np.full((8, 3, 32, 32), None), "not an .npy file of numbers"),
    ],
)
def test_a_wrong_class_file_says_what_is_wrong(tmp_path, array, said):
    class_files(tmp_path)
    np.save(tmp_path / "classes" / "7.npy", array)
    with pytest.raises(DataError, match=said) as raised:
        load("imagenet32", tmp_path, **COUNTS)
    assert "7.npy" in str(raised.value)


def test_class_files_of_another_type_are_taken_if_nothing_is_lost(tmp_path):
    class_files(tmp_path)
    np.save(tmp_path / "classes" / "7.npy", IMAGES[7].transpose(0, 3, 1, 2).astype(np.float32))
    found = load("imagenet32", tmp_path, **COUNTS)
    np.testing.assert_array_equal(found.train_images, IMAGES[:, :6].reshape(-1, 32, 32, 3))


def test_labels_count_from_one(tmp_path):
    npz(tmp_path)
    batch = imagenet_batches(IMAGES, 10)[0]
    batch["labels"][0] = 0
    np.savez(tmp_path / "train_data_batch_1.npz", **batch)
    with pytest.raises(DataError, match="labels from 0"):
        load("imagenet32", tmp_path, **COUNTS)


def test_nothing_to_read_and_impossible_counts(tmp_path):
    with pytest.raises(DataError, match="holds neither"):
        load("imagenet32", tmp_path)
    for name in ("classes", "train_per_class", "test_per_class"):
        with pytest.raises(ConfigError, match=f"{name}=0"):
            load("imagenet32", tmp_path, **{name: 0})


@pytest.mark.parametrize("form", ["pickles", "npz", "zip of pickles", "zip of npz"])
def test_a_missing_batch_is_named_because_it_would_change_the_images(tmp_path, form):
    FORMS[form](tmp_path)
    whole = load("imagenet32", tmp_path, **COUNTS).card
    for archive in tmp_path.glob("*.zip"):
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(tmp_path)
        archive.unlink()
    for number in (10, 3):
        (lost,) = tmp_path.glob(f"train_data_batch_{number}*")
        lost.unlink()
    with pytest.raises(DataError, match=r"training batch 3, 10 missing.*--no-data-verify"):
        load("imagenet32", tmp_path, train_per_class=3, test_per_class=2)
    part = load("imagenet32", tmp_path, verify=False, train_per_class=3, test_per_class=2).card
    assert part.checksum != whole.checksum
    assert "NOT verified" in part.notes


def test_a_missing_class_is_named_because_others_would_take_its_number(tmp_path):
    class_files(tmp_path)
    (tmp_path / "classes" / "4.npy").unlink()
    with pytest.raises(DataError, match=r"class file 4.npy missing"):
        load("imagenet32", tmp_path, **COUNTS)
    class_files(tmp_path / "far", IMAGES[:1])
    (tmp_path / "far" / "classes" / "0.npy").rename(tmp_path / "far" / "classes" / "9999999999.npy")
    with pytest.raises(DataError, match=r"class file 0.npy, 1.npy.*9.npy, ... missing"):
        load("imagenet32", tmp_path / "far", **COUNTS)
    assert load("imagenet32", tmp_path, classes=4, **COUNTS).card.classes == 4
    assert load("imagenet32", tmp_path, verify=False, **COUNTS).card.classes == 11


@pytest.mark.parametrize("name", ["\u00b2", "\u0661", "-1", "01", "1e3"])
def test_files_whose_names_are_no_numbers_are_no_classes(tmp_path, name):
    class_files(tmp_path)
    (tmp_path / "classes" / f"{name}.npy").write_bytes(b"")
    assert load("imagenet32", tmp_path, **COUNTS).card.classes == 12


@pytest.mark.parametrize("name", ["Imagenet32_train_npz", "Imagenet32_train"])
def test_the_folder_that_the_archive_unpacks_to_is_found(tmp_path, monkeypatch, name):
    (tmp_path / "imagenet32" / name).mkdir(parents=True)
    npz(tmp_path / "imagenet32" / name)
    assert load("imagenet32", tmp_path / "imagenet32", **COUNTS).card.classes == 12
    monkeypatch.setenv("PLASTAX_DATA", str(tmp_path))
    assert load("imagenet32", **COUNTS).card.classes == 12


def test_more_images_than_the_memory_holds_are_refused_at_once(tmp_path):
    npz(tmp_path)
    for option in ("classes", "train_per_class", "test_per_class"):
        with pytest.raises(ConfigError, match="GiB are free"):
            load("imagenet32", tmp_path, **COUNTS | {option: 10**12})


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "classes").mkdir()
    for name in ("classes/0.npy", "train_data_batch_1"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="holds neither"):
        load("imagenet32", tmp_path, **COUNTS)
