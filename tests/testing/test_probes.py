"""`check_probe` fails for probes that break a promise, and says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from plastax import testing
from plastax.probes.base import ProbeConfig
from plastax.types import Model, Probe, ProbeInput
from tests.testing.test_methods import mean_of_all

RANDOM = np.random.default_rng(0)


@dataclass(frozen=True)
class Mean(ProbeConfig):
    """The mean of every hidden layer's features; the cases below break it in one place each."""

    name: ClassVar[str] = "mean"
    dims: ClassVar = {"mean": ("feature_layer",)}
    coords: ClassVar = {"feature_layer": None}

    def build(self, model: Model) -> Probe:
        coords = {axis: labels or model.hidden for axis, labels in self.coords.items()}
        return Probe(self.name, lambda seen: self.measure(seen, model), self.dims, coords, every=self.every)

    def measure(self, seen: ProbeInput, model: Model) -> dict[str, Any]:
        features = seen.features_fn(seen.params, seen.batch)
        return {"mean": self.value(seen, jnp.stack([features[name].mean() for name in model.hidden]))}

    def value(self, seen: ProbeInput, means: Any) -> Any:
        return means


class Scalar(Mean):
    dims: ClassVar = {"mean": ()}


class Selecting(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return means[means > 0]


class Whole(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return jnp.round(means).astype(jnp.int32)


class Logarithm(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return jnp.log(means)


class Numpy(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return means + RANDOM.normal()


class Mixing(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return mean_of_all(means)


class Remembering(Mean):
    def value(self, seen: ProbeInput, means: Any) -> Any:
        return means + seen.previous["output"]["kernel"].sum()


class Labelled(Mean):
    coords: ClassVar = {"feature_layer": ("a", "b", "c")}


class Promising(Mean):
    dims: ClassVar = {"mean": ("feature_layer",), "median": ()}


class Renamed(Mean):
    def build(self, model: Model) -> Probe:
        return super().build(model)._replace(name="other")


def test_a_good_probe_passes_as_object_and_as_class() -> None:
    testing.check_probe(Mean())
    testing.check_probe(Mean, kinds=("supervised",))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (Scalar, r"mean: the value mean has the shape \(2,\), and dims names the axes \(\).*Probe.dims: value name"),
        (Selecting, "Selecting .supervised.: measure raises NonConcreteBooleanIndexError.*fixed shapes.*let shapes"),
        (Whole, "mean: the value mean is of type int32.*give floats"),
        (Logarithm, "Logarithm .supervised.: the value mean of a network of silent units is not finite"),
        (Numpy, "Numpy .supervised.: the same call gives another program.*ProbeInput.key: the probe's own key"),
        (Mixing, "Mixing .supervised.: the values of a network change with its neighbour"),
        (Remembering, "Remembering .supervised.: measure raises TypeError.*needs_previous=True"),
        (Labelled, "mean: the axis feature_layer of mean has 2 entries, and 3 labels"),
        (Promising, "mean: dims has median, which measure does not give"),
        (Renamed, "Renamed .supervised.: it is called mean, and its probe other.*Probe.name: prefix of its values"),
    ],
)
def test_a_broken_promise_is_named(config: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){says}"):
        testing.check_probe(config)
