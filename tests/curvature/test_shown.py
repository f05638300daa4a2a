"""What importing curvature costs, and how spectra and estimates look."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import figure

from plastax import curvature

HEAVY = ("flax", "gymnax", "wandb", "xarray", "pandas", "matplotlib", "plotly", "orbax", "sklearn", "submitit", "tyro")


def test_importing_curvature_imports_no_more_than_it_needs() -> None:
    said = "import sys; from plastax import curvature; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.split()
    assert "jax" in loaded
    assert not {*HEAVY} & {*loaded}


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (1833.4193, 507.0575, "1833 ± 507"),
        (16.234, 1.81, "16.2 ± 1.8"),
        (0.12345, 0.00678, "0.1235 ± 0.0068"),
        (2.0, 0.0, "2 ± 0"),
        (1.234e-9, 2e-10, "1.23e-09 ± 2e-10"),
        (3.21e8, 1.5e7, "3.21e+08 ± 1.5e+07"),
        (np.nan, np.nan, "nan ± nan"),
    ],
)
def test_an_estimate_is_shown_to_two_digits_of_its_error(value: float, error: float, shown: str) -> None:
    assert str(curvature.Estimate(jnp.float32(value), jnp.float32(error))) == shown


def test_many_estimates_and_traced_ones_can_be_shown() -> None:
    assert str(curvature.Estimate(jnp.arange(2.0), jnp.ones(2))) == "[0.0 ± 1.0, 1.0 ± 1.0]"
    seen: list[str] = []
    s = curvature.from_eigenvalues(jnp.array([4.0, 1.0]), 3)

    @jax.jit
    def trace(s: curvature.Spectrum) -> curvature.Estimate:
        seen.extend((repr(s), repr(s.trace())))
        return s.trace()

    assert str(jax.vmap(trace)(jax.tree.map(lambda x: jnp.stack([x, x]), s))) == "[5 ± 0, 5 ± 0]"
    assert all("\n" not in one for one in seen)


def test_what_is_read_of_a_spectrum_compiles_as_one_program(compilations) -> None:
    """Operation by operation it would be more than a hundred, seconds for the first line that a user prints."""
    s = curvature.from_eigenvalues(jnp.arange(1.0, 14.0), 13)
    before = compilations()
    repr(s)
    s.effective_rank(), s.rank(0.5), s.rank(0.1)
    assert compilations() - before <= 4  # fewer if another test read one of this shape


@pytest.mark.parametrize("kind", [int, np.int64])
def test_more_parameters_than_32_bits_count(kind: type) -> None:
    s = curvature.from_eigenvalues(jnp.array([3.0, 2.0, 1.0]), 3_000_000_000)
    s = s._replace(dim=kind(s.dim))
    assert [str(one) for one in (s.trace(), s.rank(1.5), s.condition_number())] == ["6 ± 0", "2 ± 0", "3 ± 0"]
    heights = s.density(jnp.array([0.0]), bandwidth=1.0)[1]
    np.testing.assert_allclose(heights, 1 / np.sqrt(2 * np.pi), rtol=1e-5)


def test_a_spectrum_is_one_line_a_dictionary_and_a_figure() -> None:
    s = curvature.from_eigenvalues(jnp.array([8.0, 2.0, -1.0]), 5)
    assert repr(s) == "Spectrum(dim 5, 3 x 1, top 8, trace 9 ± 0)"
    stored = json.loads(json.dumps(s.to_dict()))
    assert stored["nodes"] == [[-1.0, 2.0, 8.0]]
    assert stored["dim"] == 5
    assert s.trace().to_dict() == {"value": 9.0, "standard_error": 0.0}
    axes = figure.Figure().subplots()
    assert s.plot(axes) is axes
    curve, nodes = (line.get_xydata() for line in axes.get_lines())
    assert nodes[:, 0].tolist() == [-1.0, 2.0, 8.0]
    x, y = curve.T
    assert y[np.argmin(np.abs(x - 8.0))] > 10 * y[np.argmin(np.abs(x - 4.0))]  # A mode at each eigenvalue.


def test_a_seed_in_the_place_of_a_key_is_told_the_key() -> None:
    with pytest.raises(ValueError, match=r"got 3; for the seed 3 give jax.random.key\(3\)"):
        curvature.spectrum(curvature.from_matrix(jnp.eye(3)), 3)


def test_arguments_in_their_old_order_are_told_the_new_one() -> None:
    batch = jnp.eye(2), jnp.zeros(2)
    with pytest.raises(ValueError, match="the order is function, params, data, loss"):
        curvature.ggn(lambda w, batch: batch[0] @ w, "mse", jnp.ones(2), batch)
