"""Settings of an experiment: from the command line and presets to one frozen, hashable, validated configuration.

An experiment declares a frozen dataclass with the fields of `Study`; `parse` adds one group of settings for everything
that a registry offers (``--l2-er.er-lr``, ``--hessian.order``, ``--stream.sigma``), reads the command line by tyro, and
checks what can be checked before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from plastax import output
from plastax.errors import ConfigError, RecordError, RunError, Stopped
from plastax.methods import METHODS
from plastax.probes import PROBES
from plastax.records import lifecycle
from plastax.records.layout import read_config

Registry = Mapping[str, Any]
GROUPS: Mapping[str, Registry] = {"methods": METHODS, "probes": PROBES}
"""Field -> registry of which it names several entries; each entry's settings are a group of the entry's name."""
ALIASES: Mapping[str, str] = {"er": "effective_rank", "spectrum": "hessian"}
"""Names that the literature uses -> the entries of `GROUPS` that are meant, wherever a name is taken."""
INT = 2**31 - 1
"""The largest whole number in a setting: programs count in 32 bits."""
SEED = 2**32 - 1
"""The largest number of a seed: keys are made of 32 bits."""
ENTRIES = 256
"""The longest sequence in a setting: layers, methods and swept settings are compiled one by one."""
Methods = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--method"])]
"""Names of methods; an experiment that has others than `Study` by default declares its field so."""


def aside(default: Any) -> Any:
    """A field of a configuration that changes no number of a run, and so is no part of its identity."""
    return dataclasses.field(default=default, metadata={"aside": True})


@dataclasses.dataclass(frozen=True)
class Study:
    """What every experiment can be told, whatever it studies."""

    preset: str = aside("default")
    """A set of defaults."""
    methods: Methods = ("backprop", "l2_er", "reset")
    """Methods to compare, one compiled program each (`python -m plastax list methods`); l2+redo: both at once; all."""
    probes: tuple[str, ...] = ("features", "weights", "gradient", "hessian", "ggn", "kronecker")
    """What to measure at both ends of tasks (`python -m plastax list probes`); none: train only."""
    probe_every: int = 1
    """Tasks from one probed task to the next."""
    seeds: int = 8
    """Independent networks of each method, trained at once; every method sees the same tasks."""
    first_seed: int = 0
    """Number of the first seed; seed k is the same network alone and among others."""
    seed_chunk: int = 0
    """Seeds that run side by side, a divisor of the seeds; bounds memory. 0: all."""
    auto_chunk: bool = aside(False)
    """Find the largest seed-chunk that fits into the device's memory."""
    tasks: int = 12
    """Tasks in the stream."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting and values for it, method.er-lr=1e-2,1e-3; again and again for a grid. Every combination is an arm."""
    shard: str = aside("")
    """i/n, from 0/n to (n-1)/n: train the i-th of n shares of the arms, beside the processes that train the others, in
    one run directory, whose name is then the settings' alone. Code, versions and device must be the same for all."""
    devices: int = aside(0)
    """Devices of this machine that networks (arms x seeds) are spread over; 0: all."""
    checkpoint_minutes: float = aside(5.0)
    """Minutes between checkpoints, made at the next border of segments; 0: as checkpoint-every says."""
    checkpoint_every: int = aside(0)
    """Segments between checkpoints; 0: as checkpoint-minutes says. None at all if both are 0."""
    checkpoint_keep: int = aside(2)
    """Newest checkpoints of each method that are kept."""
    runs_dir: Path = aside(Path("runs"))
    """Where runs go: <runs-dir>/<experiment>/<run id>."""
    resume: Path | None = aside(None)
    """A run directory to continue; its settings are used, and others are refused."""
    fresh: bool = aside(False)
    """Start a new run. By default the same command continues an interrupted run of the same settings and code. A shard
    of several that has begun cannot do so alone: move the directory that they share away first."""
    wandb: Literal["offline", "online", "disabled"] = aside("offline")
    """W&B: offline files in the run directory (no account needed), online, or disabled."""
    dry_run: bool = False
    """Check the settings and the data and end, before anything is compiled or written."""
    compilation_cache: bool = aside(True)
    """Keep compiled programs in the user's cache directory, or where JAX_COMPILATION_CACHE_DIR says, at most 1 GiB of
    them (JAX_COMPILATION_CACHE_MAX_SIZE, in bytes): a second start compiles nothing."""


C = TypeVar("C", bound=Study)


def parse(
    base: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Registry],
    args: Sequence[str] | None = None,
) -> C:
    """The configuration that a command line asks for.

    Args:
      base: a frozen dataclass that extends `Study`.
      presets: name -> dotted setting -> value, over the defaults (``{"smoke": {"seeds": 2, "ppo.num_envs": 2}}``).
        The settings of a choice given whole (``{"model_settings": CNN(...)}``) hold where that choice is made.
      choices: field -> registry of which it names one entry; the entry's settings are the group of the field's name.
      args: the command line, `sys.argv[1:]` by default. ``--method.X`` stands for ``--<name>.X`` where one method is
        chosen.

    Returns:
      The configuration. Its class extends ``base``: for every choice ``field`` it has a field ``<field>_settings``,
      and for every entry of `GROUPS` a field of its name, see `entry`.

    Raises:
      ConfigError: an unknown name or a value that a setting's own check refuses.
      SystemExit: with status 2 where tyro refuses the line, 0 after ``--help``.
    """
    args = list(sys.argv[1:] if args is None else args)
    # A resumed run is the run it was: its own settings are the defaults of this command line.
    stored: Mapping[str, Any] = {}
    if path := _value_of(args, "--resume"):
        try:
            stored = read_config(Path(path))["settings"]
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"resume: {path} is not a run directory ({error})") from error
    preset = _value_of(args, "--preset") or stored.get("preset", "default")
    _known("preset", preset, presets)
    overrides = {"preset": preset, **presets[preset]}
    chosen = {}
    for field, registry in choices.items():
        default = next(f.default for f in dataclasses.fields(base) if f.name == field)
        name = _value_of(args, f"--{field}") or stored.get(field) or overrides.get(field, default)
        _known(field, name, registry)
        chosen[field] = registry[name]
        overrides = _of_choice(overrides, f"{field}_settings", registry[name])
    default = replaced(_with_groups(base, presets, chosen)(), overrides)
    default = _from_json(default, stored) if stored else default
    config = tyro.cli(type(default), args=_spelled_out(args, default), default=default, prog=None)
    for field, registry in GROUPS.items():
        config = dataclasses.replace(config, **{field: _names(field, getattr(config, field), registry)})
    _check(config)
    return config


def _of_choice(overrides: Mapping[str, Any], group: str, entry: Any) -> dict[str, Any]:
    """What a preset says, without what it says of a choice that was not made: it speaks of one."""
    own = {f"{group}.{setting.name}" for setting in dataclasses.fields(entry)}

    def holds(name: str, value: Any) -> bool:
        return name.partition(".")[0] != group or name in own or (name == group and type(value) is type(entry))

    return {name: value for name, value in overrides.items() if holds(name, value)}


def _with_groups(base: type[C], presets: Iterable[str], chosen: Mapping[str, Any]) -> type[C]:
    """``base`` with a group of settings for every choice and every entry of `GROUPS`, which tyro reads."""
    told = Annotated[str, tyro.conf.arg(help=f"{' | '.join(presets)}: a set of defaults.")]
    fields: list[Any] = [("preset", told, aside("default"))]
    for field, one in chosen.items():
        fields.append((f"{field}_settings", Annotated[type(one), tyro.conf.arg(name=field)], one))
    for registry in GROUPS.values():
        fields += [(name, type(one), one) for name, one in registry.items() if dataclasses.fields(one)]
    namespace: dict[str, Any] = {"__doc__": base.__doc__}
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, namespace=namespace)


def _names(field: str, given: tuple[str, ...], registry: Registry) -> tuple[str, ...]:
    """The entries that a field names: ``all`` and ``none`` spelled out, each under its own name, none twice."""
    if given == ("all",):
        given = tuple(registry)
    elif field == "probes" and given == ("none",):
        given = ()
    names = tuple("+".join(members(name)) for name in given)
    for name in names:
        for member in members(name):
            _known(field, member, registry)
        if len(members(name)) > 1 and field != "methods":
            raise ConfigError(f"{field}: {name} is not allowed; only methods are composed")
    if len(set(names)) < len(names):
        raise ConfigError(f"{field}: {' '.join(names)} names an entry twice")
    return names


def entry(config: Study, registry: Registry, name: str) -> Any:
    """The settings of an entry of a registry in a configuration."""
    return getattr(config, name, registry[name])


def members(name: str) -> tuple[str, ...]:
    """The entries of a registry that a name stands for: several in ``l2+redo``, also written ``chain:l2,redo``."""
    names = name.removeprefix("chain:").split(",") if name.startswith("chain:") else name.split("+")
    return tuple(ALIASES.get(one, one) for one in names)


def with_options(model: Any, name: str, method: str, options: Mapping[str, Any]) -> Any:
    """The settings of a model with the options that a method asks for.

    Args:
      model: the settings, a frozen dataclass.
      name: of the model.
      method: as it was given, composed or not.
      options: `types.MethodConfig.model_options`.

    Raises:
      ConfigError: the model has no such option.
    """
    missing = [option for option in options if not hasattr(model, option)]
    if missing:
        raise ConfigError(
            f"methods: {method} needs the option {missing[0]!r} of the model, which the model {name!r} does not have; "
            "name another method or model"
        )
    return dataclasses.replace(model, **options)


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """The value after ``flag``, in either spelling; None where it is not given; raises `ConfigError` if given twice."""
    found = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    found += [arg.partition("=")[2] for arg in args if arg.startswith(flag + "=")]
    if len(found) > 1:
        raise ConfigError(f"{flag.removeprefix('--')}: {' and '.join(found)} are given; give one")
    return found[0] if found else None


def _known(field: str, name: str, allowed: Registry) -> None:
    if name not in allowed:
        raise ConfigError.unknown(field, name, allowed)


def _spelled_out(args: Sequence[str], default: Study) -> list[str]:
    """Replaces ``--method.X`` by ``--<the method>.X``, and aliases by what they stand for."""
    for alias, name in ALIASES.items():
        flag = f"--{name.replace('_', '-')}."
        args = [flag + arg.removeprefix(f"--{alias}.") if arg.startswith(f"--{alias}.") else arg for arg in args]
    if not any(arg.startswith("--method.") for arg in args):
        return list(args)
    methods = list(default.methods)
    for i, arg in enumerate(args):
        if arg in ("--method", "--methods"):
            end = next((j for j in range(i + 1, len(args)) if args[j].startswith("-")), len(args))
            methods = list(args[i + 1 : end])
        elif arg.startswith(("--method=", "--methods=")):
            methods = [arg.partition("=")[2]]
    methods = [member for name in methods for member in members(name)]
    if len(methods) != 1:
        flag = next(arg for arg in args if arg.startswith("--method."))
        raise ConfigError(
            f"{flag}: {len(methods)} methods are chosen ({', '.join(methods)}); say whose setting it is, "
            f"--<one of them>{flag.removeprefix('--method')}"
        )
    return [f"--{methods[0]}.{arg.removeprefix('--method.')}" if arg.startswith("--method.") else arg for arg in args]


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """``config`` with dotted settings replaced (``{"training.learning_rate": 0.1}``)."""
    for name, value in values.items():
        head, _, rest = name.partition(".")
        config = dataclasses.replace(
            config, **{head: replaced(getattr(config, head), {rest: value}) if rest else value}
        )
    return config


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


def check_sizes(config: Any, group: str = "") -> None:
    """Raises `ConfigError` where an integer is too large to be counted to, or a sequence too long to be compiled."""
    for field in dataclasses.fields(config):
        name, value = group + field.name.removesuffix("_settings"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_sizes(value, f"{name}.")
            continue
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > ENTRIES:
            raise ConfigError(f"{name}: {len(entries):,} entries are not allowed; give at most {ENTRIES}")
        most = SEED if name == "first_seed" else INT
        if wrong := [entry for entry in entries if isinstance(entry, int) and abs(entry) > most]:
            raise ConfigError(f"{name}: {wrong[0]} is not allowed; give at most {most}")


def _check(config: Study) -> None:
    check_sizes(config)
    if config.first_seed + config.seeds - 1 > SEED:
        raise ConfigError(
            f"first_seed: {config.first_seed} is not allowed with {config.seeds} seeds; "
            f"give at most {SEED - config.seeds + 1}"
        )
    for name in ("seeds", "tasks", "probe_every"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}: {getattr(config, name)} is not allowed; give 1 or more")
    for name in ("first_seed", "seed_chunk", "checkpoint_every", "checkpoint_minutes"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name}: {getattr(config, name)} is not allowed; give 0 or more")
    if config.checkpoint_keep < 2:
        raise ConfigError(
            f"checkpoint_keep: {config.checkpoint_keep} is not allowed; give 2 or more: one may be damaged"
        )
    if config.shard:
        lifecycle.shard_numbers(config.shard)
    if not config.methods:
        raise ConfigError("methods: none is given; name one or more")
    if config.seed_chunk and config.seeds % config.seed_chunk:
        raise ConfigError(f"seed_chunk: {config.seed_chunk} does not divide the {config.seeds} seeds")


def of_shard(items: Sequence[Any], shard: str) -> Sequence[Any]:
    """The share of a sequence that ``i/n`` stands for, a stretch of it: neighbours are alike. All of it for "".

    Raises:
      ConfigError: that is no share.
    """
    if not shard:
        return items
    index, count = lifecycle.shard_numbers(shard)
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def to_json(config: Study) -> dict[str, Any]:
    """All settings as JSON types, without the groups of entries that were not chosen."""
    used = {member for field in GROUPS for name in getattr(config, field) for member in members(name)}
    # Shards say the same of their run.
    unused = {name for registry in GROUPS.values() for name in registry} - used | {"shard", "dry_run"}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in unused}
    return json.loads(json.dumps(settings, default=os.fspath))


def asides(config: Study) -> list[str]:
    """The settings of a configuration that change no number, see `aside`; and where the data lay."""
    return [field.name for field in dataclasses.fields(config) if field.metadata.get("aside")] + ["data_card"]


def identity(settings: Mapping[str, Any], asides: Container[str] = ()) -> str:
    """Eight hexadecimal digits that two configurations share if and only if they ask for the same numbers."""
    text = json.dumps({k: v for k, v in settings.items() if k not in asides}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def main(run: Callable[[], Any]) -> None:
    """Runs an experiment's body; what ends it early is one line and a status.

    Status 2: a setting cannot be used. 75: it was asked to stop, and can be continued. 130: Ctrl-C before or after
    the training. 1: everything else that a machine or a damaged file can do.
    """
    output.make_lossy()
    try:
        run()
    except ConfigError as error:
        output.fail(f"error: {error}")
    except Stopped as stop:
        output.fail(str(stop), stop.status)
    except (RunError, RecordError, OSError) as error:
        output.fail(f"error: {error}", RunError.status)
    except KeyboardInterrupt:
        output.fail("interrupted", 130)
