"""How much of a run is recorded and whole: asked before it continues, and before it counts as recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plastax.errors import RecordError, Unreadable
from plastax.records import layout
from plastax.records.files import PathLike


class Survey(NamedTuple):
    """What there is of the records of some arms.

    Attributes:
      whole: how many of every arm there are from the first on without a gap, each of them whole.
      problem: what is wrong with the next one; "" if it has just not been recorded.
      checkpoint: the newest checkpoint, by its segment, that was complete when one of them was written; 0: none.
    """

    whole: int
    problem: str
    checkpoint: int


def survey(run: PathLike, config: Mapping[str, Any], arms: Sequence[str], segments: int) -> Survey:
    """Checks every record of some arms: each byte of it, and that it is what its name says.

    Args:
      run: the run directory.
      config: the content of its ``config.json``.
      arms: their labels.
      segments: how many records each is to have.

    Raises:
      Unreadable: one of them cannot be read now.
    """
    found = [_survey(run, config, arm, segments) for arm in arms]
    whole = min((one.whole for one in found), default=segments)
    problem = next((one.problem for one in found if one.problem and one.whole == whole), "")
    return Survey(whole, problem, max((one.checkpoint for one in found), default=0))


def _survey(run: PathLike, config: Mapping[str, Any], arm: str, segments: int) -> Survey:
    folder, owner = layout.records_folder(run, config, arm), layout.owner(config, arm)
    end = min(segments, max(layout.segment_files(folder), default=-1) + 1)
    whole, problem, checkpoint = end, "", 0
    for index in range(end):
        path = folder / f"{index:06d}.npz"
        try:
            checkpoint = max(checkpoint, layout.check_segment(path, owner).get("checkpoint", 0))
        except Unreadable:
            raise
        except (RecordError, FileNotFoundError) as error:
            if not problem:
                whole, problem = index, str(error) if isinstance(error, RecordError) else f"{path} is missing"
    return Survey(whole, problem, checkpoint)
