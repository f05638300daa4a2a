"""Everything that a study has measured, by the names that users type: ``hessian/rank``, ``train.accuracy``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plastax.errors import ConfigError
from plastax.report.score import Quantity, score_of

if TYPE_CHECKING:
    import xarray as xr

AT_START = ("hessian", "ggn", "kronecker", "gradient", "ntk")
"""Probes whose mark is ``init`` (a task's start) where a name has none; that of others is ``end``."""

WHOLE = ("nodes", "weights", "residuals", "eigenvalues")
"""Parts of a spectrum, whose mean says nothing."""

AXES = ("arm", "seed", "task", "mark")

TECHNICAL = ("_se", "_residual", "/complete", "/dim", "/breakdowns", "/rows", "/linearised", "/alive", "/left_out")
"""Values that say how others were measured: they can be named, but are not suggested."""


def measurements(data: xr.Dataset) -> dict[str, Quantity]:
    """Name -> quantity, of everything with one value for each arm, seed and task.

    Names are ``train/<name>`` and ``<probe>/<value>/<mark>``, mark ``init`` or ``end``. Of several thresholds it is the
    value at the middle one, along other axes the mean.
    """
    found = {}
    for name, array in data.data_vars.items():
        kind, _, key = str(name).partition("/")
        if kind == "train":
            found[str(name)] = Quantity(str(name), f"{key}, mean of a task's updates", str(name))
        elif kind == "probe" and key.rpartition("/")[2].removeprefix("block_") not in WHOLE:
            about = f", ε = {float(array.eps[array.sizes['eps'] // 2]):g}" if "eps" in array.coords else ""
            more = [
                str(dim).replace("_", " ") for dim in array.dims if dim not in AXES and not str(dim).endswith("eps")
            ]
            about += f", mean over {' and '.join(f'{dim}s' for dim in more)}" if more else ""
            for mark, where in (("init", "start"), ("end", "end")):
                if bool(array.sel(mark=mark).notnull().any()):
                    found[f"{key}/{mark}"] = Quantity(f"{key}/{mark}", f"{key} at task {where}{about}", str(name), mark)
    return found


def quantity(data: xr.Dataset, name: str) -> Quantity:
    """The quantity of a name.

    Args:
      data: a study, see `plastax.load`.
      name: of a quantity of the score (``test_accuracy``; "": its main one), or of one of `measurements`. Dots may
        stand for slashes, ``probe/`` may come first, and the mark may be missing, see `AT_START`.

    Raises:
      ConfigError: nothing of that name was measured.
    """
    score, known = score_of(data), measurements(data)
    scored = {q.name: q for q in score.quantities} | {"": score.main} if score else {}
    typed = name.replace(".", "/").removeprefix("probe/")
    marks = ("init", "end") if typed.partition("/")[0] in AT_START else ("end", "init")
    for key in (typed, *(f"{typed}/{mark}" for mark in marks)):
        if found := scored.get(name) or known.get(key):
            return found
    named = dict.fromkeys(key.removesuffix("/init").removesuffix("/end") for key in known)
    raise ConfigError.unknown(
        "quantity", name, [*filter(None, scored), *(k for k in named if not k.endswith(TECHNICAL))]
    )
