"""CIFAR-100 from archives generated in the published format, Python 2 pickles included; hostile pickles are refused."""

from __future__ import annotations

import builtins
import gzip
import os
import pickle
import pickletools
import shutil

import numpy as np
import pytest

from plastax.data import DataError, cifar, load, pickles
from tests.data.formats import cifar_archive, cifar_members, python2_pickle


@pytest.fixture
def members():
    return cifar_members()[0]


@pytest.fixture
def archive(tmp_path, members):
    return cifar_archive(tmp_path / cifar.ARCHIVE, members)


FORMS = [
    "archive",
    "folder of the archive",
    "unpacked",
    "folder of the unpacked",
    "half unpacked",
    "half unpacked as tar",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_on_disk_is_read(tmp_path, archive, form):
    if "half" in form:  # as browsers leave it, which take the gzip away and perhaps its name
        archive.write_bytes(gzip.decompress(archive.read_bytes()))
        archive.rename(archive.with_suffix("") if "tar" in form else archive)
    elif "unpacked" in form:
        shutil.unpack_archive(archive, tmp_path, filter="data")
        archive.unlink()
    path = {"archive": archive, "unpacked": tmp_path / cifar.FOLDER}.get(form, tmp_path)
    found = load("cifar100", path, verify=False)
    _, truth = cifar_members()
    for images, labels, split in (
        (found.train_images, found.train_labels, "train"),
        (found.test_images, found.test_labels, "test"),
    ):
        np.testing.assert_array_equal(images, truth[split][0])
        assert labels.tolist() == truth[split][1]
    assert (found.train_images.dtype, found.train_labels.dtype, found.card.classes) == (np.uint8, np.int32, 100)
    assert found.train_images.flags.c_contiguous


def test_the_generated_pickles_are_those_of_python_2(members):
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(members["train"])}
    assert {"BINSTRING", "SHORT_BINSTRING"} <= opcodes
    assert not any("UNICODE" in name or "BYTES" in name for name in opcodes)
    assert b"numpy.core.multiarray\n_reconstruct" in members["train"]


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 5), np.uint8)
VALUE = {
    "data": IMAGES[0],
    "fortran": np.asfortranarray(IMAGES[0]),
    "permuted": IMAGES.transpose(1, 0, 2),
    "labels": [1, 255, 256, 70000, -1, 2**40],
    "scalars": [np.int64(3), np.uint8(4)],
    "big endian": np.arange(4, dtype=">i4"),
    "mean": np.ones(3),
    "objects": np.array([None]),
}


def test_pickles_of_python_2_in_its_first_protocol_are_read():
    content = python2_pickle({b"data": IMAGES[0], b"labels": [1, 2]}, protocol=0)
    assert b"S'" in content
    found = pickles.load(content, "f", ("data", "labels"))
    np.testing.assert_array_equal(found["data"], IMAGES[0])
    assert found["labels"].tolist() == [1, 2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_python_3_are_read_too(protocol):
    found = pickles.load(pickle.dumps(VALUE, protocol), "f", [name for name in VALUE if name != "objects"])
    for name, array in found.items():
        np.testing.assert_array_equal(array, np.asarray(VALUE[name]))


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.mkdir, builtins.exec, builtins.getattr, np.load, np.frombuffer])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(tmp_path, function, protocol):
    marker = tmp_path / "ran"
    argument = f"import os; os.mkdir({str(marker)!r})" if function is builtins.exec else str(marker)
    content = pickle.dumps({"data": Calls(function, argument)}, protocol)
    with pytest.raises(DataError, match="which is not data"):
        pickles.load(content, "f", ("data",))
    assert not marker.exists()


def test_bytes_are_decoded_by_one_codec_only():
    hostile = pickle.dumps({"data": IMAGES}, 2).replace(b"latin1", b"base64")
    with pytest.raises(DataError, match="base64"):
        pickles.load(hostile, "f", ("data",))


def test_damage_names_the_archive_and_the_remedy(tmp_path, archive):
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 3], whole[:-20], b"<html>404</html>", b""):
        archive.write_bytes(content)
        with pytest.raises(DataError, match="get it again") as raised:
            load("cifar100", tmp_path, verify=False)
        assert str(archive) in str(raised.value)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: batch.pop(b"fine_labels"), "no fine_labels"),
        (lambda batch: batch.update({b"fine_labels": [100] * len(batch[b"data"])}), "labels from 100 to 100"),
        (lambda batch: batch.update({b"fine_labels": [-1] * len(batch[b"data"])}), "labels from -1"),
        (lambda batch: batch.update({b"fine_labels": [1, 2]}), "expected .* integers"),
        (lambda batch: batch.update({b"fine_labels": [0.5] * len(batch[b"data"])}), "things other than whole numbers"),
        (lambda batch: batch.update({b"fine_labels": np.ones(len(batch[b"data"]))}), "expected .* integers"),
        (lambda batch: batch.update({b"fine_labels": np.full(len(batch[b"data"]), 2**32, np.uint64)}), "labels from 4"),
        (lambda batch: batch.update({b"data": batch[b"data"].astype(np.float32)}), "expected uint8"),
        (lambda batch: batch.update({b"data": batch[b"data"][:, :100]}), "expected uint8"),
        (lambda batch: batch.update({b"data": [1]}), "images are int64"),
        (lambda batch: batch.update({b"data": b"x"}), "where an array is expected"),
    ],
)
def test_a_wrong_batch_says_what_is_wrong(tmp_path, members, split, change, said):
    batch = pickle.loads(members[split], encoding="bytes")
    change(batch)
    cifar_archive(tmp_path / cifar.ARCHIVE, members | {split: python2_pickle(batch)})
    with pytest.raises(DataError, match=said) as raised:
        load("cifar100", tmp_path, verify=False)
    assert f"{cifar.FOLDER}/{split}" in str(raised.value)


@pytest.mark.parametrize("content", [python2_pickle([1]), b"", b"\x80\x02}", b"nonsense"])
def test_a_member_that_is_no_batch_is_refused(tmp_path, members, content):
    cifar_archive(tmp_path / cifar.ARCHIVE, members | {"train": content})
    with pytest.raises(DataError, match=f"{cifar.FOLDER}/train"):
        load("cifar100", tmp_path, verify=False)


def test_missing_members_are_named(tmp_path, members):
    cifar_archive(tmp_path / cifar.ARCHIVE, {"train": members["train"]})
    with pytest.raises(DataError, match=f"{cifar.FOLDER}/test"):
        load("cifar100", tmp_path, verify=False)
    with pytest.raises(DataError, match="neither"):
        load("cifar100", tmp_path.parent, verify=False)


def test_the_published_files_are_compared_before_they_are_parsed(tmp_path):
    for name in cifar.DIGESTS:
        (tmp_path / name).write_bytes(b"no pickle")
    with pytest.raises(DataError, match="not the published file"):
        load("cifar100", tmp_path)
    with pytest.raises(DataError, match="not a pickle"):
        load("cifar100", tmp_path, verify=False)


def test_generated_files_do_not_pass_for_the_published_ones(archive):
    with pytest.raises(DataError, match="not the published file"):
        load("cifar100", archive)
