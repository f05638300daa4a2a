"""The trackers that show a study, and how W&B names its runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from plastax.errors import ConfigError

Mode = Literal["offline", "online", "online-or-offline", "disabled"]
Tracker = Literal["wandb", "tensorboard"]


@dataclass(frozen=True)
class Wandb:
    """How W&B files the runs of a study, one for each arm."""

    project: str = ""
    """Project. By default WANDB_PROJECT, or the experiment's name."""
    entity: str = ""
    """User or team. By default WANDB_ENTITY, or the user who is logged in."""
    group: str = ""
    """Group of the study's runs. By default WANDB_RUN_GROUP, or the run id."""
    name: str = ""
    """Name of the study, before the arm in the names of its runs. By default WANDB_NAME, or none."""
    tags: tuple[str, ...] = ()
    """Tags, beside those in WANDB_TAGS."""


def usual_mode() -> Mode:
    """The mode in WANDB_MODE, otherwise ``offline``."""
    mode = os.environ.get("WANDB_MODE", "")
    return mode if mode in get_args(Mode) else "offline"  # type: ignore[return-value]


def check(track: Collection[Tracker], mode: Mode) -> None:
    """Refuses trackers that cannot be used, before anything is compiled.

    Args:
      track: names of trackers.
      mode: W&B's.

    Raises:
      ConfigError: a package is missing, or nobody is logged in to W&B for the mode ``online``.
    """
    if "wandb" in track and mode != "disabled":
        _check_installed("wandb", "--wandb disabled")
        if mode == "online":
            _check_login()
    elif mode.startswith("online"):
        raise ConfigError(f"track: {' '.join(track) or 'nothing'} is given, and --wandb {mode} needs wandb; add it")
    if "tensorboard" in track:
        _check_installed("tensorboard", "--track wandb")


def _check_installed(package: str, otherwise: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"track: the package {package} is missing; pip install {package}, or give {otherwise}")


def _check_login() -> None:
    import wandb

    usual = os.environ.get("WANDB_MODE", "online")
    if usual != "online":
        raise ConfigError(f"wandb: online contradicts WANDB_MODE={usual}; unset it, or give --wandb {usual}")
    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "wandb: nobody is logged in, which online needs; run `wandb login`, or give --wandb offline "
            "or --wandb online-or-offline"
        )
