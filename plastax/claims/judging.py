"""Claims as data, and what judges them: each part of a claim names what it looks at in a run, and a rule.

A part is a `Contrast`, `Lead`, `Correlation` or `Classification`. Its ``judge`` takes the numbers from the runs and
hands them to a function of `rules`. A part that lacks something raises a `ConfigError` of one line, which says how to
record it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from plastax.claims import rules
from plastax.claims.rules import Finding
from plastax.errors import ConfigError
from plastax.report.arms import base
from plastax.report.score import score_of
from plastax.report.values import finished, task_values

if TYPE_CHECKING:
    import xarray as xr

FEWEST_TASKS = 6
"""Tasks that a run needs for its windows not to overlap."""

WINDOWS: Mapping[str, Callable[[int], slice]] = {
    "first": lambda tasks: slice(0, 1),
    "early": lambda tasks: slice(0, max(2, math.ceil(tasks / 10))),
    "later": lambda tasks: slice(1, tasks),
    "former": lambda tasks: slice(1, 1 + (tasks - 1) // 2),
    "latter": lambda tasks: slice(1 + (tasks - 1) // 2, tasks),
    "late": lambda tasks: slice(tasks - max(1, tasks // 5), tasks),
}
"""Name -> tasks: the first one, the first tenth (two at least), all but the first, their two halves, the last fifth."""


class Measure(NamedTuple):
    """Something that a run has measured in every task.

    Attributes:
      label: in words.
      variable: in the data set of `plastax.load`; "" is the score, larger where it is better.
      mark: where in a task a probe measures: ``init`` or ``end``.
      eps: threshold of an eps-rank; None is the run's natural one, `Evidence.natural`.
      rises: whether it rises where plasticity is lost; then its negative is judged.
      total: whether its values of several layers are added; otherwise their mean is taken.
    """

    label: str
    variable: str = ""
    mark: str = "init"
    eps: float | None = None
    rises: bool = False
    total: bool = False


SCORE = Measure("performance")
How = Literal["across", "within", "pooled"]


class Evidence(NamedTuple):
    """A run from which claims are judged.

    Attributes:
      name: what claims call it.
      data: see `plastax.load`.
      natural: the natural threshold ``1 / (learning rate x gradient steps of a task)``.
      record: the command that records what is missing.
    """

    name: str
    data: xr.Dataset
    natural: float
    record: str

    def refuse(self, what: str) -> ConfigError:
        """The error for something that the run lacks."""
        return ConfigError(f"{self.name}: {what}; record it with: {self.record}")

    def check(self) -> None:
        """Raises `ConfigError` if the run has too few seeds or finished tasks for any verdict."""
        seeds, tasks = self.data.sizes["seed"], int(finished(self.data).all("arm").sum())
        for name, there, least in (("seeds", seeds, rules.FEWEST), ("finished tasks", tasks, FEWEST_TASKS)):
            if there < least:
                raise self.refuse(f"the run has {there} {name}, and a verdict needs at least {least}")

    def values(self, measure: Measure) -> xr.DataArray:
        """A measure as it was recorded, (arm, seed, task); NaN in tasks without it."""
        if not measure.variable:
            score = score_of(self.data)
            found = None if score is None else task_values(self.data, score.main)
            if found is None or score is None:
                raise self.refuse("no return, accuracy or loss was recorded")
            return (found if score.higher_is_better else -found).reset_coords(drop=True)
        if measure.variable not in self.data:
            raise self.refuse(f"{measure.label} was not measured ({measure.variable} is missing)")
        found = self.data[measure.variable].sel(mark=measure.mark)
        for axis in [dim for dim in found.dims if str(dim).endswith("eps")]:
            wanted = self.natural if measure.eps is None else measure.eps
            known = found[axis].values.astype(float)
            nearest = int(np.abs(np.log(known / wanted)).argmin())
            if abs(known[nearest] / wanted - 1) > 0.02:
                listed = ", ".join(f"{eps:g}" for eps in known)
                raise self.refuse(f"{measure.label} was not measured at eps {wanted:.3g}, only at {listed}")
            found = found.isel({axis: nearest})
        layers = [dim for dim in found.dims if dim not in ("arm", "seed", "task")]
        found = found.sum(layers, min_count=1) if measure.total else found.mean(layers)
        return found.transpose("arm", "seed", "task").reset_coords(drop=True)

    def collapse(self, measure: Measure, arm: str) -> xr.DataArray:
        """A measure of one arm, (seed, task), that falls where plasticity is lost."""
        found = self.values(measure)
        if arm not in found.arm:
            raise self.refuse(f"it has no arm {arm!r} (its arms: {', '.join(map(str, found.arm.values))})")
        found = found.sel(arm=arm, drop=True)
        return -found if measure.rises else found

    def together(self, arms: list[str], *measures: Measure) -> tuple[list[np.ndarray], np.ndarray]:
        """Measures ``[arm, S, T]`` in the tasks in which all have values, and the numbers of these tasks.

        The network of task 0 is untrained, whatever the method, so that task is left out.
        """
        import xarray as xr

        found = [
            xr.concat([self.collapse(one, arm) for arm in arms], "arm").isel(task=slice(1, None)) for one in measures
        ]
        there = np.logical_and.reduce([one.notnull().all(["arm", "seed"]).values for one in found])
        if there.sum() < 3:
            labels = " and ".join(one.label for one in measures)
            raise self.refuse(f"{labels} have values in {there.sum()} common tasks after the first, and 3 are needed")
        kept = [one.isel(task=np.flatnonzero(there)) for one in found]
        return [one.values.astype(float) for one in kept], kept[0].task.values

    def learners(self) -> list[str]:
        """All arms but ``reset``, whose network is untrained at the start of every task."""
        methods = zip(self.data.arm.values.tolist(), self.data.method.values.tolist())
        return [arm for arm, method in methods if base(str(method)) != "reset"]


Runs = Mapping[str, Evidence]


class Term(NamedTuple):
    """An arm in a window of tasks (`WINDOWS`), of the run of the contrast or of another one."""

    arm: str
    window: str = "late"
    run: str = ""


@dataclass(frozen=True)
class Contrast:
    """The sum of some terms minus that of others, seed by seed: `rules.exceeds`.

    Attributes:
      label: of the part.
      run: name of the run.
      plus: terms that are added.
      minus: terms that are subtracted.
      size: the smallest difference that the claim speaks of.
      above: what the difference has to exceed.
      measure: of the terms.
      against: a second measure, of the same terms, that is subtracted; only for ``log``.
      log: whether terms are compared by their decimal logarithms, so that a difference of 0.3 is a factor of two.
    """

    label: str
    run: str
    plus: tuple[Term, ...] = ()
    minus: tuple[Term, ...] = ()
    size: float = 0.0
    above: float = 0.0
    measure: Measure = SCORE
    against: Measure | None = None
    log: bool = False

    def judge(self, runs: Runs) -> Finding:
        """The finding; see `Evidence.refuse` for what is raised."""
        parts = [(1.0, term, self.measure) for term in self.plus] + [(-1.0, term, self.measure) for term in self.minus]
        if self.against is not None:
            parts += [(-sign, term, self.against) for sign, term, _ in parts]
        total: np.ndarray = sum(sign * self._of_seeds(runs, term, measure) for sign, term, measure in parts)  # type: ignore[assignment]
        return rules.exceeds(total, self.above, self.size)

    def _of_seeds(self, runs: Runs, term: Term, measure: Measure) -> np.ndarray:
        """The mean of a term's window, ``[S]``, or its logarithm."""
        run, first = runs[term.run or self.run], runs[self.run]
        if not np.array_equal(run.data.seed, first.data.seed):
            raise run.refuse(f"its seeds are not those of {first.name}, with which it is compared seed by seed")
        found = run.collapse(measure, term.arm)
        if measure.variable and measure.mark == "init":
            found = found.where(found.task > found.task[0])  # The first network is untrained, whatever the method.
        window = found.isel(task=WINDOWS[term.window](found.sizes["task"])).mean("task").values.astype(float)
        if not self.log:
            return window
        # An eps-rank may be zero; half an eigenvalue is below what can be counted.
        least = 0.5 if measure.variable.endswith("rank") else 1e-30
        return np.sign(np.nanmean(window)) * np.log10(np.maximum(np.abs(window), least))


@dataclass(frozen=True)
class Lead:
    """Tasks by which the collapse of a measure precedes that of performance: `rules.precedes`."""

    label: str
    run: str
    measure: Measure
    arm: str = "backprop"
    size: float = 1.0

    def judge(self, runs: Runs) -> Finding:
        """As of `Contrast`."""
        (measure, score), tasks = runs[self.run].together([self.arm], self.measure, SCORE)
        return rules.precedes(measure[0], score[0], tasks, self.size)


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of a measure with performance, or with another measure.

    Attributes:
      label: of the part.
      run: name of the run.
      measure: the first quantity.
      how: ``across`` methods, ``within`` methods over tasks, or ``pooled`` over both.
      size: the smallest correlation that the claim speaks of.
      other: the second quantity.
    """

    label: str
    run: str
    measure: Measure
    how: How
    size: float = 0.3
    other: Measure = SCORE

    def judge(self, runs: Runs) -> Finding:
        """As of `Contrast`."""
        (x, y), _ = runs[self.run].together(runs[self.run].learners(), self.measure, self.other)
        rule = {
            "across": rules.correlates_across,
            "within": rules.correlates_within,
            "pooled": rules.correlates_pooled,
        }
        return rule[self.how](x, y, self.size)


@dataclass(frozen=True)
class Classification:
    """A measure at a task's start as a prediction of success: a score of at least ``share`` of that of ``reset``.

    Attributes:
      label: of the part.
      run: name of the run.
      measure: the prediction.
      how: ``area`` under the ROC curve, or ``skill`` of the measure as a probability.
      size: the smallest value that the claim speaks of.
      share: of the score of ``reset`` in the same task and seed.
    """

    label: str
    run: str
    measure: Measure
    how: Literal["area", "skill"]
    size: float
    share: float = 0.9

    def judge(self, runs: Runs) -> Finding:
        """As of `Contrast`."""
        run = runs[self.run]
        learners = run.learners()
        (score, predicted), _ = run.together([*learners, "reset"], SCORE, self.measure)
        success = score[:-1] >= self.share * score[-1:]
        rule = rules.classifies if self.how == "area" else rules.calibrated
        return rule(predicted[:-1], success, self.size)


Part = Contrast | Lead | Correlation | Classification


@dataclass(frozen=True)
class Claim:
    """A claim: supported if all of its parts are.

    Attributes:
      number: its number.
      sentence: the claim.
      source: who made it.
      parts: what is judged.
      shown: what is shown beside it and decides nothing.
    """

    number: int
    sentence: str
    source: str
    parts: tuple[Part, ...]
    shown: tuple[Part, ...] = ()

    @property
    def runs(self) -> set[str]:
        """Names of the runs that it needs."""
        parts = (*self.parts, *self.shown)
        others = {term.run for part in parts if isinstance(part, Contrast) for term in (*part.plus, *part.minus)}
        return {part.run for part in parts} | others - {""}


class Judged(NamedTuple):
    """A claim with the findings of its parts, and of those that are only shown."""

    claim: Claim
    findings: tuple[Finding, ...]
    shown: tuple[Finding, ...]

    @property
    def decisive(self) -> Finding:
        """The finding that decides, see `rules.all_of`."""
        return rules.all_of(self.findings)

    @property
    def part(self) -> Part:
        """The part that decides."""
        return self.claim.parts[self.findings.index(self.decisive)]


def judge(claim: Claim, runs: Runs) -> Judged:
    """Judges a claim; raises `ConfigError` for what the runs lack."""
    return Judged(claim, *(tuple(part.judge(runs) for part in parts) for parts in (claim.parts, claim.shown)))
