"""The comparison of runs against an independent computation by pandas from the raw record files."""

from __future__ import annotations

import io
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
import rich.console
import scipy.stats

from plastax import __main__ as cli
from plastax import report
from plastax.errors import ConfigError
from plastax.records.layout import Segment, write_json, write_segment
from plastax.report import compare
from plastax.report.html import provenance, verdict
from plastax.report.score import score_of
from plastax.report.statistics import bootstrap
from plastax.report.values import task_values
from plastax.tracking import reduce_segment
from plastax.types import Record

SEEDS, UPDATES = 5, 6
RUNS = {"A": ("r-first", ("backprop", "l2_er", "reset"), 6, 0), "B": ("r-second", ("l2_er", "reset"), 5, 2)}
"""Letter -> run id, methods, tasks, first seed."""


def make(directory: pathlib.Path, methods: tuple[str, ...], tasks: int, first: int, kept: int = 99) -> pathlib.Path:
    settings = {"methods": methods, "seeds": SEEDS, "first_seed": first, "tasks": tasks, "updates_per_task": UPDATES}
    config = {"experiment": "demo", "run_id": directory.name, "hash": directory.name, "settings": settings}
    write_json(directory / "config.json", config)
    for m, method in enumerate(methods):
        rng = np.random.default_rng((len(directory.name), m))
        of_seed = rng.normal(0.0, 12.0, (SEEDS, 1))
        for task in range(min(tasks, kept)):
            values = 100.0 - 15.0 * task * (1 + m) / (2 + m) + of_seed + rng.normal(0.0, 8.0, (SEEDS, UPDATES))
            values[:, 0] = np.nan
            host = {"clock": UPDATES * task, "length": UPDATES, "task": task}
            write_segment(directory / "records" / method, task, Record({"episode_return": values}, {}), host)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make(root / name, *rest) for name, *rest in RUNS.values()]


def raw(directory: pathlib.Path, letter: str) -> pd.DataFrame:
    """Run, method, seed, task and value, one row a task, from the files, without plastax."""
    rows = []
    for path in sorted(directory.glob("records/*/*.npz")):
        with np.load(path) as file:
            frame = pd.DataFrame(file["train/episode_return"].astype(float))
            frame.index = range(RUNS[letter][3], RUNS[letter][3] + len(frame))
            for seed, value in frame.mean(axis=1).items():
                rows.append((letter, path.parent.name, seed, int(file["host/task"]), value))
    return pd.DataFrame(rows, columns=["run", "arm", "seed", "task", "value"])


def iqm(values: np.ndarray) -> float:
    values = np.sort(np.ravel(values))
    return values[len(values) // 4 : len(values) - len(values) // 4].mean()


def check_t(ends: tuple[float, float], kind: str, statistic, *samples: np.ndarray) -> None:
    """The t interval with a standard error over rows: of means SciPy's, of interquartile means its bootstrap's."""
    if kind == "mean":
        error = scipy.stats.sem(np.subtract(*samples).mean(axis=1) if len(samples) > 1 else samples[0].mean(axis=1))
    else:
        found = scipy.stats.bootstrap(
            [range(SEEDS)],
            lambda rows: statistic(*(sample[rows.astype(int)] for sample in samples)),
            n_resamples=1999, vectorized=False, method="percentile", rng=np.random.default_rng(0),
        )  # fmt: skip
        error = found.standard_error * np.sqrt(SEEDS / (SEEDS - 1))
    half = scipy.stats.t.ppf(0.975, SEEDS - 1) * error
    assert ends == pytest.approx((statistic(*samples) - half, statistic(*samples) + half), rel=1e-5)


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_the_table_is_that_of_the_raw_records(runs: list[pathlib.Path], statistic: compare.Statistic) -> None:
    of = {"mean": np.mean, "iqm": iqm}[statistic]
    frame = compare.compare([report.read(run) for run in runs], statistic).set_index(["run", "arm"])
    values = pd.concat(raw(run, letter) for run, letter in zip(runs, RUNS))
    # The last third of the five tasks that both have.
    wide = values[values["task"].isin([3, 4])].pivot(index=["run", "arm", "seed"], columns="task", values="value")
    other = {("A", "backprop"): ("A", "reset"), ("A", "l2_er"): ("A", "reset"), ("B", "l2_er"): ("A", "l2_er")}
    other |= {("B", "reset"): ("A", "reset")}
    assert set(frame.index) == {*other, ("A", "reset")}
    for arm, row in frame.iterrows():
        mine = wide.loc[arm]
        assert (row["first_task"], row["last_task"]) == (3, 4)
        assert row["value"] == pytest.approx(of(mine.to_numpy()), rel=1e-6)
        check_t((row["value_low"], row["value_high"]), statistic, of, mine.to_numpy())
        if arm not in other:
            assert pd.isna(row["against"])
            continue
        assert row["against"] == ":".join(other[arm])
        its = wide.loc[other[arm]]
        seeds = mine.index.intersection(its.index).to_list()
        assert row["paired_seeds"] == len(seeds) == (SEEDS if arm[0] == "A" else SEEDS - 2)
        both = mine.loc[seeds].to_numpy(), its.loc[seeds].to_numpy()
        assert row["difference"] == pytest.approx(of(both[0]) - of(both[1]), rel=1e-5)
        if len(seeds) == SEEDS:
            ends = row["difference_low"], row["difference_high"]
            check_t(ends, statistic, lambda a, b: of(a) - of(b), *both)
        pairs = mine.loc[seeds].merge(its.loc[seeds], how="cross")
        improves = np.mean([(pairs[f"{task}_x"] > pairs[f"{task}_y"]).mean() for task in (3, 4)])
        assert row["improves"] == pytest.approx(improves, abs=1e-12)
        assert 0.0 <= row["improves_low"] <= row["improves_high"] <= 1.0


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_tasks_of_a_seed_stay_together(statistic: compare.Statistic) -> None:
    # Seeds differ, tasks of a seed do not: with the tasks resampled apart, the interval would be half as wide.
    values = np.repeat(np.arange(8.0)[:, None], 20, axis=1)
    ends = [
        bootstrap(lambda w, one=one: compare.STATISTICS[statistic](one, w), 8, student=True)[1:]
        for one in (values, values[:, :1])
    ]
    assert ends[0] == pytest.approx(ends[1])


def test_ties_and_losses_count_as_they_should() -> None:
    a, b = np.array([[1.0, 1.0], [1.0, 3.0]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    assert compare.wins(a, b)(np.ones(2)) == pytest.approx((0.5 + 0.5) / 2)
    assert compare.wins(a[:, 1:], b[:, 1:] - 1.5)(np.ones(2)) == 1.0
    # With each seed as often as its weight says: the Mann-Whitney statistic.
    times = np.array([2, 1]), np.array([1, 3])
    many = [np.repeat(values, n, axis=0) for values, n in zip((a, b), times)]
    expected = scipy.stats.mannwhitneyu(*many, axis=0).statistic.mean() / (3 * 4)
    assert compare.wins(a, b)(*times) == pytest.approx(expected)


def test_a_seed_without_an_episode_in_a_task_costs_nobody_a_task(tmp_path: pathlib.Path) -> None:
    run = make(tmp_path / "a", ("reset", "l2"), 6, 0)
    path = run / "records" / "l2" / "000004.npz"
    with np.load(path) as file:
        values = file["train/episode_return"].copy()
    values[1] = np.nan
    write_segment(path.parent, 4, Record({"episode_return": values}, {}), {"clock": 24, "length": 6, "task": 4})
    late = raw(run, "A").query("task >= 4").pivot(index=["arm", "seed"], columns="task", values="value")
    assert late.isna().sum().sum() == 1
    frame = compare.compare([report.read(run)]).set_index("arm")
    assert (frame.loc["l2", ["first_task", "last_task", "seeds", "missing"]] == [4, 5, 5, 1]).all()
    mine, its = late.loc["l2"].to_numpy(), late.loc["reset"].to_numpy()
    assert frame.loc["l2", "value"] == pytest.approx(np.nanmean(mine, axis=1).mean())
    assert frame.loc["reset", "value"] == pytest.approx(its.mean())
    assert frame.loc["l2", "difference"] == pytest.approx(np.nanmean(mine - its, axis=1).mean())
    won = [np.mean(mine[np.isfinite(mine[:, k]), k, None] > its[:, k]) for k in range(2)]
    assert frame.loc["l2", "improves"] == pytest.approx(np.mean(won))
    quartiles = compare.compare([report.read(run)], "iqm").set_index("arm")
    assert quartiles.loc["l2", "value"] == pytest.approx(iqm(mine[np.isfinite(mine)]))
    console = rich.console.Console(file=io.StringIO(), width=140)
    report.print_comparison([run], console=console)
    text = " ".join(console.file.getvalue().split())
    assert "values that are missing, because no episode ended: 1; a seed's value is of its other tasks" in text


def test_a_task_in_which_an_arm_has_no_value_counts_for_none(tmp_path: pathlib.Path) -> None:
    run = make(tmp_path / "a", ("reset", "l2"), 9, 0)
    empty = Record({"episode_return": np.full((SEEDS, UPDATES), np.nan)}, {})
    write_segment(run / "records" / "l2", 7, empty, {"clock": 42, "length": 6, "task": 7})
    frame = compare.compare([report.read(run)])
    assert (frame[["first_task", "last_task", "tasks", "missing"]] == [6, 8, 2, 0]).all(axis=None)
    console = rich.console.Console(file=io.StringIO(), width=140)
    report.print_comparison([run], console=console)
    assert "last third of tasks: 2 of tasks 6 to 8" in " ".join(console.file.getvalue().split())


def test_a_frozen_seed_counts_as_the_worst_of_all_compared_runs(tmp_path: pathlib.Path) -> None:
    """Also where its own run has nothing as bad, or nothing at all, to say of a task."""
    good, _ = broken(tmp_path / "good", 2)
    bad, values = broken(tmp_path / "bad", 6, scale=0.01)
    late = values[:, :, 4:]
    frame = compare.compare([report.read(good), report.read(bad)], reference="A:reset").set_index(["run", "arm"])
    alone = compare.compare([report.read(good)]).set_index("arm")
    others = report.read(good)["train/accuracy"].sel(arm="l2", seed=[0, 2, 3]).values.reshape(3, 6, 2)[:, 4:].mean(2)
    expected = (others.mean(axis=1).sum() + late.min(axis=(0, 1)).mean()) / 4
    assert frame.loc[("A", "l2"), "value"] == pytest.approx(expected, rel=1e-6)
    assert frame.loc[("A", "l2"), "value"] < alone.loc["l2", "value"]
    assert frame.loc[("B", "l2"), "value"] == pytest.approx(late[1].mean(), rel=1e-6)


def test_seeds_without_a_partner_are_compared_unpaired(tmp_path: pathlib.Path) -> None:
    runs = [make(tmp_path / "a", ("reset",), 3, 0), make(tmp_path / "b", ("reset",), 3, 100)]
    frame = compare.compare([report.read(run) for run in runs])
    assert frame["paired_seeds"].iloc[1] == 0
    assert frame["difference_low"].iloc[1] < frame["difference"].iloc[1] < frame["difference_high"].iloc[1]
    console = rich.console.Console(file=io.StringIO(), width=100)
    report.print_comparison(runs, "iqm", console)
    assert "] (unpaired)" in console.file.getvalue()
    assert "difference to A:reset" in console.file.getvalue()


def test_only_tasks_that_all_have_finished_count(tmp_path: pathlib.Path) -> None:
    runs = [make(tmp_path / "a", ("reset",), 6, 0), make(tmp_path / "b", ("reset",), 6, 0, kept=5)]
    frame = compare.compare([report.read(run) for run in runs])
    assert frame["last_task"].tolist() == [4, 4]
    console = rich.console.Console(file=io.StringIO(), width=140)
    report.print_comparison(runs, console=console)
    text = " ".join(console.file.getvalue().split())
    for said in (
        "all tasks but the first: tasks 1 to 4",
        "first task: task 0",
        "last third of tasks: task 4",
        "over the tasks that all arms have finished; tasks are numbered from 0",
        "A: demo a; 6 tasks",
        "B: demo b; 6 tasks; unfinished (finished of 6 tasks): reset 5",
    ):
        assert said in text


def test_intervals_of_two_seeds_are_not_printed(tmp_path: pathlib.Path) -> None:
    run = make(tmp_path / "a", ("reset", "l2"), 3, 0)
    for path in run.glob("records/*/*.npz"):
        with np.load(path) as file:
            two = {"episode_return": file["train/episode_return"][:2]}
            host = {name: float(file[f"host/{name}"]) for name in ("clock", "length", "task")}
        write_segment(path.parent, int(path.stem), Record(two, {}), host)
    console = rich.console.Console(file=io.StringIO(), width=140)
    report.print_comparison([run], console=console)
    report.print_table(run, console)
    assert "no intervals of fewer than 3 seeds" in console.file.getvalue()
    assert "[95" not in console.file.getvalue()
    assert not re.search(r"\[[-\d.]+, [-\d.]+\]", console.file.getvalue())


def test_the_command_prints_and_writes(runs: list[pathlib.Path], tmp_path: pathlib.Path, capsys) -> None:
    csv = tmp_path / "table.csv"
    cli.main(["compare", *map(str, runs), "--reference", "A:l2_er", "--csv", str(csv)])
    out = capsys.readouterr().out
    assert "A: demo r-first" in out
    assert "B: demo r-second" in out
    frame = pd.read_csv(csv)
    assert list(frame["window"].unique()) == ["all tasks but the first", "first task", "last third of tasks"]
    assert set(frame["against"].dropna()) == {"A:l2_er"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "A:rest"}, r"'A:rest' is unknown \(did you mean 'A:reset'\?\)"),
        ({"statistic": "median"}, "median"),
        ({"quantity": "acuracy"}, "quantity: 'acuracy' is unknown; allowed: return, train/episode_return"),
        ({"quantity": "retrun"}, r"\(did you mean 'return'\?\)"),
    ],
)
def test_what_cannot_be_compared_is_said(runs: list[pathlib.Path], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare.compare([report.read(run) for run in runs], **options)


def test_different_scores_are_refused(runs: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    settings = {"methods": ["reset"], "seeds": 2, "tasks": 1, "updates_per_task": 2}
    write_json(tmp_path / "config.json", {"experiment": "s", "run_id": "x", "hash": "h", "settings": settings})
    host = {"clock": 0, "length": 2, "task": 0}
    write_segment(tmp_path / "records" / "reset", 0, Record({"accuracy": np.ones((2, 2))}, {}), host)
    with pytest.raises(ConfigError, match=r"demo r-first: episode return, mean over updates; s x: online accuracy"):
        compare.compare([report.read(runs[0]), report.read(tmp_path)])


def broken(
    directory: pathlib.Path, since: int, higher_is_better: bool = True, scale: float = 1.0
) -> tuple[pathlib.Path, np.ndarray]:
    """A run of 6 tasks whose seed 1 of l2 is frozen in the last update of task ``since``; ``[method, S, task]``."""
    name = "accuracy" if higher_is_better else "loss"
    settings = {"methods": ["reset", "l2"], "seeds": 4, "tasks": 6, "updates_per_task": 2}
    write_json(directory / "config.json", {"experiment": "d", "run_id": "r", "hash": "h", "settings": settings})
    values = scale * np.random.default_rng(since).uniform(size=(2, 4, 6))
    for m, method in enumerate(settings["methods"]):
        for task in range(6):
            alive = np.ones((4, 2))
            if method == "l2" and task >= since:
                alive[1] = [task == since, False]
            train = {name: np.where(alive > 0, values[m, :, task, None], np.nan), "alive": alive}
            host = {"clock": 2 * task, "length": 2, "task": task}
            write_segment(directory / "records" / method, task, Record(train, {}), host)
    worst = (values.min if higher_is_better else values.max)(axis=(0, 1))
    alone = np.delete(values.reshape(8, 6), 5, axis=0)
    worst[since:] = (alone.min if higher_is_better else alone.max)(axis=0)[since:]
    values[1, 1, since:] = worst[since:]
    return directory, values


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("since", [0, 2, 5])
def test_a_frozen_seed_counts_as_the_worst_and_costs_no_task(tmp_path: pathlib.Path, since: int, higher: bool) -> None:
    run, values = broken(tmp_path, since, higher)
    frame = compare.compare([report.read(run)]).set_index("arm")
    # The last third of six tasks, for both.
    late = values[:, :, 4:].mean(axis=2)
    assert frame["first_task"].tolist() == [4, 4]
    assert frame["last_task"].tolist() == [5, 5]
    assert frame["seeds"].tolist() == [4, 4]
    assert frame["frozen_seeds"].tolist() == [0, 1]
    assert frame["value"].tolist() == pytest.approx(late.mean(axis=1).tolist(), rel=1e-6)
    assert frame.loc["l2", "difference"] == pytest.approx(late[1].mean() - late[0].mean(), rel=1e-5)
    console = rich.console.Console(file=io.StringIO(), width=200)
    report.print_comparison([run], console=console)
    report.print_table(run, console)
    lines = console.file.getvalue().splitlines()
    assert all("(1 of 4 frozen)" in line for line in lines if "l2 " in line and "[" in line)
    assert sum("(1 of 4 frozen)" in line for line in lines) >= 4
    assert "a frozen seed counts as the worst of all compared seeds" in console.file.getvalue()
    found = verdict.findings(report.read(run))
    assert verdict.table(found).loc["l2"].iloc[0].endswith("(1 of 4 frozen)")
    said = " ".join(provenance.warnings(report.read(run), found, {}))
    assert "from then on counted as the worst of all seeds" in said


def test_a_return_is_the_mean_over_all_episodes_of_its_task(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    episodes = rng.integers(0, 4, (3, 5, 6)).astype(float)
    episodes[..., 0], episodes[2, 4] = 1.0, 0.0
    total = episodes * rng.uniform(1.0, 400.0, episodes.shape)
    settings = {"methods": ["reset"], "seeds": 5, "tasks": 3, "updates_per_task": 6}
    write_json(tmp_path / "config.json", {"experiment": "d", "run_id": "r", "hash": "h", "settings": settings})
    for task in range(3):
        mean = np.divide(total[task], episodes[task], out=np.full((5, 6), np.nan), where=episodes[task] > 0)
        segment = Record({"episode_return": mean, "episodes": episodes[task]}, {})
        host = {"clock": 6 * task, "length": 6, "task": task}
        write_segment(tmp_path / "records" / "reset", task, segment, host)
        metrics = reduce_segment(Segment(segment.train, {}, host), {})
        with np.errstate(invalid="ignore"):
            expected = total[task].sum(axis=1) / episodes[task].sum(axis=1)
        np.testing.assert_allclose(metrics["task/episode_return/by_episodes"], expected, rtol=1e-6)
    data = report.read(tmp_path)
    with np.errstate(invalid="ignore"):
        expected = total.sum(axis=2) / episodes.sum(axis=2)
    chosen = score_of(data).main
    np.testing.assert_allclose(task_values(data, chosen).values[0], expected.T, rtol=1e-6)
    # In a task without an episode a seed has no return.
    assert np.isnan(expected[2, 4])
    console = rich.console.Console(file=io.StringIO(), width=200)
    report.print_table(tmp_path, console)
    assert "mean return per episode, first task" in console.file.getvalue()
    assert "episode return, mean over updates, first task" in console.file.getvalue()
    first = compare.compare([data], window=score_of(data).windows[1])
    assert first["value"].item() == pytest.approx(expected[0].mean(), rel=1e-6)
    over_updates = compare.compare([data], quantity="return_per_update", window=score_of(data).windows[1])
    with np.errstate(invalid="ignore"):
        of_updates = np.nanmean(total[0] / episodes[0], axis=1).mean()
    assert over_updates["value"].item() == pytest.approx(of_updates, rel=1e-6)
