"""What reports call the axis of tasks: a series of checkpoints (`plastax.inspect`) has none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

_CHECKPOINTS = (
    (r",? (at|in) (each )?task('s|&#x27;s)? (start|end)", ""),
    (", before any training on it, against the score in it", ", against the score"),
    (" The rank of task 0 is that of the untrained network.", ""),
    ("Which method keeps its plasticity", "Does the network keep its accuracy"),
    (r"In the last ([0-9]+) tasks (\S+) has the best final (.*?):", r"In the last \1 tasks, \3 of \2:"),
    ("final (training|test)", r"\1"),
    ("online loss", "loss"),
    ("[0-9]+ methods? x ", ""),
    ("over seeds", "over draws of examples"),
    ("([0-9]) seeds", r"\1 draws of examples"),
    (r"\btask(s?)\b", r"checkpoint\1"),
    (r"\bTask(s?)\b", r"Checkpoint\1"),
)
"""Pattern -> its replacement, applied in this order."""


def worded(text: str, axis: str) -> str:
    """A text of a report.

    Args:
      text: written for tasks.
      axis: ``task``, or ``checkpoint``.

    Examples:
      >>> worded("Hessian eps-rank at task start, last third of tasks", "checkpoint")
      'Hessian eps-rank, last third of checkpoints'
    """
    for pattern, replacement in _CHECKPOINTS if axis == "checkpoint" else ():
        text = re.sub(pattern, replacement, text)
    return text


def axis_of(studies: Sequence[xr.Dataset]) -> str:
    """The axis that studies share, ``task`` where they differ."""
    found = {data.attrs.get("axis", "task") for data in studies}
    return found.pop() if len(found) == 1 else "task"
