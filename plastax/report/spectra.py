"""Spectral densities as histograms with bins that are logarithmic in both directions from zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def symlog_edges(smallest: float, largest: float, per_decade: int = 8) -> np.ndarray:
    """Bin edges, symmetric around zero: one bin ``[-smallest, smallest]``, logarithmic ones outwards.

    Args:
      smallest: end of the bin around zero; rounded down to a power of ten.
      largest: end of the outermost bins; rounded up to a power of ten.
      per_decade: bins per decade.

    Returns:
      ``[2 n + 2]`` ascending, with n = decades times ``per_decade``.

    Raises:
      ValueError: unless 0 < smallest < largest, both finite.
    """
    if not 0.0 < smallest < largest < np.inf:
        raise ValueError(
            f"smallest: {smallest} and largest: {largest} are not allowed; give 0 < smallest < largest, finite"
        )
    low, high = np.floor(np.log10(smallest)), np.ceil(np.log10(largest))
    positive = np.logspace(low, high, int(high - low) * per_decade + 1)
    return np.concatenate([-positive[::-1], positive])


def histogram(nodes: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the eigenvalues in every bin, from quadratures of any number of probe vectors and seeds.

    Args:
      nodes: ``[..., K]`` quadrature nodes (Ritz values). A quadrature with NaN is left out, except where both nodes and
        weights have NaN, which pads shorter ones.
      weights: ``[..., K]``, non-negative, summing to one for every quadrature.
      edges: ``[bins + 1]`` ascending.

    Returns:
      ``[bins]``, the mean over the quadratures; sums to one. Nodes outside the edges count in the outermost bins. NaN
      without any quadrature.
    """
    nodes = np.asarray(nodes, np.float64).reshape(-1, np.shape(nodes)[-1])
    weights = np.asarray(weights, np.float64).reshape(nodes.shape)
    # Read together with a study of more nodes, quadratures are padded with NaN.
    filled = np.isnan(nodes) & np.isnan(weights)
    usable = np.all(np.isfinite(nodes) & np.isfinite(weights) | filled, axis=-1) & ~np.all(filled, axis=-1)
    if not usable.any():
        return np.full(len(edges) - 1, np.nan)
    there = usable[:, None] & ~filled
    counts, _ = np.histogram(np.clip(nodes[there], edges[0], edges[-1]), edges, weights=weights[there])
    return counts / usable.sum()


def density(
    data: xr.Dataset, operator: str = "hessian", mark: str = "init", decades: int = 6, per_decade: int = 8
) -> xr.DataArray | None:
    """Spectral densities of all methods and tasks, over common bins.

    Args:
      data: a study, see `plastax.load`.
      operator: ``hessian`` or ``ggn``.
      mark: ``init`` or ``end`` of the task.
      decades: number of decades of the bins, down from the largest absolute eigenvalue of the study.
      per_decade: bins per decade.

    Returns:
      Share of the eigenvalues (arm, task, bin), pooled over seeds and probes, NaN where not measured; coordinates
      ``low`` and ``high`` along ``bin`` are its edges. None if the study has no such spectra.
    """
    import xarray as xr

    names = [f"probe/{operator}/{part}" for part in ("nodes", "weights")]
    if any(name not in data for name in names):
        return None
    nodes, weights = (data[name].sel(mark=mark).transpose("arm", "task", "seed", ...) for name in names)
    largest = float(np.abs(nodes).max())
    if not 0.0 < largest < np.inf:
        return None
    top = 10.0 ** np.ceil(np.log10(largest))
    edges = symlog_edges(top / 10.0**decades, top, per_decade)
    out = np.full((nodes.sizes["arm"], nodes.sizes["task"], len(edges) - 1), np.nan)
    values, shares = nodes.values, weights.values
    for m, t in np.ndindex(out.shape[:2]):
        out[m, t] = histogram(values[m, t], shares[m, t], edges)
    coords = {**data.arm.coords, "task": data.task, "low": ("bin", edges[:-1]), "high": ("bin", edges[1:])}
    return xr.DataArray(out, dims=("arm", "task", "bin"), coords=coords, name="share")


def counts(data: xr.Dataset, operator: str, per_decade: int = 8) -> tuple[xr.DataArray | None, str]:
    """`density` in numbers of eigenvalues, or as it is if the size of the network is unknown; and what the values are.

    Returns:
      (arm, task, bin), or None without spectra; its unit in words.
    """
    shares, sizes = density(data, operator, per_decade=per_decade), data.get(f"probe/{operator}/dim")
    if shares is None or sizes is None:
        return shares, "share of the eigenvalues per bin"
    # All networks of an arm have the same number of parameters, but arms may differ.
    return shares * sizes.max([dim for dim in sizes.dims if dim != "arm"]), "eigenvalues per bin"


def signed_log(values: np.ndarray | float, smallest: float) -> np.ndarray:
    """``sign(v) (1 + log10(|v| / smallest))``, linear within +-smallest: a symmetric-log axis for tools without one."""
    values = np.asarray(values, np.float64)
    ratio = np.abs(values) / smallest
    return np.sign(values) * np.where(ratio > 1.0, 1.0 + np.log10(np.maximum(ratio, 1.0)), ratio)
