"""What `import plastax` gives."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import plastax

ROOT = pathlib.Path(__file__).parent.parent


def test_public_names_are_there():
    assert dir(plastax) == plastax.__all__
    for name in plastax.__all__:
        assert getattr(plastax, name) is not None
    heavy = ["jax", "optax", "xarray", "pandas", "matplotlib", "wandb", "orbax", "gymnax"]
    alone = f"import sys, plastax; plastax.__version__; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'studdy'"):
        plastax.studdy  # noqa: B018
