"""What an arm is: a method, and in a sweep the values of the swept settings. In tables these are columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def is_sweep(data: xr.Dataset | xr.DataArray) -> bool:
    """Whether a method of the study has several arms, see `plastax.records.labelled.read_run`."""
    return data.sizes["arm"] > len(set(data.method.values.tolist()))


def swept(data: xr.Dataset | xr.DataArray) -> list[str]:
    """The swept settings of a study: dotted names of its coordinates along ``arm``."""
    return [
        str(name) for name, coord in data.coords.items() if coord.dims == ("arm",) and name not in ("arm", "method")
    ]


def base(method: str) -> str:
    """A method without the letter of its run: ``l2_er`` of ``A: l2_er``."""
    return method.partition(": ")[2] or method


def run_of(arm: str) -> str:
    """The letter of an arm's run: A of ``A: l2_er``; "" of a single run."""
    return arm.partition(": ")[0] if ": " in arm else ""


def methods(data: xr.Dataset | xr.DataArray) -> dict[str, str]:
    """Arm -> its method, without the letter of its run."""
    return {str(arm): base(str(method)) for arm, method in zip(data.arm.values, data.method.values)}


def settings(frame: pd.DataFrame) -> list[str]:
    """The swept settings among the columns of a table: the dotted ones."""
    return [str(name) for name in frame if "." in str(name)]


def described(data: xr.Dataset | xr.DataArray) -> pd.DataFrame:
    """One row for each arm, index ``arm``: ``method``, and the swept settings by their dotted names (NaN or "": none).

    Examples:
      >>> import xarray as xr
      >>> names, swept = ("arm", ["l2", "reset"]), ("arm", [0.1, np.nan])
      >>> data = xr.Dataset(coords={"arm": ["l2@l2=0.1", "reset"], "method": names, "method.l2": swept})
      >>> described(data).loc["l2@l2=0.1"].to_dict()
      {'method': 'l2', 'method.l2': 0.1}
    """
    import pandas as pd

    columns = {name: data[name].values for name in ("method", *swept(data))}
    return pd.DataFrame(columns, pd.Index(data.arm.values, name="arm"))


def shown(described: pd.DataFrame) -> pd.DataFrame:
    """`described` as text, with the last part of a setting's name as the heading where that tells them apart."""
    names = {str(name): str(name).rpartition(".")[2] for name in described}
    names = names if len(set(names.values())) == len(names) else {name: name for name in names}
    return described.map(value_text).rename(columns=names)


def rest(described: pd.DataFrame, setting: str = "") -> list[str]:
    """What tells arms of one method apart, in words: the run, and the values of all settings but one; often ""."""
    texts = shown(described.drop(columns=setting, errors="ignore"))
    runs = [f"run {letter}" if (letter := run_of(str(arm))) else "" for arm in texts.index]
    parts = [[run, *_words(row)] for run, (_, row) in zip(runs, texts.iterrows())]
    return [", ".join(filter(None, words)) for words in parts]


def _words(row: pd.Series) -> list[str]:
    """``setting = value`` for each setting that an arm has, of a row of `shown`."""
    return [f"{name} = {value}" for name, value in row.iloc[1:].items() if value]


def value_text(value: Any) -> str:
    """A setting's value in few characters; "" for the NaN of a method without the setting."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:g}"
    return str(value)


def titles(data: xr.Dataset | xr.DataArray) -> dict[str, str]:
    """Arm -> its method, and below it a line ``setting = value`` for each swept setting that it has."""
    frame = shown(described(data))
    return {str(arm): "\n".join([row["method"], *_words(row)]) for arm, row in frame.iterrows()}


def names(data: xr.Dataset | xr.DataArray) -> dict[str, str]:
    """Arm -> what sentences call it: its label; in a sweep ``l2_er (er_lr = 0.1)``."""
    if not is_sweep(data):
        return {str(arm): str(arm) for arm in data.arm.values}
    parts = {arm: title.splitlines() for arm, title in titles(data).items()}
    return {arm: f"{method} ({', '.join(values)})" if values else method for arm, (method, *values) in parts.items()}
