"""Files that were made to do harm: to run code, to read what is not theirs, to fill the memory or to take for ever."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from plastax.data import cifar, idx
from tests.data.formats import planes

Files = dict[str, bytes]
Case = tuple[str, str, Files, dict[str, Any]]
"""What, the name of the data set (or the path of own data), its files, and how they are loaded."""
COUNTS = {"train_per_class": 1, "test_per_class": 1}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
ROWS = planes(IMAGES.reshape(-1, 32, 32, 3))


class Made:
    """Pickles as the call of a function, with a state to set on its result."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def made(*arguments: Any, state: Any = None) -> Any:
    """An array that a pickle makes by calling ``np.ndarray`` itself."""
    return Made(np.ndarray, arguments, state)


def batch(**changes: Any) -> bytes:
    return pickle.dumps({"data": ROWS, "fine_labels": [1, 2, 1, 2], **changes}, 4)


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def raw(value: bytes) -> bytes:
    """A batch whose labels are what the program ``value`` makes."""
    data = array(b"K\x04M\x00\x0c\x86", data=ROWS.tobytes())
    return b"\x80\x04}(" + text(b"data") + data + text(b"fine_labels") + value + b"u."


def nested(depth: int) -> bytes:
    """A tuple of a tuple twice, ``depth`` times: 2 ** depth leaves in 5 bytes a level."""
    return b"K\x01" + b"2\x86" * depth


def array(shape: bytes, dtype: bytes = b"u1", data: bytes = b"x", fortran: bytes = b"\x89") -> bytes:
    """What NumPy writes for an array, with whatever shape, type and bytes."""
    head = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
    kind = (
        b"cnumpy\ndtype\n("
        + text(dtype)
        + b"\x89\x88tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return head + shape + kind + fortran + b"B" + struct.pack("<I", len(data)) + data + b"tb"


PICKLES: Files = {
    "a pointer in an array of objects": batch(
        fine_labels=[made((1,), np.dtype("O"), struct.pack("<Q", 0x4141414141414141))]
    ),
    "rows of a type with a part larger than itself": batch(
        data=made((4,), Made(np.dtype, ("V1",), (3, "|", (np.dtype("u1"), (3072,)), None, None, 1, 1, 0)), b"x" * 4)
    ),
    "a memo of 4 GB": b"\x80\x04}r" + struct.pack("<I", 2**28) + b".",
    "a memo of 4 GB in text": b"\x80\x04}p4294967295\n.",
    **{
        f"{letter!r} of {size} bytes": b"\x80\x05" + letter + struct.pack(form, size) + b"x."
        for letter, form, sizes in (
            (b"B", "<I", (2**32 - 1,)),
            (b"X", "<I", (2**32 - 1,)),
            (b"T", "<i", (2**31 - 1, -1)),
            (b"\x8e", "<Q", (2**33, 2**63, 2**64 - 1)),
            (b"\x8d", "<Q", (2**33, 2**64 - 1)),
            (b"\x96", "<Q", (2**33, 2**64 - 1)),
            (b"\x8b", "<i", (2**31 - 1, -1)),
            (b"\x95", "<Q", (2**33, 2**64 - 1)),
        )
        for size in sizes
    },
    "labels that are nested and shared": raw(b"](" + nested(64) + b"e"),
    "a key that is nested and shared": b"\x80\x04}(" + nested(64) + b"Nu.",
    "a function that is nested and shared": b"\x80\x04" + nested(64) + b")R.",
    "a name that is nested and shared": b"\x80\x04" + nested(64) + text(b"dtype") + b"\x93.",
    "a shape that is nested and shared": raw(array(nested(64))),
    "a type that is nested and shared": raw(array(b"K\x01\x85", b"u1").replace(text(b"u1"), nested(64))),
    "a list in itself": raw(b"]q\x00h\x00a"),
    "a list in itself as an array": raw(b"]q\x00(h\x00h\x00h\x00h\x00e"),
    "depth": raw(b"]" * 100_000 + b"a" * 99_999),
    "depth of tuples": raw(b"K\x01" + b"\x85" * 100_000),
    "depth of calls": raw(b"cnumpy\ndtype\n" + b"2" * 99_999 + b"K\x01" + b"\x85R" * 100_000),
    "a fraction of a million digits": raw(b"](F" + b"1" * 1_000_000 + b"\ne"),
    "marks only": b"(" * 100_000,
    "texts encoded again and again": raw(
        b"]("
        + b"c_codecs\nencode\nq\x05"
        + text(b"x" * 1_000_000)
        + text(b"latin1")
        + b"\x86q\x060"
        + b"h\x05h\x06R" * 20_000
        + b"e"
    ),
    "a number of a million digits": raw(b"I" + b"9" * 1_000_000 + b"\n"),
    "a long number of a million digits": raw(b"](L" + b"9" * 1_000_000 + b"L\ne"),
    "a number of a megabyte": raw(b"](\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * ((1 << 20) - 1) + b"\x7fe"),
    "a shape of numbers of a megabyte": raw(
        array(b"(" + (b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)) * 3 + b"t")
    ),
    "a shape of 100,000 dimensions": raw(array(b"(" + b"K\x01" * 100_000 + b"t")),
    "a shape of less than nothing": raw(array(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86")),
    "a shape that is true": raw(array(b"\x88\x85")),
    "a shape larger than the bytes": raw(array(b"M\xff\xff\x85")),
    "a shape that is no tuple": raw(array(b"N")),
    "objects": raw(array(b"K\x01\x85", b"O8", b"x" * 8)),
    "times": raw(array(b"K\x01\x85", b"M8", b"x" * 8)),
    "texts": raw(array(b"K\x01\x85", b"S1")),
    "a type that is an expression": raw(array(b"K\x01\x85", b"u1,u1")),
    "a type that is no type": raw(array(b"K\x01\x85", b"i3", b"xxx")),
    "a type with a base": raw(array(b"K\x01\x85").replace(b"NNNJ", b"\x88NNJ")),
    "an array without a state": raw(b"cnumpy._core.multiarray\n_reconstruct\n)R"),
    "an array with an empty state": raw(b"cnumpy._core.multiarray\n_reconstruct\n)R)b"),
    "an array of nothing": raw(array(b"K\x00\x85", data=b"")),
    "a buffer of another file": b"\x80\x05\x97.",
    "a scalar without a type": raw(b"](cnumpy._core.multiarray\nscalar\nN" + text(b"x") + b"\x86Re"),
    "a call that is no call": b"\x80\x04K\x01)R.",
    "a change of what is no array": b"\x80\x04](N\x85b.",
    "items of what is no dictionary": b"\x80\x04](K\x01K\x01u.",
    "items that are no pairs": b"\x80\x04}(K\x01u.",
    "appended to what is no list": b"\x80\x04}K\x01a.",
    "a dotted name": b"\x80\x04" + text(b"numpy") + text(b"core.os.system") + b"\x93.",
    "the system": b"cos\nsystem\n(S'true'\ntR.",
    "the system by STACK_GLOBAL": b"\x80\x04" + text(b"os") + text(b"system") + b"\x93" + text(b"true") + b"\x85R.",
    "an instance": b"(S'true'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'true'\no.",
    "a new object": b"\x80\x04cnumpy\ndtype\n" + text(b"O") + b"\x85\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "something persistent": b"Pname\n.",
    "something persistent from the stack": b"\x80\x04K\x01Q.",
    "nothing on the stack": b"\x80\x04.",
    "nothing in the memo": b"\x80\x04h\x07.",
    "no mark": b"\x80\x04u.",
    "no end": b"\x80\x04}",
    "nothing": b"",
    "keys with colours": pickle.dumps({"\x1b[31mdata": 1}),
}


def npy(header: bytes, data: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + data


def head(shape: str, kind: str = "|u1") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()


NPYS: Files = {
    "3 TB": npy(head("(1000000000, 3, 32, 32)")),
    "more than any number": npy(head(f"({10**30}, 3, 32, 32)")),
    "less than nothing": npy(head("(-1, -3, 32, 32)"), bytes(3072)),
    "objects": npy(head("(2,)", "|O"), b"x" * 16),
    "a pickle": npy(head("()", "|O"), b"cos\nsystem\n(S'true'\ntR."),
    "texts": npy(head("(2,)", "|S3"), b"x" * 6),
    "a header of brackets": npy(b"(" * 9000),
    "a header of minus signs": npy(b"-" * 9000 + b"1\n"),
    "a header of 4 GB": npy(b"", version=2)[:8] + b"\xff" * 4,
    "version 9": npy(head("(2,)"), version=9),
    "a longer file": npy(head("(2, 3, 32, 32)"), bytes(2 * 3072 + 1)),
    "a shorter file": npy(head("(2, 3, 32, 32)"), bytes(2 * 3072 - 1)),
    "no numbers": b"\x93NUMPY",
}


def zipped(members: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def claiming(archive: bytes, size: int) -> bytes:
    """The same archive, whose list claims another size of its first member, unpacked."""
    at = archive.index(b"PK\x01\x02") + 24
    return archive[:at] + struct.pack("<I", size) + archive[at + 4 :]


def npz(**members: bytes) -> bytes:
    return zipped({f"{name}.npy": content for name, content in members.items()})


def crowded(number: int) -> bytes:
    """An archive whose list has the same member ``number`` times."""
    whole = zipped({"data.npy": b""})
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entries = whole[start:end] * number
    return whole[:start] + entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entries), start, 0)


LABELS = npy(head("(4,)"), b"\1\2\1\2")
IMAGE_ROWS = npy(head("(4, 3072)"), ROWS.tobytes())
NPZS: Files = {
    **{f"{name} in it": npz(data=content, labels=LABELS) for name, content in NPYS.items()},
    **{f"labels of {name}": npz(data=IMAGE_ROWS, labels=content) for name, content in NPYS.items()},
    "4 GB that are not there": claiming(npz(data=IMAGE_ROWS, labels=LABELS), 0xF0000000),
    "more than is said": claiming(npz(data=bytes(1 << 26), labels=LABELS), 1000),
    "LZMA": zipped({"data.npy": IMAGE_ROWS, "labels.npy": LABELS}, zipfile.ZIP_LZMA),
    "encrypted": npz(data=IMAGE_ROWS, labels=LABELS).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
    "100,000 members": crowded(100_000),
    "no members": npz(),
    "no zip archive": b"PK\x05\x06" + b"\xff" * 18,
}
ZIPS: Files = {
    "4 GB that are not there": claiming(zipped({"train_data_batch_1": bytes(1 << 20)}), 0xF0000000),
    "more than is said": claiming(zipped({"train_data_batch_1": bytes(1 << 26)}), 1000),
    "no zip archive": b"PK\x05\x06" + b"\xff" * 18,
    "members that lead elsewhere": zipped({"../../train_data_batch_1": batch(), "/train_data_batch_2": batch()}),
}


def bomb(size: int) -> bytes:
    """Zeros compressed by gzip, a part of which is repeated: a gigabyte in a megabyte, in no time."""
    return gzip.compress(bytes(1 << 26), 9, mtime=0) * (size >> 26)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def sparse(name: str, size: int) -> bytes:
    """A header of a file that is one hole."""
    block = bytearray(header(name, 0, tarfile.GNUTYPE_SPARSE))
    block[483:495] = f"{size:011o}\0".encode()
    block[148:156] = b"        "
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


TRAIN = f"{cifar.FOLDER}/train"
BOMBS: Files = {
    "8 GB before the members": header("x", 1 << 33),
    "names of 8 GB": header("x", 1 << 33, tarfile.GNUTYPE_LONGNAME),
    "properties of 8 GB": header("x", 1 << 33, tarfile.XHDTYPE),
}
TARS: Files = {
    "a member of 8 GB": header(TRAIN, 1 << 33) + bytes(4096),
    "less than nothing": header(TRAIN, -1) + bytes(1024),
    "8 GB of holes": sparse(TRAIN, 1 << 32) + bytes(1024),
    "a link to itself": header(TRAIN, 0, tarfile.SYMTYPE, linkname="train") + bytes(1024),
    "a link to the system": header(TRAIN, 0, tarfile.SYMTYPE, linkname="/etc/passwd") + bytes(1024),
    "a hard link to itself": header(TRAIN, 0, tarfile.LNKTYPE, linkname=TRAIN) + bytes(1024),
    "a device": header(TRAIN, 0, tarfile.CHRTYPE, devmajor=1, devminor=5) + bytes(1024),
    "names of names": (header("x", 512, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 5000,
    "20,000 members": header("x", 0) * 20_000 + bytes(1024),
    "no archive": b"x" * 2000,
}
IDX: Files = {
    "a header of 2**96 bytes": bytes((0, 0, 8, 3)) + b"\xff" * 12,
    "more dimensions than there are": bytes((0, 0, 8, 255)) + b"\xff" * 12,
    "nothing": b"",
}


def png(wide: int, high: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG file of this size, whose pixels are zeros as far as they go."""
    parts = [(b"IHDR", struct.pack(">2I5B", wide, high, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(bytes(1 << 24))), (b"IEND", b"")]
    whole = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


IMAGE_FILES: Files = {
    "4 billion x 4 billion pixels": png((1 << 32) - 1, (1 << 32) - 1),
    "60,000 x 60,000 pixels": png(60_000, 60_000),
    "13,000 x 13,000 pixels": png(13_000, 13_000),
    "no pixels": png(0, 0),
    "16 MB of text": png(4, 4, (b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 24), 9))),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "nothing": b"",
}


def crafted() -> Iterator[Case]:
    """Made to do harm."""
    unverified: dict[str, Any] = {"verify": False}
    few = unverified | COUNTS
    for what, content in PICKLES.items():
        yield f"pickle: {what}", "cifar100", {"train": content, "test": batch()}, unverified
    for what, content in NPZS.items():
        yield f"npz: {what}", "imagenet32", {"train_data_batch_1.npz": content}, few | {"classes": 2}
    for what, content in NPYS.items():
        yield f"npy: {what}", "imagenet32", {"classes/0.npy": content}, few
    for what, content in TARS.items():
        yield f"tar: {what}", "cifar100", {cifar.ARCHIVE: content}, unverified
    for what, content in IDX.items():
        yield f"idx: {what}", "mnist", dict.fromkeys(idx.FILES, content), unverified
    for what, content in ZIPS.items():
        yield f"zip: {what}", "imagenet32", {"Imagenet32_train.zip": content}, few
    for what, content in NPYS.items():
        yield f"own x: {what}", "own.npz", {"own.npz": npz(x=content, y=LABELS)}, {}
        yield f"own y: {what}", "own.npz", {"own.npz": npz(x=IMAGE_ROWS, y=content)}, {}
    for what, content in IMAGE_FILES.items():
        yield f"image: {what}", "", {"a/1.png": content, "b/2.png": content}, {}
    yield "idx: 8 GB", "mnist", {f"{name}.gz": bomb(1 << 33) for name in idx.FILES}, {}
    yield "idx: twice compressed", "mnist", {f"{idx.FILES[0]}.gz": gzip.compress(bomb(1 << 33))}, unverified


def bombs() -> Iterator[Case]:
    """Small files that unpack to gigabytes; each is unpacked as far as its limit."""
    yield "own x: 2 GB", "own.npz", {"own.npz": npz(x=npy(head("(2, 1073741824)"), bytes(1 << 31)), y=LABELS)}, {}
    yield "idx: 8 GB, not verified", "mnist", {f"{name}.gz": bomb(1 << 33) for name in idx.FILES}, {"verify": False}
    for what, content in BOMBS.items():
        yield f"tar: {what}", "cifar100", {cifar.ARCHIVE: gzip.compress(content) + bomb(1 << 33)}, {"verify": False}
    endless = text(b"data") + b"]" * 3_000_000
    yield "pickle: 3,000,000 lists", "cifar100", {"train": endless, "test": batch()}, {"verify": False}
