"""What every supervised stream promises, checked on all examples of its first tasks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax.curvature import losses
from plastax.data import Card, Dataset
from plastax.testing.promises import Promise, check_pure, close, difference, plain, quick
from plastax.types import Array, Examples, Key, Stream, Tree

TASKS = 3
SHAPE, CLASSES, TRAIN, TEST = (4, 4, 1), 3, 30, 12


def make_dataset() -> Dataset:
    """30 and 12 images of 4 x 4 pixels in three classes, all different: the first pixel is the image's number."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 200, (TRAIN + TEST, *SHAPE)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(TRAIN + TEST)
    labels = rng.permutation(np.arange(TRAIN + TEST) % CLASSES).astype(np.int32)
    card = Card("tiny", True, "", "", "", "", SHAPE, CLASSES, TRAIN, TEST, "")
    return Dataset(values[:TRAIN], labels[:TRAIN], values[TRAIN:], labels[TRAIN:], card)


class Looks:
    """All examples of a stream's tasks, by one compiled program."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.some: Any = np.array([stream.examples - 1, 0, stream.examples // 2])
        self.compiled = quick(self.look)

    def look(self, key: Key, data: Tree, number: Array) -> Any:
        """((training, held-out), some of each): all examples, then a few, looked at with another key."""
        stream = self.stream
        task = stream.task(key, data, number)
        train = stream.train(task, data, jnp.arange(stream.examples), key)
        every = train, stream.test(task, data, jnp.arange(stream.held_out))
        some = stream.train(task, data, self.some, jax.random.key(9))
        return every, (some, stream.test(task, data, self.some % max(1, stream.held_out)))

    def __call__(self, seed: int, task: int) -> Any:
        """What seed and task give, as NumPy arrays."""
        return jax.tree.map(np.asarray, self.compiled(jax.random.key(seed), self.stream.data, jnp.int32(task)))


def check_stream(config: Any, dataset: Dataset | None = None, *, recurring: bool = False) -> None:
    """Checks that a supervised stream keeps what `plastax.types.Stream` promises; takes some seconds.

    It compiles one program that gives all examples of a task, so choose settings with few, small ones.

    Args:
      config: the stream's settings, or their class, or a `Stream`.
      dataset: what to build it of; None: tiny images, if it has ``needs_data``.
      recurring: whether equal inputs may be trained on and held out, because few different ones exist.

    Raises:
      AssertionError: a promise is broken; it says what is wrong, where the promise stands, and what to do.

    Examples:
      >>> from plastax import streams, testing
      >>> testing.check_stream(streams.Permuted(examples=20))
    """
    config = config() if isinstance(config, type) else config
    who, stream = type(config).__name__, config
    if not isinstance(config, Stream):
        needs = getattr(config, "needs_data", dataset is not None)
        with Promise(Stream).kept(who, "build", "accept the data set, if the stream needs one, and return a Stream"):
            stream = config.build(*[dataset or make_dataset()] * needs)
    if not isinstance(stream, Stream):
        what = f"build returns a {type(stream).__name__}"
        raise Promise(Stream).broken(who, what, "return a plastax.types.Stream")
    if not stream.description:
        raise Promise(Stream, "description").broken(who, "its description is empty", "say in a line what it is")
    _check(who, stream, recurring)


def _check(who: str, stream: Stream, recurring: bool) -> None:
    looks = Looks(stream)
    remedy = "let a task follow from (key, data, index) alone: keep nothing outside, and draw with jax.random"
    with Promise(Stream).kept(who, "a task", "compute it with JAX, for a traced index, in fixed shapes"):
        args = jax.random.key(0), stream.data, jnp.int32(0)
        check_pure(Promise(Stream, "task"), who, looks.look, *args, remedy=remedy)
        seen = [looks(0, task) for task in range(TASKS)]
    for part, examples in zip(("train", "test"), seen[1][0]):
        _check_examples(who, stream, part, examples)
    (train, test), (some, few) = found = looks(0, 2)
    if wrong := difference(found, seen[2]):
        what = f"task 2 differs when it is made again, {wrong}"
        raise Promise(Stream, "task").broken(who, what, remedy)
    # Inputs may be drawn at every look; labels may not, nor anything of held-out examples.
    if wrong := difference(some.y, train.y[looks.some]):
        what = f"the labels of training examples change from look to look, {wrong}"
        raise Promise(Stream, "train").broken(who, what, "draw labels in `task`, and let `train` only take them")
    held_out = jax.tree.map(lambda x: x[looks.some % len(test.x)], Examples(test.x, test.y)) if len(test.x) else few
    for got, expected in zip(few[:2], held_out[:2]):
        if wrong := difference(got, expected, close(0, 1e-6)):
            what = f"held-out examples are others when fewer are asked for, {wrong}"
            raise Promise(Stream, "test").broken(who, what, "draw nothing in `test`; noise comes from the task")
    for other, which in ((seen[1], "tasks 0 and 1"), (looks(1, 0), "two seeds")):
        if not difference(seen[0][0], other[0]):
            what = f"{which} have the same examples"
            raise Promise(Stream, "task").broken(who, what, "let the task depend on the key and its number")
    for number, ((train, test), _) in enumerate(seen):
        both = _rows(train.x) & _rows(test.x)
        if both and not recurring:
            what = f"task {number} trains on {len(both)} of its {len(test.x)} held-out examples"
            remedy = "keep them apart; if few different inputs exist, check it with recurring=True"
            raise Promise(Stream, "held_out").broken(who, what, remedy)


def _check_examples(who: str, stream: Stream, part: str, examples: Examples) -> None:
    promise, count = Promise(Stream, part), stream.examples if part == "train" else stream.held_out
    shape, x = (count, *stream.input_shape), plain(examples.x)
    of_tokens = stream.loss == "token_cross_entropy"
    kind = np.dtype(np.int32 if of_tokens else np.float32)
    if x.shape != shape or x.dtype != kind:
        what = f"`{part}` gives inputs of {x.dtype}{list(x.shape)} in place of {kind}{list(shape)}"
        raise promise.broken(who, what, f"give {kind} inputs [B, *input_shape] for B indices")
    if count and not (np.isfinite(x).all() and x.min() < x.max()):
        raise promise.broken(who, f"`{part}` gives inputs that are not finite, or all the same", "check the arrays")
    if count and of_tokens and max(x.max(), examples.y.max()) >= stream.outputs:
        what = f"`{part}` gives tokens up to {max(x.max(), examples.y.max())} with {stream.outputs} outputs"
        raise promise.broken(who, what, "give tokens from 0 to outputs - 1, and negative ones for padding")
    outputs = jnp.zeros((*examples.y.shape, stream.outputs) if of_tokens else (count, stream.outputs))
    with Promise(Stream, "loss").kept(who, f"the loss {stream.loss} of `{part}`", "give labels that fit the loss"):
        value = losses.get(stream.loss).value(outputs, examples)
    if count and stream.loss == "cross_entropy" and not 0 <= examples.y.min() < examples.y.max() < stream.outputs:
        what = f"`{part}` gives labels from {examples.y.min()} to {examples.y.max()} with {stream.outputs} outputs"
        raise promise.broken(who, what, "give more than one class, from 0 to outputs - 1")
    if count and not np.isfinite(value):
        raise promise.broken(who, f"`{part}` gives labels with which the loss {stream.loss} is {value}", "check them")


def _rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}
