"""One way to check the range of a setting, and to say it."""

from __future__ import annotations

import types

import jax.numpy as jnp
import pytest

from plastax import ranges
from plastax.errors import ConfigError


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        ({"least": 1}, (1, 7), (0, -3, float("nan")), "1 or more"),
        ({"above": 0}, (1e-9,), (0, 0.0, float("nan")), "a number above 0"),
        ({"least": 0, "most": 1}, (0, 0.5, 1), (-1e-9, 1.1), "a number from 0 to 1"),
        ({"least": 0, "below": 1}, (0, 0.99), (1, -1), "a number at least 0 and below 1"),
        ({"above": 0, "most": 1}, (1, 0.1), (0, 2), "a number above 0 and at most 1"),
    ],
)
def test_what_is_outside_is_refused_in_a_line(bounds, inside, outside, said):
    for value in inside:
        ranges.check(types.SimpleNamespace(x=value, y=(value, inside[0])), "group", "x", "y", **bounds)
    for value in outside:
        with pytest.raises(ConfigError) as error:
            ranges.check(types.SimpleNamespace(x=value), "group", "x", **bounds)
        assert str(error.value) == f"group.x: {value} is not allowed; give {said}"
        with pytest.raises(ConfigError, match=r"^x: "):
            ranges.check(types.SimpleNamespace(x=(inside[0], value)), "", "x", **bounds)


def test_traced_values_pass():
    ranges.check(types.SimpleNamespace(x=jnp.float32(-1)), "group", "x", least=0)
