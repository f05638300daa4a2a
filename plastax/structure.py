"""Reads from the names and shapes of a layer's arrays what they are; for `plastax.roles`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["kernel", "bias", "scale", "offset", "embedding", "other", "unknown"]


class Kernel(NamedTuple):
    """The meaning of a kernel's axes; every other axis stacks layers of one kind (`nn.scan`, `nn.vmap`).

    Attributes:
      inputs: axes of what a unit reads at one place.
      outputs: axes of the units.
      places: axes of a convolution's window.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    places: tuple[int, ...] = ()


DENSE = Kernel((-2,), (-1,))


def convolution(axes: int) -> Kernel:
    """The kernel ``[*window, inputs, outputs]`` of a convolution over ``axes`` axes.

    Examples:
      >>> convolution(2)
      Kernel(inputs=(-2,), outputs=(-1,), places=(-4, -3))
    """
    return Kernel((-2,), (-1,), tuple(range(-2 - axes, -2)))


SHIFTS = frozenset({"bias", "b", "beta", "offset", "shift"})
_SCALES = frozenset({"scale", "gamma", "g", "weight"})
_EMBEDDINGS = frozenset({"embedding", "embeddings"})
_ATTENTION = frozenset({"query", "key", "value", "out"})


def kinds_of(
    layer: str,
    parts: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
    stacked: int,
    declared: frozenset[str],
) -> dict[str, Kind]:
    """What the parameters of one layer are.

    Args:
      layer: its path.
      parts: parameter -> shape.
      types: parameter -> name of the type that holds it, empty in trees of dicts.
      stacked: leading axes that stack layers.
      declared: parameters declared as kernels.
    """

    def is_matrix(part: str) -> bool:
        return part in declared or len(parts[part]) - stacked >= 2

    known = {part for part in parts if part in ("kernel", "w", "W", "weight") and is_matrix(part)} | set(declared)
    twins = len(parts) == 2 and len(set(parts.values())) == 1 and len(SHIFTS & set(parts)) == 1 and not declared
    normalizes = ("scale" in parts and not known) or (twins and not {"kernel", "w", "W"} & set(parts))
    normalizes |= not any(map(is_matrix, parts)) and any("Norm" in types[part] for part in parts)
    found: dict[str, Kind] = {}
    for part, shape in parts.items():
        embeds = part in _EMBEDDINGS or "Embedding" in types[part]
        if part in declared:
            found[part] = "kernel"
        elif embeds:
            found[part] = "embedding"
        elif part == "scale" or normalizes:
            found[part] = "offset" if part in SHIFTS else "scale"
        elif part in known:
            # A lone `weight` of unknown type may be a table of embeddings.
            sure = part != "weight" or len(parts) > 1 or types[part]
            found[part] = "kernel" if sure else "unknown"
        elif is_matrix(part) and not known and part not in SHIFTS:
            found[part] = "kernel"
        elif known or any(is_matrix(p) and p not in SHIFTS for p in parts):
            scale = not layer and any(word in part.lower() for word in ("scale", "gamma", "norm"))
            found[part] = "unknown" if scale else "bias" if part in SHIFTS or len(parts) == 2 else "other"
        elif part in _SCALES - {"g", "weight"}:
            found[part] = "scale"
        else:
            nested = bool(layer) and len(shape) > 0 and part not in ("w", "kernel")
            found[part] = "unknown" if nested else "other"
    return found


def is_attention(layer: str, shapes: Mapping[str, Any]) -> bool:
    """Whether a layer is one of the four of an attention in Flax, ``query``, ``key``, ``value`` and ``out``."""
    above, _, last = layer.rpartition("/")
    return last in _ATTENTION and all((f"{above}/{one}" if above else one) in shapes for one in _ATTENTION)


def readings_of(
    part: str, owner: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, stacked: int | None, attention: str
) -> tuple[Kernel, ...]:
    """All readings of a kernel's axes that its bias's shape allows."""
    size = len(shape)
    if attention and size >= 3:
        first = size - 3
        head = Kernel((first,), (first + 1, first + 2))
        return (Kernel((first, first + 1), (first + 2,)) if attention == "out" else head,)
    depths = range(size - 1) if stacked is None else (stacked,)
    if bias is None and size == 2:
        depths = (0,)
    found = []
    if part != "weight":  # [*inputs, *units], as Flax and Haiku have it.
        for depth in depths:
            for units in range(1, size - depth):
                between = tuple(range(depth, size - units))
                if bias is None or bias == shape[:depth] + shape[size - units :]:
                    found.append(Kernel(between, tuple(range(size - units, size))))
                    if units == 1 and len(between) > 1:
                        found.append(Kernel(between[-1:], (size - 1,), between[:-1]))
    if part not in ("kernel", "w"):  # [units, inputs, *places], as Equinox and PyTorch have it.
        for depth in depths:
            rest = tuple(range(depth + 2, size))
            ends = (shape[: depth + 1], shape[: depth + 1] + (1,) * len(rest))
            if depth + 1 < size and (bias is None or bias in ends):
                found.append(Kernel((depth + 1,), (depth,), rest))
    if part == "weight" and not owner:  # In a dict either order is possible.
        found += readings_of("kernel", owner, shape, bias, stacked, attention)
    return tuple(dict.fromkeys(found))
