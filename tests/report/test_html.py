"""The HTML report: what it says against the study's known truth, and what a real browser makes of it."""

from __future__ import annotations

import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from plastax import report
from plastax.errors import ConfigError
from plastax.records import layout
from plastax.records.files import read_json, write_json
from plastax.report import html as pages
from plastax.report.html import relation, spectra, verdict
from plastax.report.score import score_of
from plastax.types import Record
from tests.lacking import lacking
from tests.report.test_figures import METHODS, SEEDS, TASKS, make_study

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr "
    "--virtual-time-budget=20000 --host-resolver-rules=MAP~NOTFOUND"
)

OF_PAGES = 101845102
"""Chromium's number for requests that a page makes (the hash of ``blink_resource_loader``)."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study: pathlib.Path) -> pathlib.Path:
    return pages.write([report.load_run(study)], study / "report.html")


@pytest.fixture(scope="module")
def data(study: pathlib.Path) -> xr.Dataset:
    return pages.side_by_side([report.load_run(study)])[0]


def test_the_rank_curve_does_not_go_by_the_axes_names(data: xr.Dataset) -> None:
    """They are the operator's own where another one's spectrum has another size."""
    own = data.rename({name: f"hessian_{name}" for name in ("probe", "node")})
    curve, other = (spectra.rank_curve(d, "hessian") for d in (data, own))
    assert curve is not None
    assert curve.data
    assert curve == other


class Seen:
    """What a browser made of a page: its DOM after the scripts, console messages, addresses that were asked for."""

    def __init__(self, path: pathlib.Path, profile: pathlib.Path):
        browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        if browser is None:
            lacking("needs Chromium: apt-get install chromium")
        log = profile / "net.json"
        flags = [flag.replace("MAP~NOTFOUND", "MAP * ~NOTFOUND") for flag in FLAGS.split()]
        done = subprocess.run(
            [browser, *flags, f"--user-data-dir={profile}", f"--log-net-log={log}", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, check=True, timeout=240,
        )  # fmt: skip
        self.dom = done.stdout
        self.console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        # By the browser's own count of what for: it asks for updates and the time itself. Read as text, because a
        # browser that ends at once may not close the log's last bracket.
        asked = re.findall(rf'"traffic_annotation":{OF_PAGES},"url":"([^"]+)"', log.read_text())
        self.asked = sorted({url for url in asked if not url.startswith(("file:", "data:", "blob:"))})

    @property
    def drawn(self) -> set[str]:
        """Names of the charts in which there are lines, fillings or cells."""
        parts = re.split(r'<div id="([\w-]+)" class="plotly-graph-div', self.dom)
        return {
            name
            for name, part in zip(parts[1::2], parts[2::2])
            if re.search(r'<svg class="main-svg', part)
            and re.search(r'class="(js-line|js-fill|point|hm)|<image ', part)
        }


CHARTS = {
    "answer-score", "answer-rank", "curve", "task-return", "hessian-slider", "hessian-ridge", "hessian-heat-0",
    "hessian-heat-1", "hessian-heat-2", "hessian-eps", "hessian-rank", "hessian-effective_rank",
    "relation-hessian-rank", "relation-hessian-effective", "relation-features", "network-features-effective_rank",
    "network-features-dormant_fraction", "network-weights-norm",
}  # fmt: skip


@pytest.mark.fetched
def test_a_browser_draws_every_figure_and_asks_for_nothing(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    seen = Seen(page, tmp_path)
    assert seen.drawn >= CHARTS
    assert seen.console == []
    assert seen.asked == []
    # The slider has a step a task.
    assert len(re.findall(r'class="slider-tick-rect"', seen.dom)) == TASKS


def test_the_browser_test_can_fail(tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<script>console.error("broken")</script><img src="http://example.test/x.png">')
    (tmp_path / "profile").mkdir()
    seen = Seen(bad, tmp_path / "profile")
    assert "broken" in " ".join(seen.console)
    assert seen.asked == ["http://example.test/x.png"]
    assert seen.drawn == set()


def test_the_page_is_one_small_enough_file(page: pathlib.Path) -> None:
    text = page.read_text()
    assert len(text) < 7e6
    assert text.count("plotly.js v") == 1
    # Nothing but the library is loaded, and there is no script of our own.
    assert not re.findall(r'<(?:link|img|iframe)[^>]*(?:src|href)="http', text)
    assert not re.findall(r"<script[^>]* src=", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_answer_is_that_of_the_study(data: xr.Dataset) -> None:
    # backprop loses 90 % of its return and of its curvature, l2_er 35 %, reset nothing.
    found = verdict.findings(data)
    assert found is not None
    assert (found.best, found.reference) == ("l2_er", "reset")
    questions, texts = zip(*verdict.answers(found))
    assert questions == ("Which method keeps its plasticity?", "", "", "Does its spectrum collapse first?")
    *keeps, order = texts
    keeps = " ".join(keeps)
    assert "In the last 2 tasks l2_er has the best episode return, mean over updates: " in keeps
    assert "(reset left out)" in keeps
    assert re.search(r"clearly ahead of backprop by \d", keeps)
    assert re.search(r"Compared with .* worse: backprop \(-[\d.]+\), l2_er \(-[\d.]+\)", keeps)
    assert re.search(r"worse: backprop \(-[\d.]+\), l2_er \(-[\d.]+\); no clear change: reset", keeps)
    assert re.fullmatch(r"By the Hessian eps-rank at 0.01: .*backprop \(task [1-4].*l2_er .*", order)
    row = found.frame.loc["backprop"]
    values = data["train/episode_return"].sel({"arm": "backprop"}).values.reshape(SEEDS, TASKS, -1)
    per_task = np.nanmean(values, axis=2)
    assert row["change"] == pytest.approx((per_task[:, 3:].mean(1) - per_task[:, :2].mean(1)).mean(), rel=1e-5)
    shown = verdict.table(found)
    assert list(shown.index) == list(METHODS)
    assert shown.loc["reset", "return below start from task"] == "never"


@pytest.mark.parametrize(
    ("path", "better", "expected"),
    [
        ([1.0, 0.99, 0.2, 0.2, 0.2], True, 2),
        ([1.0, 0.99, 0.2, 0.99, 0.99], True, None),
        ([1.0, 0.99, 0.99, 0.99, 0.2], True, 4),
        ([1.0, 1.0, 1.5, 1.5, 1.5], False, 2),
        ([1.0, np.nan, 0.2, np.nan, 0.1], True, 2),
    ],
)
def test_a_fall_is_one_that_lasts(path: list[float], better: bool, expected: int | None) -> None:
    noise = np.random.default_rng(0).normal(0, 0.03, (6, 5))
    values = xr.DataArray(
        [np.array(path) + noise], dims=("arm", "seed", "task"), coords={"arm": ["m"], "task": range(5)}
    )
    assert verdict.first_drop(values, better) == {"m": expected}


def test_correlation_within_and_between_methods() -> None:
    # Between methods both rise together; within each, one rises as the other falls.
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 6, 8)) + np.array([0.0, 20.0])[:, None, None]
    y = -x + 60.0 * np.array([0.0, 1.0])[:, None, None]
    labels = {"dims": ("arm", "seed", "task"), "coords": {"arm": ["a", "b"]}}
    found = relation.correlations(xr.DataArray(x, **labels), xr.DataArray(y, **labels))
    assert [found["a"].value, found["b"].value] == pytest.approx([-1.0, -1.0])
    assert found["all methods, within each"].value == pytest.approx(-1.0)
    assert 0.3 < found["all methods, pooled"].value < 0.6
    assert found["all methods, pooled"].points == 96
    # Against a reference without SciPy's bootstrap: independent noise has an interval around zero.
    z = xr.DataArray(rng.normal(size=(2, 6, 8)), **labels)
    one = relation.correlations(xr.DataArray(x, **labels), z)["all methods, within each"]
    assert one.low < 0.15
    assert one.high > -0.15


def test_of_many_points_some_tasks_stand_for_all(data: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relation, "POINTS", 3 * len(METHODS) * SEEDS)
    assert [x.task.values.tolist() for _, _, x, _, y in relation.pairs(data)] == [[0, 2, TASKS - 1]] * 3
    assert sum(len(trace.x) for trace in relation.section(data).charts[0].figure.data) == relation.POINTS


EVIL = "<img src=x onerror=alert(1)>"


class Elements(html.parser.HTMLParser):
    """Every element of a page and its attributes, and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def crafted(directory: pathlib.Path) -> pathlib.Path:
    """A finished sweep in which every text that a stranger could choose is a tag."""
    run = make_study(directory)
    config = read_json(run / "config.json")
    arms = {f"l2@{EVIL.replace('/', '')}": f"l2{EVIL}", "l2@0": f"l2{EVIL}", "reset": "reset"}
    for old, new in zip(METHODS, arms):
        (run / "records" / old).rename(run / "records" / new)
    settings = config["settings"] | {"methods": list(arms), EVIL: EVIL, "data_card": {"name": EVIL, "synthetic": True}}
    swept = {label: {"method": method, "settings": {EVIL: EVIL}} for label, method in arms.items()}
    coords = {name: labels if name == "eps" else [EVIL, *labels[1:]] for name, labels in config["coords"].items()}
    texts = {"experiment": EVIL, "run_id": EVIL, "settings": settings, "arms": swept, "coords": coords}
    write_json(run / "config.json", config | texts)
    names = ("time", "backend", "platform", "git_revision", "command", "matmul_precision")
    machine = dict.fromkeys(names, EVIL) | {"versions": {EVIL: EVIL}, "devices": [{"kind": EVIL}]}
    write_json(run / "environment.json", machine)
    for label in arms:
        for path in (run / "records" / label).glob("*.npz"):
            segment = layout.read_segment(path)
            probe = segment.probe | {f"x/{EVIL}": segment.probe["hessian/effective_rank"]}
            train = segment.train | {EVIL: segment.train["entropy"]}
            host = {k: v for k, v in segment.host.items() if k != "segment"}
            layout.write_segment(path.parent, int(path.stem), Record(train, probe), host)
    return run


def test_no_text_of_a_run_becomes_an_element_or_a_tag_of_a_chart(tmp_path: pathlib.Path) -> None:
    run = crafted(tmp_path / "run")
    study = report.load_run(run)
    for studies in ([study], [study, study]):
        text = pages.page(*pages.side_by_side(studies))
        assert html.escape(EVIL, quote=False) in text
        elements = Elements()
        elements.feed(text)
        assert not {tag for tag, _ in elements.found} & {"img"}
        assert not [attrs for _, attrs in elements.found if any(name.startswith("on") for name in attrs)]
        # Charts get their names as JSON; plotly would take tags out of them, and shows entities as characters.
        charts = text[text.index("<body>") :]
        assert "\\u003cimg" not in charts
        assert "&lt;img" in charts


def test_correlation_of_weighted_seeds_is_that_of_repeated_ones() -> None:
    rng = np.random.default_rng(1)
    x = np.round(rng.normal(size=(6, 3, 4)), 1)
    y, weights = x + rng.normal(size=x.shape), np.array([[2, 0, 1, 3, 0, 1], [1, 1, 1, 1, 1, 1]])
    for of, found in zip(weights, relation.spearman(x, y, weights.astype(float))):
        repeated = (np.repeat(values, of, axis=0).ravel() for values in (x, y))
        assert found == pytest.approx(scipy.stats.spearmanr(*repeated).statistic, rel=1e-12)


def test_what_was_not_measured_is_left_out(study: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data, configs = pages.side_by_side([report.load_run(study)])
    bare = data.drop_vars([name for name in data if name.startswith("probe/")])
    text = pages.page(bare, configs)
    for gone in ("Hessian spectrum", "Kronecker factors", "Does curvature go"):
        assert gone not in text
    assert "Not measured: add --probes hessian." in text
    assert "Learning curves" in text
    one = pages.page(data.isel(seed=[0]), configs)
    assert "One seed has no interval" in one


def test_several_runs_side_by_side(study: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = make_study(tmp_path / "other", {"reset": 4})
    config = read_json(other / "config.json")
    write_json(other / "config.json", config | {"run_id": "s1", "settings": config["settings"] | {"er_lr": 0.1}})
    data, _ = pages.side_by_side([report.load_run(run) for run in (study, other)])
    assert data.arm.values.tolist() == [f"{letter}: {method}" for letter in "AB" for method in METHODS]
    path = pages.write([report.load_run(study), report.load_run(other)], tmp_path / "both.html")
    text = path.read_text()
    assert "2 runs side by side" in text
    assert "A: synthetic s0; B: synthetic s1" in text
    assert "Settings that differ" in text
    assert "Unfinished (finished of 5 tasks): B: reset 2." in text
    assert score_of(data) is not None
    longer = config["settings"] | {"updates_per_task": 99}
    write_json(tmp_path / "longer" / "config.json", config | {"settings": longer})
    with pytest.raises(ConfigError, match=r"A: 40, B: 99\) have no common axis"):
        pages.write([report.load_run(study), report.load_run(tmp_path / "longer")], tmp_path / "longer.html")


def test_the_command_to_repeat_it_and_warnings_are_there(study: pathlib.Path, page: pathlib.Path) -> None:
    write_json(
        study / "environment.json", {"command": "python -m experiments.x --seeds 4 <b>", "git_revision": "c0ffee"}
    )
    settings = read_json(study / "config.json")
    data, configs = pages.side_by_side([report.load_run(study)])
    ((config, environment),) = configs.values()
    own = {
        "cpr": {"name": "mylab.cpr:CPR", "module": "mylab.cpr", "object": "CPR", "source": "ab12" * 16, "version": "2"}
    }
    card = {"name": "digits", "train": 1498, "notes": ""}
    told = {**config, "own": own, "settings": {**config["settings"], "data_card": card}}
    text = pages.page(data.assign_attrs(notice="SYNTHETIC DATA"), {"": (told, environment)})
    # As one types it, whatever Python it was started by.
    assert "plastax run x --seeds 4 &#x27;&lt;b&gt;&#x27;" in text or "plastax run x --seeds 4 '&lt;b&gt;'" in text
    assert f"mylab.cpr:CPR, version 2, source sha256 {'ab12' * 16}" in text
    assert "name digits; train 1498" in text
    assert "c0ffee" in text
    assert '<p class="loud">SYNTHETIC DATA</p>' in text
    assert "4 seeds: a 95 % t interval covers" in text
    assert "Ranks do not rank methods" in text
    assert json.dumps(settings["settings"]["seeds"]) in text
