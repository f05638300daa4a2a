"""A study too large to be drawn whole: what is drawn, what is said of the rest, and that no number is lost."""

from __future__ import annotations

import html
import pathlib
import tracemalloc

import numpy as np
import plotly.offline
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from plastax import report
from plastax.report import drawn, figures, table
from plastax.report import html as pages
from plastax.report.html.look import over_tasks

TASKS, SEEDS, UPDATES = drawn.TASKS + 3, 2, 2


def make(scores: list[float], tasks: int = TASKS) -> xr.Dataset:
    """A study of ``backprop``, ``reset``, ``m0``, ``m1``, ... with these scores in every task."""
    rng, arms = np.random.default_rng(0), len(scores)
    names = [*["backprop", "reset"][:arms], *(f"m{i}" for i in range(arms - 2))]
    per_task = np.broadcast_to(np.array(scores)[:, None, None, None], (arms, SEEDS, tasks, 2))
    marks, spectrum = ("arm", "seed", "task", "mark"), ("arm", "seed", "task", "mark", "node")
    updates = np.arange(tasks * UPDATES)
    clock = np.broadcast_to(np.arange(tasks) * float(UPDATES), (arms, tasks))
    variables = {
        "train/accuracy": (("arm", "seed", "update"), np.repeat(per_task[..., 0], UPDATES, axis=-1)),
        "probe/evaluation/train_accuracy": (marks, per_task),
        "probe/hessian/nodes": (spectrum, np.sort(rng.normal(size=(*per_task.shape, 4)))),
        "probe/hessian/weights": (spectrum, np.full((*per_task.shape, 4), 0.25)),
        "probe/hessian/rank": (marks, per_task * 100),
        "host/clock": (("arm", "segment"), clock),
        "host/length": (("arm", "segment"), np.full(clock.shape, float(UPDATES))),
    }
    coords = {"arm": names, "method": ("arm", names), "seed": range(SEEDS), "task": range(tasks)}
    coords |= {"mark": ["init", "end"], "update": updates, "update_task": ("update", updates // UPDATES)}
    return xr.Dataset(variables, coords, {"notice": ""})


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return make(np.linspace(0.1, 0.9, drawn.ARMS + 3).tolist())


@pytest.fixture(scope="module")
def page(data: xr.Dataset) -> str:
    config = {"experiment": "large", "run_id": "l0", "settings": {}}
    return pages.page(*pages.side_by_side([report.LoadedRun(pathlib.Path("l0"), config, {}, data)]))


def test_the_page_says_what_its_charts_leave_out(data: xr.Dataset, page: str) -> None:
    page = html.unescape(page)
    said = f"{drawn.ARMS} of {data.sizes['arm']} arms and {drawn.TASKS} of {TASKS} tasks are drawn"
    # In the list of warnings, below the two charts on top and in the three sections of charts.
    assert page.count(said) == 6
    left_out = [arm for arm in data.arm.values.tolist() if arm not in drawn.arms(data)]
    assert f"left out of charts: {', '.join(left_out)}." in page
    assert f"Heat maps are drawn of {', '.join(drawn.arms(data, drawn.HEATS)[:2])}" in page


def test_tables_have_every_arm_and_task(data: xr.Dataset) -> None:
    every = set(data.arm.values.tolist())
    assert set(table.summary(data).index) == every
    drawings = figures.drawings(data)
    for name in ("accuracy", "ranks", "spectra", "overview"):
        frame = drawings[name].frame
        if name == "overview":
            frame = frame[frame["quantity"] != "spectrum"]
        assert len(frame[["arm", "task"]].drop_duplicates()) == len(every) * TASKS, name


def test_a_page_does_not_grow_with_the_study(data: xr.Dataset, page: str) -> None:
    assert len(page) - len(plotly.offline.get_plotlyjs()) < 3_000_000
    made = over_tasks(data["probe/hessian/rank"].sel(mark="init"), "rank")
    assert made is not None
    assert {len(trace.x) for trace in made.data} == {drawn.TASKS}
    figure = figures.spectra(data)
    assert figure is not None
    assert sum(bool(axes.collections) and axes.get_xlabel() == "task" for axes in figure.figure.axes) == drawn.HEATS


def test_a_study_of_usual_size_is_drawn_whole() -> None:
    data = make(np.linspace(0.1, 0.9, drawn.ARMS).tolist(), tasks=3)
    assert drawn.arms(data) == data.arm.values.tolist()
    assert drawn.left_out(data) == ""
    assert drawn.warning(data) == []


def test_what_is_drawn_of_a_large_study_is_in_memory_once(data: xr.Dataset) -> None:
    tracemalloc.start()
    try:
        shown = drawn.shown(data)
        assert shown.sizes["arm"] == drawn.ARMS < data.sizes["arm"]
        shown["probe/hessian/nodes"].values.sum()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    xr.testing.assert_identical(shown, data.sel(arm=drawn.arms(data)))
    assert kept < shown["probe/hessian/nodes"].nbytes


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=drawn.ARMS + 1, max_size=30))
def test_references_and_the_extremes_are_drawn(scores: list[float]) -> None:
    data = make(scores, tasks=2)
    chosen, others = drawn.arms(data), dict(zip(data.arm.values.tolist()[2:], scores[2:]))
    assert len(chosen) == drawn.ARMS
    assert chosen == [arm for arm in data.arm.values.tolist() if arm in chosen]
    assert {"backprop", "reset"} <= set(chosen)
    kept = [score for arm, score in others.items() if arm in chosen]
    assert (min(kept), max(kept)) == (min(others.values()), max(others.values()))
