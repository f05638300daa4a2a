"""A study that trains nothing: everything that a run does around its training, in no time; see `tests.killing`."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from plastax.errors import Stopped
from plastax.records import layout
from plastax.records.survey import survey
from plastax.runs import loop
from plastax.runs.plan import Plan
from plastax.study import settings, starting
from plastax.types import Record

ARMS = ("adam", "momentum")
PLAN = Plan(2, 4, 2, 2)
HERE = {
    "time": "2026-01-01T00:00:00+00:00", "source": "abc", "versions": {}, "devices": [{"kind": "cpu"}],
    "backend": "cpu", "cpu": {}, "x64": False, "matmul_precision": "default", "xla_flags": "", "own": {},
    "jax": {}, "variables": {},
}  # fmt: skip
"""An environment."""


def train(directory: pathlib.Path, config: Any, batch: Any, plan: Plan, *_: Any, stopping: Any, **__: Any) -> None:
    """Records what is missing, and says so."""
    (arm,) = batch.arms
    place, owner = layout.records_folder(directory, config, arm), layout.owner(config, arm)
    for index in range(survey(directory, config, [arm], plan.segments).whole, plan.segments):
        if stopping.asked:
            raise Stopped(f"stopped by {stopping.asked}")
        values = Record({"loss": np.full((plan.steps_per_update, 2), index, np.float32)}, {})
        host = {"clock": 2 * index, "length": 2, "task": index // 2}
        layout.write_segment(place, index, values, host, owner | {"checkpoint": 0})
        print(f"trained {arm} {index}")


def report(directory: pathlib.Path) -> None:
    """Writes files as a report does."""
    (directory / "summary.csv").write_text("a,b\n")
    with (directory / "report.html").open("w") as file:
        file.write("<html>")
        file.flush()
        os.mkdir(directory / "figures") if not (directory / "figures").exists() else None
        (directory / "figures" / "overview.csv").write_text("c\n")
        file.write("</html>")
    print("reported")


def study(
    runs_dir: pathlib.Path, shard: str = "", *, fresh: bool = False, resume: str = "", here: Any = HERE, **others: Any
) -> pathlib.Path:
    """The study, as `study.experiment.Experiment.run` has it; its directory."""
    chosen = {"methods": [*ARMS], "seeds": 2, "tasks": 2, "updates_per_task": 4, **others}
    config = settings.Config(
        runs_dir=runs_dir, resume=pathlib.Path(resume) if resume else None, fresh=fresh, shard=shard
    )
    directory, run_id, note = starting.run_directory(config, "tiny", chosen, here)
    print(note)
    described = {"experiment": "tiny", "run_id": run_id, "hash": settings.identity(chosen), "settings": chosen}
    axes = SimpleNamespace(dims={}, coords={})
    batches = [SimpleNamespace(arms=(arm,), name=arm, folder=arm, program=axes) for arm in ARMS]
    own = settings.of_shard(batches, shard)
    loop.train = train  # type: ignore[assignment]
    loop.study(
        directory, described, own, PLAN, shard=shard, here=here, same=bool(shard and not resume),
        report=lambda: report(directory),
    )  # type: ignore[arg-type]  # fmt: skip
    return directory


CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def at_change(root: pathlib.Path, number: int, act: Callable[[], None], *, still: bool = False) -> list[int]:
    """Calls ``act`` right before this process changes something below a folder for the ``number``-th time.

    Args:
      root: the folder.
      number: from 1.
      act: kills the process, or raises what the change is to end with.
      still: before all later changes too.

    Returns:
      How many changes there have been, counted on.
    """
    count = [0]

    def hook(event: str, arguments: Sequence[Any]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = arguments[0] if (writes or event in CHANGES) else None
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(os.fspath(root)):
            count[0] += 1
            if count[0] == number or (still and count[0] > number):
                act()

    sys.addaudithook(hook)
    return count


def fill() -> None:
    """What a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(runs_dir: str, how: str, number: int, options: dict[str, Any]) -> None:
    """Carries out the study; kill, full or term it at its ``number``-th change."""
    root = pathlib.Path(runs_dir)
    acts: dict[str, Callable[[], None]] = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "full": fill,
        "": lambda: None,
    }
    count = at_change(root, number, acts[how], still=how == "full")
    settings.main(lambda: print(study(root, **options)))
    print("changes", count[0])
