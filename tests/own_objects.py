"""The source of a module of one's own objects: a user's, which tests write into a folder and name."""

from __future__ import annotations

OWN = '''
"""What a user has."""

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
import optax

from plastax.methods.base import Settings
from plastax.models import MLP
from plastax.probes.base import ProbeConfig
from plastax.rl import Chain
from plastax.streams import RandomLabel
from plastax.types import Probe


def die(count):
    if str(count) == os.environ.get("DIE_AT"):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class CPR(Settings):
    """Takes a part of the parameters away."""

    rate: float = 0.001
    """The part that a step takes."""

    def build(self, inner, model=None):
        def update(updates, count, params=None, **extra):
            jax.debug.callback(die, count)
            return jax.tree.map(lambda u, p: u - self.rate * p, updates, params), count + 1

        last = optax.GradientTransformationExtraArgs(lambda params: 0, update)
        return optax.chain(inner, last)


@dataclass(frozen=True)
class Nothing(Settings):
    """Has no settings."""


@dataclass(frozen=True)
class MyNorm(ProbeConfig):
    """The norm of the parameters."""

    name: ClassVar[str] = "my_norm"

    power: float = 1.0
    """An exponent."""

    def build(self, model):
        def measure(seen):
            return {"value": optax.global_norm(seen.params) ** self.power}

        return Probe("my_norm", measure, {}, {}, self.every)


@dataclass(frozen=True)
class Hidden(MyNorm):
    def build(self, model):
        return super().build(model)._replace(name="features")


@dataclass(frozen=True)
class Empty(MyNorm):
    def build(self, model):
        return None


@dataclass(frozen=True)
class Rising(RandomLabel):
    """A stream of images."""


@dataclass(frozen=True)
class Net:
    """A network without a setting hidden."""

    width: int = 8
    """Units."""

    def build(self, input_shape, outputs, continuous=False):
        return MLP(hidden=(self.width,)).build(input_shape, outputs)


@dataclass(frozen=True)
class Windy(Chain):
    """A stream."""

    wind: float = 1.0
    """Metres a second."""


@dataclass(frozen=True)
class Narrow(Settings):
    def build(self, inner):
        return inner


@dataclass(frozen=True)
class Decay(Settings):
    def build(self, inner, model=None):
        return optax.chain(optax.sgd(0.5), optax.add_decayed_weights(-1.0))


@dataclass(frozen=True)
class Void(Settings):
    def build(self, inner, model=None):
        return None


class Bare(Settings):
    strength: float = 1.0


@dataclass(frozen=True)
class Lambda(Settings):
    pass


@dataclass(frozen=True)
class Needy(Settings):
    rate: float


@dataclass
class Changing:
    rates: list


@dataclass(frozen=True)
class L2(CPR):
    pass


@dataclass(frozen=True)
class Cpr(CPR):
    pass


def function():
    pass


strong = CPR(0.5)
images = (np.arange(120.0).reshape(30, 4), np.arange(30) % 3)
'''
