"""The command line of an experiment: its flags become a configuration, and --help says what they are."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import docstring_parser
import rich.padding
import rich.table
import rich.text
import tyro

from plastax import output
from plastax.errors import ConfigError
from plastax.study.configuration import checked, configure, nearest, spelled_out
from plastax.study.names import ALIASES
from plastax.study.settings import C, Config, Registry, check_used, unused

SHOWN = ("--preset", "--runs-dir", "--resume", "--fresh", "--wandb")
"""Settings that change no number of a run and are in the short help all the same."""

HELP = (tyro.conf.HelptextFromCommentsOff,)
"""Keeps tyro from parsing the source of every class of settings for help texts, which `print_help` prints."""


def parse(
    base: type[C],
    presets: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, Registry],
    args: Sequence[str] | None = None,
    prog: str | None = None,
) -> C:
    """The configuration that a command line asks for.

    Args:
      base: see `configure`.
      presets: see `configure`.
      choices: see `configure`.
      args: the command line, `sys.argv[1:]` by default. If one method is chosen, ``--method.X`` is its setting X.
      prog: how the program was called.

    Returns:
      See `configure`.

    Raises:
      ConfigError: a name or flag is unknown, or a value is not allowed.
      SystemExit: with status 0, after ``--help``.
    """
    args, asked = _without_help(sys.argv[1:] if args is None else args)
    flags: dict[str, Any] = {field: _value_of(args, f"--{field}") for field in ("preset", "resume", "data", *choices)}
    if "agent" in {field.name for field in dataclasses.fields(base)}:
        flags["agent"] = _value_of(args, "--agent")
    flags |= {"methods": _values_of(args, "--methods", "--method"), "probes": _values_of(args, "--probes")}
    default = configure(base, presets, choices, {field: value for field, value in flags.items() if value})
    if asked is not None:
        print_help(default, presets, asked, prog or sys.argv[0])
        raise SystemExit(0)
    args = [_in_full(arg, default) for arg in args]
    _check_flags(args, default)
    with output.refusals():
        given = _given(args, default)
        read = tyro.cli(type(given), args=args, default=given, prog=prog, config=HELP)
        return checked(dataclasses.replace(default, **vars(read)))


def _given(args: Sequence[str], config: Config) -> Any:
    """The part of a configuration that a command line names; tyro takes 0.2 s to make a parser of all settings."""
    flags = (arg.removeprefix("--").removeprefix("no-") for arg in args if arg.startswith("--"))
    named = {re.split("[.=]", flag)[0].replace("-", "_") for flag in flags}
    if "method" in named:
        named.add("methods")
    fields = [field.name for field in dataclasses.fields(config) if field.name.removesuffix("_settings") in named]
    kinds = typing.get_type_hints(type(config), include_extras=True)
    part = dataclasses.make_dataclass(type(config).__name__, [(name, kinds[name]) for name in fields], frozen=True)
    return part(**{name: getattr(config, name) for name in fields})


class _Flag(NamedTuple):
    """A setting as the command line has it.

    Attributes:
      group: the field of the configuration that holds it; "" for the configuration itself.
      name: with dashes.
      value: its default.
      kind: its type.
      holder: the class of settings that has it.
      aside: see `settings.aside`.
    """

    group: str
    name: str
    value: Any
    kind: Any
    holder: type
    aside: bool = False

    @property
    def text(self) -> str:
        """Its docstring."""
        return _texts(self.holder).get(self.name.rpartition(".")[2].removeprefix("--").replace("-", "_"), "")

    @property
    def shown(self) -> str:
        """The flag: of a switch, the one that changes it."""
        if self.value is True:
            return re.sub(r"(--|\.)(?=[^.]*$)", r"\1no-", self.name)
        return self.name

    @property
    def default(self) -> str:
        """Its default in words; "" for switches."""
        value = self.value
        if value is None or isinstance(value, bool):
            return ""
        return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    @property
    def choices(self) -> str:
        """What is allowed, of a type with a few values."""
        allowed = typing.get_args(self.kind) if typing.get_origin(self.kind) is typing.Literal else ()
        return " | ".join(map(str, allowed))


def _flags(config: Any, group: str = "", aside: bool = False) -> list[_Flag]:
    """All flags of a configuration."""
    kind: Any = type(config)
    found, kinds = [], typing.get_type_hints(kind)
    prefix = f"{group.removesuffix('_settings')}." if group else ""
    for field in dataclasses.fields(config):
        value, aside_too = getattr(config, field.name), aside or bool(field.metadata.get("aside"))
        if dataclasses.is_dataclass(value):
            found += _flags(value, field.name, aside_too)
            continue
        name = f"--{prefix}{field.name}".replace("_", "-")
        found.append(_Flag(group, name, value, kinds[field.name], kind, aside_too))
    return found


@functools.lru_cache(1024)
def _texts(kind: type) -> Mapping[str, str]:
    """Field -> docstring below it, of a class and its bases."""
    return {
        found.arg_name: found.description or ""
        for base in reversed(kind.__mro__[:-1])
        for found in docstring_parser.parse_from_object(base).params
    }


def _without_help(args: Sequence[str]) -> tuple[list[str], str | None]:
    """The line without ``--help``, and the help it asks for: "", a group, or ``all``; None for no help."""
    for i, arg in enumerate(args):
        if arg == "--help-all":
            return [*args[:i], *args[i + 1 :]], "all"
        if arg in ("-h", "--help"):
            named = [word for word in args[i + 1 : i + 2] if not word.startswith("-")]
            return [*args[:i], *args[i + 1 + len(named) :]], named[0] if named else ""
    return list(args), None


def print_help(config: Config, presets: Iterable[str], asked: str = "", prog: str = "") -> None:
    """Prints what the settings of an experiment are.

    Args:
      config: their defaults.
      presets: names of the presets.
      asked: "" for a line for each setting that this configuration uses, a group for the whole text of its settings,
        or all.
      prog: how the program was called.

    Raises:
      ConfigError: there is no such group.
    """
    console = output.Console()
    choice = typing.Literal[tuple(presets)]  # type: ignore[valid-type]
    flags = [flag._replace(kind=choice) if flag.name == "--preset" else flag for flag in _flags(config)]
    names = {flag.group: flag.group.removesuffix("_settings").replace("_", "-") for flag in flags}
    if asked:
        wanted = ALIASES.get(asked, asked).replace("_", "-")
        if wanted not in (known := [*filter(None, names.values()), "all"]):
            raise ConfigError.unknown("--help", asked, known)
        groups = [group for group, name in names.items() if wanted in (name, "all")]
    else:
        flags = [flag for flag in flags if not flag.aside or flag.name in SHOWN]
        idle = unused(config)
        groups = [group for group in dict.fromkeys(flag.group for flag in flags) if group not in idle]
    console.print(f"usage: {prog} [settings]\n\n{_first_line(config)}")
    for group in groups:
        line = rich.text.Text(names[group], "bold")
        if group:
            said = _first_line(getattr(config, group))
            line.append(f"  {said if asked else _fitting(said, console.width - len(line) - 2) or said}", "not bold")
        console.print("", line, sep="\n" if group else "")
        (_explain if asked else _list)([flag for flag in flags if flag.group == group], console)
    if not asked:
        console.print("\n--help GROUP explains a group, such as --help hessian; --help-all explains everything.")


def _first_line(entry: Any) -> str:
    return (type(entry).__doc__ or "").strip().partition("\n")[0]


def _list(flags: Sequence[_Flag], console: output.Console) -> None:
    """A line for each flag, or two for one outside of groups: its name, its default and as much of its text as fits."""
    table = rich.table.Table.grid(padding=(0, 2))
    wide = max(len(flag.shown) for flag in flags), min(16, max(len(flag.default) for flag in flags))
    table.add_column(no_wrap=True)
    table.add_column(max_width=wide[1])
    table.add_column()
    room = console.width - sum(wide) - 6
    for flag in flags:
        text = flag.choices or _fitting(flag.text, room) or ("" if flag.group else _fitting(flag.text, 2 * room))
        table.add_row(f"  {flag.shown}", rich.text.Text(flag.default, "cyan"), text)
    console.print(table)


def _explain(flags: Sequence[_Flag], console: output.Console) -> None:
    """The whole text of each flag."""
    for flag in flags:
        kind = flag.choices or getattr(flag.kind, "__name__", str(flag.kind)).removeprefix("typing.")
        line = rich.text.Text(f"{flag.shown} ", "bold").append(kind, "not bold")
        line.append(f" (default: {flag.default})" if flag.default else "", "cyan not bold")
        console.print(rich.padding.Padding(line, (0, 0, 0, 2)))
        console.print(rich.padding.Padding(" ".join(flag.text.split()), (0, 0, 0, 6)))


def _fitting(text: str, width: int) -> str:
    """The longest beginning of a text's first sentence that fits and stands by itself; "" if there is none.

    >>> _fitting("Steps of each environment in a rollout (one update).", 40)
    'Steps of each environment in a rollout'
    """
    text = " ".join(text.split()).partition(". ")[0].removesuffix(".")
    beginnings = [text[: end.start()] for end in re.finditer(r"[;,](?= )| \(|$", text)]
    whole = [one for one in beginnings if one.count("(") == one.count(")") and one.count("`") % 2 == 0]
    whole = [one for one in whole if one == text or ":" not in one]
    return max((one for one in whole if len(one) <= width), key=len, default="")


def _check_flags(args: Sequence[str], config: Config) -> None:
    """Raises `ConfigError` for a flag that no setting has, with those that may be meant, or that has no effect."""
    idle = unused(config)
    known = [flag.name for flag in sorted(_flags(config), key=lambda flag: flag.group in idle)]
    for arg in args:
        name = arg.partition("=")[0].replace("_", "-")
        positive = re.sub(r"(--|\.)no-(?=[^.]*$)", r"\1", name)
        if not arg.startswith("--"):
            continue
        if {name, positive} & {*known, "--method"}:
            check_used(config, [name.removeprefix("--")])
            continue
        near = nearest(name.removeprefix("--"), [flag.removeprefix("--") for flag in known])
        hint = f"; did you mean {' or '.join(f'--{one}' for one in near)}?" if near else ""
        raise ConfigError(f"{name} is unknown{hint} (--help-all lists all)")


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """The value of ``--flag value`` or ``--flag=value``, None if it is not given; raises `ConfigError` for two."""
    found = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == flag]
    found += [arg.partition("=")[2] for arg in args if arg.startswith(flag + "=")]
    if len(found) > 1:
        raise ConfigError(f"{flag.removeprefix('--')}: {' and '.join(found)} are given; give one")
    return found[0] if found else None


def _values_of(args: Sequence[str], *flags: str) -> list[str] | None:
    """The words after the last of some flags, None if none is given."""
    found = None
    for i, arg in enumerate(args):
        if arg in flags:
            found = list(itertools.takewhile(lambda word: not word.startswith("-"), args[i + 1 :]))
        elif arg.startswith(tuple(f"{flag}=" for flag in flags)):
            found = [arg.partition("=")[2]]
    return found


def _in_full(arg: str, config: Config) -> str:
    """A flag as `configuration.spelled_out` has its name: ``--lr`` as ``--training.learning-rate``."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.removeprefix("--").partition("=")
    return f"--{spelled_out(config, name.replace('-', '_')).replace('_', '-')}{equals}{value}"
