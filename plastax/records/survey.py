"""How much of a run is recorded and undamaged: checked before it continues, and before it counts as recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plastax.errors import RecordError, Unreadable
from plastax.records import layout
from plastax.records.files import PathLike


class Survey(NamedTuple):
    """How much is recorded of some arms.

    Attributes:
      whole: number of undamaged records that every arm has, counted from the first one without a gap.
      problem: what is wrong with the next record; "" if it is merely not there yet.
      checkpoint: segment of the newest checkpoint that was complete when one of the records was written; 0: none.
    """

    whole: int
    problem: str
    checkpoint: int


def survey(run: PathLike, config: Mapping[str, Any], arms: Sequence[str], segments: int) -> Survey:
    """Checks every record of some arms: all of its bytes, and that it is the record that its name says.

    Args:
      run: the run directory.
      config: the content of its ``config.json``.
      arms: their labels.
      segments: number of records of a complete arm.

    Raises:
      Unreadable: a record cannot be read now.
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
