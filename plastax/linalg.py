"""Matrix decompositions that many seeds can share: the only caller of eigh, svd and qr in plastax.

A *batched* LAPACK call deadlocks XLA:CPU on machines with few cores: jaxlib splits the batch over the intra-op thread
pool and blocks one of the pool's own workers while it waits, so two such calls at once can wait for each other for
ever. `vmap` over seeds makes exactly such calls. On CPU every decomposition here therefore becomes, under `vmap`, a
loop of single LAPACK calls; the loop costs nothing measurable. On other backends batching stays as it is. `platforms`
has the choice, which is made when a function is traced.

On CPU, none of `eigvalsh`, `eigh`, `svdvals` has a reverse-mode derivative; `effective_rank` has its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from plastax import platforms, tree
from plastax.types import Array, Key

RESOLVED_ROUNDINGS = 6e3
"""An eigenvalue of a Gram matrix of at least this many rounding errors of the largest is good enough for the effective
rank's gradient: the gradient then errs by less than 1e-4 (measured, 40 to 1,000 rows and columns)."""
FEW_ENTRIES, NEARLY_SQUARE = 2**13, 0.9
"""Two kinds of matrices are not tried in single precision first: those of at most this many entries, where double
precision costs next to nothing, and those nearer to square than this, which have small singular values from the start
and take a singular value decomposition."""
FEWER, WORTH_A_CHOICE = (0.875, 0.75, 0.625, 0.5), 32
"""Shares of the columns of a small matrix, and how many it must have. If no more than such a share are not zero, these
alone are decomposed, which takes 0.8, 0.6, 0.5 and 0.3 of the time for 64 columns on a CPU: ReLU units fall silent."""


def _chunked(fn: Callable[..., list[Array]], room: int) -> Callable[..., list[Array]]:
    """``fn`` of lists of arrays; `vmap` loops over batches of ``room`` calls. Nested vmaps share it from within."""
    looped = jax.custom_batching.custom_vmap(fn)

    @looped.def_vmap
    def rule(size: int, batched: Any, *args: list[Array]) -> tuple[list[Array], list[bool]]:
        flags = jax.tree.leaves(batched)

        def many(*args: list[Array]) -> list[Array]:
            leaves, structure = jax.tree.flatten(args)

            def one(mapped: list[Array]) -> list[Array]:
                rows = iter(mapped)
                return fn(*jax.tree.unflatten(structure, [next(rows) if f else leaf for f, leaf in zip(flags, leaves)]))

            mapped = [leaf for flag, leaf in zip(flags, leaves) if flag]
            if room > 1:
                return jax.lax.map(one, mapped, batch_size=min(room, size))
            return jax.lax.scan(lambda _, row: (None, one(row)), None, mapped)[1]

        def spread(*args: list[Array]) -> list[Array]:
            # A loop cannot run over an axis that is spread over devices: each device loops over its own part.
            shards = [jax.typeof(leaf).sharding for flag, leaf in zip(flags, jax.tree.leaves(args)) if flag]
            split = next((shard for shard in shards if shard.spec[0] is not None), None)
            if split is None:
                return many(*args)
            over = jax.NamedSharding(split.mesh, jax.P(split.spec[0]))
            specs = jax.tree.map(lambda flag: over.spec if flag else jax.P(), tuple(batched))
            args = jax.tree.map(lambda flag, leaf: jax.reshard(leaf, over) if flag else leaf, tuple(batched), args)
            local = jax.shard_map(many, mesh=split.mesh, in_specs=specs, out_specs=over.spec, check_vma=False)
            return local(*args)

        out = _chunked(spread, max(1, room // size))(*args)
        return out, [True] * len(out)

    return looped


def sequential(fn: Callable[..., Any], batch: int | None = None) -> Callable[..., Any]:
    """Makes `vmap` of ``fn`` a loop, of ``batch`` calls at once.

    Besides decompositions this suits whole algorithms: on CPU, Hessian products and Lanczos runs of several seeds are
    1.0-2.8 times faster one after another than batched, and need the memory of one.

    Over an axis that is spread over devices every device loops over its own part. JAX knows explicit mesh axes, the
    default of `jax.make_mesh`; over automatic ones use `jax.shard_map`, or every device computes everything.

    Args:
      fn: a function of positional arguments (trees of arrays) to a tree of arrays. It may close over traced arrays,
        batched ones included: they become arguments.
      batch: how many calls of all vmaps around this one run side by side. None: one on CPU, all on other backends; see
        `platforms.Choices.decompositions`.

    Returns:
      A function of the same arguments and results. It can be nested, jitted, scanned and used in branches, but has no
      reverse-mode derivative (with None: on CPU).
    """

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        if batch is None and platforms.chosen().decompositions == "batch":
            return fn(*args)
        # A custom_vmap function must not close over tracers of the vmap around it. Tracing turns whatever it closes
        # over into the constants of a jaxpr, which can be passed on as arguments.
        traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)

        def plain(constants: list[Array], leaves: list[Array]) -> list[Array]:
            return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, constants))(*leaves)

        found = _chunked(plain, batch or 1)(traced.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return call


# The inner jit keeps eager calls compiled: the body of a custom_vmap function otherwise runs operation by operation.
@sequential
@jax.jit
def _eigvalsh(a: Array) -> Array:
    return jnp.linalg.eigvalsh(a)


@sequential
@jax.jit
def _eigh(a: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(a)
    return values, vectors


@sequential
@jax.jit
def _svdvals(a: Array) -> Array:
    # Thin, although it returns no vectors: otherwise XLA:CPU reserves the memory of those of all rows.
    return jnp.linalg.svd(a, full_matrices=False, compute_uv=False)


@jax.default_matmul_precision("highest")
def eigvalsh(a: Array) -> Array:
    """Eigenvalues of symmetric matrices.

    Args:
      a: ``[..., n, n]`` real; the symmetric part is used.

    Returns:
      ``[..., n]``, ascending, of the dtype of ``a``, at least float32.
    """
    return jnp.vectorize(_eigvalsh, signature="(n,n)->(n)")(tree.wide(tree.gathered(a)))


@jax.default_matmul_precision("highest")
def eigh(a: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Args:
      a: ``[..., n, n]`` real; the symmetric part is used.

    Returns:
      Values ``[..., n]``, ascending, and orthonormal vectors ``[..., n, n]`` in columns: ``a @ v[:, i]`` is
      ``w[i] * v[:, i]``. At least float32, both.
    """
    return jnp.vectorize(_eigh, signature="(n,n)->(n),(n,n)")(tree.wide(tree.gathered(a)))


@jax.default_matmul_precision("highest")
def svdvals(a: Array) -> Array:
    """Singular values.

    Args:
      a: ``[..., n, d]`` real.

    Returns:
      ``[..., min(n, d)]``, descending, of the dtype of ``a``, at least float32.
    """
    return jnp.vectorize(_svdvals, signature="(n,d)->(k)")(tree.wide(tree.gathered(a)))


def orthogonal(scale: float = 1.0) -> Callable[..., Array]:
    """Initialiser of uniformly distributed (Haar) orthogonal matrices, safe under `vmap`.

    The same key gives the same matrix as `jax.nn.initializers.orthogonal`.

    Args:
      scale: factor of the matrix.

    Returns:
      ``(key, shape, dtype=float32) -> array`` of that shape. All axes but the last are taken together as rows; the
      columns are orthonormal if they are no more than the rows, otherwise the rows are. Raises a ValueError for
      shapes of fewer than two axes.

    References:
      Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
      networks", ICLR 2014, section 3. Mezzadri, "How to generate random matrices from the classical compact groups",
      Notices of the AMS 54, 2007, section 5 (the sign of the QR factor).
    """

    def initialise(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if len(shape) < 2:
            raise ValueError(f"an orthogonal initialiser needs a shape of at least two axes, got {tuple(shape)}")
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        rows, columns = math.prod(shape[:-1]), shape[-1]

        @sequential
        @jax.default_matmul_precision("highest")
        def draw(key: Key) -> Array:
            return jax.random.orthogonal(key, rows, (), dtype, columns)

        return jnp.asarray(scale, dtype) * draw(key).reshape(shape)

    return initialise


def _scaled(features: Array) -> tuple[Array, Array]:
    """The features ``[n, d]`` in at least float32 over a power of two, so that the largest is from 1 to 2; and that.

    The effective rank ignores the scale, but the squares in a Gram matrix must neither over- nor underflow. A power of
    two rounds nothing, which the smallest singular values would show.
    """
    x = tree.wide(features)
    largest = jnp.max(jnp.abs(x))
    _, exponent = jnp.frexp(largest)
    scale = jnp.where(largest == 0, 1, jnp.ldexp(jnp.ones((), x.dtype), exponent - 1))
    return x / scale, scale


def _entropy(values: Array, power: float, floor: float) -> tuple[Array, Array]:
    """``exp(-sum_i p_i log p_i)`` of ``p_i = v_i^power / sum_j v_j^power``, and its derivatives by ``v``, ``[k]``.

    Values of at most ``floor`` times the largest are zero, and have none.
    """
    zero = values <= floor * jnp.max(values)
    safe = jnp.where(zero, 1.0, values)
    weights = jnp.where(zero, 0.0, safe**power)
    total = jnp.sum(weights)
    p = weights / jnp.where(total == 0, 1.0, total)
    log_p = jnp.log(jnp.where(zero, 1.0, p))
    entropy = -jnp.sum(p * log_p)
    rank = jnp.where(total == 0, 0.0, jnp.exp(entropy))
    slope = rank * (-log_p - entropy) * p * power / safe
    return rank, jnp.where(zero, 0.0, slope)


def _noise(x: Array) -> float:
    """Singular value, over the largest, that rounding of ``x`` ``[n, d]`` may leave in place of zero.

    Measured: up to a fifth of it. Each such value would pull with the force of a direction that is about to vanish.
    """
    return math.sqrt(min(x.shape)) * float(jnp.finfo(x.dtype).eps)


def _by_gram(x: Array, power: int, noise: float) -> tuple[Array, Array, Array]:
    """Effective rank, gradient ``[n, d]``, and whether they can be trusted, from the smaller Gram matrix of ``x``."""
    wide = x.shape[0] < x.shape[1]
    gram = x @ x.T if wide else x.T @ x
    values, vectors = eigh(gram)
    eps = float(jnp.finfo(values.dtype).eps)
    rank, slope = _entropy(values, power / 2, max(noise**2, math.sqrt(values.size) * eps))
    inner = (vectors * slope[None, :]) @ vectors.T
    gradient = 2.0 * (inner @ x if wide else x @ inner)
    # Silent units and rows of zeros have eigenvalues of exactly zero. NaN compares false: double precision cannot help.
    silent = jnp.sum(jnp.diagonal(gram) == 0)
    small = jnp.sum(values < RESOLVED_ROUNDINGS * eps * values[-1])
    return rank, gradient, small <= silent


def _in_double(x: Array, power: int, noise: float) -> tuple[Array, Array]:
    """Effective rank and gradient ``[n, d]`` from a Gram matrix in float64, whether or not JAX has float64 enabled.

    If not, JAX cannot map such a program from outside: its rules would not run in the context that the program runs in.
    So `vmap` only adds an axis here, and the mapping happens inside.
    """

    @jax.custom_batching.custom_vmap
    def ranks(x: Array) -> tuple[Array, Array]:
        with jax.enable_x64(True):
            one = jnp.vectorize(lambda x: _by_gram(x, power, noise)[:2], signature="(n,d)->(),(n,d)")
            found = one(jax.lax.convert_element_type(x, jnp.float64))
            return jax.tree.map(lambda y: jax.lax.convert_element_type(y, x.dtype), found)

    @ranks.def_vmap
    def rule(size: int, batched: Any, x: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        del size, batched
        return ranks(x), (True, True)

    return ranks(x)


def _by_svd(x: Array, power: int, noise: float) -> tuple[Array, Array]:
    """Effective rank and gradient ``[n, d]`` from the singular vectors of ``x``."""
    u, values, vt = jnp.linalg.svd(x, full_matrices=False)
    rank, slope = _entropy(values, power, noise)
    return rank, (u * slope[None, :]) @ vt


def _without_silent(found: Callable[[Array], tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
    """``found(x)``, of fewer columns where enough are zero: those add singular values of zero and have no gradient."""
    widths = [math.floor(share * x.shape[1]) for share in FEWER]
    loud = jnp.any(x != 0, axis=0)
    first = jnp.argsort(~loud)  # Stable: the columns keep their order.

    def of(width: int) -> Callable[[Array], tuple[Array, Array]]:
        def packed(x: Array) -> tuple[Array, Array]:
            rank, gradient = found(x[:, first[:width]])
            return rank, jnp.zeros_like(x).at[:, first[:width]].set(gradient)

        return packed

    enough = sum((jnp.sum(loud) <= width for width in widths), jnp.int32(0))
    return jax.lax.switch(enough, [found, *map(of, widths)], x)


def _rank_and_gradient(x: Array, power: int) -> tuple[Array, Array]:
    """Of one matrix: from its Gram matrix, in double precision unless single resolves its spectrum."""
    square = x.size > FEW_ENTRIES and min(x.shape) > NEARLY_SQUARE * max(x.shape)
    noise = _noise(x)
    way = _by_svd if square or not platforms.chosen().double else _in_double
    exact = functools.partial(way, power=power, noise=noise)
    if square:
        return exact(x)
    if x.size <= FEW_ENTRIES:
        # Where `vmap` makes batches, it would turn the choice of columns into all of its sides.
        choice = x.shape[0] >= x.shape[1] >= WORTH_A_CHOICE and platforms.chosen().decompositions == "loop"
        return _without_silent(exact, x) if choice else exact(x)
    # A loop, not a branch: `vmap` turns a branch into both of its sides, but a loop ends when no one needs it.
    start = _by_gram(x, power, noise)
    return jax.lax.while_loop(lambda found: ~found[2], lambda found: (*exact(x), jnp.array(True)), start)[:2]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _effective_rank(features: Array, power: int) -> Array:
    return _effective_rank_forward(features, power)[0]


@jax.default_matmul_precision("highest")
def _effective_rank_forward(features: Array, power: int) -> tuple[Array, Array]:
    x, scale = _scaled(features)
    one = jax.jit(functools.partial(_rank_and_gradient, power=power))
    rank, gradient = sequential(one)(x)
    return rank, (gradient / scale).astype(features.dtype)


def _effective_rank_backward(power: int, gradient: Array, cotangent: Array) -> tuple[Array]:
    del power
    return ((cotangent * gradient).astype(gradient.dtype),)


_effective_rank.defvjp(_effective_rank_forward, _effective_rank_backward)


def effective_rank(features: Array, power: int = 1) -> Array:
    """Effective rank ``exp(-sum_i p_i log p_i)``, ``p_i = s_i^power / sum_j s_j^power``, of uncentred features.

    ``s_i`` are the singular values, square roots of the eigenvalues of the smaller Gram matrix. The Gram matrix is
    taken in float64, whether or not JAX has that enabled, unless float32 resolves all of them, down to about 3 % of the
    largest. Features of collapsing networks, and of networks of few inputs, have smaller ones, which pull the hardest:
    in float32 alone the gradient of PPO's on CartPole was 50 degrees off. Nearly square matrices, and all on TPUs,
    which lack float64, take a singular value decomposition in their own type. Columns of zeros (silent units) change
    nothing; where they are many in a small matrix, the others are decomposed alone. Values below ``sqrt(min(n, d)) *
    eps`` of the largest, 1.2e-6 for 100 rows in float32, are the features' own rounding and count as zero.

    The gradient is that of a float64 SVD to 1e-4; from an SVD in float32, down to singular values of 1e-3 of the
    largest, and to 1e-2 down to 1e-5.

    Differentiable in reverse mode; value and gradient together take one or two decompositions. The gradient is finite
    for equal and for zero singular values (those counted as zero get none).

    Args:
      features: ``[n, d]``, floating point; narrower types are computed in float32.
      power: 1 for singular values, 2 for the eigenvalues of the second-moment matrix. Static.

    Returns:
      Scalar between 1 and ``min(n, d)``; 0, with zero gradient, if all features are zero; NaN if any is NaN.

    Raises:
      ValueError: if ``features`` is not a matrix or ``power`` is not positive.

    References:
      Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import linalg
      >>> round(float(linalg.effective_rank(jnp.eye(6)[:, :4])), 3)
      4.0
    """
    if features.ndim != 2:
        raise ValueError(f"effective_rank takes features of shape [n, d], got {features.shape}")
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    return _effective_rank(tree.gathered(features), power)
