"""Symmetric operators over parameter trees: Hessian, Gauss-Newton matrices, plain matrices, and their combinations.

Every product runs at full float32 precision. Recent accelerators otherwise multiply float32 matrices in TF32 or
bfloat16, whose errors exceed the small eigenvalues that these operators are used for.

All operators can be jitted, and mapped over seeds by `jax.vmap`. Outside `jit`, a loss, gradient or output that is not
finite is refused with the name of its leaf. Inside `jit` the values are unknown: every product is then NaN, and the
same call outside `jit` names the leaf.

``chunk_size`` streams the examples, the leading axis of every leaf of ``data``, through a loop, so that memory does not
grow with their number. Products are means over the chunks, weighted by their sizes (the last may be smaller), and equal
those of all examples at once up to rounding. The cost: every product evaluates the network again, which otherwise
happens once for all. The assumption: the loss is a mean over examples that do not see one another. Outputs that do
(batch statistics) are refused outside `jit`, and make every product NaN inside. A Hessian has no outputs to check: a
loss that normalises over its batch (batch statistics, PPO's advantages, a mean over labels of which sequences have
different numbers) becomes another function chunk by chunk. The `Loss` of a Gauss-Newton or Fisher matrix says what each
example counts (`Loss.weights`), so ``token_cross_entropy`` can be chunked there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from plastax import parameters, tree
from plastax.curvature import checks, chunking, losses, products
from plastax.curvature.coupling import independent
from plastax.curvature.products import Way
from plastax.types import Array, Key, Loss, Operator, Params, Tree

Product = Callable[[Tree], Tree]
Linearised = Callable[[Tree], tuple[Product, Tree]]
"""``data -> (product, primal)``: a linear map at full precision, and the values to find finite."""


def _visible(product: Product, values: Tree) -> Product:
    """The product, NaN unless all values are finite; derivatives can be finite all the same."""
    return _plus(checks.nan_unless_finite(values), product)


def _plus(nan: Array, product: Product) -> Product:
    return lambda tangent: jax.tree.map(lambda x: x + nan.astype(x.dtype), product(tangent))


def _operator(linearised: Linearised, params: Params, data: Tree, chunk_size: int | None) -> Operator:
    """The operator of a mean over examples: linearised once, or chunk by chunk in every product."""
    if chunk_size is None or chunking.chunks(data, chunk_size) in ((1, 0), (0, checks.examples(data))):
        product, primal = linearised(data)
        checks.finite(primal)
        return Operator(product, params)
    if checks.concrete((params, data)):
        checks.finite(chunking.mean(lambda part: linearised(part)[1], data, chunk_size))

    def streamed(tangent: Tree) -> Tree:
        with jax.default_matmul_precision("highest"):
            total = chunking.mean(lambda part: linearised(part)[0](tangent), data, chunk_size)
        return jax.tree.map(lambda x, t: x.astype(t.dtype), total, tangent)

    return Operator(streamed, params)


@jax.default_matmul_precision("highest")
def hessian(
    loss_fn: Callable[..., Array],
    params: Params,
    data: Tree | None = None,
    chunk_size: int | None = None,
    product: Way = "auto",
) -> Operator:
    """Hessian of a scalar function, as the derivative of its gradient.

    The gradient is linearised here, once: a product costs its linear part alone. Central differences, the last resort,
    take four gradients a product. Parameters and data in 16 bits are widened first: products are those of the function
    at the same numbers in float32. What the function itself narrows stays narrow.

    Args:
      loss_fn: ``(params) -> scalar``, or ``(params, data) -> scalar`` if ``data`` is given.
      params: where the Hessian is taken: a tree of arrays, or what else `plastax.parameters.split` takes (variables,
        modules, train states). ``loss_fn`` gets it as it was given.
      data: second argument of ``loss_fn``, not differentiated.
      chunk_size: examples of ``data`` to process together, see the module; all by default. Static.
      product: how products are taken, see `plastax.curvature.products`: ``forward``, ``reverse``, ``finite``, or the
        first of them that works, which `Operator.product` names. Static.

    Returns:
      An operator over trees like ``params``, in float32 at least, with None for what is no parameter.

    Raises:
      ConfigError: if ``product`` is unknown, or needs a derivative that ``loss_fn`` lacks.
      ValueError: if ``loss_fn`` does not return a scalar, ``params`` has no parameters or complex ones, the leaves of
        ``data`` cannot be chunked, or, outside `jit`, loss or gradient is not finite.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> op = curvature.hessian(lambda w: w[0] ** 2 + 3.0 * w[1] ** 2, jnp.ones(2))
      >>> op.mv(jnp.array([1.0, 1.0])).tolist()
      [2.0, 6.0]
    """
    products.check(product)
    loss_fn, params = parameters.of(loss_fn, params)
    params, data = tree.widened((params, data))
    if chunk_size is not None:
        if data is None:
            raise ValueError("chunk_size needs data, and a loss_fn of (params, data)")
        chunking.chunks(data, chunk_size)
        data = tree.gathered(data)
    given = () if data is None else (data,)
    checks.scalar(loss_fn, params, *given)

    def at(way: Way, params: Params, *args: Tree) -> products.Products:
        def slope(p: Params) -> tuple[Params, Array]:
            value, slopes = jax.value_and_grad(loss_fn)(p, *args)
            return slopes, value

        return products.linearised(slope, params, way)

    def linearised(part: Tree) -> tuple[Product, Tree]:
        found = at(way, params, part)
        return _visible(found.mv, found.value), {"loss": found.value, "gradient": found.slopes}

    if chunk_size is None or chunk_size >= checks.examples(data):
        found = at(product, params, *given)
        checks.finite({"loss": found.value, "gradient": found.slopes})
        return Operator(_visible(found.mv, found.value), params, found.way, found.error)
    way = products.first(functools.partial(at, product), params, chunking.chunk(data, 0, chunk_size))
    op = _operator(linearised, params, data, chunk_size)._replace(product=way)
    if way != "finite":
        return op

    def error(tangent: Tree) -> Array:
        def of(part: Tree) -> Array:
            own = at(way, params, part).error
            assert own is not None  # Differences have one.
            return own(tangent)

        return chunking.mean(of, data, chunk_size)

    return op._replace(error=error)


@jax.default_matmul_precision("highest")
def sandwich(
    apply_fn: Callable[[Params, Tree], Tree],
    metric: Callable[[Tree, Tree], Product],
    params: Params,
    data: Tree,
    chunk_size: int | None = None,
    finite: Callable[[Tree], Tree] = lambda outputs: outputs,
) -> Operator:
    """``J^T C J``: J the Jacobian of the outputs, C any symmetric matrix over them without entries between examples.

    Args:
      apply_fn: ``(params, data) -> outputs``.
      metric: ``(outputs, data) -> (tangent -> cotangent)``: the product with C, normalised as a mean over ``data``.
      params: where J is taken.
      data: the examples.
      chunk_size: see the module.
      finite: see `Loss.finite`.
    """
    apply_fn, params = parameters.of(apply_fn, params)
    params, data = tree.widened((params, data if chunk_size is None else tree.gathered(data)))

    def linearised(part: Tree) -> tuple[Product, Tree]:
        outputs, push = jax.linearize(lambda p: apply_fn(p, part), params)
        checks.examples(outputs, "outputs")
        pull = jax.linear_transpose(push, params)
        weigh = metric(outputs, part)

        def product(tangent: Tree) -> Tree:
            with jax.default_matmul_precision("highest"):
                return pull(weigh(push(tangent)))[0]

        # One number an output leaf, whatever the number of examples: zero if all entries are finite, NaN otherwise.
        seen = finite(outputs)
        return _visible(product, seen), {"outputs": jax.tree.map(lambda x: jnp.sum(0.0 * x), seen)}

    op = _operator(linearised, params, data, chunk_size)._replace(product="forward")
    if chunk_size is None or chunk_size >= checks.examples(data):
        return op
    nan = independent(apply_fn, params, data, chunk_size, f"chunk_size={chunk_size}")
    return op._replace(mv=_plus(nan, op.mv))


def ggn(
    apply_fn: Callable[[Params, Tree], Tree],
    params: Params,
    data: Tree,
    loss: Loss | str,
    chunk_size: int | None = None,
) -> Operator:
    """Generalised Gauss-Newton matrix ``J^T C J``: J of the outputs, C the loss's Hessian in the outputs.

    Positive semi-definite. For cross-entropy it is the Fisher information matrix of the network's own distribution.
    The network is linearised here, once, unless it is chunked. Parameters and data in 16 bits are widened, as in
    `hessian`.

    Args:
      apply_fn: ``(params, data) -> outputs``, a tree.
      params: where the matrix is taken, as in `hessian`.
      data: the batch, second argument of ``apply_fn`` and of the loss.
      loss: a `Loss`, or a name in `losses.LOSSES`.
      chunk_size: examples of ``data`` to process together, see the module; all by default. Static.

    Returns:
      An operator over trees like ``params``, in float32 at least, with None for what is no parameter.

    Raises:
      ValueError: if ``loss`` is an unknown name, ``params`` has no leaf or one that is not real floating point, outputs
        have no examples, or not those that the loss takes, the leaves of ``data`` cannot be chunked, or, outside `jit`,
        outputs are not finite or labels no classes (inside, products are NaN).

    References:
      Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural Computation 14,
      2002. Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020, section 8.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> batch = jnp.eye(2), jnp.zeros(2)
      >>> op = curvature.ggn(lambda w, batch: batch[0] @ w, jnp.ones(2), batch, "mse")
      >>> curvature.dense(op).tolist()  # 2/N X^T X
      [[1.0, 0.0], [0.0, 1.0]]
    """
    loss, apply_fn, data = chunking.apart(losses.get(loss), apply_fn, data)

    def metric(outputs: Tree, part: Tree) -> Product:
        return lambda tangent: loss.curvature(outputs, part, tangent)

    return sandwich(apply_fn, metric, params, data, chunk_size, loss.finite)


def from_matrix(a: Array) -> Operator:
    """A symmetric matrix as an operator over vectors.

    Args:
      a: ``[n, n]``, symmetric (not checked).

    Returns:
      An operator over arrays ``[n]``.

    Raises:
      ValueError: if ``a`` is not a square matrix.
    """
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"from_matrix takes a square matrix, got shape {a.shape}")
    a = jnp.asarray(a)
    return Operator(
        lambda v: jnp.matmul(a, v, precision=jax.lax.Precision.HIGHEST), jax.ShapeDtypeStruct(a.shape[:1], a.dtype)
    )


def block(op: Operator, select: str | Callable[[str], bool]) -> Operator:
    """The diagonal block of some parameters, usually those of a layer.

    Of an operator with forward products, as `hessian` and `ggn` usually give, a product costs what these parameters
    reach: half of the whole one for an early layer, less for a late one. Else it costs a product of the whole.

    Args:
      op: over a tree with path names, see `plastax.tree.path_name`.
      select: the first parts of the leaves' path names (``"actor/dense_0"``, which does not match
        ``actor/dense_01/kernel``), or a predicate of a path name.

    Returns:
      An operator over trees of the same structure with None for the other leaves.

    Raises:
      ValueError: if no leaf is selected.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> params = {"first": jnp.ones(1), "second": jnp.ones(2)}
      >>> op = curvature.hessian(lambda p: jnp.sum(p["first"]) ** 2 + jnp.sum(p["second"] ** 2), params)
      >>> curvature.dense(curvature.block(op, "second")).tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """

    def chosen(name: str) -> bool:
        return select(name) if callable(select) else f"{name}/".startswith(f"{select}/")

    def keep(full: Tree) -> Tree:
        return tree.map_named(lambda name, leaf: leaf if chosen(name) else None, full)

    if not any(chosen(name) for name in tree.named_leaves(op.like)):
        raise ValueError(f"no parameter is selected by {select!r}; their names are {list(tree.named_leaves(op.like))}")

    def whole(tangent: Tree) -> Tree:
        # The tangent has None in place of the leaves that are not selected.
        return jax.tree.map(lambda x, t: jnp.zeros(x.shape, x.dtype) if t is None else t, op.like, tangent)

    def product(tangent: Tree) -> Tree:
        return keep(op.mv(whole(tangent)))

    if op.product == "forward":
        # The derivative of a linear map is itself, without what does not depend on the chosen parameters.
        zeros = tree.zeros(keep(op.like))
        product = jax.linearize(product, zeros)[1]
    error = op.error
    return op._replace(mv=product, like=keep(op.like), error=None if error is None else lambda t: error(whole(t)))


def add(*ops: Operator) -> Operator:
    """The sum of operators over trees of one structure, shapes and dtypes; raises ValueError for others.

    A product costs one product of each. With `scale` and `shift`: a loss of several parts, weight decay, damping.
    """
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), op.like) for op in ops]
    if not ops or any(other != shapes[0] for other in shapes):
        raise ValueError(f"add takes one or more operators over trees of one structure, got {shapes}")

    def product(tangent: Tree) -> Tree:
        return jax.tree.map(lambda *images: sum(images), *(op.mv(tangent) for op in ops))

    return Operator(product, ops[0].like)


def scale(op: Operator, factor: float | Array) -> Operator:
    """``factor * op`` for a number."""
    return Operator(lambda tangent: _times(factor, op.mv(tangent)), op.like)


def shift(op: Operator, offset: float | Array) -> Operator:
    """``op + offset * identity`` for a number: every eigenvalue moves by it."""
    return Operator(lambda tangent: jax.tree.map(jnp.add, op.mv(tangent), _times(offset, tangent)), op.like)


def _times(factor: float | Array, tangent: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, tangent)


class Flat(NamedTuple):
    """An operator over vectors of at least float32.

    Attributes:
      mv: ``[P] -> [P]``, dtype to dtype.
      dim: number of scalars P.
      dtype: of the vectors.
      draw: ``(key) -> [P]``: a vector of independent standard normal entries.
    """

    mv: Callable[[Array], Array]
    dim: int
    dtype: jnp.dtype
    draw: Callable[[Key], Array]


def flatten(op: Operator) -> Flat:
    """Writes the operator as one over vectors, in the order of `jax.flatten_util.ravel_pytree`.

    Narrower floating types are widened around the product: a Lanczos recurrence needs float32.
    """
    zeros, unravel = ravel_pytree(tree.zeros(op.like))
    dtype = jnp.promote_types(zeros.dtype, jnp.float32)

    def product(v: Array) -> Array:
        return ravel_pytree(op.mv(unravel(v.astype(zeros.dtype))))[0].astype(dtype)

    return Flat(product, zeros.size, dtype, lambda key: jax.random.normal(key, (zeros.size,), dtype))


@jax.default_matmul_precision("highest")
def dense(op: Operator) -> Array:
    """The operator's matrix, column by column: for tests and very small networks.

    Args:
      op: an operator over P scalars.

    Returns:
      ``[P, P]``, in the order of `jax.flatten_util.ravel_pytree`.
    """
    mv, dim, dtype, _ = flatten(op)
    return jax.lax.map(mv, jnp.eye(dim, dtype=dtype)).T
