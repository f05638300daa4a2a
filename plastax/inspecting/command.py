"""The command ``plastax inspect``, a thin reader of `plastax.inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from plastax import inspecting
from plastax.probes import PROBES
from plastax.study import names
from plastax.study.run import Run


@dataclass(frozen=True)
class Line(inspecting.Settings):
    """Looks at networks that were trained anywhere: a series of checkpoints, to the report of a run."""

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
    hessian, ggn and kronecker, as far as the network allows."""


def run(args: Sequence[str]) -> Run:
    """Runs the command of a line of arguments."""
    asked = {"-h", "--help"} & set(args)
    line = Line() if asked else tyro.cli(Line, args=args, return_unknown_args=True, prog="plastax inspect")[0]
    found = [names.find("probes", name, PROBES) for name in line.probes or inspecting.DEFAULT]
    groups = [(one.key, type(one.entry), one.entry) for one in found if dataclasses.fields(one.entry)]
    told = {"__doc__": Line.__doc__}
    whole: Any = dataclasses.make_dataclass("Line", groups, bases=(Line,), frozen=True, namespace=told)
    line = tyro.cli(whole, args=args, prog="plastax inspect")
    options = {field.name: getattr(line, field.name) for field in dataclasses.fields(inspecting.Settings)}
    chosen = [getattr(line, one.key, one.entry) for one in found]
    return inspecting.inspect(
        line.checkpoints, line.apply or None, data=line.data, model=line.model or None, probes=chosen,
        strict=bool(line.probes), **options,
    )  # fmt: skip
