"""`check_stream` fails for streams that break a promise, and says which."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import testing
from plastax.testing.streams import make_dataset
from plastax.types import Examples, Stream

COUNTER = itertools.count()


@dataclass(frozen=True)
class Blobs:
    """Points around a centre that each task draws; the cases below break it in one place each."""

    needs_data: ClassVar[bool] = False
    outputs: ClassVar[int] = 2
    description: ClassVar[str] = "points around a centre"

    def build(self) -> Stream:
        return Stream(
            (), "cross_entropy", (2,), self.outputs, 12, 6, self.task, self.train, self.test, self.description
        )

    def task(self, key: Any, data: Any, index: Any) -> Any:
        return jax.random.normal(jax.random.fold_in(key, index), (18, 2))

    def labels(self, index: Any) -> Any:
        return (index % 2).astype(jnp.int32)

    def train(self, task: Any, data: Any, index: Any, key: Any) -> Examples:
        return Examples(task[index], self.labels(index))

    def test(self, task: Any, data: Any, index: Any) -> Examples:
        return Examples(task[12 + index], self.labels(index))


class Counting(Blobs):
    """Its tasks are those that were asked for before."""

    def task(self, key: Any, data: Any, index: Any) -> Any:
        return super().task(key, data, next(COUNTER))


class Calling(Blobs):
    """The same, hidden from the trace."""

    def task(self, key: Any, data: Any, index: Any) -> Any:
        before = jax.pure_callback(lambda: np.int32(next(COUNTER)), jax.ShapeDtypeStruct((), jnp.int32))
        return super().task(key, data, index + 10 * before)


class Shared(Blobs):
    def test(self, task: Any, data: Any, index: Any) -> Examples:
        return Examples(task[8 + index], self.labels(index))


class Constant(Blobs):
    def task(self, key: Any, data: Any, index: Any) -> Any:
        return super().task(key, data, 0)


class Seedless(Blobs):
    def task(self, key: Any, data: Any, index: Any) -> Any:
        return super().task(jax.random.key(0), data, index)


class Relabelling(Blobs):
    def train(self, task: Any, data: Any, index: Any, key: Any) -> Examples:
        return Examples(task[index], jax.random.randint(key, index.shape, 0, 2))


class Crowded(Blobs):
    """Its held-out examples depend on which are asked for."""

    def test(self, task: Any, data: Any, index: Any) -> Examples:
        return Examples(task[12 + index] + index.size, self.labels(index))


class Bytes(Blobs):
    def train(self, task: Any, data: Any, index: Any, key: Any) -> Examples:
        return Examples((255 * task[index]).astype(jnp.uint8), self.labels(index))


class Overfull(Blobs):
    def labels(self, index: Any) -> Any:
        return (index % 3).astype(jnp.int32)


class Floats(Blobs):
    def labels(self, index: Any) -> Any:
        return (index % 2)[:, None] * 1.0


class Silent(Blobs):
    description: ClassVar[str] = ""


class Nothing(Blobs):
    def build(self) -> Any:
        return self.task


def test_a_good_stream_passes_as_object_as_class_and_built() -> None:
    testing.check_stream(Blobs())
    testing.check_stream(Blobs)
    testing.check_stream(Blobs().build())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Counting, "Counting: the same call gives another program.*Stream.task: ``.key, data, index. -> task``"),
        (Calling, "Calling: task 2 differs when it is made again"),
        (Shared, "Shared: task 0 trains on 4 of its 6 held-out.*Stream.held_out: its held-out examples, none of which"),
        (Constant, "Constant: tasks 0 and 1 have the same examples"),
        (Seedless, "Seedless: two seeds have the same examples"),
        (Relabelling, "Relabelling: the labels of training examples change from look to look.*Stream.train"),
        (Crowded, "Crowded: held-out examples are others when fewer are asked for.*Stream.test.*the same at every"),
        (Bytes, r"Bytes: `train` gives inputs of uint8\[12, 2\] in place of float32"),
        (Overfull, "Overfull: `train` gives labels from 0 to 2 with 2 outputs"),
        (Floats, "Floats: the loss cross_entropy of `train` raises .*Stream.loss: name of the loss"),
        (Silent, "Silent: its description is empty.*Stream.description: one line"),
        (Nothing, "Nothing: build returns a method"),
    ],
)
def test_a_broken_promise_is_named(config: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        testing.check_stream(config)


def test_inputs_may_recur_where_one_says_so() -> None:
    testing.check_stream(Shared(), recurring=True)


def test_a_data_set_is_given_to_streams_that_need_one() -> None:
    class Needing(Blobs):
        needs_data: ClassVar[bool] = True

        def build(self, dataset: Any) -> Stream:
            assert len(dataset.train_images) == 30
            return super().build()

    testing.check_stream(Needing())
    testing.check_stream(Needing(), make_dataset())
