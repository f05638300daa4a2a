"""Sweeps: settings with several values in one study, as ``--sweep`` gives them, become a grid of arms.

An arm is a method, or a method under certain values, and has a label in the record: ``l2_er@er_lr=0.1,l2=0``. Arms that
differ only in numbers that may be traced (`traceable`) are networks of one compiled program, see
`plastax.program.parallel.batch`. Other arms have programs of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from plastax.errors import ConfigError
from plastax.records.layout import short
from plastax.study.configuration import in_full, nearest, read
from plastax.study.names import ALIASES
from plastax.study.settings import Config, check_sizes, check_used, label, members, registered, replaced

C = TypeVar("C", bound=Config)
ARMS = 10_000
"""The most arms of a study: each has its own folders, curves and columns."""


class Arm(NamedTuple, Generic[C]):
    """A method under certain values of the swept settings.

    Attributes:
      label: its unique name in the record. A long one is cut and ends with a digest of the rest.
      method: the name of its method.
      config: the configuration with its values.
      named: setting, as named by the sweep -> value.
      values: dotted setting of the configuration -> value.
    """

    label: str
    method: str
    config: C
    named: dict[str, Any]
    values: dict[str, Any]


class Axis(NamedTuple):
    """A swept setting and its values, as text."""

    name: str
    texts: tuple[str, ...]


def axes(specs: Iterable[str]) -> list[Axis]:
    """Parses ``name=value,value,...``; ``-`` in names is the same as ``_``.

    >>> axes(["method.er-lr=1e-2,1e-3"])
    [Axis(name='method.er_lr', texts=('1e-2', '1e-3'))]

    Raises:
      ConfigError: something is missing, or given twice.
    """
    found: dict[str, Axis] = {}
    for spec in specs:
        name, equals, text = spec.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        group, dot, setting = name.partition(".")
        name, texts = f"{ALIASES.get(group, group)}{dot}{setting}", tuple(part.strip() for part in text.split(","))
        if not equals or not name or not all(texts):
            raise ConfigError(f"sweep: {spec!r} is not allowed; give a setting and its values, method.er-lr=1e-2,1e-3")
        if name in found or len(set(texts)) < len(texts):
            raise ConfigError(f"sweep: {spec!r} names a setting or a value twice")
        found[name] = Axis(name, texts)
    return list(found.values())


def arms(config: C, fixed: Sequence[str] = ()) -> list[Arm[C]]:
    """The arms of a study: for every method, the grid over the swept settings that apply to it.

    Args:
      config: from `configuration.configure`. In its ``sweep``, ``method.X`` is the setting X of every method that has
        one, ``l2_er.X`` is that of one method, and ``training.X``, ``model.X``, ... apply to all methods.
      fixed: groups of settings that cannot be swept.

    Raises:
      ConfigError: a name is unknown, or a value is refused.
    """
    swept = [axis._replace(name=in_full(config, axis.name)) for axis in axes(config.sweep)]
    # Settings of probes cannot be swept either: arms are compared by the same measurements.
    outside = {*fixed, *registered(config, "probes")}
    known = _settings(config, outside)
    for axis in swept:
        if axis.name not in known:
            raise ConfigError.unknown("sweep", axis.name, known, nearest(axis.name, known))
    check_used(config, [axis.name for axis in swept])
    out: list[Arm[C]] = []
    read = functools.cache(functools.partial(_value, config))
    for method in map(label, config.methods):
        own = [(axis, path) for axis in swept if (path := _path(config, method, axis.name))]
        if (count := len(out) + math.prod(len(axis.texts) for axis, _ in own)) > ARMS:
            raise ConfigError(f"sweep: {count:,} combinations of values or more are not allowed; give at most {ARMS:,}")
        names = {axis.name: axis.name.rpartition(".")[2] for axis, _ in own}
        if len(set(names.values())) < len(names):
            names = {name: name for name in names}
        for texts in itertools.product(*(axis.texts for axis, _ in own)):
            values = {path: read(axis.name, path, text) for (axis, path), text in zip(own, texts)}
            named = {axis.name: values[path] for axis, path in own}
            shown = ",".join(f"{names[name]}={_shown(value)}" for name, value in named.items())
            name = short(f"{method}@{shown.replace('/', '-')}") if shown else method
            arm = Arm(name, method, replaced(config, values), named, values)
            check_sizes(arm.config)
            out.append(arm)
    if len({arm.label for arm in out}) < len(out):
        raise ConfigError(f"sweep: two of the values of {', '.join(config.sweep)} are the same number")
    known = [arm.label for arm in out]
    for name in config.arms:
        if name not in known:
            raise ConfigError.unknown("arms", name, known)
    return [arm for arm in out if not config.arms or arm.label in config.arms]


def _settings(config: Config, outside: Iterable[str]) -> list[str]:
    """Names of all settings that can be swept, as a sweep may name them."""
    used = {name for method in config.methods for name in members(method)}
    names, methods = [], registered(config, "methods")
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        if not dataclasses.is_dataclass(group) or field.name in outside or field.metadata.get("aside"):
            continue
        if field.name not in methods:
            names += [f"{field.name.removesuffix('_settings')}.{f.name}" for f in dataclasses.fields(group)]
        elif field.name in used:
            names += [f"{field.name}.{f.name}" for f in dataclasses.fields(group)]
            names += [f"method.{f.name}" for f in dataclasses.fields(group)]
    return list(dict.fromkeys(names))


def _path(config: Config, method: str, name: str) -> str:
    """The dotted setting of the configuration that a swept name is for a method; "" if it does not apply to it."""
    group, _, setting = name.partition(".")
    if group == "method":
        having = [m for m in members(method) if _has(getattr(config, m, None), setting)]
        if len(having) > 1:
            raise ConfigError(
                f"sweep: {name} is {' and '.join(f'{m}.{setting}' for m in having)} of {method}; say which"
            )
        return f"{having[0]}.{setting}" if having else ""
    if group in registered(config, "methods"):
        return name if group in members(method) else ""
    return (
        name
        if hasattr(config, group) and not isinstance(getattr(config, group), str)
        else f"{group}_settings.{setting}"
    )


def _has(group: Any, setting: str) -> bool:
    return dataclasses.is_dataclass(group) and setting in {field.name for field in dataclasses.fields(group)}


def _at(config: Config, path: str) -> tuple[Any, str]:
    group, _, setting = path.partition(".")
    return getattr(config, group), setting


def _type(group: Any, setting: str) -> Any:
    return typing.get_type_hints(type(group), include_extras=True)[setting]


def _value(config: Config, name: str, path: str, text: str) -> Any:
    """Parses a value by the type of its setting; words are the entries of a sequence."""
    group, setting = _at(config, path)
    value = read(_type(group, setting), text.split())
    if value is None or value != value:
        kind = getattr(_type(group, setting), "__name__", _type(group, setting))
        raise ConfigError(f"sweep: {text!r} is not a value of {name} ({kind}, now {getattr(group, setting)!r})")
    return value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return brief if float(brief := f"{value:g}") == value else repr(value)
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def traceable(config: Config, path: str) -> bool:
    """Whether a setting may be a traced scalar: every float of a method, and what other groups list in ``traced``."""
    group, setting = _at(config, path)
    if hasattr(group, "model_options"):
        return _type(group, setting) is float
    return setting in getattr(group, "traced", ())


def together(arms: Sequence[Arm[C]], static: Sequence[str] = ()) -> list[list[Arm[C]]]:
    """Groups arms that one compiled program can train: they differ in traced settings only.

    Args:
      arms: the arms of a study.
      static: dotted settings that must not be traced.
    """
    groups: dict[Any, list[Arm[C]]] = {}
    for arm in arms:
        traced = {path for path in arm.values if path not in static and traceable(arm.config, path)}
        rest = [(path, repr(value)) for path, value in arm.values.items() if path not in traced]
        groups.setdefault((arm.method, tuple(sorted(traced)), tuple(rest)), []).append(arm)
    return list(groups.values())


def traced_values(arm: Arm, static: Sequence[str] = ()) -> dict[str, float]:
    """The traced settings of an arm and their values; arms of a group of `together` have the same settings."""
    return {p: v for p, v in arm.values.items() if p not in static and traceable(arm.config, p)}


def described(arms: Sequence[Arm]) -> dict[str, Any]:
    """The arms as in ``config.json``: label -> method and swept settings."""
    return {arm.label: {"method": arm.method, "settings": arm.named} for arm in arms}
