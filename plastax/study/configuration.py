"""Configurations: from presets, a stored run and given values to one frozen, validated configuration.

`configure` takes values by their dotted names; `plastax.study.command_line` reads them from a command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import keyword
import os
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from plastax import ranges
from plastax.data import DATA
from plastax.errors import ConfigError
from plastax.records import lifecycle
from plastax.records.layout import read_config
from plastax.study import names
from plastax.study.names import ALIASES, Named
from plastax.study.settings import (
    GROUPS,
    KINDS,
    SEED,
    C,
    Config,
    Registry,
    check_sizes,
    check_used,
    label,
    members,
    parts,
    replaced,
)


def configure(
    base: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Registry],
    values: Mapping[str, Any],
) -> C:
    """The configuration of some values, over those of a preset, or of the run that ``resume`` names.

    Args:
      base: a frozen dataclass that extends `Config`.
      presets: name -> dotted setting -> value, over the defaults (``{"smoke": {"seeds": 2, "ppo.num_envs": 2}}``).
        All settings of a choice at once (``{"model_settings": CNN(...)}``) apply only if that choice is made.
      choices: field -> registry of which it names one entry. The settings of that entry are the group of the field's
        name: ``model.hidden``.
      values: dotted setting -> value, as on the command line: ``{"seeds": 3, "model.hidden": (8, 8)}``. The value of a
        group, ``{"training": ...}``, is a whole group or a mapping of some of its settings.

    Returns:
      The configuration. Its class extends ``base`` with the groups: see `choice` and `entry`.

    Raises:
      ConfigError: a name is unknown, a value is of another type or out of range, or a setting has no effect.
    """
    values = dict(_flat(values))
    # A resumed run keeps its settings: they are the defaults of what is given here.
    stored: Mapping[str, Any] = {}
    if path := values.get("resume"):
        try:
            stored = read_config(Path(path))["settings"]
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"resume: {path} is not a run directory ({error})") from error
    preset = values.get("preset") or stored.get("preset", "default")
    _known("preset", preset, presets)
    overrides = {"preset": preset, **presets[preset]}
    own = dict(base.own)
    chosen = {}
    defaults = {field.name: field.default for field in dataclasses.fields(base)}
    named = {**({"data": DATA} if "data" in defaults else {}), **choices, **GROUPS}
    for field, registry in named.items():
        usual = {field: defaults[field]}
        source = next(place for place in (values, stored, overrides, usual) if place.get(field) is not None)
        shown, found = _found(field, source[field], registry)
        groups = [one.key if field in GROUPS else f"{field}_settings" for _, one in found]
        own[field] = _own(field, groups, found)
        if field in choices:
            chosen[field] = found[0][1].entry
            overrides = _of_choice(overrides, groups[0], chosen[field])
        # An object in the place of a name also has settings.
        objects = {
            group: one.entry
            for group, (given, one) in zip(groups, found)
            if not isinstance(given, str) and registry is not DATA and dataclasses.fields(one.entry)
        }
        if source is values:
            values = objects | dict(values) | {field: shown}
        elif source is not stored:
            overrides = objects | overrides | {field: shown}
    config = replaced(_with_groups(base, chosen, own)(), overrides)
    config = _from_json(config, stored) if stored else config
    config = replaced(config, {field: values.pop(field) for field in named if field in values})
    if "agent" in values:  # It says whose settings the short names are.
        config = replaced(config, {"agent": _read(config, "agent", "agent", values.pop("agent"))})
    changes = {}
    for name, value in values.items():
        group, dot, setting = spelled_out(config, name.replace("-", "_")).partition(".")
        path = f"{group}_settings.{setting}" if dot and group in choices else f"{group}{dot}{setting}"
        changes[path] = _read(config, path, name, value)
    config = checked(replaced(config, changes))
    check_used(config, changes)
    return config


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings of groups by their dotted names; data of one's own may be a mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "data":
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value


def _found(field: str, given: Any, registry: Registry) -> tuple[Any, list[tuple[Any, Named]]]:
    """What a field holds for some names or objects, and each of them with what it stands for."""
    if registry is DATA and isinstance(given, str | os.PathLike) and (":" not in str(given) or os.path.exists(given)):
        return os.fspath(given), []  # `plastax.data.load` knows names and paths.
    if field not in GROUPS:
        kind = "streams" if field == "data" and registry is not DATA else KINDS.get(field, field)
        one = names.find(kind, given, registry, field)
        return one.name, [(given, one)]
    several = tuple(given) if type(given) in (list, tuple) else (given,)
    if several == ("all",) or (field == "probes" and several == ("none",)):
        return several, []
    composed = [
        [(part, names.find(field, part, registry)) for part in (parts(one) if isinstance(one, str) else [one])]
        for one in several
    ]
    return tuple("+".join(one.name for _, one in members) for members in composed), list(itertools.chain(*composed))


def _own(field: str, groups: Iterable[str], found: Iterable[tuple[Any, Named]]) -> dict[str, Named]:
    """Group -> own object; raises `ConfigError` for two objects of one group."""
    own: dict[str, Named] = {}
    for group, (_, one) in zip(groups, found):
        if one.origin and own.setdefault(group, one).name != one.name:
            raise ConfigError(
                f"{field}: {own[group].name} and {one.name} are both called {group!r}; rename one of them"
            )
    return own


def _read(config: Config, path: str, name: str, value: Any) -> Any:
    """A value for the dotted setting ``path``, converted as the command line would read its text."""
    group, _, setting = path.rpartition(".")
    holder = getattr(config, group, None) if group else config
    if not dataclasses.is_dataclass(holder) or setting not in {field.name for field in dataclasses.fields(holder)}:
        raise _unknown(config, name)
    now, kind = getattr(holder, setting), typing.get_type_hints(type(holder))[setting]
    if dataclasses.is_dataclass(now):
        given: Any = value if type(value) is type(now) else None
    elif kind is str and isinstance(value, str):
        given = value
    else:
        given = read(kind, [str(one) for one in (value if isinstance(value, tuple | list) else [value])])
    if given is None and value is not None:
        choices = " | ".join(map(repr, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ""
        wanted = choices or f"{getattr(kind, '__name__', kind)}, such as {now!r}"
        raise ConfigError(f"{name}: {value!r} is not allowed; give {wanted}")
    return given


def _unknown(config: Config, name: str) -> ConfigError:
    """The error for a setting that a configuration does not have."""
    known = {f"{group}.{setting}": group for group, held in _groups(config) for setting in held}
    entries = {name for registry in GROUPS.values() for name in registry}
    top = [field.name for field in dataclasses.fields(config) if not field.name.endswith("_settings")]
    inside = [one for one, group in known.items() if group == name.rpartition(".")[0]]
    return ConfigError.unknown(
        "settings", name, inside or [one for one in top if one not in entries], nearest(name, [*top, *known])
    )


def _groups(config: Config) -> Iterator[tuple[str, list[str]]]:
    """The groups of settings and what is in them."""
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(held := getattr(config, field.name)):
            yield field.name.removesuffix("_settings"), [inner.name for inner in dataclasses.fields(held)]


def read(kind: Any, words: Sequence[str]) -> Any:
    """The value of a type that the words of a command line give; None if they give none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=words, prog="")
    except SystemExit:
        return None


SHORT: Mapping[str, str] = {"lr": "learning_rate", "epochs": "epochs", "batch_size": "batch_size"}
"""What everybody calls a setting of the training -> its name."""


def in_full(config: Config, name: str) -> str:
    """The dotted setting that a short name or an alias stands for; other names as they are."""
    for group in ("training", getattr(config, "agent", "")):
        if name in SHORT and hasattr(getattr(config, group, None), SHORT[name]):
            return f"{group}.{SHORT[name]}"
    group, dot, setting = name.partition(".")
    return f"{ALIASES.get(group, group)}{dot}{setting}"


def spelled_out(config: Config, name: str) -> str:
    """`in_full`, and for ``method.X`` the setting X of the only method; raises `ConfigError` if there are several."""
    full = in_full(config, name)
    if not full.startswith("method."):
        return full
    chosen, setting = [member for one in config.methods for member in members(one)], full.removeprefix("method.")
    if len(chosen) != 1:
        raise ConfigError(
            f"{name}: {len(chosen)} methods are chosen ({', '.join(chosen)}); say whose setting it is, "
            f"<one of them>.{setting}"
        )
    return f"{chosen[0]}.{setting}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known dotted settings that an unknown one may mean, the likeliest first.

    >>> nearest("training.lr", ["training.b1", "training.learning-rate", "muon.learning-rate"])
    ['training.learning-rate']
    """
    known = list(known)
    group, dot, last = name.rpartition(".")
    last = SHORT.get(last, last).replace("_", "-" if any("-" in one for one in known) else "_")
    if (whole := f"{group}{dot}{last}") in known:
        return [whole]
    if inside := [one for one in known if dot and one.startswith(f"{group}.")]:
        return difflib.get_close_matches(name, inside, 1)
    same = [one for one in known if one.rpartition(".")[2] == last]
    return (same or difflib.get_close_matches(whole, known, 3))[:3]


def checked(config: C) -> C:
    """``config`` with the names of entries that its fields stand for; raises `ConfigError` for what is not allowed."""
    found: dict[str, Any] = {field: _names(config, field) for field in GROUPS}
    config = dataclasses.replace(config, **found)
    _check(config)
    return config


def _of_choice(overrides: Mapping[str, Any], group: str, entry: Any) -> dict[str, Any]:
    """The overrides of a preset without those of a ``group`` that are for another entry than the chosen one."""
    own = {f"{group}.{setting.name}" for setting in dataclasses.fields(entry)}

    def holds(name: str, value: Any) -> bool:
        return name.partition(".")[0] != group or name in own or (name == group and type(value) is type(entry))

    return {name: value for name, value in overrides.items() if holds(name, value)}


def _with_groups(base: type[C], chosen: Mapping[str, Any], own: Mapping[str, Mapping[str, Named]]) -> type[C]:
    """``base`` with a group of settings for every choice, entry of `GROUPS` and own object, as tyro reads them."""
    fields: list[Any] = []
    for field, one in chosen.items():
        fields.append((f"{field}_settings", Annotated[type(one), tyro.conf.arg(name=field)], one))
    for registry in GROUPS.values():
        fields += [(name, type(one), one) for name, one in registry.items() if dataclasses.fields(one)]
    taken = {"method", *ALIASES, *(field for field, *_ in fields), *(field.name for field in dataclasses.fields(base))}
    taken |= {*keyword.kwlist, *(name for registry in GROUPS.values() for name in registry)}
    for field in GROUPS:
        for group, one in own[field].items():
            if group in taken:
                raise ConfigError(f"{field}: {one.name}: the name {group!r} is taken; rename the object")
            taken.add(group)
            fields.append((group, type(one.entry), one.entry))
    namespace: dict[str, Any] = {"__doc__": base.__doc__, "own": {**base.own, **own}}
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, namespace=namespace)


def _names(config: Config, field: str) -> tuple[str, ...]:
    """The entries that a field names, without aliases, ``all`` and ``none``; raises `ConfigError` for duplicates."""
    given, registry = getattr(config, field), GROUPS[field]
    if given == ("all",):
        given = tuple(registry)
    elif field == "probes" and given == ("none",):
        given = ()
    known = [*registry, *(one.name for one in config.own[field].values())]
    for name in given:
        for part in parts(name):
            _known(field, part, known)
        if len(parts(name)) > 1 and field != "methods":
            raise ConfigError(f"{field}: {name} is not allowed; only methods are composed")
    found = tuple("+".join(parts(name)) for name in given)
    if len({label(name) for name in found}) < len(found):
        raise ConfigError(f"{field}: {' '.join(found)} names an entry twice; sweep compares values of its settings")
    return found


def _known(field: str, name: str, allowed: Collection[str]) -> None:
    if name not in allowed:
        raise ConfigError.unknown(field, name, allowed)


def _from_json(config: Any, stored: Mapping[str, Any]) -> Any:
    """``config`` with the settings that were written by `to_json`."""
    changes = {}
    for field in dataclasses.fields(config):
        if field.name in stored and field.name not in ("resume", "fresh"):
            old, new = getattr(config, field.name), stored[field.name]
            if dataclasses.is_dataclass(old):
                new = _from_json(old, new)
            elif isinstance(old, tuple):
                new = tuple(new)
            elif isinstance(old, Path):
                new = Path(new)
            changes[field.name] = new
    return dataclasses.replace(config, **changes)


def _check(config: Config) -> None:
    check_sizes(config)
    if config.first_seed + config.seeds - 1 > SEED:
        raise ConfigError(
            f"first_seed: {config.first_seed} is not allowed with {config.seeds} seeds; "
            f"give at most {SEED - config.seeds + 1}"
        )
    ranges.check(config, "", "seeds", "tasks", "probe_every", least=1)
    ranges.check(config, "", "first_seed", "seed_chunk", "arms_at_once", "keep_params", least=0)
    ranges.check(config, "", "checkpoint_every", "checkpoint_minutes", least=0)
    ranges.check(config, "", "tune_on", least=0, below=1)
    if config.tune_on and config.arms and config.resume is None:
        raise ConfigError("arms: not allowed with tune_on, which chooses them; leave one out")
    ranges.check(config, "", "checkpoint_keep", least=2)  # The newest one may be damaged.
    if config.shard:
        lifecycle.shard_numbers(config.shard)
    if not config.methods:
        raise ConfigError("methods: none is given; name one or more")
