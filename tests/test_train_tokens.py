"""Training and evaluation on tokens: what is counted, and the tokens of padding, which no number may see."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastax.curvature import losses
from plastax.models import GPT
from plastax.program import supervised
from plastax.program.training import Training
from plastax.types import Examples, Program, Stream
from tests.programs import jitted

LENGTH, VOCABULARY, EXAMPLES, HELD_OUT = 4, 5, 6, 500
MODEL = GPT(width=4, depth=1, heads=2, mlp_ratio=1).build((LENGTH,), VOCABULARY)


def sequences() -> tuple[Examples, Examples]:
    """Sequences of one to four tokens; of the held-out ones only some of the first 250 have any."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, LENGTH + 1, EXAMPLES), rng.integers(0, LENGTH + 1, HELD_OUT) * (np.arange(HELD_OUT) < 200)
    found = []
    for size in sizes:
        tokens = rng.integers(0, VOCABULARY, (len(size), LENGTH + 1))
        padding = np.arange(LENGTH) >= size[:, None]
        found.append(
            Examples(*(np.where(padding, -1, part).astype(np.int32) for part in (tokens[:, :-1], tokens[:, 1:])))
        )
    return found[0], found[1]


TRAIN, TEST = sequences()


def program() -> Program:
    def some(examples: Examples, index: jax.Array) -> Examples:
        return Examples(*(jnp.asarray(part)[index] for part in examples[:2]))

    stream = Stream(
        (), "token_cross_entropy", (LENGTH,), VOCABULARY, EXAMPLES, HELD_OUT, lambda key, data, index: (),
        lambda task, data, index, key: some(TRAIN, index), lambda task, data, index: some(TEST, index), "sequences",
        reference=lambda task, data: jnp.float32(0.25),
    )  # fmt: skip
    training = Training("sgd", learning_rate=0.5, batch_size=EXAMPLES, evaluation_examples=HELD_OUT)
    return supervised.program(training, stream, MODEL, optax.with_extra_args_support(training.transformation()))


@functools.cache
def first_task() -> tuple[Any, Any, Any]:
    """Parameters before and after one step on all sequences, what it records, and what is measured before and after."""
    run = jitted(program())
    state = run.begin(run.init(jax.random.key(0), ()), (), jnp.int32(0))
    before = run.measured(state, (), 0, False)
    after, train = run.train(state, (), jnp.int32(0), 1)
    return jax.device_get((state.params, after.params, train, (before, run.measured(after, (), 1, True))))


def means(params: Any, examples: Examples) -> tuple[float, float]:
    """Loss and accuracy, label by label."""
    logits = np.asarray(jax.jit(MODEL.apply)(params, jnp.asarray(examples.x))[0], float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mask = examples.y >= 0
    likely = np.take_along_axis(log_p, np.maximum(examples.y, 0)[..., None], -1)[..., 0]
    return -likely[mask].mean(), (logits.argmax(-1) == examples.y)[mask].mean()


def test_losses_and_accuracies_are_means_over_counted_labels_of_all_chunks() -> None:
    start, end, train, measured = first_task()
    for params, values in zip((start, end), measured, strict=True):
        for part, examples in (("train", TRAIN), ("test", TEST)):
            loss, accuracy = means(params, examples)
            got = [values[f"evaluation/{part}_{name}"] for name in ("loss", "token_accuracy", "excess")]
            np.testing.assert_allclose(got, [loss, accuracy, loss - 0.25], rtol=1e-5, atol=1e-6)
    loss, accuracy = means(start, TRAIN)
    np.testing.assert_allclose(train["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(train["token_accuracy"], accuracy, rtol=1e-6)


def test_a_step_is_that_of_the_counted_labels() -> None:
    start, end, *_ = first_task()

    def loss(params: Any) -> jax.Array:
        mask = TRAIN.y >= 0
        logits = MODEL.apply(params, jnp.asarray(TRAIN.x))[0][mask]
        return losses.LOSSES["cross_entropy"].value(logits, (None, TRAIN.y[mask]))

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, start, jax.jit(jax.grad(loss))(start))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, jax.device_get(expected))
