"""Curvature of any function: operators, Lanczos spectra with error bars, Kronecker factors. Knows no experiment.

```
op = curvature.hessian(loss_fn, params, data=batch)
s = curvature.spectrum(op, key, order=64, probes=4)
s.rank(1e-3)            # Estimate(value, standard_error)
s.effective_rank()
```
"""

from __future__ import annotations

from plastax.curvature import kronecker, lanczos
from plastax.curvature.operators import dense, from_matrix, ggn, hessian
from plastax.curvature.quadrature import spectrum
from plastax.curvature.spectrum import Estimate, Extremes, Spectrum, from_eigenvalues
from plastax.types import Loss

__all__ = [
    "Estimate",
    "Extremes",
    "Loss",
    "Spectrum",
    "dense",
    "from_eigenvalues",
    "from_matrix",
    "ggn",
    "hessian",
    "kronecker",
    "lanczos",
    "spectrum",
]
