"""Claims judged from a synthetic run whose truth is known, and what a run that lacks something is refused with."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import claims
from plastax import report
from plastax.claims import judging
from plastax.claims.judging import Classification, Contrast, Correlation, Evidence, Lead, Measure, Term
from plastax.errors import ConfigError
from plastax.records.layout import write_json, write_segment
from plastax.types import Record

KEPT = {"backprop": 0.1, "er": 0.2, "l2": 0.5, "redo": 0.6, "cbp": 0.7, "l2_er": 0.8, "norm": 0.9, "reset": 1.0}
"""Arm -> share of its accuracy that it keeps after task 7; its eps-rank falls likewise after task 4."""
TASKS, EPS, RECORD = 14, (0.01, 1.0), "make claims"
RANK, DORMANT = (
    Measure("eps-rank", "probe/hessian/rank"),
    Measure("dormant units", "probe/features/dormant", rises=True),
)


def make_run(directory: pathlib.Path, seeds: int = 6, tasks: int = TASKS) -> pathlib.Path:
    """A run of the methods above."""
    dims = {"hessian/rank": ("eps",), "features/dormant": ("feature_layer",)}
    settings = {"methods": list(KEPT), "seeds": seeds, "tasks": tasks, "updates_per_task": 1, "first_seed": 3}
    config: dict[str, Any] = {"experiment": "synthetic", "run_id": "s0", "hash": "0", "settings": settings}
    config |= {"dims": dims, "coords": {"eps": EPS, "feature_layer": ("a", "b")}}
    write_json(directory / "config.json", config)
    for index, (arm, kept) in enumerate(KEPT.items()):
        rng = np.random.default_rng(index)
        for task in range(tasks):
            rank = 100.0 * (kept if task >= 5 else 1.0) + rng.standard_normal((seeds, 1, 1))
            probe = {
                "hessian/rank": np.repeat(rank, 2, 1) * np.array([2.0, 1.0]),
                "features/dormant": 1 - np.repeat(np.repeat(rank / 110, 2, 1), 2, 2),
            }
            accuracy = 0.9 * (kept if task >= 8 else 1.0) + 0.01 * rng.standard_normal((seeds, 1))
            host = {"clock": task, "length": 1, "task": task, "train_seconds": 0.5, "env_steps": 10.0}
            write_segment(directory / "records" / arm, task, Record({"accuracy": accuracy}, probe), host)
    return directory


def evidence(directory: pathlib.Path) -> Evidence:
    return Evidence("digits", report.read(directory), 1.0, RECORD)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Evidence]:
    return {"digits": evidence(make_run(tmp_path_factory.mktemp("run")))}


@pytest.mark.parametrize(
    ("part", "effect"),
    [
        (Contrast("falls", "digits", (Term("l2", "early"),), (Term("l2", "late"),), 0.1), 0.45),
        (Contrast("log", "digits", (Term("l2", "early"),), (Term("l2", "late"),), 0.1, log=True), np.log10(2)),
        (Contrast("rank", "digits", (Term("l2_er"),), (Term("l2"),), 5.0, measure=RANK), 30.0),
        (Contrast("dormancy", "digits", (Term("l2_er"),), (Term("l2"),), 0.1, measure=DORMANT), 30.0 / 110),
        (Contrast("ratio", "digits", (Term("l2"),), (), 0.1, 0, RANK._replace(eps=0.01), RANK, log=True), np.log10(2)),
        (Lead("lead", "digits", RANK), 3.0),
        (Lead("lead of what rises", "digits", DORMANT), 3.0),
        (Correlation("across", "digits", RANK, "across"), 1.0),
        (Correlation("within", "digits", RANK, "within"), None),
        (Classification("area", "digits", RANK, "area", 0.7), None),
    ],
    ids=lambda part: getattr(part, "label", ""),
)  # fmt: skip
def test_a_planted_effect_is_found_and_measured(part, effect, runs):
    found = part.judge(runs)
    assert found.verdict == "supported"
    assert found.low <= found.effect <= found.high
    if effect is not None:
        assert found.effect == pytest.approx(effect, abs=0.02 * max(1, abs(effect)))


def test_what_is_claimed_the_wrong_way_round_is_not_supported(runs):
    part = Contrast("rises", "digits", (Term("l2", "late"),), (Term("l2", "early"),), 0.1)
    assert part.judge(runs).verdict == "not supported"
    good = Contrast("falls", "digits", (Term("l2", "early"),), (Term("l2", "late"),), 0.1)
    claim = judging.Claim(1, "both", "nobody", (good, part), (good,))
    judged = judging.judge(claim, runs)
    assert (judged.decisive.verdict, judged.part) == ("not supported", part)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Lead("", "digits", Measure("Gauss-Newton rank", "probe/ggn/rank")), "Gauss-Newton rank was not measured"),
        (Lead("", "digits", RANK._replace(eps=0.3)), "not measured at eps 0.3, only at 0.01, 1"),
        (Lead("", "digits", RANK, "adam"), "no arm 'adam' (its arms: backprop, er,"),
    ],
)
def test_what_a_run_lacks_is_named_in_one_line_with_the_command_that_records_it(part, said, runs):
    with pytest.raises(ConfigError) as refused:
        part.judge(runs)
    line = str(refused.value)
    assert said in line
    assert line.startswith("digits: ")
    assert line.endswith(f"record it with: {RECORD}")
    assert "\n" not in line


@pytest.mark.parametrize(("sizes", "said"), [((2, 8), "2 seeds"), ((4, 3), "3 finished tasks")])
def test_a_run_that_is_too_small_for_any_verdict_is_refused(sizes, said, tmp_path):
    with pytest.raises(ConfigError, match=f"the run has {said}, and a verdict needs at least"):
        evidence(make_run(tmp_path, *sizes)).check()


def test_seeds_that_differ_are_not_compared_one_by_one(runs, tmp_path):
    other = evidence(make_run(tmp_path, seeds=4))._replace(name="fast")
    part = Contrast("", "digits", (Term("l2", run="fast"),), (Term("l2"),), 0.1)
    with pytest.raises(ConfigError, match="fast: its seeds are not those of digits"):
        part.judge(runs | {"fast": other})


def test_the_claims_name_runs_that_are_designed_and_are_eleven():
    assert [claim.number for claim in claims.CLAIMS] == list(range(1, 12))
    assert set().union(*(claim.runs for claim in claims.CLAIMS)) == set(claims.DESIGNS)
    labels = [part.label for claim in claims.CLAIMS for part in (*claim.parts, *claim.shown)]
    assert all(labels)


@pytest.mark.parametrize("preset", claims.FIRST_SEEDS)
@pytest.mark.parametrize("name", claims.DESIGNS)
def test_a_design_measures_eps_ranks_at_the_natural_threshold(name, preset, tmp_path):
    one = claims.DESIGNS[name].planned(name, preset, tmp_path, 0)
    config = one.study.config
    if hasattr(config, "ppo"):
        rate, updates = config.ppo.learning_rate, config.steps_per_task // config.ppo.steps_per_update
        steps = updates * config.ppo.epochs * config.ppo.minibatches
    else:
        examples = getattr(config.stream, "period", 0) or config.stream.examples
        rate, training = config.training.learning_rate, config.training
        steps = training.blocks(examples).steps_per_update * training.updates
    assert one.natural == pytest.approx(1 / (rate * steps))
    for probe in claims.DESIGNS[name].spectra:
        assert one.natural in getattr(config, probe).eps
