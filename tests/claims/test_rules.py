"""The rules are honest: without an effect they rarely support a claim, and a planted effect is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plastax.claims import rules

SEEDS, TASKS, METHODS = 8, 30, 10
Study = Callable[[np.random.Generator, float], rules.Finding]
"""``(random numbers, planted effect in units of the claimed one)`` -> what the rule says of one study."""


def _contrast(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Differences between seeds that scatter by four fifths of the claimed effect."""
    return rules.exceeds(0.1 * planted + 0.08 * rng.standard_normal(SEEDS), size=0.1)


def _kept(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Non-inferiority: nothing is planted if as much is lost as must not be lost."""
    return rules.exceeds(-0.1 * (1 - planted) + 0.08 * rng.standard_normal(SEEDS), above=-0.1, size=-0.1)


def _falling(rng: np.random.Generator, at: np.ndarray, drop: float) -> np.ndarray:
    return rng.standard_normal((SEEDS, TASKS)) - drop * (np.arange(TASKS) >= at[:, None])


def _lead(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Score and measure fall by three times the noise, the measure a task earlier; without an effect, in the same."""
    at = rng.integers(10, 20, SEEDS)
    return rules.precedes(_falling(rng, at - round(planted), 3.0), _falling(rng, at, 3.0), np.arange(TASKS), 1.0)


def _useless(rng: np.random.Generator, planted: float) -> rules.Finding:
    """The score falls late, and the measure is noise."""
    at = np.full(SEEDS, 22)
    return rules.precedes(_falling(rng, at - 5, 2.0 * planted), _falling(rng, at, 2.0), np.arange(TASKS), 1.0)


def _within(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Methods differ in both, whatever is planted."""
    x, noise = rng.standard_normal((2, METHODS, SEEDS, TASKS))
    x, y = (v + 3 * rng.standard_normal((METHODS, 1, 1)) for v in (x, 0.35 * planted * x + noise))
    return rules.correlates_within(x, y, 0.3)


def _across(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Methods that are related with the correlation of the paper's figure; seeds and tasks add noise."""
    r = 0.84 * planted
    of_methods = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], METHODS)
    x, y = of_methods.T[..., None, None] + 0.3 * rng.standard_normal((2, METHODS, SEEDS, TASKS))
    return rules.correlates_across(x, y, 0.5)


def _pooled(rng: np.random.Generator, planted: float) -> rules.Finding:
    x, noise = rng.standard_normal((2, METHODS, SEEDS, TASKS))
    return rules.correlates_pooled(x, 0.35 * planted * x + noise, 0.3)


def _area(rng: np.random.Generator, planted: float) -> rules.Finding:
    success = rng.random((METHODS, SEEDS, TASKS)) < 0.4
    return rules.classifies(rng.standard_normal(success.shape) + planted * success, success, 0.7)


def _skill(rng: np.random.Generator, planted: float) -> rules.Finding:
    """Probabilities that are right, if planted, or else of other tasks."""
    probability = rng.beta(0.5, 0.5, (METHODS, SEEDS, TASKS))
    true = probability if planted else rng.permuted(probability, axis=2)
    return rules.calibrated(probability, rng.random(true.shape) < true, 0.1)


RULES: dict[str, Study] = {
    name.strip("_"): rule
    for name, rule in globals().items()
    if name in ("_contrast", "_kept", "_lead", "_useless", "_within", "_across", "_pooled", "_area", "_skill")
}


def shares(study: Study, planted: float, studies: int) -> float:
    """Share of studies in which the rule supports the claim."""
    found = [study(np.random.default_rng((k, 7)), planted).verdict for k in range(studies)]
    return found.count("supported") / studies


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_without_an_effect_at_most_one_study_in_twenty_supports_the_claim(name):
    assert shares(RULES[name], 0.0, 200) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_planted_effect_is_found_in_four_of_five_studies(name):
    assert shares(RULES[name], 1.0, 200) >= 0.8


@pytest.mark.parametrize("name", RULES)
def test_rules_tell_an_effect_from_none(name):
    """The two tests above on a few studies."""
    assert shares(RULES[name], 0.0, 20) <= 0.15
    assert shares(RULES[name], 1.0, 20) >= 0.6
