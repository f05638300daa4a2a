"""How a network is trained on each task of a supervised stream, and how long a task is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import optax

from plastax import ranges
from plastax.curvature.kronecker import Kind
from plastax.errors import ConfigError

OptimizerName = Literal["sgd", "adam"]
Head = Literal["keep", "reset"]


@dataclass(frozen=True)
class Training:
    """How a network is trained on each task."""

    traced: ClassVar[tuple[str, ...]] = ("learning_rate",)

    optimizer: OptimizerName = "sgd"
    """sgd | adam; the method acts on its steps."""
    learning_rate: float = 1e-2
    """Step size; constant unless `drops` says otherwise (a decaying rate looks like loss of plasticity)."""
    drops: tuple[float, ...] = ()
    """Fractions of a task after which the step size falls, by `drop_factor` each; every task starts at the full one.
    What a method adds to a step (weight decay) falls too; what it does at a switch does not. Empty: constant."""
    drop_factor: float = 5.0
    """The step size is divided by this at each of `drops`."""
    momentum: float = 0.0
    """Momentum of sgd."""
    b1: float = 0.9
    """Adam's decay of the gradient mean."""
    b2: float = 0.999
    """Adam's decay of the squared gradient."""
    eps: float = 1e-8
    """Adam's epsilon."""
    batch_size: int = 16
    """Examples in a gradient step. An epoch leaves out the remainder (examples mod batch size), other examples every
    time."""
    epochs: int = 1
    """Passes over a task's training examples, in a new order each."""
    updates: int = 1
    """Recorded values a task: gradient steps are averaged over this many equal parts of it. A multiple or a divisor of
    the epochs."""
    head: Head = "keep"
    """Output layer at a task switch: keep | reset (new initial weights; the optimiser keeps its state of them; Dohare
    et al. 2024 set them to zero)."""
    restore_best: bool = False
    """At the end of a task, restore the weights that had the best validation accuracy after any of its updates, as
    Dohare et al. 2024 do; the optimiser's state stays. The stream must keep images for validation."""
    evaluation_examples: int = 1000
    """Training examples, and held-out ones, on which loss and accuracy are evaluated at both ends of every task."""
    probe_examples: int = 256
    """Training examples that probes see, evenly spaced among the task's."""
    sample_plasticity: bool = False
    """Record what each step gains on its own batch (Elsayed and Mahmood 2024); one more forward pass a step."""
    kronecker_every: int = 0
    """Gradient steps between updates of the running Kronecker factors, from training's own backward pass; 0: off."""
    kronecker_kind: Kind = "empirical"
    """Whose gradients: empirical (the loss's own, no further cost) | sampled (labels drawn from the network, one more
    backward pass at an update of the factors) | exact (their expectation, one more backward pass an output)."""
    kronecker_decay: float = 0.95
    """Decay of the running Kronecker factors, an update of them (Martens and Grosse 2015, section 5)."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "epochs", "updates", "evaluation_examples", "probe_examples")
        ranges.check(self, "training", *counts, least=1)
        ranges.check(self, "training", "learning_rate", "eps", "drop_factor", above=0)
        ranges.check(self, "training", "momentum", "b1", "b2", "kronecker_decay", least=0, most=1)
        ranges.check(self, "training", "drops", above=0, below=1)
        ranges.check(self, "training", "kronecker_every", least=0)
        ranges.check_choices(self, "training", optimizer=OptimizerName, head=Head, kronecker_kind=Kind)
        if self.updates % self.epochs and self.epochs % self.updates:
            raise ConfigError(
                f"training.updates: {self.updates} is neither a multiple nor a divisor of the {self.epochs} epochs; "
                f"give {self.epochs}, or one of those"
            )

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser on whose steps the method acts."""
        if self.optimizer == "adam":
            return optax.adam(self.learning_rate, self.b1, self.b2, self.eps)
        return optax.sgd(self.learning_rate, self.momentum or None)

    def blocks(self, examples: int) -> Blocks:
        """How a task of ``examples`` training examples is cut into recorded updates.

        Raises:
          ConfigError: a batch larger than the examples, or an epoch that the updates do not divide.
        """
        if self.batch_size > examples:
            raise ConfigError(
                f"training.batch_size: {self.batch_size} is more than a task's {examples} training examples; "
                f"give {examples} or fewer"
            )
        steps = examples // self.batch_size
        parts = max(1, self.updates // self.epochs)
        if steps % parts:
            allowed = [n for n in range(1, steps + 1) if steps % n == 0]
            near = sorted(sorted(allowed, key=lambda n: abs(n - parts))[:3])
            raise ConfigError(
                f"training.updates: {self.updates} cuts an epoch of {steps} steps into {parts} parts, which does not "
                f"divide; give {', '.join(str(n * self.epochs) for n in near)}"
            )
        return Blocks(max(1, self.epochs // self.updates), parts, steps // parts)


class Blocks(NamedTuple):
    """How epochs and recorded updates fit together: an update is several epochs, or an epoch several updates.

    Attributes:
      epochs: in an update; 1 where ``parts`` is more.
      parts: updates in an epoch; 1 where ``epochs`` is more.
      steps: gradient steps in a part.
    """

    epochs: int
    parts: int
    steps: int

    @property
    def steps_per_update(self) -> int:
        """Gradient steps in an update."""
        return self.epochs * self.steps
