"""What a spectrum says about the training ahead: how far gradient descent of a given budget can get.

Everything here is about *linearised* training: full-batch gradient descent of fixed step size on the mean squared
error, with the Jacobian frozen. There the residual r (outputs minus targets, N entries in all) follows

    r_{t+1} = (I - lr G) r_t,    G = 2/N J J^T,    loss_t = |r_t|^2 / N,

so its part along an eigenvector of G shrinks by ``1 - lr lambda`` per step. G has the non-zero eigenvalues of the
Gauss-Newton matrix of ``"mse"``. A network that moves far from where its spectrum was taken, Adam, mini-batches and the
cross-entropy are outside of this model: there these numbers compare networks, but predict nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plastax import linalg
from plastax.curvature.spectrum import Estimate, Spectrum
from plastax.types import Array


class Trainability(NamedTuple):
    """How far a budget of gradient steps can get, and whether that is far enough. All scalars.

    Attributes:
      eps_star: ``1 / (lr steps)``, the eigenvalue that the budget just resolves. Modes below keep more than a share of
        ``(1 - 1 / steps)^steps``, about ``1 / e``, of their residual.
      rank: number of eigenvalues above it: how many directions of the output space the budget reaches, not whether the
        task needs them.
      unstable: number of eigenvalues above ``2 / lr``. With any, linearised descent diverges. A real network may move
        to a flatter place instead (the "edge of stability"), so this is a warning, not a verdict.
      reachable: ``rank`` over the N entries of the residual.
      loss: expected loss after the steps if the residual is isotropic, as with random labels. Real residuals lie mostly
        along large eigenvalues and fall faster at first; what a saturated network cannot fit may lie elsewhere.
        Infinite if any mode is unstable.
      floor: what the rank alone implies, a lower bound of ``loss``: modes out of the budget's reach keep theirs.
      required: rank below which no budget of these steps reaches ``tau`` in expectation: necessary, not sufficient,
        since modes just above ``eps_star`` have not vanished either.
      trainable: the tau-trainability indicator: 1 if ``rank`` reaches ``required``, 0 if it does not, NaN if the
        spectrum or the residual has NaN. 1 means only that the *count* of directions does not forbid it.
    """

    eps_star: Array
    rank: Estimate
    unstable: Estimate
    reachable: Estimate
    loss: Estimate
    floor: Estimate
    required: Array
    trainable: Array


def _decay(values: Array, lr: float | Array, steps: int | Array) -> Array:
    """``(1 - lr lambda)^(2 steps)``, without losing the digits of a small ``lr lambda``."""
    x = lr * values
    # After no step everything is kept, even if one step would leave nothing.
    return jnp.exp(jnp.where(steps == 0, 0.0, 2.0 * steps * jnp.log1p(-jnp.minimum(x, 2.0 - x))))


def trainability(
    spectrum: Spectrum,
    residual: Array,
    lr: float | Array,
    steps: int | Array,
    tau: float | Array,
    entries: Array | None = None,
) -> Trainability:
    """Whether ``steps`` of linearised gradient descent can bring the mean squared error to ``tau``.

    With L the loss now and ``d = (1 - 1 / steps)^(2 steps)``, the share of the loss that a mode at ``eps_star`` keeps:

    * isotropic residual: the expected loss is ``L (1 - 1/N sum_i [1 - (1 - lr lambda_i)^(2 steps)])``,
    * it is at least ``L d (1 - rank(eps_star) / N)``,
    * so reaching ``tau`` takes a rank of at least ``N (1 - tau / (L d))``.

    Args:
      spectrum: of the Gauss-Newton matrix of the loss ``"mse"``, the mean of squares over all N entries: from
        `ggn_spectrum`, `gram_spectrum`, or `spectrum` of `ggn`. A Hessian's negative eigenvalues would count in `rank`.
      residual: outputs minus targets, of any shape, N entries: every entry that the spectrum's data have. Only N and
        its mean square L are used; `linear_loss` uses all of it.
      lr: step size of gradient descent, for that loss (no factor of one half).
      steps: number of steps.
      tau: the loss to be reached, in the units of L.
      entries: N, where the others of the residual's entries are padding: zero there, and in the spectrum's loss. None:
        all count.

    Returns:
      The numbers, with standard errors where they come from an estimated spectrum; that of ``loss`` is the rank's at
      half of ``eps_star``, where a mode is about to vanish.

    Raises:
      ValueError: if the residual is empty, or ``lr`` or ``steps`` is a number that is not positive.

    References:
      Jacot, Gabriel and Hongler, "Neural tangent kernel: convergence and generalization in neural networks", NeurIPS
      2018, section 5 (modes decay at the rate of their eigenvalue). LeCun, Simard and Pearlmutter, "Automatic learning
      rate maximization by on-line estimation of the Hessian's eigenvectors", NeurIPS 1992 (the limit ``2 / lr``).
      Lewandowski, Tanaka, Schuurmans and Machado, "Directions of curvature as an explanation for loss of plasticity",
      2023 (plasticity is lost with the Hessian's rank).

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> s = curvature.from_eigenvalues(jnp.array([1.0, 0.1, 1e-4]), 10)
      >>> t = jax.jit(curvature.trainability)(s, jnp.ones(4), lr=0.5, steps=100, tau=0.01)
      >>> float(t.rank.value), round(float(t.required), 1), float(t.trainable)
      (2.0, 3.7, 0.0)
    """
    if residual.size == 0:
        raise ValueError(f"residual must have entries, got shape {residual.shape}")
    for name, value in (("lr", lr), ("steps", steps)):
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    count = residual.size if entries is None else entries
    now = jnp.sum(jnp.square(residual)) / count
    eps_star = jnp.asarray(1.0 / (lr * steps), spectrum.nodes.dtype)
    ranks = spectrum.rank(jnp.stack([eps_star, jnp.asarray(2.0 / lr, eps_star.dtype), eps_star / 2.0]))
    rank, unstable, halfway = (Estimate(ranks.value[i], ranks.standard_error[i]) for i in range(3))
    gone = spectrum.counts().sum(1.0 - _decay(spectrum.nodes, lr, steps))
    diverges = spectrum.norm() > 2.0 / lr
    loss = Estimate(
        jnp.where(diverges, jnp.inf, now * (1.0 - gone / count)),
        jnp.where(diverges, jnp.inf, now * halfway.standard_error / count),
    )
    kept = now * _decay(eps_star, lr, steps)
    floor = Estimate(
        kept * jnp.maximum(1.0 - rank.value / count, 0.0),
        kept * rank.standard_error / count,
    )
    required = count * jnp.maximum(1.0 - tau / jnp.where(kept == 0, jnp.finfo(kept.dtype).tiny, kept), 0.0)
    unknown = jnp.isnan(rank.value) | jnp.isnan(required)
    return Trainability(
        eps_star,
        rank,
        unstable,
        Estimate(rank.value / count, rank.standard_error / count),
        loss,
        floor,
        required,
        jnp.where(unknown, jnp.nan, (rank.value >= required).astype(rank.value.dtype)),
    )


@jax.default_matmul_precision("highest")
def linear_loss(gram: Array, residual: Array, lr: float | Array, steps: int | Array) -> Array:
    """Loss after these numbers of linearised gradient steps, for one residual: exact up to rounding.

    ``loss_t = 1/N sum_i (1 - lr lambda_i)^(2 t) (u_i^T r)^2`` over the eigenpairs of G. It assumes nothing about r, and
    takes the eigenvectors of an ``[N, N]`` matrix.

    Args:
      gram: ``[N, N]``, ``2/N J J^T`` with its rows in the order of the residual's entries: `gram_matrix` of ``"mse"``.
      residual: outputs minus targets, N entries of any shape.
      lr: step size.
      steps: numbers of steps, a scalar or ``[T]``.

    Returns:
      Mean squared error after them, of the shape of ``steps``. It grows without bound where ``lr lambda > 2``.

    Raises:
      ValueError: if ``gram`` is not square with one row an entry of the residual.

    References:
      As `trainability`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax import curvature
      >>> curvature.linear_loss(jnp.eye(2), jnp.ones(2), 0.5, jnp.array([0, 1, 2])).tolist()
      [1.0, 0.25, 0.0625]
    """
    if gram.shape != (residual.size, residual.size):
        raise ValueError(f"gram must be [N, N] for the residual's N = {residual.size} entries, got {gram.shape}")
    values, vectors = linalg.eigh(gram)
    energies = jnp.square(residual.reshape(-1) @ vectors)
    steps = jnp.asarray(steps)
    kept = jax.vmap(lambda t: jnp.mean(_decay(values, lr, t) * energies))(steps.reshape(-1))
    return kept.reshape(steps.shape)


def dead_unit_rank_bound(widths: Sequence[int], dead: Sequence[int] | Array) -> Array:
    """Largest rank that the Hessian of a fully connected network with dead units can have.

    A unit that is zero on all the data, and stays so nearby, takes its ``fan_in + 1`` incoming parameters and its
    ``fan_out`` outgoing weights out of the Hessian: the loss does not depend on the former, and its derivative with
    respect to the latter is zero whatever the other parameters. So
    ``rank <= P - sum over dead units of (fan_in + 1 + fan_out) + overlaps``, where the weights between two dead units,
    which both sums contain, are added back once. That is ``sum over layers of (live inputs + 1) * live outputs``.
    Layers before one without any live unit cannot reach the loss and do not count either.

    It holds for the Gauss-Newton matrix too. A live network is mostly far below it: the bound says what is lost for
    certain, not what is left.

    Args:
      widths: of the inputs, of every hidden layer, and of the outputs. Dense layers, each with biases. Static.
      dead: number of dead units in every hidden layer, ``[len(widths) - 2]``; may be traced.

    Returns:
      int32 scalar.

    Raises:
      ValueError: unless there is one number per hidden layer.

    Examples:
      >>> from plastax import curvature
      >>> int(curvature.dead_unit_rank_bound((3, 4, 2), (1,)))  # of 26 parameters
      20
    """
    counts = jnp.asarray(dead, jnp.int32)
    if counts.shape != (len(widths) - 2,):
        raise ValueError(
            f"dead needs one number for each of the {len(widths) - 2} hidden layers, got shape {counts.shape}"
        )
    live = jnp.asarray(widths, jnp.int32) - jnp.pad(counts, 1)
    # Whether anything gets through from a layer's outputs to the loss.
    open_ = jnp.flip(jnp.cumprod(jnp.flip(live[1:] > 0)))
    return jnp.sum((live[:-1] + 1) * live[1:] * open_)
