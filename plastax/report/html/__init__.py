"""The report as one self-contained HTML file: the findings of a study, and interactive figures."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import pandas as pd
import xarray as xr

from plastax.errors import ConfigError
from plastax.records import loading
from plastax.records.files import write_atomic
from plastax.records.layout import arm_labels
from plastax.report import drawn, selection
from plastax.report.arms import described, is_sweep, methods
from plastax.report.arms import shown as shown_arms
from plastax.report.compare import letters
from plastax.report.html import blocks, learning, network, prediction, provenance, relation, spectra, sweep, verdict
from plastax.report.html.look import over_tasks, styled
from plastax.report.html.page import Chart, Section, Table, render
from plastax.report.notes import unscored
from plastax.report.reading import LoadedRun
from plastax.report.style import legend_looks
from plastax.report.values import task_values
from plastax.report.wording import axis_of, worded


def side_by_side(studies: Sequence[LoadedRun]) -> tuple[xr.Dataset, provenance.Configs]:
    """Runs as one study: a single run as it is; the arms of several are called ``A: reset``, ``B: reset``.

    Args:
      studies: the runs.

    Raises:
      ConfigError: the tasks of the runs have different numbers of updates.
    """
    configs = {letter: (one.config, one.environment) for letter, one in zip(letters(len(studies)), studies)}
    if len(studies) == 1:
        return studies[0].data, configs
    said = list(dict.fromkeys(study.data.attrs["notice"] for study in studies))
    data = loading.join(*zip(*((study.data, study.config, study.directory) for study in studies)))
    if "run" in data.update_task.dims:
        lengths = ", ".join(f"{k}: {c['settings'].get('updates_per_task')}" for k, (c, _) in configs.items())
        raise ConfigError(f"runs whose tasks differ in updates ({lengths}) have no common axis; use plastax compare")
    shown = data.drop_vars([name for name, coord in data.coords.items() if name != "run" and coord.dims == ("run",)])
    known = shown.arm.values.tolist()
    places = [
        (i, known.index(arm))
        for i, (config, _) in enumerate(configs.values())
        for arm in arm_labels(config)
        if arm in known
    ]
    # Pairs, because a run may lack arms of another.
    run, arm = (xr.DataArray(list(place), dims="arm") for place in zip(*places))
    joined = shown.isel(run=run, arm=arm).drop_vars("run")
    named = {
        name: [f"{list(configs)[i]}: {label}" for (i, _), label in zip(places, joined[name].values)]
        for name in ("arm", "method")
    }
    joined = joined.assign_coords({name: ("arm", values) for name, values in named.items()})
    axis = axis_of([study.data for study in studies])
    tuned = "; ".join(
        f"{letter}: {text}" for letter, one in zip(configs, studies) if (text := one.data.attrs.get("tuning"))
    )
    attributes = {"notice": " ".join(text for text in said if text), "axis": axis, "tuning": tuned}
    return joined.assign_attrs(attributes), configs


def by_arm(frame: pd.DataFrame, data: xr.Dataset) -> pd.DataFrame:
    """A table of a sweep's arms by method, with a column for each setting; rows that are no arm keep their name."""
    if not is_sweep(data) or not set(frame.index) & set(data.arm.values.tolist()):
        return frame
    about = shown_arms(described(data)).reindex(frame.index)
    methods = about.pop("method").fillna(frame.index.to_series())
    return pd.concat([about.fillna(""), frame], axis=1).set_axis(methods.to_list())


def page(data: xr.Dataset, configs: provenance.Configs, foretold: pd.DataFrame | None = None) -> str:
    """The report as HTML.

    Args:
      data: a study, see `side_by_side`.
      configs: of the runs.
      foretold: see `prediction.section`.
    """
    found = verdict.findings(data)
    shown = drawn.shown(data)
    said = drawn.left_out(data)

    def by_arms(section: Section) -> Section:
        return section._replace(tables=[(title, by_arm(frame, data)) for title, frame in section.tables])

    def partly(section: Section) -> Section:
        return section._replace(text=[*section.text, said]) if said else section

    charts = sweep.charts(data)
    if found is not None:
        made = over_tasks(task_values(shown, found.score.main), found.score.main.label, bars=True)
        if made is not None:
            charts.append(Chart("answer-score", f"{found.score.main.label} in each task", made, said))
        if found.measure is not None:
            made = over_tasks(found.measure.values.sel(arm=shown.arm), found.measure.label, bars=True)
            if made is not None:
                charts.append(Chart("answer-rank", f"{found.measure.label} at each task's start", made, said))
    ids = {letter: f"{c.get('experiment', '')} {c.get('run_id', '')}".strip() for letter, (c, _) in configs.items()}
    title = next(iter(ids.values())) if len(ids) == 1 else f"{len(ids)} runs side by side"
    count = len(set(methods(data).values()))
    arms = f"{data.sizes['arm']} arms of " if data.sizes["arm"] > count else ""
    sizes = f"{arms}{count} methods x {data.sizes['seed']} seeds x {data.sizes['task']} tasks"
    several = "; ".join(f"{letter}: {text}" for letter, text in ids.items()) if len(ids) > 1 else ""
    tables = [] if found is None else [Table("", verdict.table(found), verdict.NOTE)]
    tables += sweep.tables(data)
    tables = [one._replace(frame=by_arm(one.frame, data)) for one in tables]
    best = selection.best(data)
    if not isinstance(best, str):
        chosen = selection.shown(best)
        tables.append(Table("Best arms", chosen.set_index("method"), "; ".join(selection.note(best))))
    return render(
        title,
        ". ".join(filter(None, [sizes, several, data.attrs.get("tuning", "")])),
        str(data.attrs.get("notice", "")),
        verdict.answers(found, unscored(data)),
        [styled(look, name) for name, look in legend_looks(shown).items()],
        tables,
        charts,
        [
            *provenance.warnings(data, found, configs),
            *([f"{best[0].upper()}{best[1:]}."] if isinstance(best, str) and best else []),
        ],
        [
            partly(learning.section(shown)),
            partly(spectra.section(shown, "hessian")),
            partly(blocks.section(shown, "hessian")),
            partly(spectra.section(shown, "ggn")),
            partly(blocks.section(shown, "ggn")),
            by_arms(relation.section(data)),
            prediction.section(data, foretold),
            partly(network.section(shown)),
            partly(network.kronecker(shown)),
            partly(network.others(shown)),
            by_arms(provenance.section(data, configs)),
            provenance.settings(configs),
        ],
    )


def write(
    studies: Sequence[LoadedRun], path: str | os.PathLike[str], foretold: pd.DataFrame | None = None
) -> pathlib.Path:
    """Writes the report of one run, or of several side by side.

    Args:
      studies: the runs.
      path: the file.
      foretold: see `prediction.section`.

    Returns:
      The file.

    Raises:
      ConfigError: the runs cannot be drawn side by side.
    """
    path, (data, configs) = pathlib.Path(path), side_by_side(studies)
    head, body, rest = page(data, configs, foretold).rpartition("</head>")  # The head has plotly's code.
    content = (head + body + worded(rest, data.attrs["axis"])).encode()
    write_atomic(path, lambda file: file.write(content))
    return path
