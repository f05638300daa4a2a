"""Settings of an experiment: one frozen, hashable configuration.

An experiment declares a frozen dataclass that extends `Config`. `configuration.configure` adds a group of settings for
every entry of the registries and for every object of one's own (``--l2-er.er-lr``, ``--hessian.order``,
``--stream.sigma``; see `names`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from plastax import output, tracking
from plastax.errors import ConfigError, RecordError, RunError, Stopped
from plastax.methods import METHODS
from plastax.probes import PROBES
from plastax.records import lifecycle
from plastax.study import names
from plastax.study.names import ALIASES, Named

Registry = Mapping[str, Any]
GROUPS: Mapping[str, Registry] = {"methods": METHODS, "probes": PROBES}
"""Field of `Config` -> the registry whose entries it names. The settings of an entry are a group of its name."""
KINDS: Mapping[str, str] = {"model": "models", "stream": "environments"}
"""Field that names one entry -> its kind, for `names.find`; fields of `GROUPS` are called as their kind."""
INT = 2**31 - 1
"""The largest integer in a setting: programs count in 32 bits."""
SEED = 2**32 - 1
"""The largest seed: keys are made from 32 bits."""
ENTRIES = 256
"""The most entries of a sequence in a setting: layers and methods are compiled one by one."""
Methods = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--method"])]
"""Names of methods, also given as ``--method``."""


def aside(default: Any) -> Any:
    """A field that changes no number of a run, and so is not part of its identity."""
    return dataclasses.field(default=default, metadata={"aside": True})


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that all experiments have."""

    own: ClassVar[Mapping[str, Mapping[str, Named]]] = MappingProxyType({})
    """Field -> group of settings -> the own object that the field names."""

    preset: str = aside("default")
    """A set of defaults, over which the other settings are laid."""
    methods: Methods = ("backprop", "l2_er", "reset")
    """Methods to compare (`plastax list methods`), or your own, `module:object`. `l2+redo` composes two; `all` selects
    every method of plastax."""
    probes: tuple[str, ...] = ("features", "weights", "gradient", "hessian", "ggn", "kronecker")
    """What to measure at the start and the end of tasks (`plastax list probes`), or your own, `module:object`. `all`
    selects every probe of plastax, `none` no probe."""
    probe_every: int = 1
    """Probe every k-th task."""
    seeds: int = 8
    """Networks of each method, trained in parallel. Seed k has the same tasks under every method."""
    first_seed: int = 0
    """The first seed. A network depends on its seed alone, not on how many others are trained."""
    seed_chunk: int | None = None
    """The most networks that train in one call, on each device; the calls share the cores of a CPU. Fewer need less
    memory. 0: all. By default 2 on a CPU, whatever its cores, and all elsewhere."""
    auto_chunk: bool = aside(False)
    """Find the largest seed-chunk that fits into device memory."""
    tasks: int = 12
    """Tasks in the stream."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting and its values: method.er-lr=1e-2,1e-3. Repeat it for a grid; every combination of values is an arm."""
    tune_on: float = 0.0
    """0.1: the arms of a sweep compete on the first tenth of the tasks with half of the seeds, and the best arm of each
    method is trained on all tasks with the other half. 0: all arms are trained on all tasks."""
    arms: tuple[str, ...] = ()
    """Of a sweep, train these arms only, by their labels in the record. tune-on chooses them itself."""
    shard: str = aside("")
    """i/n, from 0/n to (n-1)/n: train the i-th of n parts of the arms. Other processes train the other parts, into the
    same run directory, whose name then depends on the settings alone. All need the same code, versions and device."""
    devices: int = aside(0)
    """Devices of this machine to spread networks (arms x seeds) over. 0: all."""
    arms_at_once: int = aside(0)
    """Methods (or arms) that train side by side, each a little slower: to time them, take 1. 0: on a CPU one for each
    core, at most 4; elsewhere, with a callback, or on several hosts, 1."""
    checkpoint_minutes: float = aside(5.0)
    """Minutes between checkpoints, each made at the end of a segment. 0: see checkpoint-every."""
    checkpoint_every: int = aside(0)
    """Segments between checkpoints. 0: see checkpoint-minutes; if both are 0, no checkpoints are made."""
    checkpoint_keep: int = aside(2)
    """How many of the newest checkpoints of each method to keep."""
    keep_params: int = aside(0)
    """Keep the trained networks after every k-th task, in params/ of the run. 0: only those of checkpoints."""
    runs_dir: Path = aside(Path("runs"))
    """Directory of all runs: <runs-dir>/<experiment>/<run id>."""
    resume: Path | None = aside(None)
    """A run directory to continue, under its own settings; others are refused."""
    fresh: bool = aside(False)
    """Start a new run. By default, the same command continues an interrupted run of the same settings and code. Where
    one of several shards has begun, move the shared run directory away instead."""
    track: tuple[tracking.Tracker, ...] = aside(("wandb",))
    """What shows the numbers of a running study, beside the terminal: wandb, tensorboard or both."""
    wandb: tracking.Mode = dataclasses.field(default_factory=tracking.usual_mode, metadata={"aside": True})
    """Weights & Biases: offline (files in the run directory, no account needed), online, online-or-offline (offline
    where nobody is logged in), or disabled. WANDB_MODE changes the default."""
    wandb_settings: Annotated[tracking.Wandb, tyro.conf.arg(name="wandb")] = aside(tracking.Wandb())
    """How Weights & Biases files the runs."""
    report: bool = aside(True)
    """Write the report and print its table at the end; `plastax report` does so later."""
    dry_run: bool = False
    """Check settings and data, then stop: compile nothing, write nothing."""
    compilation_cache: bool = aside(True)
    """Keep compiled programs, so that a second start compiles nothing: up to 1 GiB in the user's cache directory
    (JAX_COMPILATION_CACHE_MAX_SIZE, in bytes, and JAX_COMPILATION_CACHE_DIR change that)."""

    @property
    def unused(self) -> frozenset[str]:
        """Fields that this configuration does not use; ``config.json`` leaves them out."""
        return frozenset()


C = TypeVar("C", bound=Config)
D = TypeVar("D")


def entry(config: Config, registry: Registry, name: str) -> Any:
    """The settings of a name in a configuration, such as ``config.l2_er``; of an own object, ``config.cpr``."""
    group = names.key(name)
    return getattr(config, group) if hasattr(config, group) else registry[group]


def choice(config: Config, field: str) -> Any:
    """The settings of the entry that a field of a configuration names, such as those of ``config.model``."""
    return getattr(config, f"{field}_settings")


def parts(name: str) -> tuple[str, ...]:
    """The names that a name composes, without aliases.

    >>> parts("l2+er"), parts("chain:l2,mylab.cpr:CPR")
    (('l2', 'effective_rank'), ('l2', 'mylab.cpr:CPR'))
    """
    found = name.removeprefix("chain:").split(",") if name.startswith("chain:") else name.split("+")
    return tuple(ALIASES.get(one, one) for one in found)


def members(name: str) -> tuple[str, ...]:
    """The groups of settings of a name.

    >>> members("l2+er"), members("l2+mylab.cpr:CPR")
    (('l2', 'effective_rank'), ('l2', 'cpr'))
    """
    return tuple(names.key(one) for one in parts(name))


def label(name: str) -> str:
    """What the record calls a name.

    >>> label("l2+mylab.cpr:CPR")
    'l2+cpr'
    """
    return "+".join(members(name))


def registered(config: Config, field: str) -> dict[str, Any]:
    """Group -> entry at its defaults, of all that a field of `GROUPS` can name: the registry's, and own ones."""
    return {**GROUPS[field], **{group: one.entry for group, one in config.own.get(field, {}).items()}}


def unused(config: Config) -> dict[str, str]:
    """The groups of settings that a configuration does not use, each with the field that does not name it."""
    used = {member for name in (*config.methods, *config.probes) for member in members(name)}
    found = {group: field for field in GROUPS for group in registered(config, field) if group not in used}
    if getattr(config, "data", "") != "synthetic":
        found["synthetic"] = "data"
    return found | dict.fromkeys(config.unused - {"agent"}, "agent")


def check_used(config: Config, names: Iterable[str]) -> None:
    """Raises `ConfigError` for the first of some settings that is of an `unused` group, or is one."""
    fields = unused(config)
    for name in names:
        group = name.replace("-", "_").partition(".")[0]
        if field := fields.get(group):
            chosen = getattr(config, field)
            shown = chosen if isinstance(chosen, str) else " ".join(chosen) or "none"
            raise ConfigError(f"{name}: no effect with {field} {shown}; name {group} there, or leave this out")


def origins(config: Config) -> dict[str, Mapping[str, str]]:
    """Group -> `Named.origin` of the own objects that a configuration uses."""
    return {
        group.removesuffix("_settings"): one.origin for found in config.own.values() for group, one in found.items()
    }


def used(config: Config) -> list[object]:
    """The classes and entries that a configuration uses, for `environment.own_sources`."""
    entries = [
        entry(config, registry, member)
        for field, registry in GROUPS.items()
        for name in getattr(config, field)
        for member in members(name)
    ]
    code = [one for found in config.own.values() for named in found.values() for one in named.code]
    groups = {name for field in GROUPS for name in registered(config, field)}
    others = (getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in groups)
    return [*type(config).__mro__[1:-1], *entries, *code, *filter(dataclasses.is_dataclass, others)]


def fleeting(config: Config) -> list[str]:
    """A line about own objects that no other process finds by their names, and one about those of unknown source."""
    named = [(field, one) for field, found in config.own.items() for one in found.values()]
    alone = ", ".join(one.name for _, one in named if not one.again)
    # Of data the checksum is known.
    unknown = ", ".join(one.name for field, one in named if not one.origin["source"] and field != "data")
    lines = [f"{alone}: only this program can continue the run, no command line"] if alone else []
    return lines + ([f"{unknown}: the source is not known, so no change of it will be noticed"] if unknown else [])


def with_options(model: Any, name: str, method: str, options: Mapping[str, Any]) -> Any:
    """The settings of a model with the options that a method asks for.

    Args:
      model: its settings.
      name: its name.
      method: the name of the method, composed or not.
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


def replaced(config: D, values: Mapping[str, Any]) -> D:
    """``config``, a dataclass, with dotted settings replaced.

    >>> replaced(Config(), {"seeds": 3}).seeds
    3
    """
    whole = {name: value for name, value in values.items() if "." not in name}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, dot, setting = name.partition(".")
        if dot:
            inner.setdefault(group, {})[setting] = value
    # All settings of a group at once: a group may refuse one without the others.
    for group, some in inner.items():
        whole[group] = replaced(whole.get(group, getattr(config, group)), some)
    return dataclasses.replace(config, **whole)  # type: ignore[type-var]


def check_sizes(config: Any, group: str = "") -> None:
    """Raises `ConfigError` for integers beyond `INT`, and for sequences longer than `ENTRIES`, in all groups."""
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


def of_shard(items: Sequence[Any], shard: str) -> Sequence[Any]:
    """The part of a sequence that belongs to shard ``i/n``: neighbours, which are alike. All of it for "".

    >>> of_shard(["a", "b", "c", "d", "e"], "1/2")
    ['c', 'd', 'e']

    Raises:
      ConfigError: ``shard`` is not of the form i/n.
    """
    if not shard:
        return items
    index, count = lifecycle.shard_numbers(shard)
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def to_json(config: Config) -> dict[str, Any]:
    """All settings as JSON values, without those of entries that were not chosen."""
    chosen = {member for field in GROUPS for name in getattr(config, field) for member in members(name)}
    # All shards write the same config.json.
    unused = {name for registry in GROUPS.values() for name in registry} - chosen | {"shard", "dry_run"}
    # Runs without them have the hash that they had before these settings came.
    unused |= config.unused | {name for name in ("tune_on", "arms") if not getattr(config, name)}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in unused}
    for group in settings:
        entry = getattr(config, group)
        for field in dataclasses.fields(entry) if dataclasses.is_dataclass(entry) else ():
            if field.metadata.get("later") and getattr(entry, field.name) == field.default:
                del settings[group][field.name]
    return json.loads(json.dumps(settings, default=os.fspath))


def asides(config: Config) -> list[str]:
    """The settings that change no number of a run, see `aside`, and the card of the data set."""
    return [field.name for field in dataclasses.fields(config) if field.metadata.get("aside")] + ["data_card"]


def identity(settings: Mapping[str, Any], asides: Container[str] = ()) -> str:
    """Eight hexadecimal digits: the hash of all settings but ``asides``. Runs of the same numbers have the same."""
    text = json.dumps({k: v for k, v in settings.items() if k not in asides}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def main(run: Callable[[], Any]) -> None:
    """Runs an experiment; an error ends the process with one line and a status.

    Status 2: a setting is refused. 75: the run was asked to stop, and can be continued. 130: Ctrl-C before or after
    training. 1: every other failure of the machine, or a damaged file.
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
