"""How a network is trained on each task of a supervised stream: the settings, and what they say of a task's length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import optax

from plastax.curvature.kronecker import Kind
from plastax.errors import ConfigError

OptimizerName = Literal["sgd", "adam"]
Head = Literal["keep", "reset"]


@dataclass(frozen=True)
class Training:
    """How a network is trained on each task."""

    traced: ClassVar[tuple[str, ...]] = ("learning_rate",)

    optimizer: OptimizerName = "sgd"
    """sgd | adam, below the method."""
    learning_rate: float = 1e-2
    """Step size; constant unless `drops` says otherwise (a decaying rate looks like loss of plasticity)."""
    drops: tuple[float, ...] = ()
    """Shares of a task after which the step size falls, by `drop_factor` each; it starts anew with every task. What a
    method adds to a step (weight decay) falls with it; what it does at a switch does not. None: constant."""
    drop_factor: float = 5.0
    """What the step size is divided by at each of `drops`."""
    momentum: float = 0.0
    """Of sgd."""
    b1: float = 0.9
    """Adam's decay of the gradient mean."""
    b2: float = 0.999
    """Adam's decay of the squared gradient."""
    eps: float = 1e-8
    """Adam's epsilon."""
    batch_size: int = 16
    """Examples a gradient step. What an epoch leaves over (examples mod batch size) is left out of it, other examples
    every time."""
    epochs: int = 1
    """Passes over a task's training examples, in a new order each."""
    updates: int = 1
    """Recorded values a task: gradient steps are averaged over so many equal parts of it. A multiple of the epochs or a
    divisor."""
    head: Head = "keep"
    """Output layer at a task switch: keep, or reset: its weights are drawn anew, the optimiser's state of them is kept
    (Dohare et al. 2024, who set them to zero)."""
    restore_best: bool = False
    """At the end of a task, go back to the weights that had the best validation accuracy after one of its updates (the
    optimiser's state stays), as Dohare et al. 2024 do. Needs a stream that keeps images for validation."""
    evaluation_examples: int = 1000
    """Training examples, and held-out ones, that loss and accuracy are taken on at both ends of every task."""
    probe_examples: int = 256
    """Training examples that probes see, spread evenly over the task's."""
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
        for name in ("batch_size", "epochs", "updates", "evaluation_examples", "probe_examples"):
            if getattr(self, name) < 1:
                message = f"training.{name}: {getattr(self, name)} is not allowed; give 1 or more"
                raise ConfigError(message)
        for name in ("learning_rate", "eps", "drop_factor"):
            # A traced value (`plastax.study.sweep`) cannot be checked; it comes from checked settings.
            if isinstance(getattr(self, name), int | float) and not getattr(self, name) > 0:
                message = f"training.{name}: {getattr(self, name)} is not allowed; give a number above 0"
                raise ConfigError(message)
        for name in ("momentum", "b1", "b2", "kronecker_decay"):
            if not 0 <= getattr(self, name) <= 1:
                message = f"training.{name}: {getattr(self, name)} is not allowed; give a number from 0 to 1"
                raise ConfigError(message)
        if not all(0 < share < 1 for share in self.drops):
            message = f"training.drops: {self.drops} is not allowed; give shares of a task, above 0 and below 1"
            raise ConfigError(message)
        if self.kronecker_every < 0:
            message = f"training.kronecker_every: {self.kronecker_every} is not allowed; give 0 or more"
            raise ConfigError(message)
        for name, kinds in (("optimizer", OptimizerName), ("head", Head), ("kronecker_kind", Kind)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError.unknown(f"training.{name}", getattr(self, name), get_args(kinds))
        if self.updates % self.epochs and self.epochs % self.updates:
            message = (
                f"training.updates: {self.updates} is neither a multiple nor a divisor of the {self.epochs} epochs; "
                f"give {self.epochs}, or one of those"
            )
            raise ConfigError(message)

    def transformation(self) -> optax.GradientTransformation:
        """The optimiser below the method."""
        if self.optimizer == "adam":
            return optax.adam(self.learning_rate, self.b1, self.b2, self.eps)
        return optax.sgd(self.learning_rate, self.momentum or None)

    def blocks(self, examples: int) -> Blocks:
        """How a task of so many training examples is cut into recorded updates.

        Raises:
          ConfigError: a batch larger than the examples, or an epoch that cannot be cut so.
        """
        if self.batch_size > examples:
            message = (
                f"training.batch_size: {self.batch_size} is more than a task's {examples} training examples; "
                f"give {examples} or fewer"
            )
            raise ConfigError(message)
        steps = examples // self.batch_size
        parts = max(1, self.updates // self.epochs)
        if steps % parts:
            allowed = [n for n in range(1, steps + 1) if steps % n == 0]
            near = sorted(sorted(allowed, key=lambda n: abs(n - parts))[:3])
            message = (
                f"training.updates: {self.updates} cuts an epoch of {steps} steps into {parts} parts, which does not "
                f"divide; give {', '.join(str(n * self.epochs) for n in near)}"
            )
            raise ConfigError(message)
        return Blocks(max(1, self.epochs // self.updates), parts, steps // parts)


class Blocks(NamedTuple):
    """How an epoch and a recorded update fit together: one of the first two is 1.

    Attributes:
      epochs: in an update.
      parts: of an epoch, an update each.
      steps: gradient steps in a part.
    """

    epochs: int
    parts: int
    steps: int

    @property
    def steps_per_update(self) -> int:
        """Gradient steps in an update."""
        return self.epochs * self.steps
