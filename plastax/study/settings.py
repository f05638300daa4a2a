"""Settings of an experiment: from the command line and presets to one frozen, hashable, validated configuration.

An experiment declares a frozen dataclass that extends `Study`. `configure` adds a group of settings for every entry of
the registries and for every object of one's own (``--l2-er.er-lr``, ``--hessian.order``, ``--stream.sigma``; see
`names`), and checks the values before anything is compiled. `command_line.parse` reads them from a command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import os
import typing
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

from plastax import output, ranges, tracking
from plastax.data import DATA
from plastax.errors import ConfigError, RecordError, RunError, Stopped
from plastax.methods import METHODS
from plastax.probes import PROBES
from plastax.records import lifecycle
from plastax.records.layout import read_config
from plastax.study import names
from plastax.study.names import ALIASES, Named

Registry = Mapping[str, Any]
GROUPS: Mapping[str, Registry] = {"methods": METHODS, "probes": PROBES}
"""Field of `Study` -> the registry whose entries it names. The settings of an entry are a group of its name."""
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
class Study:
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
    seed_chunk: int = 0
    """Seeds that are trained at once, to bound memory; a divisor of the number of seeds. 0: all."""
    auto_chunk: bool = aside(False)
    """Find the largest seed-chunk that fits into device memory."""
    tasks: int = 12
    """Tasks in the stream."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting and its values: method.er-lr=1e-2,1e-3. Repeat it for a grid; every combination of values is an arm."""
    shard: str = aside("")
    """i/n, from 0/n to (n-1)/n: train the i-th of n parts of the arms. Other processes train the other parts, into the
    same run directory, whose name then depends on the settings alone. All need the same code, versions and device."""
    devices: int = aside(0)
    """Devices of this machine to spread networks (arms x seeds) over. 0: all."""
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
    dry_run: bool = False
    """Check settings and data, then stop: compile nothing, write nothing."""
    compilation_cache: bool = aside(True)
    """Keep compiled programs, so that a second start compiles nothing: up to 1 GiB in the user's cache directory
    (JAX_COMPILATION_CACHE_MAX_SIZE, in bytes, and JAX_COMPILATION_CACHE_DIR change that)."""


C = TypeVar("C", bound=Study)
D = TypeVar("D")


def configure(
    base: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Registry],
    values: Mapping[str, Any],
) -> C:
    """The configuration of some values, over those of a preset, or of the run that ``resume`` names.

    Args:
      base: a frozen dataclass that extends `Study`.
      presets: name -> dotted setting -> value, over the defaults (``{"smoke": {"seeds": 2, "ppo.num_envs": 2}}``).
        All settings of a choice at once (``{"model_settings": CNN(...)}``) apply only if that choice is made.
      choices: field -> registry of which it names one entry. The settings of that entry are the group of the field's
        name: ``model.hidden``.
      values: dotted setting -> value, as on the command line: ``{"seeds": 3, "model.hidden": (8, 8)}``. The value of a
        group, ``{"training": ...}``, is a whole group or a mapping of some of its settings.

    Returns:
      The configuration. Its class extends ``base`` with the groups: see `choice` and `entry`.

    Raises:
      ConfigError: a name is unknown, or a value is of another type or out of range.
    """
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
    named = {**choices, **GROUPS, **({"data": DATA} if "data" in defaults else {})}
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
            if not isinstance(given, str) and field != "data" and dataclasses.fields(one.entry)
        }
        if source is values:
            values = objects | dict(values) | {field: shown}
        elif source is not stored:
            overrides = objects | overrides | {field: shown}
    config = replaced(_with_groups(base, chosen, own)(), overrides)
    config = _from_json(config, stored) if stored else config
    changes = {}
    for name, value in values.items():
        group, dot, setting = in_full(config, name.replace("-", "_")).partition(".")
        group = f"{group}_settings" if dot and group in choices else ALIASES.get(group, group)
        changes[f"{group}{dot}{setting}"] = _read(config, f"{group}{dot}{setting}", name, value)
    return checked(replaced(config, changes))


def _found(field: str, given: Any, registry: Registry) -> tuple[Any, list[tuple[Any, Named]]]:
    """What a field holds for some names or objects, and each of them with what it stands for."""
    if field == "data" and isinstance(given, str | os.PathLike) and (":" not in str(given) or os.path.exists(given)):
        return os.fspath(given), []  # `plastax.data.load` knows names and paths.
    if field not in GROUPS:
        one = names.find(KINDS.get(field, field), given, registry, field)
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


def _read(config: Any, path: str, name: str, value: Any) -> Any:
    """A value for the dotted setting ``path``, converted as the command line would read its text."""
    head, _, rest = path.partition(".")
    fields = [field.name for field in dataclasses.fields(config)]
    if head not in fields:
        raise ConfigError.unknown("settings", name, (f"{name.removesuffix(head)}{field}" for field in fields))
    now, kind = getattr(config, head), typing.get_type_hints(type(config))[head]
    if rest:
        if not dataclasses.is_dataclass(now):
            raise ConfigError(f"settings: {name} is not allowed; {name.removesuffix(f'.{rest}')} has no settings")
        return _read(now, rest, name, value)
    if dataclasses.is_dataclass(now):
        if isinstance(value, Mapping):
            return replaced(now, {key: _read(now, key, f"{name}.{key}", one) for key, one in value.items()})
        given: Any = value if type(value) is type(now) else None
    elif kind is str and isinstance(value, str):
        given = value
    else:
        words = [str(one) for one in (value if isinstance(value, tuple | list) else [value])]
        given = read(kind, words)
    if given is None and value is not None:
        raise ConfigError(f"{name}: {value!r} is not allowed; give {getattr(kind, '__name__', kind)}, such as {now!r}")
    return given


def read(kind: Any, words: Sequence[str]) -> Any:
    """The value of a type that the words of a command line give; None if they give none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=words, prog="")
    except SystemExit:
        return None


SHORT: Mapping[str, str] = {"lr": "learning_rate", "epochs": "epochs", "batch_size": "batch_size"}
"""What everybody calls a setting of the training -> its name."""


def in_full(config: Study, name: str) -> str:
    """The dotted setting of a name in `SHORT`, in whichever group the configuration has it; other names as they are."""
    for group in ("training", "ppo"):
        if name in SHORT and hasattr(getattr(config, group, None), SHORT[name]):
            return f"{group}.{SHORT[name]}"
    return name


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
    taken |= {name for registry in GROUPS.values() for name in registry}
    for field in GROUPS:
        for group, one in own[field].items():
            if group in taken:
                raise ConfigError(f"{field}: {one.name}: the name {group!r} is taken; rename the object")
            taken.add(group)
            fields.append((group, type(one.entry), one.entry))
    namespace: dict[str, Any] = {"__doc__": base.__doc__, "own": {**base.own, **own}}
    return dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, namespace=namespace)


def _names(config: Study, field: str) -> tuple[str, ...]:
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
        raise ConfigError(f"{field}: {' '.join(found)} names an entry twice")
    return found


def entry(config: Study, registry: Registry, name: str) -> Any:
    """The settings of a name in a configuration, such as ``config.l2_er``; of an own object, ``config.cpr``."""
    group = names.key(name)
    return getattr(config, group) if hasattr(config, group) else registry[group]


def choice(config: Study, field: str) -> Any:
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


def registered(config: Study, field: str) -> dict[str, Any]:
    """Group -> entry at its defaults, of all that a field of `GROUPS` can name: the registry's, and own ones."""
    return {**GROUPS[field], **{group: one.entry for group, one in config.own.get(field, {}).items()}}


def origins(config: Study) -> dict[str, Mapping[str, str]]:
    """Group -> `Named.origin` of the own objects that a configuration uses."""
    return {
        group.removesuffix("_settings"): one.origin for found in config.own.values() for group, one in found.items()
    }


def fleeting(config: Study) -> list[str]:
    """A line about own objects that no other process finds by their names, and one about those of unknown source."""
    used = [(field, one) for field, found in config.own.items() for one in found.values()]
    alone = ", ".join(one.name for _, one in used if not one.again)
    # Of data the checksum is known.
    unknown = ", ".join(one.name for field, one in used if not one.origin["source"] and field != "data")
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


def _known(field: str, name: str, allowed: Collection[str]) -> None:
    if name not in allowed:
        raise ConfigError.unknown(field, name, allowed)


def replaced(config: D, values: Mapping[str, Any]) -> D:
    """``config``, a dataclass, with dotted settings replaced.

    >>> replaced(Study(), {"seeds": 3}).seeds
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


def _check(config: Study) -> None:
    check_sizes(config)
    if config.first_seed + config.seeds - 1 > SEED:
        raise ConfigError(
            f"first_seed: {config.first_seed} is not allowed with {config.seeds} seeds; "
            f"give at most {SEED - config.seeds + 1}"
        )
    ranges.check(config, "", "seeds", "tasks", "probe_every", least=1)
    ranges.check(
        config, "", "first_seed", "seed_chunk", "checkpoint_every", "checkpoint_minutes", "keep_params", least=0
    )
    ranges.check(config, "", "checkpoint_keep", least=2)  # The newest one may be damaged.
    if config.shard:
        lifecycle.shard_numbers(config.shard)
    if not config.methods:
        raise ConfigError("methods: none is given; name one or more")
    if config.seed_chunk and config.seeds % config.seed_chunk:
        raise ConfigError(f"seed_chunk: {config.seed_chunk} does not divide the {config.seeds} seeds")


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


def to_json(config: Study) -> dict[str, Any]:
    """All settings as JSON values, without those of entries that were not chosen."""
    used = {member for field in GROUPS for name in getattr(config, field) for member in members(name)}
    # All shards write the same config.json.
    unused = {name for registry in GROUPS.values() for name in registry} - used | {"shard", "dry_run"}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in unused}
    return json.loads(json.dumps(settings, default=os.fspath))


def asides(config: Study) -> list[str]:
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
