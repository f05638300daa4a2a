"""What plastax does differently from platform to platform: chosen in one place, overridden by variables, recorded."""

from __future__ import annotations

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from plastax import machine, platforms
from plastax.errors import ConfigError
from plastax.models.convolution import Conv
from plastax.platforms import CHOICES, VARIABLES, chosen
from plastax.records import environment

ROOT = pathlib.Path(platforms.__file__).parent
ASK = {
    "platforms": "what is chosen",
    "curvature/memory": "whose memory is free",
    "runs/memory": "whose memory is free",
    "records/environment": "what is recorded",
}


def convolutions() -> int:
    """How many operations of XLA's own a convolution becomes."""
    layer, image = Conv(3, (3, 3)), jnp.ones((1, 8, 8, 2))
    text = jax.jit(lambda x: layer.init_with_output(jax.random.key(0), x)[0]).lower(image).as_text()
    return text.count("stablehlo.convolution")


def test_the_platform_chooses_unless_a_variable_does(monkeypatch):
    assert chosen({}) == CHOICES["cpu"]
    assert chosen({"PLASTAX_LANCZOS": ""}) == CHOICES["cpu"]
    assert convolutions() == 0
    monkeypatch.setenv("PLASTAX_CONVOLUTIONS", "xla")
    assert chosen() == CHOICES["cpu"]._replace(convolutions="xla")
    assert convolutions() == 1


def test_an_override_is_recorded_and_not_continued_over(monkeypatch):
    before = environment.environment()
    assert before["choices"] == CHOICES["cpu"]._asdict()
    monkeypatch.setenv("PLASTAX_LANCZOS", "batch")
    after = environment.environment()
    assert after["choices"]["lanczos"] == "batch"
    assert environment.changes(before, after) == ["lanczos"]
    del before["choices"]  # A run from before they were recorded.
    assert environment.changes(before, after) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PLASTAX_CONVOLUTIONS", "cudnn", ["PLASTAX_CONVOLUTIONS", "'cudnn'", "patches or xla"]),
        ("PLASTAX_DECOMPOSITIONS", "batch", ["PLASTAX_DECOMPOSITIONS", "deadlock", "loop"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_compiles(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        machine.check()
    assert all(word in str(error.value) for word in words)


def test_other_modules_do_not_ask_which_platform_it_is():
    asking = re.compile(r"default_backend\(|\.platform\b(?!\()")
    found = {str(p.relative_to(ROOT).with_suffix("")) for p in ROOT.rglob("*.py") if asking.search(p.read_text())}
    assert found == ASK.keys(), "a new choice belongs in plastax/platforms.py, and so does its reason"


def test_every_variable_is_a_choice():
    assert {"convolutions", "narrow_layers", "decompositions", "lanczos"} == VARIABLES.keys()
