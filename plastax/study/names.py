"""Names of methods, probes, models, streams, environments and data: plastax's, an installed package's, one's own.

Wherever one of these is named, a name is

- an entry of plastax's registry, or an alias of one: ``l2_er``, ``er``;
- an entry point of an installed package, in the group ``plastax.methods``, ``.probes``, ``.models``, ``.streams`` or
  ``.environments``;
- ``module:object``, or ``path/to/file.py:object``; see `objects.load`.

In Python, an object may stand for its name: ``MyMethod(rate=0.1)``, or ``methods.L2(1e-3)`` for ``l2``.

What a name gives is an entry, as registries hold them: a frozen dataclass with a ``build``. Its fields are settings,
under the group `key`. A class stands for itself with its defaults. Other objects (networks, environments, arrays)
become entries by the ``entry(object, name)`` of ``models.own``, ``rl.own`` and ``data.own``. Two entries that train
differently must differ in a field: a run is continued by the same settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.records import environment
from plastax.study import objects
from plastax.types import MethodConfig

ALIASES: Mapping[str, str] = {"er": "effective_rank", "spectrum": "hessian"}
"""Name in the literature -> entry of a registry. Either may be given wherever a name is taken."""
_ATTRIBUTES = {
    "methods": tuple(name for name in vars(MethodConfig) if not name.startswith("_")),
    "probes": ("name", "every", "build"),
    "models": ("build",),
    "streams": ("build",),
    "environments": ("spaces", "build"),
}
"""Kind -> what an entry must have."""
_BASES = {"methods": "plastax.methods.base.Settings", "probes": "plastax.probes.base.ProbeConfig"}
_ADAPTERS = {"models": "plastax.models.own", "environments": "plastax.rl.own", "data": "plastax.data.own"}


class Named(NamedTuple):
    """An entry and its name.

    Attributes:
      name: in the settings: of an own object ``module:object``; of one that has no name, its class and a fingerprint.
      key: see `key`.
      entry: its settings.
      origin: of an own object, what ``config.json`` says of it: ``name``, ``module``, ``object``, ``source`` (SHA-256
        of the module's file, or of the text of what was typed in; "" if that is not known) and ``version`` (of the
        installed package, or ""). Empty for plastax's entries.
      code: of an own object, what `environment.own_sources` must be told.
      again: whether the name finds it again in another process.
    """

    name: str
    key: str
    entry: Any
    origin: Mapping[str, str] = {}
    code: tuple[object, ...] = ()
    again: bool = True


def key(name: str) -> str:
    """The group of settings of a name, and the label of its arm: its object in snake case.

    >>> key("l2_er"), key("mylab.cpr:CPR"), key("mylab/own.py:MyL2Method")
    ('l2_er', 'cpr', 'my_l2_method')
    """
    words = re.sub(r"\W", "", re.split(r"[:.]", name.replace("-", "_"))[-1])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower()


def find(kind: str, given: Any, registry: Mapping[str, Any], setting: str = "") -> Named:
    """The entry that a name, or an object in its place, stands for.

    Args:
      kind: methods, probes, models, streams, environments or data.
      given: the name or object.
      registry: plastax's entries of this kind. An own entry's ``build`` is called as theirs.
      setting: what the messages begin with, by default ``kind``.

    Raises:
      ConfigError: the module or object does not exist, or the object is of another kind or has another signature.
    """
    setting = setting or kind
    if not isinstance(given, str):
        return _of_object(kind, given, registry, setting)
    name = ALIASES.get(given, given)
    if name in registry:
        return Named(name, name, registry[name])
    if ":" in name:
        module, target = objects.load(setting, name)
        return _own(kind, name, module, name.rpartition(":")[2], target, registry, setting)
    points = installed(kind)
    if name not in points:
        raise ConfigError.unknown(setting, name, [*registry, *points, "or your own, module:object"])
    (value, distribution), *others = points[name]
    if others:
        listed = " or ".join(other for other, _ in points[name])
        raise ConfigError(f"{setting}: {name!r} is in several installed packages; say which: {listed}")
    module, target = objects.load(setting, f"{name} of {distribution}", value)
    return _own(kind, name, module, value.rpartition(":")[2], target, registry, setting)


def installed(kind: str) -> dict[str, list[tuple[str, str]]]:
    """Name -> the ``module:object`` and the package of the installed entry points of a kind."""
    found: dict[str, list[tuple[str, str]]] = {}
    for point in importlib.metadata.entry_points(group=f"plastax.{kind}"):
        one = (point.value.partition("[")[0].strip(), f"{point.dist.name} {point.dist.version}" if point.dist else "")
        if one not in found.setdefault(point.name, []):
            found[point.name].append(one)
    return found


def of_packages(kind: str, registry: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> entry of the installed packages, or the `ConfigError` that it gives."""
    found: dict[str, Any] = {}
    for name, values in installed(kind).items():
        if name in registry or name in ALIASES:
            found[name] = ConfigError(f"{name} is plastax's; give {values[0][0]}")
            continue
        try:
            found[name] = find(kind, name, registry).entry
        except ConfigError as error:
            found[name] = error
    return found


def _of_object(kind: str, given: Any, registry: Mapping[str, Any], setting: str) -> Named:
    """The entry of an object: one of the registry's with these settings, or an own one."""
    alike = [name for name, entry in registry.items() if type(entry) is _code(given)]
    if alike:
        entry = given() if isinstance(given, type) else given
        same = lambda name: sum(  # noqa: E731
            getattr(registry[name], field.name) == getattr(entry, field.name) for field in dataclasses.fields(entry)
        )
        name = max(alike, key=same)
        return Named(name, name, entry)
    code = _code(given)
    module, path = code.__module__, code.__qualname__
    if given is not code and not _is_entry(given):
        # No settings tell this object from others of its class, but a variable of the module may hold it.
        held = [variable for variable, one in vars(sys.modules.get(module, sys)).items() if one is given]
        path = held[0] if held else f"{path}({_fingerprint(given)})"
    again = module != "__main__" and not re.search(r"[<(]", path)
    name = path if module == "builtins" else f"{module}:{path}"
    return _own(kind, name, module, path, given, registry, setting)._replace(again=again)


def _fingerprint(given: Any) -> str:
    """Eight hexadecimal digits of an object's arrays, and of how it and its attributes print, without addresses."""
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{given!r} {getattr(given, '__dict__', '')!r}")
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(given):
        if isinstance(leaf, np.ndarray | jax.Array):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:8]


def _own(kind: str, name: str, module: str, path: str, target: Any, registry: Mapping[str, Any], setting: str) -> Named:
    """An own object as an entry; raises `ConfigError` for one of another kind."""
    entry = target
    if isinstance(target, type) and dataclasses.is_dataclass(target) and hasattr(target, "build"):
        try:
            entry = target()
        except TypeError as error:
            raise ConfigError(f"{setting}: {name}: give every field a default ({error})") from error
    if kind in _ATTRIBUTES and _is_entry(entry):
        _check(kind, name, entry, registry, setting)
    elif kind in _ADAPTERS and not isinstance(entry, Dataset):
        entry = importlib.import_module(_ADAPTERS[kind]).entry(target, name)
    elif kind not in _ADAPTERS:
        raise ConfigError(f"{setting}: {name} is {_described(target)}; {_needed(kind, registry)}")
    code = _code(target)
    origin = {
        "name": name,
        "module": module,
        "object": path,
        "source": environment.source_of(module, code),
        "version": _version(module),
    }
    return Named(name, key(name), entry, origin, (code, *filter(None, [sys.modules.get(module)])))


def _code(target: Any) -> Any:
    """The class or function that an object is, or is of."""
    return target if isinstance(target, type) or inspect.isroutine(target) else type(target)


def _is_entry(entry: Any) -> bool:
    return dataclasses.is_dataclass(entry) and not isinstance(entry, type) and callable(getattr(entry, "build", None))


def _check(kind: str, name: str, entry: Any, registry: Mapping[str, Any], setting: str) -> None:
    if missing := [attribute for attribute in _ATTRIBUTES[kind] if not hasattr(entry, attribute)]:
        raise ConfigError(f"{setting}: {name} has no {', '.join(missing)}; {_needed(kind, registry)}")
    own = vars(type(entry))
    undecorated = [x for x, kind in own.get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
    if undecorated and "__dataclass_fields__" not in own:
        raise ConfigError(
            f"{setting}: {name} has no @dataclass(frozen=True), so {', '.join(undecorated)} is no setting; add it"
        )
    try:
        hash(entry)
    except TypeError as error:
        raise ConfigError(
            f"{setting}: {name} can change ({error}); give it @dataclass(frozen=True), and tuples instead of lists"
        ) from error
    if kind == "streams" and not getattr(entry, "needs_data", True):
        return
    wanted, has = _signature(registry), inspect.signature(entry.build)
    keywords = {x.name: None for x in wanted.parameters.values() if x.kind is x.KEYWORD_ONLY}
    try:
        has.bind(*[None] * (len(wanted.parameters) - len(keywords)), **keywords)
    except TypeError as error:
        raise ConfigError(f"{setting}: {name} has build{_bare(has)} ({error}); {_needed(kind, registry)}") from error


def _signature(registry: Mapping[str, Any]) -> inspect.Signature:
    """How ``build`` of the registry's entries is called."""
    return inspect.signature(next(iter(registry.values())).build)


def _bare(signature: inspect.Signature) -> str:
    """The names of a signature: ``(inner, model)``."""
    parameters = [x.replace(annotation=x.empty, default=x.empty) for x in signature.parameters.values()]
    return str(inspect.Signature(parameters))


def _needed(kind: str, registry: Mapping[str, Any]) -> str:
    base = f", such as a subclass of {_BASES[kind]}" if kind in _BASES else ""
    return f"needed is a frozen dataclass with build{_bare(_signature(registry))}{base}"


def _described(target: Any) -> str:
    if isinstance(target, type):
        return "a class, and no dataclass with build"
    return "a function" if inspect.isroutine(target) else f"an object of {type(target).__name__}"


def _version(module: str) -> str:
    """The version of the installed package of a module; "" without one."""
    packages = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return importlib.metadata.version(packages[0]) if packages else ""
