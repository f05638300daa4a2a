"""A process of its own, with little memory, that reads the files of strangers.

``python -m tests.data.strangers crafted`` reads what was made to do harm, ``bombs`` what unpacks to gigabytes, and
``damaged 2000 0`` that many valid files with bytes changed. Each prints one JSON line a file and "done" at the end,
which a process that dies does not reach.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plastax.data import DATA, Arrays, cifar, idx, load
from plastax.errors import ConfigError
from tests.data.crafted import COUNTS, IMAGES, Files, bombs, crafted, head, npy, zipped
from tests.data.formats import cifar_archive, cifar_members, idx_bytes, imagenet_batches

MEMORY = 1 << 30
"""Bytes that the process may use beyond those of its imports."""


def valid() -> list[tuple[str, Files, dict[str, Any]]]:
    """Tiny data sets in every form."""
    rng = np.random.default_rng(0)
    arrays = (rng.integers(0, 256, (2, 28, 28)), np.array([1, 2])) * 2
    plain = {name: idx_bytes(array) for name, array in zip(idx.FILES, arrays)}
    members = cifar_members(2, 1)[0]
    with tempfile.TemporaryDirectory() as folder:
        archive = cifar_archive(Path(folder) / "a", members).read_bytes()
    one = imagenet_batches(IMAGES, 1)[0]
    file = io.BytesIO()
    np.savez(file, **one)
    few = {"verify": False, **COUNTS}
    return [
        ("mnist", plain, {"verify": False}),
        ("mnist", {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}, {"verify": False}),
        ("cifar100", {name: members[name] for name in ("train", "test")}, {"verify": False}),
        ("cifar100", {cifar.ARCHIVE: archive}, {"verify": False}),
        ("cifar100", {cifar.ARCHIVE: gzip.decompress(archive)}, {"verify": False}),
        *(("own.npz", {"own.npz": own(save)}, {}) for save in (np.savez, np.savez_compressed)),
        (
            "",
            {f"{k % 2}/{k}.{suffix}": image(suffix, k) for k in range(4) for suffix in ("png", "bmp", "jpg", "pgm")},
            {},
        ),
        *(("imagenet32", {"train_data_batch_1": pickle.dumps(one, protocol)}, few) for protocol in range(6)),
        ("imagenet32", {"train_data_batch_1.npz": file.getvalue()}, few),
        ("imagenet32", {"Imagenet32_train_npz.zip": zipped({"a/train_data_batch_1.npz": file.getvalue()})}, few),
        ("imagenet32", {"Imagenet32_train.zip": zipped({"train_data_batch_1": pickle.dumps(one, 2)})}, few),
        ("imagenet32", {f"{k}.npy": npy(head("(2, 3, 32, 32)"), bytes(6144)) for k in range(2)}, few),
    ]


def own(save: Any) -> bytes:
    file = io.BytesIO()
    save(file, x=IMAGES.reshape(-1, 32, 32, 3), y=np.array([3, 4, 3, 4]))
    return file.getvalue()


def image(suffix: str, number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGES[number % 2, number // 2, ..., 0]).save(
        file, {"jpg": "jpeg", "pgm": "ppm"}.get(suffix, suffix)
    )
    return file.getvalue()


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a few bytes changed, cut out, doubled or put in, most of them where its structure is."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        near = rng.choice([80, 400, max(len(data), 1)])
        at = int(rng.integers(0, max(min(near, len(data)), 1)))
        at = len(data) - 1 - at if rng.random() < 0.4 else at
        length = int(rng.choice([1, 2, 4, 8, 200]))
        match rng.integers(0, 5):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:
                data[at : at + length] = b"\xff" * length if rng.random() < 0.5 else bytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = bytes(rng.choice(list(b"(tR.}]ubsehqK\x85\x86\x87\x94\x93NJ"), length).tolist())
    return bytes(data)


def outcome(name: str, files: Files, options: dict[str, Any]) -> str:
    """Loads the files: "read", or why they are refused. Everything else that happens ends the process."""
    with tempfile.TemporaryDirectory() as top:
        for file, content in files.items():
            path = Path(top) / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        try:
            found = load(name, top, **options) if name in DATA else load(str(Path(top) / name))
        except ConfigError as error:
            return str(error).replace(top, "")
    check(Arrays(*found[:4], found.card.classes))
    return "read"


def check(found: Arrays) -> None:
    """What a reader promises of what it returns."""
    for images, labels in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        assert images.dtype in (np.uint8, np.float32), images.dtype
        assert images.ndim > 1, images.shape
        assert labels.dtype == np.int32, labels.dtype
        assert labels.shape == images.shape[:1] != (0,), (images.shape, labels.shape)
        assert 0 <= labels.min() <= labels.max() < found.classes
        assert np.isfinite(images.astype(float).sum())  # every pixel can be read


def report(what: str, *load: Any) -> None:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = outcome(*load)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    line = {"what": what, "said": said, "seconds": time.process_time() - began, "bytes": grown}
    print(json.dumps(line), flush=True)


def main(kind: str, number: str = "0", seed: str = "0") -> None:
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    if kind == "damaged":
        sets, rng = valid(), np.random.default_rng(int(seed))
        for name, files, options in sets:
            report(f"whole {', '.join(files)}", name, files, options)
        for count in range(int(number)):
            name, files, options = sets[count % len(sets)]
            victim = str(rng.choice(sorted(files)))
            report(f"{victim}, {count}", name, files | {victim: damaged(files[victim], rng)}, options)
    else:
        for case in {"crafted": crafted, "bombs": bombs}[kind]():
            report(*case)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
