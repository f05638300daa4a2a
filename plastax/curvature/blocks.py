"""Blocks of a network's parameters, and the spectra of a matrix's diagonal blocks.

A block says how curvature is spread over a network, and nothing of how its parts act on one another. What the diagonal
blocks leave out is `BlockSpectra.off_diagonal`, a share of the squared Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from plastax import linalg, tree
from plastax.curvature import operators
from plastax.curvature.quadrature import spectrum
from plastax.curvature.spectrum import Estimate, Spectrum, from_eigenvalues
from plastax.errors import ConfigError
from plastax.roles import STRUCTURE, Role, RolesOf
from plastax.types import Key, Operator, Params, Tree

Grouping = Literal["whole", "layers", "kinds"]
KINDS = ("embedding", "qkv", "q", "k", "v", "out", "mlp", "conv", "norm", "head", "other")
"""The kinds of parameters, in the order in which blocks are shown."""
_ATTENTION: Mapping[str, frozenset[str]] = {
    "q": frozenset({"query", "q", "q_proj", "query_proj", "wq"}),
    "k": frozenset({"key", "k", "k_proj", "key_proj", "wk"}),
    "v": frozenset({"value", "v", "v_proj", "value_proj", "wv"}),
    "out": frozenset({"out", "o", "o_proj", "out_proj", "output_proj", "wo"}),
}
"""What Flax, Equinox and others call the layers of an attention."""
_FUSED = frozenset({"qkv", "c_attn", "in_proj", "qkv_proj"})
_EMBEDDINGS = frozenset({"patches", "class_token", "positions", "pos_embedding", "cls", "patch_embed"})


_APART = 1 << 20
"""Blocks have keys of their own; smaller numbers are those of the whole spectrum's probes."""


def kind_of(name: str, roles: Mapping[str, Role]) -> str:
    """The kind of a parameter, one of `KINDS`, from its role and the names of its layer and of those beside it.

    The four layers of an attention are known by their names if they lie side by side. Any other layer with a kernel is
    of kind ``mlp``, ``conv`` or, if its role says so, ``head``; a bias is of the kind of its layer.
    """
    role = roles[name]
    above, _, last = role.layer.rpartition("/")
    beside = {one.layer.rpartition("/")[2] for one in roles.values() if one.layer.rpartition("/")[0] == above}
    if role.kind == "embedding" or {last, name.rpartition("/")[2]} & _EMBEDDINGS:
        return "embedding"
    if role.kind in ("scale", "offset"):
        return "norm"
    if last in _FUSED:
        return "qkv"
    part = next((part for part, names in _ATTENTION.items() if last in names), None)
    if part and all(_ATTENTION[one] & beside for one in ("q", "k", "v")):
        return part
    kernels = [one for one in roles.values() if one.layer == role.layer and one.kind == "kernel"]
    if role.kind not in ("kernel", "bias") or not kernels:
        return "other"
    if role.output:
        return "head"
    return "conv" if any(reading.places for reading in kernels[0].readings) else "mlp"


def groups(params: Params, by: Grouping, roles: RolesOf = STRUCTURE) -> dict[str, tuple[str, ...]]:
    """Block -> path names of its parameters; every parameter is in one block.

    Args:
      params: a tree of arrays or shape structs.
      by: ``layers``: a block for each layer, normalisations included. ``kinds``: one for each of `KINDS`, over all
        layers. ``whole``: one.
      roles: what each parameter is. Structure alone does not show which layers are heads.

    Raises:
      ConfigError: ``by`` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> from plastax.curvature import blocks
      >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
      >>> blocks.groups(params, "kinds")
      {'mlp': ('up/bias', 'up/kernel'), 'norm': ('norm/scale',)}
    """
    if by not in get_args(Grouping):
        raise ConfigError.unknown("blocks", by, get_args(Grouping))
    found = roles.of(params)
    made: dict[str, tuple[str, ...]] = {}
    for name in tree.named_leaves(params):
        block = "whole" if by == "whole" else kind_of(name, found) if by == "kinds" else found[name].layer or name
        made[block] = (*made.get(block, ()), name)
    return {kind: made[kind] for kind in KINDS if kind in made} if by == "kinds" else made


class BlockSpectra(NamedTuple):
    """Spectra of diagonal blocks.

    Attributes:
      blocks: block -> its spectrum.
      whole: the spectrum of the whole matrix.
    """

    blocks: dict[str, Spectrum]
    whole: Spectrum

    def off_diagonal(self) -> Estimate:
        """Share of the entries outside of the blocks in the squared Frobenius norm, ``|A - blockdiag A|^2 / |A|^2``.

        ``1 - sum_b |A_b|^2 / |A|^2``, from the squared norms of independent spectra, each of which is unbiased. So a
        share of about zero may be estimated as negative. The standard error is that of the linearised ratio. Zero for
        the zero matrix.
        """
        inside, whole = [_squared(s) for s in self.blocks.values()], _squared(self.whole)
        size = jnp.where(whole.value == 0, 1.0, whole.value)
        share = sum(one.value for one in inside) / size
        errors = jnp.stack([one.standard_error / size for one in inside] + [share * whole.standard_error / size])
        return Estimate(jnp.where(whole.value == 0, 0.0, 1.0 - share), jnp.sqrt(jnp.sum(jnp.square(errors))))


def _squared(s: Spectrum) -> Estimate:
    root = s.frobenius()
    return Estimate(jnp.square(root.value), 2.0 * root.value * root.standard_error)


def block_spectra(
    op: Operator,
    key: Key,
    blocks: Mapping[str, Sequence[str]] | Grouping = "kinds",
    order: int = 64,
    probes: int = 4,
    *,
    roles: RolesOf = STRUCTURE,
) -> BlockSpectra:
    """Spectra of an operator and of its diagonal blocks, all from one linearisation.

    A block of at most ``order`` parameters is taken densely: its spectrum is exact. The others take ``order * probes``
    products each, which cost less than those of the whole, see `block`. The whole spectrum is that of
    `curvature.spectrum` for the same key.

    Args:
      op: an operator over a tree with path names.
      key: for the probe vectors.
      blocks: block -> path names of its parameters (or of all below them), or how to group them, see `groups`.
      order: Lanczos steps. Static.
      probes: number of probe vectors. Static.
      roles: see `groups`.

    Raises:
      ConfigError: a name has no parameters, or a parameter is in two blocks.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> params = {"first": jnp.ones(2), "second": jnp.ones(1)}
      >>> op = curvature.hessian(lambda p: jnp.sum(p["first"] ** 2) + p["first"][0] * p["second"][0], params)
      >>> found = curvature.block_spectra(op, jax.random.key(0), {"a": ["first"], "b": ["second"]}, 3, 1)
      >>> {name: s.trace() for name, s in found.blocks.items()}, found.off_diagonal()  # 2 of 10
      ({'a': 4 ± 0, 'b': 0 ± 0}, 0.2 ± 0)
    """
    chosen = groups(op.like, blocks, roles) if isinstance(blocks, str) else _checked(op.like, blocks)
    whole = dense_or_lanczos(op, key, order, probes)
    found = {}
    for i, (label, names) in enumerate(chosen.items()):
        own = operators.block(op, frozenset(names).__contains__)
        found[label] = dense_or_lanczos(own, jax.random.fold_in(key, _APART + i), order, probes)
    return BlockSpectra(found, whole)


def dense_or_lanczos(op: Operator, key: Key, order: int, probes: int) -> Spectrum:
    """The spectrum by Lanczos, or dense and exact from the order P on.

    The dense matrix takes as many products as it has columns, and one decomposition. A complete Lanczos run gives the
    same eigenvalues and takes longer.
    """
    size = tree.size(op.like)
    if order < size:
        return spectrum(op, key, order, probes)
    return from_eigenvalues(linalg.sequential(lambda: linalg.eigvalsh(operators.dense(op)))(), size)


def _checked(like: Tree, blocks: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    names = list(tree.named_leaves(like))
    made: dict[str, frozenset[str]] = {}
    for label, given in blocks.items():
        for start in given:
            if not any(f"{name}/".startswith(f"{start}/") for name in names):
                raise ConfigError.unknown(f"blocks.{label}", start, names)
        made[label] = frozenset(n for n in names if any(f"{n}/".startswith(f"{start}/") for start in given))
        for other, taken in made.items():
            if other != label and (both := sorted(taken & made[label])):
                raise ConfigError(f"blocks.{label}: {both[0]!r} is in the block {other!r} as well")
    return made
