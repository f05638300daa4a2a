"""The command ``plastax inspect``, a thin reader of `plastax.inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from plastax import inspecting
from plastax.probes import PROBES
from plastax.study import names
from plastax.study.run import Run


@dataclass(frozen=True)
class Line:
    """Looks at networks that were trained anywhere: reports on a series of checkpoints as on a run."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Orbax directories, .npz or .safetensors files, folders or patterns of these, or a run of plastax."""
    apply: str = ""
    """module:function or path/to/file.py:function, (params, x) -> outputs, or -> (outputs, features)."""
    model: str = ""
    """In place of apply: a network of your own, module:object. A run of plastax needs neither."""
    data: str = "digits"
    """Data set (`plastax list data`), an .npz file or a folder of images."""
    probes: tuple[str, ...] = ()
    """What to measure (`plastax list probes`), or your own, module:object. By default features, weights, gradient,
    hessian, ggn and kronecker, as far as the network allows. `--probes hessian --help` lists its settings."""
    settings: tyro.conf.OmitArgPrefixes[inspecting.Settings] = field(default_factory=inspecting.Settings)
    """Which numbers, and of what."""


def run(args: Sequence[str]) -> Run:
    """Runs the command of a line of arguments."""
    kept = [word for word in args if word not in ("-h", "--help")]
    line = tyro.cli(Line, args=kept, return_unknown_args=True, prog="plastax inspect")[0]
    found = [names.find("probes", name, PROBES) for name in line.probes or inspecting.DEFAULT]
    shown = found if line.probes or len(kept) == len(args) else []
    groups = [(one.key, type(one.entry), one.entry) for one in shown if dataclasses.fields(one.entry)]
    told = {"__doc__": Line.__doc__}
    whole: Any = dataclasses.make_dataclass("Line", groups, bases=(Line,), frozen=True, namespace=told)
    line = tyro.cli(whole, args=args, prog="plastax inspect")
    options = {one.name: getattr(line.settings, one.name) for one in dataclasses.fields(line.settings)}
    probes = [getattr(line, one.key, one.entry) for one in found]
    return inspecting.inspect(
        line.checkpoints, line.apply or None, data=line.data, model=line.model or None, probes=probes,
        strict=bool(line.probes), **options,
    )  # fmt: skip
