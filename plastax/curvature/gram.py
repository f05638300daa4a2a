"""Exact spectra without Lanczos, from Gram matrices of per-example output gradients: as large as the data, not the net.

With the output Jacobian J and a square root of the loss's block-diagonal curvature, ``C = R R^T``, the Gauss-Newton
matrix is ``A^T A`` for ``A = R^T J``, and the Gram matrix ``A A^T`` has the same eigenvalues except for zeros. It has
B K rows, for B examples of K roots each (C - 1 for the cross-entropy of C classes, D for the mean squared error of D
outputs). Without a loss and with R the identity it is the neural tangent kernel.

Rows of A, P numbers each, are never held together: one at a time is pulled back through its example and pushed forward
through all of them. That is B K half products of the operator for any P, K/2 times fewer operations than multiplying
the rows out. The memory is that of the Gram matrix, one example's K rows, and the linearised network.

With batch normalisation an example's outputs depend on the other examples. J is then the Jacobian of the outputs of
this batch, and rows are pulled back through all of it, for twice the operations. `coupling` tells the two cases apart.

References:
  Golub and Van Loan, "Matrix computations", section 2.4 (``A^T A`` and ``A A^T`` share the squared singular values).
  Jacot, Gabriel and Hongler, "Neural tangent kernel: convergence and generalization in neural networks", NeurIPS 2018.
  Dangel, Tatzel and Hennig, "ViViT: curvature access through the generalized Gauss-Newton's low-rank structure", TMLR
  2022, section 2 (the Gram matrix of the GGN).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plastax import linalg, parameters, platforms, tree
from plastax.curvature import checks, chunking, losses
from plastax.curvature.chunking import chunk, chunks, rest
from plastax.curvature.coupling import ROUNDING, coupling, independent
from plastax.curvature.fisher import weights
from plastax.curvature.operators import ggn
from plastax.curvature.quadrature import spectrum
from plastax.curvature.spectrum import Spectrum, from_eigenvalues
from plastax.types import Array, Key, Loss, Params, Tree

Apply = Callable[[Params, Tree], Tree]
Root = Callable[[Tree, Tree], Tree]
Way = Literal["auto", "gram", "lanczos"]

ORTHOGONALISATION_COST = 20.0
"""How much slower an operation of Lanczos' orthogonalisation is, bound by memory, than one of a matrix product."""
MAX_GRAM_BYTES = 2**30
"""Largest Gram matrix that `ggn_spectrum` chooses by itself; its decomposition takes two more of its size."""


def _one(example: Tree) -> Tree:
    return jax.tree.map(lambda x: x[None], example)


@jax.default_matmul_precision("highest")
def _gram(
    apply_fn: Apply, root: Root, finite: Callable[[Tree], Tree], params: Params, data: Tree, chunk_size: int | None
) -> Array:
    """``R^T J J^T R``, ``[B K, B K]``, for roots R of every example as a batch of its own."""
    apply_fn, params = parameters.of(apply_fn, params)
    params, data = tree.gathered((params, data))
    examples = checks.examples(data)
    size = examples if chunk_size is None else min(chunk_size, examples)
    whole, left = chunks(data, size)
    if checks.concrete((params, data)):
        outputs = apply_fn(params, data)
        checks.finite({"outputs": finite(outputs)})
        jax.eval_shape(lambda o: root(o, data), outputs)  # where labels are still known
    together = size == examples
    apart = jnp.zeros(()) if together else independent(apply_fn, params, data, size, f"chunk_size={size}")

    def columns(params: Params, data: Tree, part: Tree, coupled: Array) -> Array:
        """The products of the rows of all examples with those of some, ``[B, K, B' K]``."""
        outputs, push = jax.linearize(lambda p: apply_fn(p, part), params)
        roots = jax.vmap(lambda o, d: jax.tree.map(lambda r: r[:, 0], root(_one(o), _one(d))))(outputs, part)
        # One by one on CPU, since batches of them are slower; elsewhere the K of an example together.
        against = linalg.sequential(lambda row: weights(roots, push(row)).ravel())
        pull_all = jax.linear_transpose(push, params)

        def rows(x: tuple[Array, Tree]) -> Array:
            place, example = x
            output, pull = jax.vjp(lambda p: apply_fn(p, _one(example)), params)

            def in_batch(k: Array) -> Params:
                return pull_all(jax.tree.map(lambda r: jnp.zeros_like(r[:, 0]).at[place].set(r[place, k]), roots))[0]

            def row(k: Array, r: Tree) -> Array:
                found = pull(r)[0]
                if together:
                    # A loop, not a branch: `vmap` turns a branch into both of its sides.
                    found, _ = jax.lax.while_loop(lambda x: x[1], lambda _: (in_batch(k), no), (found, coupled))
                return against(found)

            own, no = root(output, _one(example)), jnp.zeros((), bool)
            return jax.vmap(row)(jnp.arange(jax.tree.leaves(own)[0].shape[0]), own)

        return jax.lax.map(rows, (jnp.arange(examples), data)) + checks.nan_unless_finite(finite(outputs))

    @linalg.sequential
    def matrix(params: Params, data: Tree) -> Array:
        coupled = coupling(apply_fn, params, data) > ROUNDING if together else jnp.zeros((), bool)
        found = jax.lax.map(lambda i: columns(params, data, chunk(data, i, size), coupled), jnp.arange(whole))
        blocks = [jnp.moveaxis(found, 0, 2).reshape(*found.shape[1:3], -1)]
        if left:
            blocks.append(columns(params, data, rest(data, size), coupled))
        gram = jnp.concatenate(blocks, axis=-1).reshape(-1, examples * found.shape[2]) + apart
        # A decomposition may give numbers where only some entries are NaN.
        return gram + checks.nan_unless_finite(gram)

    return matrix(params, data)


def gram_matrix(apply_fn: Apply, params: Params, data: Tree, loss: Loss | str, chunk_size: int | None = None) -> Array:
    """The loss-weighted Gram matrix ``A A^T`` of the Gauss-Newton matrix ``A^T A``.

    Row ``i K + k`` of A is ``J_i^T r_ki / sqrt(B)``: the gradient of example i along the k-th root of its curvature. If
    its outputs depend on the other examples, it is the gradient in this batch.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the matrix is taken, as in `hessian`.
      data: the batch of B examples.
      loss: a `Loss` with ``root``, or a name in `losses.LOSSES`.
      chunk_size: examples whose linearised network is held at a time; all by default. Static.

    Returns:
      ``[B K, B K]``, symmetric up to rounding, positive semi-definite.

    Raises:
      ValueError: if ``loss`` is unknown or has no ``root``, ``params`` has no parameters or complex ones, the leaves of
        ``data`` do not share their leading axis, or, outside `jit`, outputs are not finite or chunked examples depend
        on one another (inside, the matrix is NaN).
    """
    loss, apply_fn, data = chunking.apart(losses.get(loss), apply_fn, data)
    if loss.root is None:
        raise ValueError("a Gram matrix needs loss.root, which this loss does not have; take ggn and spectrum")
    return _gram(apply_fn, loss.root, loss.finite, params, data, chunk_size) / checks.examples(data)


def gram_spectrum(
    apply_fn: Apply, params: Params, data: Tree, loss: Loss | str, chunk_size: int | None = None
) -> Spectrum:
    """The exact spectrum of the Gauss-Newton matrix: every eigenvalue, without probes or standard errors.

    Exact up to rounding: eigenvalues below a few rounding errors of the largest mean nothing, and counts leave them
    out. It takes B K half products and a decomposition of ``[B K, B K]``, which needs three times that memory: 2,000
    rows take about a second on one core, 10,000 about two minutes and 1.2 GB. Seeds under `vmap` run in turn on CPU.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the matrix is taken, as in `hessian`.
      data: the batch of B examples.
      loss: a `Loss` with ``root``, or a name in `losses.LOSSES`.
      chunk_size: examples whose linearised network is held at a time; all by default. Static.

    Returns:
      A complete spectrum of dimension P with ``min(B K, P)`` nodes; NaN where the network gives NaN.

    Raises:
      ValueError: as `gram_matrix` does.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> batch = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), jnp.zeros(2)
      >>> s = jax.jit(lambda w: curvature.gram_spectrum(lambda w, b: b[0] @ w, w, batch, "mse"))(jnp.ones(3))
      >>> s.nodes.round(3).tolist(), bool(s.complete), int(s.dim)  # and a third eigenvalue, zero
      ([[1.0, 4.0]], True, 3)
    """
    apply_fn, params = parameters.of(apply_fn, params)
    values = linalg.eigvalsh(gram_matrix(apply_fn, params, data, loss, chunk_size))
    # None is negative but by rounding; a maximum keeps NaN.
    return from_eigenvalues(jnp.maximum(values, 0.0), tree.size(params))


def ntk_spectrum(apply_fn: Apply, params: Params, data: Tree, chunk_size: int | None = None) -> Spectrum:
    """The exact spectrum of the empirical neural tangent kernel ``J J^T`` at these parameters.

    Not divided by the number of examples or outputs: for the mean ``1/B sum_i |f_i - y_i|^2 / 2``, gradient flow
    shrinks the residual along an eigenvector of eigenvalue ``lambda`` at the rate ``lambda / B``. Under batch
    normalisation J is that of the outputs of this batch, and the kernel belongs to the batch as a whole.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the kernel is taken, as in `hessian`.
      data: B examples.
      chunk_size: examples whose linearised network is held at a time; all by default. Static.

    Returns:
      A complete spectrum of dimension ``B K``, for K scalar outputs per example; NaN where the network gives NaN.

    Raises:
      ValueError: as `gram_matrix` does, but for the loss.

    References:
      Jacot, Gabriel and Hongler, "Neural tangent kernel: convergence and generalization in neural networks", NeurIPS
      2018, section 4 (the kernel), section 5 (rates of least squares).
    """

    def units(output: Tree, example: Tree) -> Tree:
        flat, unravel = ravel_pytree(output)
        return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))

    values = linalg.eigvalsh(_gram(apply_fn, units, lambda outputs: outputs, params, data, chunk_size))
    return from_eigenvalues(jnp.maximum(values, 0.0), values.size)


def _gram_is_cheaper(rows: int, examples: int, dim: int, order: int, probes: int, itemsize: int) -> bool:
    """Whether `gram_spectrum` takes fewer operations than Lanczos, by a dense network's count, and fits."""
    product = 8 * examples * dim  # forward and backward, weights and activations, two operations each
    gram = rows * product / 2 + platforms.chosen().decomposition_cost * rows**3
    lanczos = order * probes * (product + ORTHOGONALISATION_COST * 8 * order * dim)
    return gram <= lanczos and rows**2 * itemsize <= MAX_GRAM_BYTES


def ggn_spectrum(
    apply_fn: Apply,
    params: Params,
    data: Tree,
    loss: Loss | str,
    key: Key,
    order: int = 64,
    probes: int = 4,
    method: Way = "auto",
    chunk_size: int | None = None,
) -> Spectrum:
    """Spectrum of the Gauss-Newton matrix: by `gram_spectrum` where that is cheaper, by Lanczos otherwise.

    The choice is made from shapes when the function is traced, by the operations of a dense network, ``8 B P`` a
    product. The Gram matrix of ``n = B K`` rows takes ``n / 2`` products and ``decomposition_cost n^3`` operations.
    Lanczos takes ``order probes`` products and as many orthogonalisations of ``8 order P`` operations, weighed by
    `ORTHOGONALISATION_COST`. The Gram matrix is taken if it costs no more, the loss has a ``root``, and the matrix has
    at most `MAX_GRAM_BYTES`. It is exact, so ``method="gram"`` may be worth more than it costs.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree with a leading axis of examples.
      params: where the matrix is taken, as in `hessian`.
      data: the batch of B examples.
      loss: a `Loss`, or a name in `losses.LOSSES`.
      key: for the Lanczos probes.
      order: Lanczos steps, see `spectrum`. Static.
      probes: Lanczos probes, see `spectrum`. Static.
      method: ``"auto"``, ``"gram"`` or ``"lanczos"``. Static.
      chunk_size: examples to process together, see `plastax.curvature.operators`. Static.

    Returns:
      A spectrum; its ``complete`` says which way was taken, unless the order reached P.

    Raises:
      ValueError: if ``method`` is none of the three, and as `gram_matrix` and `spectrum` do.
    """
    if method not in get_args(Way):
        raise ValueError(f"method is {method!r}; methods are {get_args(Way)}")
    if order < 1 or probes < 1:
        raise ValueError(f"order and probes must be positive, got {order} and {probes}")
    apply_fn, params = parameters.of(apply_fn, params)
    if method == "auto":
        root, dim = losses.get(loss).root, tree.size(params)
        method = "lanczos"
        if root is not None:
            one = jax.eval_shape(lambda d: chunk(d, 0, 1), data)
            roots = jax.tree.leaves(jax.eval_shape(lambda p, d: root(apply_fn(p, d), d), params, one))
            examples, itemsize = checks.examples(data), max(x.dtype.itemsize for x in roots)
            if _gram_is_cheaper(examples * roots[0].shape[0], examples, dim, min(order, dim), probes, itemsize):
                method = "gram"
    if method == "gram":
        return gram_spectrum(apply_fn, params, data, loss, chunk_size)
    return spectrum(ggn(apply_fn, params, data, loss, chunk_size), key, order, probes)
