"""How a run is cut into segments, and when its checkpoints are made."""

from __future__ import annotations

from typing import NamedTuple

from plastax.errors import ConfigError


class Plan(NamedTuple):
    """How a run is cut into segments.

    Attributes:
      tasks: number of tasks.
      updates_per_task: updates per task.
      updates_per_segment: updates per call of the compiled program; divides ``updates_per_task``.
      steps_per_update: environment steps (or examples) per update, of all seeds together.
    """

    tasks: int
    updates_per_task: int
    updates_per_segment: int
    steps_per_update: int

    @property
    def segments(self) -> int:
        """Number of segments of the run."""
        return self.tasks * self.updates_per_task // self.updates_per_segment

    def check(self) -> None:
        """Raises `ConfigError` unless segments divide tasks."""
        if self.updates_per_segment < 1 or self.updates_per_task % self.updates_per_segment:
            raise ConfigError(
                f"updates_per_segment: {self.updates_per_segment} does not divide the {self.updates_per_task} updates "
                "of a task"
            )


class Saving(NamedTuple):
    """When checkpoints are made. One more follows the last segment, and the segment at which a run is stopped.

    Attributes:
      every: segments between checkpoints; 0: see ``minutes``.
      minutes: minutes between checkpoints, each at the end of a segment; 0: see ``every``.
      keep: how many of the newest checkpoints to keep; at least two, because the newest may be damaged.
      params: keep the networks after every ``params``-th task too, see `networks`; 0: of no task.
    """

    every: int = 0
    minutes: float = 5.0
    keep: int = 2
    params: int = 0

    @property
    def enabled(self) -> bool:
        """Whether any checkpoints are made."""
        return bool(self.every or self.minutes)

    def due(self, segment: int, seconds: float) -> bool:
        """Whether to save after ``segment`` segments, ``seconds`` after the last checkpoint."""
        return bool(self.every and segment % self.every == 0) or bool(self.minutes and seconds >= 60 * self.minutes)
