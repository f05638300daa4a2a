"""The score of a study: return, accuracy or loss, its place in the record, and the tasks that it is averaged over.

The score is the first of `SCORES` whose main quantity was measured. Tables, figures and sinks read this description and
know nothing else about reinforcement or supervised learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import xarray as xr


class Quantity(NamedTuple):
    """A quantity with one value for each arm, seed and task.

    Attributes:
      name: in columns and CSV files.
      label: in words, with the unit.
      variable: in the data set of `plastax.load`.
      mark: where in a task a probe's value is taken; "" for a training value, the mean over the task's updates.
      weights: the variable that weighs the updates in that mean (episodes that ended); "": all count the same.
    """

    name: str
    label: str
    variable: str
    mark: str = ""
    weights: str = ""

    @property
    def metric(self) -> str:
        """Its name in `plastax.tracking.reduce_segment`."""
        kind, _, name = self.variable.partition("/")
        if kind == "train":
            return f"task/{name}/by_{self.weights.removeprefix('train/')}" if self.weights else f"task/{name}"
        return f"{name}/{self.mark}"


class TaskWindow(NamedTuple):
    """A window of tasks that a quantity is averaged over.

    Attributes:
      suffix: of the column.
      label: in words; ``{n}`` stands for the number of tasks.
      tasks: ``(number of tasks in the study) -> slice`` of them.
    """

    suffix: str
    label: str
    tasks: Callable[[int], slice]

    def among(self, tasks: int) -> str:
        """Its label in a study of this many tasks."""
        return self.label.format(n=len(range(tasks)[self.tasks(tasks)]))


class Score(NamedTuple):
    """The quantities that a kind of study is judged by.

    Attributes:
      name: in one word.
      main: the quantity that methods are compared by.
      curve: the training value that is drawn update by update.
      others: further quantities in reports.
      higher_is_better: of the main quantity and the others.
      windows: of tasks that quantities are averaged over; methods are ranked by the last one.
      compared: windows for which the difference to the reference is reported.
      change: pairs of windows (from, to) whose difference is reported.
      ratio: whether zero is the worst value, so that ratios to the reference mean something.
      figure: file name of its figure.
      steps: what the host counts: env steps or examples.
    """

    name: str
    main: Quantity
    curve: Quantity
    others: tuple[Quantity, ...]
    higher_is_better: bool
    windows: tuple[TaskWindow, ...]
    compared: tuple[TaskWindow, ...]
    change: tuple[tuple[TaskWindow, TaskWindow], ...]
    ratio: bool
    figure: str
    steps: str

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """The main quantity and the others."""
        return (self.main, *self.others)


def thirds(tasks: int) -> tuple[slice, slice]:
    """The first and the last third of a number of tasks, rounded up, at least one task each."""
    size = math.ceil(tasks / 3)
    return slice(0, size), slice(tasks - size, tasks)


def early(tasks: int) -> slice:
    """The first three tasks, or the first third (rounded up) if that is fewer."""
    return slice(0, min(3, math.ceil(tasks / 3)))


def late(tasks: int) -> slice:
    """The last five tasks, or the last third (rounded up) if that is fewer."""
    return slice(tasks - min(5, math.ceil(tasks / 3)), tasks)


# The first task is ordinary training for every arm. A study of one task has nothing else.
_LATER = TaskWindow("", "all tasks but the first", lambda tasks: slice(min(1, tasks - 1), tasks))
_FIRST = TaskWindow("_first_task", "first task", lambda tasks: slice(0, 1))
_LAST_THIRD = TaskWindow("_last_third", "last third of tasks", lambda tasks: thirds(tasks)[1])
EARLY = TaskWindow("_early", "early (first {n})", early)
LATE = TaskWindow("_late", "late (last {n})", late)

# A task's return is the mean over its episodes. A mean over updates would leave out updates in which no episode ended,
# and give the few long episodes of one update the weight of the many short ones of another.
RETURN = Quantity("return", "mean return per episode", "train/episode_return", weights="train/episodes")
UPDATE_RETURN = Quantity("return_per_update", "episode return, mean over updates", "train/episode_return")
ONLINE_ACCURACY = Quantity("online_accuracy", "online accuracy", "train/accuracy")
ONLINE_LOSS = Quantity("online_loss", "online loss", "train/loss")
TRAIN_ACCURACY, TRAIN_LOSS = (
    Quantity(f"train_{kind}", f"final training {kind}", f"probe/evaluation/train_{kind}", "end")
    for kind in ("accuracy", "loss")
)
TEST_ACCURACY, TEST_LOSS, TOKEN_ACCURACY = (
    Quantity(f"test_{kind}", f"final test {kind.replace('_', ' ')}", f"probe/evaluation/test_{kind}", "end")
    for kind in ("accuracy", "loss", "token_accuracy")
)
TEST_EXCESS = Quantity(
    "test_excess", "final test loss above the source's entropy", "probe/evaluation/test_excess", "end"
)

_REINFORCEMENT = Score(
    name="return",
    main=RETURN,
    curve=RETURN,
    others=(UPDATE_RETURN,),
    higher_is_better=True,
    windows=(_LATER, _FIRST, _LAST_THIRD),
    compared=(_LATER,),
    change=(),
    ratio=True,
    figure="returns",
    steps="env steps",
)
_FINAL_ACCURACY = Score(
    name="accuracy",
    main=TRAIN_ACCURACY,
    curve=ONLINE_ACCURACY,
    others=(ONLINE_ACCURACY, TEST_ACCURACY),
    higher_is_better=True,
    windows=(EARLY, LATE),
    compared=(EARLY, LATE),
    change=((EARLY, LATE),),
    ratio=False,
    figure="accuracy",
    steps="examples",
)
_LOSS = _FINAL_ACCURACY._replace(
    name="loss",
    main=ONLINE_LOSS,
    curve=ONLINE_LOSS,
    others=(TRAIN_LOSS, TEST_LOSS),
    higher_is_better=False,
    figure="loss",
)
_UPDATE_RETURN_ONLY = UPDATE_RETURN._replace(name="return")
SCORES = (
    _REINFORCEMENT,
    # Runs that do not record how many episodes ended.
    _REINFORCEMENT._replace(main=_UPDATE_RETURN_ONLY, curve=_UPDATE_RETURN_ONLY, others=()),
    _FINAL_ACCURACY,
    # Runs whose tasks are not evaluated at their end.
    _FINAL_ACCURACY._replace(main=ONLINE_ACCURACY, others=(TEST_ACCURACY,)),
    # Sources of tokens whose entropy is known.
    _LOSS._replace(main=TEST_EXCESS, others=(ONLINE_LOSS, TRAIN_LOSS, TEST_LOSS)),
    _LOSS,
)
"""By precedence: return, training accuracy at the end of a task, accuracy before each step, held-out loss above the
entropy of the source, loss before each step."""


def choose(metrics: Container[str]) -> Score | None:
    """The score of a study that has measured these metrics (`Quantity.metric`), or None."""
    return next((score for score in SCORES if score.main.metric in metrics), None)


def score_of(data: xr.Dataset) -> Score | None:
    """The score of a study, see `plastax.load`; None if no score was measured yet."""
    # At any mark: a task that is still running has no value at its end, but will be judged by it.
    return choose({score.main.metric for score in SCORES if measured(data, score.main)})


def measured(data: xr.Dataset, quantity: Quantity) -> bool:
    """Whether a study has a value of a quantity, at any mark."""
    there = quantity.variable in data and (not quantity.weights or quantity.weights in data)
    return there and bool(data[quantity.variable].notnull().any())


def notice(settings: Mapping[str, Any]) -> str:
    """The notice for every number and figure of a run with synthetic data; otherwise "".

    Args:
      settings: from ``config.json``; ``data_card`` describes the data set, see `plastax.data.Card`.
    """
    card = settings.get("data_card")
    synthetic = isinstance(card, Mapping) and bool(card.get("synthetic"))
    return "SYNTHETIC DATA: drawn by a generator, not a real data set" if synthetic else ""
