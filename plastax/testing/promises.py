"""How a broken promise is told: what is wrong, where the promise stands, and what to do."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from plastax.types import Tree


class Promise(NamedTuple):
    """What the docstring of ``owner`` says of its ``member``; an empty member: of the owner, up to its attributes."""

    owner: Any
    member: str = ""

    def __str__(self) -> str:
        name, text = f"{self.owner.__module__}.{self.owner.__qualname__}", inspect.getdoc(self.owner) or ""
        found = re.search(rf"^  {self.member}: (.+(?:\n    .+)*)", text, re.MULTILINE) if self.member else None
        if found:
            text = found[1]
        elif self.member:
            text = inspect.getdoc(getattr(self.owner, self.member)) or ""
        text = re.split(r"\n\n\w+:\n", text)[0]
        return f"{name}{'.' if self.member else ''}{self.member}: {' '.join(text.split())}"

    def broken(self, who: str, what: str, remedy: str) -> AssertionError:
        """The error to raise: ``what`` is wrong with ``who``."""
        return AssertionError(f"{who}: {what}\n  promised: {self}\n  to do: {remedy}")

    @contextlib.contextmanager
    def kept(self, who: str, what: str, remedy: str) -> Iterator[None]:
        """Turns any exception of the block into a broken promise."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as error:
            told = str(error).strip().split("\n")[0]
            raise self.broken(who, f"{what} raises {type(error).__name__}: {told}", remedy) from error


def quick(fn: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for what compiles much and computes little."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0}, **options)


def plain(x: Any) -> np.ndarray:
    """An array, or the data of a key, as NumPy's."""
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, NaN included."""
    return np.array_equal(plain(a), plain(b), equal_nan=plain(a).dtype.kind in "fc")


def close(rtol: float, atol: float) -> Callable[[Any, Any], bool]:
    """Equality up to rounding."""
    return lambda a, b: np.allclose(plain(a), plain(b), rtol=rtol, atol=atol, equal_nan=True)


def difference(got: Tree, expected: Tree, same: Callable[[Any, Any], bool] = equal) -> str:
    """The first place at which two trees differ, in words; empty if they are the same."""
    structure, other = (str(jax.tree.structure(x)) for x in (got, expected))
    if structure != other:
        return f"the structure {structure} in place of {other}"
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if not same(a, b):
            return f"at {jax.tree_util.keystr(path) or 'the top'}: {_short(a)} in place of {_short(b)}"
    return ""


def _short(x: Any) -> str:
    if isinstance(x, jax.ShapeDtypeStruct):
        return f"{x.dtype}{list(x.shape)}{' (weakly typed)' * x.weak_type}"
    return np.array2string(plain(x), precision=4, threshold=6)


def traced(fn: Callable[..., Any], *args: Any) -> tuple[str, list[np.ndarray], Tree]:
    """A program's text, constants and shapes of outputs: two traces of a pure function have the same."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return re.sub(r"0x[0-9a-f]+", "", str(closed)), [plain(x) for x in closed.consts], shapes


def check_pure(promise: Promise, who: str, fn: Callable[..., Any], *args: Any, remedy: str) -> Tree:
    """Refuses a function that is another program when it is traced again; returns the shapes of its outputs."""
    (text, constants, shapes), (again, others, _) = (traced(lambda *x: fn(*x), *args) for _ in range(2))
    if text != again or difference(others, constants):
        raise promise.broken(who, "the same call gives another program the second time it is traced", remedy)
    return shapes
