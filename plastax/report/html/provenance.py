"""What was run, where, for how long, how to repeat it; and warnings."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from plastax.records.loading import differing
from plastax.report import drawn
from plastax.report.arms import methods
from plastax.report.html.page import Section
from plastax.report.html.verdict import Findings
from plastax.report.notes import broken, gaps, unfinished, unscored
from plastax.report.statistics import FEWEST
from plastax.report.values import rank_at

Configs = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Letter of a run, "" for a single one -> content of its ``config.json`` and ``environment.json``."""

FEW = 10
"""With fewer seeds, their values do not show whether they are skewed."""


def warnings(data: xr.Dataset, found: Findings | None, configs: Configs) -> list[str]:
    """Warnings for whoever cites a number; arguments as of `section`."""
    said = []
    if data.attrs.get("notice"):
        said.append(f"{data.attrs['notice']}.")
    seeds = data.sizes["seed"]
    if seeds < FEWEST:
        said.append(f"{seeds} seed{'s' * (seeds > 1)}: intervals need at least {FEWEST}.")
    elif seeds < FEW:
        said.append(
            f"{seeds} seeds: a 95 % t interval covers 95 % if seeds are about normally distributed, and 83 % if a "
            "few lie far from the others (lognormal values). More seeds show which it is."
        )
    said += [
        f"{line[0].upper()}{line[1:]}."
        for line in (unfinished(data), unscored(data), *gaps(data), broken(data))
        if line
    ]
    said += [note for config, _ in configs.values() for note in config.get("notes", ())]
    said += _measurement(data, configs)
    said += drawn.warning(data)
    if "reset" in methods(data).values():
        said.append("reset starts every task with a new network: a reference without history, not an upper bound.")
    if found is not None and found.measure is not None:
        said.append(
            "Ranks do not rank methods: published networks with the largest feature rank were not the best, and a "
            "rank depends on its threshold and on the scale of the loss. Read it with the score, and for several eps."
        )
    if "probe/features/dormant_fraction" in data:
        said.append(
            "The number of dormant units depends on the measured batch and the threshold; a small one is no sign of "
            "health."
        )
    return said


def _measurement(data: xr.Dataset, configs: Configs) -> list[str]:
    """A warning if the spectra were measured poorly, and what would measure them better."""
    rank, error = rank_at(data), rank_at(data, value="rank_se")
    if rank is None or error is None:
        return []
    values, errors = (v.transpose("arm", "seed", "task").values for v in (rank, error))
    good = np.isfinite(values) & np.isfinite(errors)
    bad = float((errors[good] > 0.5 * values[good]).mean()) if good.any() else 0.0
    if bad <= 0.05:
        return []
    # What is missing is resolution near the threshold, which more probe vectors of the same order do not give.
    orders = [config.get("settings", {}).get("hessian", {}).get("order") for config, _ in configs.values()]
    known = max((order for order in orders if isinstance(order, int)), default=0)
    more = f" (--hessian.order {4 * known})" if known else " (--hessian.order)"
    return [
        f"In {bad:.0%} of its measurements the Hessian eps-rank has a standard error above half its value: take a "
        f"higher order{more}, or a larger eps (--hessian.eps)."
    ]


def section(data: xr.Dataset, configs: Configs) -> Section:
    """The section on what was run.

    Args:
      data: the study.
      configs: see `Configs`.
    """
    tables = [("How long", _seconds(data))]
    for letter, (config, environment) in configs.items():
        name = f"Run {letter}: " if letter else ""
        tables.append((f"{name}what and where", _what(config, environment)))
    if len(configs) > 1:
        tables.append(("Settings that differ", _differing({k: c for k, (c, _) in configs.items()})))
    return Section("run", "What was run, where, for how long; how to repeat it", tables=tables)


def settings(configs: Configs) -> Section:
    """All settings of all runs; argument as of `section`."""
    tables = []
    for letter, (config, _) in configs.items():
        rows = {k: json.dumps(v) for k, v in config.get("settings", {}).items()}
        tables.append((f"Run {letter}" if letter else "", pd.DataFrame({"value": rows})))
    return Section("settings", "All settings", tables=tables, folded=True)


def _seconds(data: xr.Dataset) -> pd.DataFrame:
    """Seconds of each arm by their use."""
    rows = {}
    for name in data.data_vars:
        if str(name).startswith("host/") and str(name).endswith("_seconds"):
            label = str(name).removeprefix("host/").removesuffix("_seconds")
            rows[label] = [f"{value:,.1f} s" for value in data[name].sum("segment").values]
    return pd.DataFrame(rows, index=data.arm.values)


def _what(config: Mapping[str, Any], environment: Mapping[str, Any]) -> pd.DataFrame:
    devices = [device.get("kind", "") for device in environment.get("devices", ())]
    settings = config.get("settings", {})
    rows = {
        "run": f"{config.get('experiment', '')} {config.get('run_id', '')}",
        "started": environment.get("time"),
        "on": f"{environment.get('backend', '')}: {', '.join(dict.fromkeys(devices))}, "
        f"{environment.get('cpus_usable')} CPUs, {environment.get('platform', '')}",
        "versions": ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items() if v),
        "precision": f"matmul {environment.get('matmul_precision')}, x64 {environment.get('x64')}",
        "chosen for it": ", ".join(f"{k} {v}" for k, v in environment.get("choices", {}).items()),
        "code": f"{environment.get('git_revision')}{' and uncommitted changes' * bool(environment.get('git_dirty'))}",
        "repeat by": repeat(environment.get("command") or ""),
        **{f"own {group}": _own(origin) for group, origin in config.get("own", {}).items()},
        "resumed": f"{len(environment['resumed'])} times" if environment.get("resumed") else None,
        "data": "; ".join(f"{k} {v}" for k, v in (settings.get("data_card") or {}).items() if v not in (None, "")),
    }
    return pd.DataFrame({"value": {key: value for key, value in rows.items() if value}})


def repeat(command: str) -> str:
    """The command that repeats a run as one types it: ``plastax run rl_gymnax --seeds 16``.

    Args:
      command: as recorded, with Python's path; one that is not plastax's is returned as it is.

    Examples:
      >>> repeat("/venv/bin/python -m experiments.rl_gymnax --seeds 16")
      'plastax run rl_gymnax --seeds 16'
      >>> repeat("/venv/bin/python /venv/bin/plastax run rl_gymnax")
      'plastax run rl_gymnax'
    """
    words = shlex.split(command)
    for i, word in enumerate(words):
        if word.startswith("experiments.") and words[i - 1] == "-m":
            return shlex.join(["plastax", "run", word.removeprefix("experiments."), *words[i + 1 :]])
        if pathlib.PurePath(word).name == "plastax":
            return shlex.join(["plastax", *words[i + 1 :]])
    return command


def _own(origin: Mapping[str, str]) -> str:
    """An own object by its full name, with version and source."""
    version, source = origin.get("version"), origin.get("source")
    known = [f"version {version}" if version else "", f"source sha256 {source}" if source else "source not known"]
    return ", ".join(text for text in (origin["name"], *known) if text)


def _differing(configs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = differing(list(configs.values()))
    return pd.DataFrame({name: [str(v) for v in values] for name, values in rows.items()}, index=list(configs)).T
