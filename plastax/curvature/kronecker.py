"""Kronecker-factored curvature: factors of dense and convolutional layers, their spectra, the rank of their product.

A layer with inputs ``a`` (and a one for the bias) and gradients ``g`` of its pre-activations has the Fisher block
``E[a a^T (x) g g^T]``, approximated by ``A (x) G`` with ``A = E[a a^T]`` and ``G = E[g g^T]``. The eigenvalues of the
product are the products of eigenvalues, so its whole spectrum costs two small decompositions.

The kind of factors says whose gradients g are: ``empirical``, of the loss at the data's labels, which a training step
has anyway; ``sampled``, at labels drawn from the network, for one more backward pass; ``exact``, the expectation over
these draws, for one backward pass per output. The last two approximate the Fisher matrix, which for the usual losses is
the generalised Gauss-Newton matrix; the first does not. With batch normalisation every example's pre-activations act on
all outputs. Gradients are then those of the whole batch's loss, and ``exact``, whose backward passes hold one output of
every example at once, is refused.

If a layer's weights meet every example at T places (a convolution's positions, a sequence's tokens), ``a_t`` and
``g_t`` being a place's, there are two approximations. ``expand`` takes places as further examples:
``A = E[1/T sum_t a_t a_t^T]``, ``G = E[sum_t g_t g_t^T]``; exact if every place has a loss of its own in a linear
network. ``reduce`` takes means and sums first: ``A = E[m m^T]`` with ``m = 1/T sum_t a_t``, ``G = E[s s^T]`` with
``s = sum_t g_t``; exact if the network is linear and averages the places. Without sharing, T = 1, both are the same.

References:
  Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015, section 3.
  Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016, section 3.
  Eschenhagen, Immer, Turner, Schneider and Hennig, "Kronecker-factored approximate curvature for modern neural network
  architectures", NeurIPS 2023, sections 3.2 (expand) and 3.3 (reduce).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from plastax import linalg, tree
from plastax.curvature import checks, losses
from plastax.curvature.coupling import independent
from plastax.curvature.memory import device_memory
from plastax.layers import LayerInputs, Tapped, Window
from plastax.types import Array, Key, Loss, Params, Tree

Kind = Literal["empirical", "sampled", "exact"]
Sharing = Literal["expand", "reduce"]


class Factors(NamedTuple):
    """Kronecker factors of one layer.

    Attributes:
      a: ``[d_a, d_a]``, second moments of the inputs: d_in of a dense layer, kernel places times channels of a
        convolution, in the order of the kernel's rows; with a bias one more, the last row and column.
      g: ``[d_out, d_out]``, second moments of the pre-activation gradients.
    """

    a: Array
    g: Array


class Eigenvalues(NamedTuple):
    """Eigenvalues of `Factors`, ascending and not negative: ``a`` ``[d_a]``, ``g`` ``[d_out]``."""

    a: Array
    g: Array


def kronecker(
    network: Tapped,
    params: Params,
    data: Tree,
    loss: Loss | str,
    *,
    kind: Kind = "exact",
    key: Key | None = None,
    sharing: Sharing = "expand",
) -> dict[str, Factors]:
    """Kronecker factors of every tapped layer, from one forward pass and the backward passes of ``kind``.

    Args:
      network: made of a module by `plastax.models.tapped`.
      params: where the factors are taken.
      data: the batch, third argument of ``network.apply`` and second of the loss; leading axis ``B``.
      loss: a `Loss`, or a name in `losses.LOSSES`.
      kind: whose gradients, see the module. ``exact`` holds a cotangent of all outputs for each output of an example:
        ``B (T C)^2`` numbers for T places of C classes. Sequences ask for ``sampled``.
      key: for the draws of ``sampled``, which alone needs it.
      sharing: of weights between places, see the module.

    Returns:
      Layer name -> factors, in the order of the forward pass.

    Raises:
      ValueError: for an unknown ``kind`` or ``sharing``, if a key is missing, if the loss cannot give what ``kind``
        needs, or, outside `jit`, if ``kind`` is exact and examples depend on one another (inside: NaN).
      MemoryError: if ``kind`` is exact, and its cotangents alone do not fit the device.

    Examples:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from plastax import curvature, models
      >>> network = models.tapped(nn.Dense(2), inputs=lambda batch: batch[0])
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> batch = jnp.ones((4, 3)), jnp.ones((4, 2))
      >>> factors = curvature.kronecker(network, params, batch, "mse", kind="empirical")[""]
      >>> factors.a.shape, factors.g.shape  # with a row for the bias
      ((4, 4), (2, 2))
    """
    inputs, pull, pulled = backward(network, loss, params, data, kind, key)
    return fisher_factors(inputs, pull, pulled, sharing)


@jax.default_matmul_precision("highest")
def backward(
    network: Tapped, loss: Loss | str, params: Params, data: Tree, kind: Kind, key: Key | None = None
) -> tuple[dict[str, LayerInputs], Callable[[Tree], dict[str, Array]], Tree]:
    """One forward pass: the layers' inputs, the backward pass to the taps, and the cotangents that go into it."""
    params, data = tree.gathered((params, data))
    outputs, pull, inputs = jax.vjp(lambda taps: network.apply(params, taps, data), network.taps(data), has_aux=True)
    checks.examples(outputs, "outputs")
    found = cotangents(loss, kind, outputs, data, key)
    if kind == "exact":
        nan = independent(lambda p, d: network.apply(p, network.taps(d), d)[0], params, data, 1, "kind='exact'")
        found = jax.tree.map(lambda x: x + nan.astype(x.dtype), found)
    return inputs, lambda cotangent: pull(cotangent)[0], found


def cotangents(loss: Loss | str, kind: Kind, outputs: Tree, data: Tree, key: Key | None = None) -> Tree:
    """Cotangents of the outputs, with a leading axis K, whose pulled-back squares add up to the Fisher matrix.

    With ``J_i`` the Jacobian of example i, the matrix is ``sum_ki (J_i^T c_ki) (J_i^T c_ki)^T``. ``exact`` has the K of
    `Loss.root`; ``sampled`` one, of `Loss.sample`; ``empirical`` one: the gradients of the mean loss, times
    ``sqrt(B)``, since an example's own gradient is B times its part of the mean's.

    Raises:
      ValueError: as `kronecker`.
    """
    loss = losses.get(loss)
    check(kind, loss, key is not None)
    if kind == "exact" and loss.root is not None:
        size, available = tree.nbytes(jax.eval_shape(loss.root, outputs, data)), device_memory()
        if available is not None and size > available:
            raise MemoryError(
                f"kind='exact' needs {size / 2**30:,.1f} GiB for one backward pass an output, and the device has "
                f"{available / 2**30:,.1f}; take kind='sampled', whose factors have the same mean, or fewer examples"
            )
        return loss.root(outputs, data)
    if kind == "sampled" and loss.sample is not None and key is not None:
        single = loss.sample(outputs, data, key)
    else:
        value, grads = jax.value_and_grad(loss.value)(outputs, data)
        checks.finite({"loss": value})
        examples = jax.tree.leaves(outputs)[0].shape[0]
        single = jax.tree.map(lambda x: math.sqrt(examples) * x, grads)
    return jax.tree.map(lambda x: x[None], single)


def check(kind: Kind, loss: Loss, keyed: bool = True) -> None:
    """Raises a ValueError unless ``loss`` and a key (``keyed``) allow factors of this ``kind``."""
    needs = {"empirical": True, "sampled": loss.sample is not None, "exact": loss.root is not None}
    if kind not in needs:
        raise ValueError(f"kind is {kind!r}; kinds are {get_args(Kind)}")
    if not needs[kind]:
        raise ValueError(
            f"{kind} factors need a loss with {'a sample' if kind == 'sampled' else 'a root'}, and this has none"
        )
    if kind == "sampled" and not keyed:
        raise ValueError("sampled factors need a key, such as key=jax.random.key(0)")


def factors(
    inputs: Mapping[str, LayerInputs | Array], tap_grads: Mapping[str, Array], sharing: Sharing = "expand"
) -> dict[str, Factors]:
    """Factors of the empirical Fisher matrix, from one backward pass of a mean loss.

    An example's own gradient is ``B`` times its row of ``tap_grads``.

    Args:
      inputs: layer name -> inputs; a plain array ``[B, ..., d_in]`` belongs to a dense layer with a bias.
      tap_grads: layer name -> gradient of the *mean* loss with respect to the pre-activations, ``[B, ..., d_out]``.
      sharing: of weights between places, see the module.

    Returns:
      Layer name -> factors, in the order of ``inputs``.

    Raises:
      ValueError: for different layers, arrays that do not fit, or an unknown ``sharing``.
    """
    rows = _all_rows(inputs, tap_grads)
    return {
        name: Factors(_input_factor(x, sharing), x.shape[0] * _gradient_factor(tap_grads[name], sharing))
        for name, x in rows.items()
    }


def fisher_factors(
    inputs: Mapping[str, LayerInputs | Array],
    pull: Callable[[Tree], dict[str, Array]],
    cotangents: Tree,
    sharing: Sharing = "expand",
) -> dict[str, Factors]:
    """Factors of the matrix ``sum_ki (J_i^T c_ki) (J_i^T c_ki)^T`` of `cotangents`.

    Backward passes run in turn, in the memory of one.

    Args:
      inputs: layer name -> inputs, as for `factors`.
      pull: cotangent of the outputs -> gradient by layer name with respect to the pre-activations.
      cotangents: of the outputs, with a leading axis K.
      sharing: of weights between places, see the module.

    Returns:
      Layer name -> factors, in the order of ``inputs``.

    Raises:
      ValueError: as `factors`.
    """
    rows = _all_rows(inputs, jax.eval_shape(pull, jax.tree.map(lambda x: x[0], cotangents)))
    grams = sum_over(lambda c: {name: _gradient_factor(g, sharing) for name, g in pull(c).items()}, cotangents)
    return {name: Factors(_input_factor(x, sharing), grams[name]) for name, x in rows.items()}


def sum_over(fn: Callable[[Tree], Tree], xs: Tree) -> Tree:
    """Sum of ``fn(x)`` over the leading axis of ``xs``, one by one."""
    first = jax.tree.map(lambda x: x[0], xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        return fn(first)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first))
    return jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, fn(x)), None), start, xs)[0]


def _all_rows(
    inputs: Mapping[str, LayerInputs | Array], tap_grads: Mapping[str, Array | jax.ShapeDtypeStruct]
) -> dict[str, Array]:
    if set(inputs) != set(tap_grads):
        raise ValueError(f"inputs are of layers {sorted(inputs)}, gradients of {sorted(tap_grads)}")
    out = {}
    for name, given in inputs.items():
        x, g = rows(given), tap_grads[name]
        if g.ndim < 2 or x.shape[:2] != (g.shape[0], math.prod(g.shape[1:-1])):
            shapes = f"[B, T, d_a] = {x.shape} and [B, ..., d_out] = {g.shape}"
            raise ValueError(f"layer {name!r}: inputs and gradients do not belong together, {shapes}")
        out[name] = x
    return out


def rows(inputs: LayerInputs | Array) -> Array:
    """What the rows of a layer's kernel (and its bias, last) are multiplied with, ``[B, T, d_a]``."""
    given = inputs if isinstance(inputs, LayerInputs) else LayerInputs(inputs)
    if given.values.ndim < 2:
        raise ValueError(f"a layer's inputs have a leading axis of examples, these are {given.values.shape}")
    x = tree.gathered(given.values)
    x = x if given.window is None else _patches(x, given.window)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], axis=-1) if given.bias else x


def _patches(x: Array, window: Window) -> Array:
    """``[B, *space, channels]`` to ``[B, *places, kernel places * channels]``, in the order of the kernel's rows."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    reach = [(k - 1) * d for k, d in zip(window.size, window.dilation, strict=True)]
    slices = []
    for offset in np.ndindex(*window.size):
        start = [o * d for o, d in zip(offset, window.dilation, strict=True)]
        stop = [s + n - r for s, n, r in zip(start, x.shape[1:-1], reach, strict=True)]
        slices.append(jax.lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *window.strides, 1)))
    return jnp.concatenate(slices, axis=-1)


def _input_factor(x: Array, sharing: Sharing) -> Array:
    examples, places, _ = x.shape
    if merged(sharing):
        return _gram(x.reshape(-1, x.shape[-1])) / (examples * places)
    return _gram(jnp.mean(tree.wide(x), axis=1)) / examples


def _gradient_factor(g: Array, sharing: Sharing) -> Array:
    if merged(sharing):
        return _gram(g.reshape(-1, g.shape[-1]))
    return _gram(jnp.sum(tree.wide(g).reshape(g.shape[0], -1, g.shape[-1]), axis=1))


def merged(sharing: Sharing) -> bool:
    """Whether places count as examples (``expand``); raises a ValueError for anything but the two names."""
    if sharing not in get_args(Sharing):
        raise ValueError(f"sharing is {sharing!r}; it is one of {get_args(Sharing)}")
    return sharing == "expand"


MIN_HALF_COLUMNS = 256
"""Fewest columns of a half that is worth a product of its own: copies of smaller ones cost what they save."""


@jax.default_matmul_precision("highest")
def _gram(x: Array) -> Array:
    """``x^T x``, with each product between two halves of the columns taken once: 3/4 of the operations or fewer."""
    x = tree.wide(tree.gathered(x))
    half = x.shape[1] // 2
    if half < MIN_HALF_COLUMNS:
        return x.T @ x
    left, right = x[:, :half], x[:, half:]
    across = left.T @ right
    # Concatenations: blocks written into zeros, or a triangle and its mirror image, take XLA minutes to compile.
    return jnp.concatenate(
        [jnp.concatenate([_gram(left), across], axis=1), jnp.concatenate([across.T, _gram(right)], axis=1)]
    )


def eigenvalues(pair: Factors) -> Eigenvalues:
    """Eigenvalues of both factors of a layer; rounding below zero is clipped. NaN where a factor is not finite."""

    def one(x: Array) -> Array:
        # NaN must not reach the eigensolver: LAPACK may not return from it.
        finite = jnp.all(jnp.isfinite(x))
        return jnp.where(finite, jnp.maximum(linalg.eigvalsh(jnp.where(finite, x, 0.0)), 0.0), jnp.nan)

    return Eigenvalues(one(pair.a), one(pair.g))


def effective_rank(pair: Factors | Eigenvalues) -> Eigenvalues:
    """Effective ranks, exponentials of the eigenvalues' entropy, of both factors.

    That of the Kronecker product is the product of the two. A zero factor has rank zero.

    Args:
      pair: a layer's factors, or their eigenvalues.

    Returns:
      The two effective ranks, scalars, under the factors' names.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    return Eigenvalues(*(_exp_entropy(x) for x in _values(pair)))


def total_effective_rank(pairs: Mapping[str, Factors | Eigenvalues]) -> Array:
    """Effective rank of the block-diagonal matrix of all layers' Kronecker products, a scalar.

    By the chain rule, the entropy is that of the layers' shares of the trace, plus the mean of the layers' entropies by
    these shares. A layer's entropy is the sum of its factors'.

    Args:
      pairs: layer name -> factors, or their eigenvalues.

    References:
      Cover and Thomas, "Elements of information theory", 2006, theorem 2.2.1 (the chain rule).
    """
    values = [_values(pair) for pair in pairs.values()]
    traces = jnp.stack([jnp.sum(v.a) * jnp.sum(v.g) for v in values])
    ranks = jnp.stack([r.a * r.g for r in map(effective_rank, values)])
    total = jnp.sum(traces)
    share = traces / jnp.where(total == 0, 1.0, total)
    own = jnp.sum(share * jnp.log(jnp.where(share == 0, 1.0, ranks)))
    return jnp.where(total == 0, 0.0, _exp_entropy(traces) * jnp.exp(own))


def rank(pair: Factors | Eigenvalues, eps: float | Array) -> Array:
    """Number of eigenvalues above ``eps`` of the Kronecker product, without forming it.

    For every eigenvalue of A, counts those of G above ``eps`` over it: ``d_a log(d_out)`` steps per threshold. The
    layers' ranks add up to that of their block-diagonal matrix.

    Args:
      pair: a layer's factors, or their eigenvalues.
      eps: threshold, not negative, a scalar or ``[E]``.

    Returns:
      int32, of the shape of ``eps``.
    """
    a, g = _values(pair)
    eps = jnp.asarray(eps, g.dtype)
    needed = jnp.where(a > 0, eps.reshape(-1, 1) / jnp.where(a > 0, a, 1.0)[None], jnp.inf)
    above = g.size - jnp.searchsorted(g, needed, side="right")
    return jnp.sum(above, axis=-1, dtype=jnp.int32).reshape(eps.shape)


def _values(pair: Factors | Eigenvalues) -> Eigenvalues:
    return eigenvalues(pair) if isinstance(pair, Factors) else pair


def _exp_entropy(values: Array) -> Array:
    total = jnp.sum(values)
    p = values / jnp.where(total == 0, 1.0, total)
    return jnp.where(total == 0, 0.0, jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))))
