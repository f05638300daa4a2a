"""Kronecker-factored curvature: factors of a network's layers, their spectra, the rank of their product.

A layer with inputs ``a`` (and a one for the bias) and gradients ``g`` of its pre-activations has the Fisher block
``E[a a^T (x) g g^T]``, approximated by ``A (x) G`` with ``A = E[a a^T]`` and ``G = E[g g^T]``. The eigenvalues of the
product are the products of eigenvalues, so its whole spectrum costs two small decompositions.

The kind of factors says whose gradients g are: ``empirical``, of the loss at the data's labels, which a training step
has anyway; ``sampled``, at labels drawn from the network, for one more backward pass; ``exact``, the expectation over
these draws, for one backward pass per output. The last two approximate the Fisher matrix, which for the usual losses is
the generalised Gauss-Newton matrix; the first does not. With batch normalisation every example's pre-activations act on
all outputs. Gradients are then those of the whole batch's loss, and ``exact``, whose backward passes hold one output of
every example at once, is refused.

If a layer's weights meet every example at T places (a convolution's positions, a sequence's tokens, the calls of a
layer that is called several times), ``a_t`` and ``g_t`` being a place's, there are two approximations. ``expand``, the
default, takes places as further examples: ``A = E[1/T sum_t a_t a_t^T]``, ``G = E[sum_t g_t g_t^T]``; exact if every
place has a loss of its own in a linear network. ``reduce`` takes means and sums first: ``A = E[m m^T]`` with
``m = 1/T sum_t a_t``, ``G = E[s s^T]`` with ``s = sum_t g_t``; exact if the network is linear and averages the places.
Without sharing, T = 1, both are the same.

Places that do not count (`LayerInputs.counted`: padding) are in no sum. A is then the mean over the places that count,
of all examples; of ``reduce`` over the examples that have such a place. The empirical G is the mean over these
examples: an example's gradient is that of its part of the mean loss, times their number. A sequence is one example.

Not every layer has two dense factors:

* An embedding is given indices. Its A is diagonal: a vector with the share of each entry. If it is also the output
  layer, `Embed.attend` has factors of its own: A is dense, and of G, as large as the vocabulary squared, the diagonal
  is kept. The block of the shared table is approximated by the sum of both products.
* The scale and offset of a normalisation have an exact block: A is one, G the second moment of the examples' gradients.
* A grouped or depthwise convolution has factors for each group, in a stack.

`left_out` names the parameters that are in no factor.

References:
  Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015, section 3.
  Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016, section 3.
  Eschenhagen, Immer, Turner, Schneider and Hennig, "Kronecker-factored approximate curvature for modern neural network
  architectures", NeurIPS 2023, sections 3.2 (expand) and 3.3 (reduce).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from plastax import linalg, parameters, tree
from plastax.curvature import checks, losses, moments
from plastax.curvature.coupling import independent
from plastax.curvature.memory import device_memory
from plastax.curvature.moments import Sharing
from plastax.layers import LayerInputs, Tapped
from plastax.types import Array, Key, Loss, Params, Tree

Kind = Literal["empirical", "sampled", "exact"]


class Factors(NamedTuple):
    """Kronecker factors of one layer.

    A vector is a diagonal factor. A leading axis is a stack of groups, each with factors of its own.

    Attributes:
      a: ``[d_a, d_a]``, second moments of the inputs: d_in of a dense layer, kernel places times channels of a
        convolution, in the order of the kernel's rows; with a bias one more, the last row and column. Of an embedding
        ``[entries]``, their shares; of a normalisation ``[1, 1]``, a one.
      g: ``[d_out, d_out]``, second moments of the pre-activation gradients. Of a normalisation the exact block of the
        scale, if any, and then the offset. Of an embedding as the output layer ``[entries]``, the diagonal.
    """

    a: Array
    g: Array


class Eigenvalues(NamedTuple):
    """Eigenvalues of `Factors`, ascending and not negative: ``a`` ``[d_a]``, ``g`` ``[d_out]``; stacks lead."""

    a: Array
    g: Array


def left_out(network: Tapped, params: Params, data: Tree) -> dict[str, float]:
    """The parameters that are in no factor: path name -> share of all parameters; nothing is computed.

    Args:
      network: made of a module by `plastax.models.tapped`.
      params: its parameters.
      data: a batch.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from plastax import curvature, models
      >>> module, x = nn.Sequential([nn.Dense(3), nn.PReLU()]), jnp.ones((5, 2))
      >>> curvature.left_out(models.tapped(module), module.init(jax.random.key(0), x), x)
      {'layers_1/negative_slope': 0.1}
    """
    found: dict[str, tuple[str, ...]] = {}
    jax.eval_shape(lambda data: found.update(factored(network, data)), data)
    if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
        params = params["params"]
    return shares_without(found, parameters.split(params)[0])


def factored(network: Tapped, data: Tree) -> dict[str, tuple[str, ...]]:
    """Layer -> names of its parameters, of all layers that have factors."""
    if network.parameters is not None:
        return network.parameters(data)
    return by_convention(network.taps(data))


def by_convention(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Layer -> ``<layer>/kernel`` and ``<layer>/bias``."""
    return {name: tuple(f"{name}/{part}" if name else part for part in ("kernel", "bias")) for name in layers}


def shares_without(found: Mapping[str, tuple[str, ...]], params: Params) -> dict[str, float]:
    """The parameters (or shapes) that no layer of `factored` has: path name -> share of all."""
    known = {name for names in found.values() for name in names}
    sizes = {name.removesuffix("/value"): x.size for name, x in tree.named_leaves(params).items()}
    return {name: size / sum(sizes.values()) for name, size in sizes.items() if name not in known}


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

    Warns of parameters that are in no factor, see `left_out`.

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
    if without := left_out(network, params, data):
        listed = ", ".join(f"{name!r} ({share:.1%} of the parameters)" for name, share in without.items())
        warnings.warn(f"kronecker: {listed} in no factor; see curvature.left_out", stacklevel=2)
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
    examples = jax.tree.leaves(outputs)[0].shape[0]
    marks = [x.counted for x in inputs.values() if x.counted is not None and len(x.counted) == examples]
    counted = jnp.sum(marks[0].reshape(examples, -1).any(axis=1)) if marks else None
    found = cotangents(loss, kind, outputs, data, key, counted)
    if kind == "exact":
        nan = independent(lambda p, d: network.apply(p, network.taps(d), d)[0], params, data, 1, "kind='exact'")
        found = jax.tree.map(lambda x: x + nan.astype(x.dtype), found)
    return inputs, lambda cotangent: pull(cotangent)[0], found


def cotangents(
    loss: Loss | str, kind: Kind, outputs: Tree, data: Tree, key: Key | None = None, counted: Array | None = None
) -> Tree:
    """Cotangents of the outputs, with a leading axis K, whose pulled-back squares add up to the Fisher matrix.

    With ``J_i`` the Jacobian of example i, the matrix is ``sum_ki (J_i^T c_ki) (J_i^T c_ki)^T``. ``exact`` has the K of
    `Loss.root`; ``sampled`` one, of `Loss.sample`; ``empirical`` one: the gradients of the mean loss, times
    ``sqrt(B)``, since an example's own gradient is B times its part of the mean's. With padding, ``counted`` takes the
    place of B: the number of examples that are not padding alone.

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
        root = math.sqrt(jax.tree.leaves(outputs)[0].shape[0]) if counted is None else jnp.sqrt(counted)
        single = jax.tree.map(lambda x: root * x, grads)
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
    layers = moments.layers_of(inputs, tap_grads)
    return {
        name: Factors(layer.input_factor(sharing), layer.examples() * layer.gradient_factor(tap_grads[name], sharing))
        for name, layer in layers.items()
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
    layers = moments.layers_of(inputs, jax.eval_shape(pull, jax.tree.map(lambda x: x[0], cotangents)))

    def grams(cotangent: Tree) -> dict[str, Array]:
        return {name: layers[name].gradient_factor(g, sharing) for name, g in pull(cotangent).items()}

    sums = sum_over(grams, cotangents)
    return {name: Factors(layer.input_factor(sharing), sums[name]) for name, layer in layers.items()}


def sum_over(fn: Callable[[Tree], Tree], xs: Tree) -> Tree:
    """Sum of ``fn(x)`` over the leading axis of ``xs``, one by one."""
    first = jax.tree.map(lambda x: x[0], xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        return fn(first)
    start = tree.zeros(jax.eval_shape(fn, first))
    return jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, fn(x)), None), start, xs)[0]


def eigenvalues(pair: Factors) -> Eigenvalues:
    """Eigenvalues of both factors of a layer; rounding below zero is clipped. NaN where a factor is not finite."""

    def one(x: Array) -> Array:
        if x.ndim == 1:
            return jnp.sort(jnp.maximum(x, 0.0))
        # NaN must not reach the eigensolver: LAPACK may not return from it.
        finite = jnp.all(jnp.isfinite(x))
        return jnp.where(finite, jnp.maximum(linalg.eigvalsh(jnp.where(finite, x, 0.0)), 0.0), jnp.nan)

    return Eigenvalues(one(pair.a), one(pair.g))


def effective_rank(pair: Factors | Eigenvalues) -> Eigenvalues:
    """Effective ranks, exponentials of the eigenvalues' entropy, of both factors.

    That of the Kronecker product is the product of the two. A zero factor has rank zero. A stack counts as one
    block-diagonal factor; that of its products is `total_effective_rank`.

    Args:
      pair: a layer's factors, or their eigenvalues.

    Returns:
      The two effective ranks, scalars, under the factors' names.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    return Eigenvalues(*(_exp_entropy(x.ravel()) for x in _values(pair)))


def total_effective_rank(pairs: Mapping[str, Factors | Eigenvalues]) -> Array:
    """Effective rank of the block-diagonal matrix of all layers' Kronecker products, a scalar.

    By the chain rule, the entropy is that of the layers' shares of the trace, plus the mean of the layers' entropies by
    these shares. A layer's entropy is the sum of its factors'.

    Args:
      pairs: layer name -> factors, or their eigenvalues.

    References:
      Cover and Thomas, "Elements of information theory", 2006, theorem 2.2.1 (the chain rule).
    """
    values = [jax.tree.map(jnp.atleast_2d, _values(pair)) for pair in pairs.values()]
    traces = jnp.concatenate([jnp.sum(v.a, axis=1) * jnp.sum(v.g, axis=1) for v in values])
    ranks = jnp.concatenate([jax.vmap(_exp_entropy)(v.a) * jax.vmap(_exp_entropy)(v.g) for v in values])
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
    if a.ndim > 1:
        return jnp.sum(jax.vmap(lambda a, g: rank(Eigenvalues(a, g), eps))(a, g), axis=0, dtype=jnp.int32)
    needed = jnp.where(a > 0, eps.reshape(-1, 1) / jnp.where(a > 0, a, 1.0)[None], jnp.inf)
    above = g.size - jnp.searchsorted(g, needed, side="right")
    return jnp.sum(above, axis=-1, dtype=jnp.int32).reshape(eps.shape)


def _values(pair: Factors | Eigenvalues) -> Eigenvalues:
    return eigenvalues(pair) if isinstance(pair, Factors) else pair


def _exp_entropy(values: Array) -> Array:
    total = jnp.sum(values)
    p = values / jnp.where(total == 0, 1.0, total)
    return jnp.where(total == 0, 0.0, jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p == 0, 1.0, p)))))
