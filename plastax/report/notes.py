"""Notes on a study's numbers: what they are means of, and why some are missing."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from plastax.report.arms import names
from plastax.report.score import RETURN, score_of, thirds
from plastax.report.statistics import about_intervals
from plastax.report.values import finished, frozen, task_values

NUMBERED = "tasks are numbered from 0"


def run_name(data: xr.Dataset) -> str:
    """Experiment and id of the run that a data set was read from."""
    return " ".join(str(data.attrs[name]) for name in ("experiment", "run_id") if name in data.attrs)


def task_numbers(tasks: Sequence[int]) -> str:
    """Tasks in words: ``task 3``, ``tasks 3 to 5``, ``tasks 0, 8, 16``."""
    tasks = list(tasks)
    if len(tasks) > 2 and tasks == list(range(tasks[0], tasks[-1] + 1)):
        return f"tasks {tasks[0]} to {tasks[-1]}"
    return f"task{'s' * (len(tasks) > 1)} {', '.join(map(str, tasks))}"


def unfinished(data: xr.Dataset) -> str:
    """How many tasks the unfinished arms have finished; "" if all arms are finished."""
    tasks = data.sizes["task"]
    done = finished(data).sum("task").to_series()
    named = ", ".join(f"{names(data)[arm]} {count}" for arm, count in done.items() if count < tasks)
    return f"unfinished (finished of {tasks} tasks): {named}" if named else ""


def unscored(data: xr.Dataset) -> str:
    """The finished tasks without a return, because no episode ended in them; "" without such tasks."""
    score, done = score_of(data), finished(data)
    if RETURN.variable not in data or not done.any() or (score is not None and score.main.variable != RETURN.variable):
        return ""
    values = None if score is None else task_values(data, score.main)
    if values is None:
        return "no return: no episode ended in any task; make tasks longer than episodes"
    lacking = (done & values.isnull().all("seed")).transpose("arm", "task")
    arms = [
        f"{name} {task_numbers(lacking.task.values[row].tolist())}"
        for name, row in zip(names(data).values(), lacking.values)
        if row.any()
    ]
    return f"no return, because no episode ended: {'; '.join(arms)}" if arms else ""


def gaps(data: xr.Dataset) -> list[str]:
    """Probes that were measured in no task of a third that the summary averages over."""
    lines, done = [], finished(data).any("arm")
    for probe, mark, ends in (("hessian", "init", ("first", "last")), ("features", "end", ("last",))):
        values = [array.sel(mark=mark) for name, array in data.items() if str(name).startswith(f"probe/{probe}/")]
        there = [array.notnull().any([dim for dim in array.dims if dim != "task"]) for array in values]
        measured = sum(there, start=xr.zeros_like(done)) > 0
        for end, third in zip(("first", "last"), thirds(data.sizes["task"])):
            if end in ends and measured.any() and done[third].all() and not measured[third].any():
                tasks = task_numbers(data.task.values[measured.values].tolist())
                lines.append(
                    f"{probe} was measured in {tasks} only, so the {end} third of tasks has no value; "
                    f"--{probe}.every 1 (and --probe-every 1) measures all"
                )
    return lines


def broken(data: xr.Dataset) -> str:
    """The frozen seeds, and how they count; "" without any."""
    seeds = frozen(data)
    how = "frozen; from then on counted as the worst of all seeds in each task, and left out of probes"
    return f"{how}: {'; '.join(seeds)}" if seeds else ""


def below(data: xr.Dataset) -> list[str]:
    """The lines below the table of a study."""
    score = score_of(data)
    seeds = data.sizes["seed"]
    lines = [f"mean over {seeds} seed{'s' * (seeds > 1)}{about_intervals(seeds)}"]
    if score is not None and not score.higher_is_better:
        lines[0] += f"; lower {score.name} is better"
    others = [line for line in (unfinished(data), unscored(data), *gaps(data), broken(data)) if line]
    lines += [data.attrs["tuning"]] if data.attrs.get("tuning") else []
    return [*lines, *others, *([NUMBERED] if others else [])]
