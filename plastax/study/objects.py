"""Objects of one's own by name: ``module:object`` or ``path/to/file.py:object``."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from plastax.errors import ConfigError


def load(setting: str, name: str, value: str = "") -> tuple[str, Any]:
    """Imports an object.

    As for ``python -m``, modules are also looked for in the working directory. A file is imported from its own folder,
    under its own name, so that it finds what lies beside it.

    Args:
      setting: what the messages begin with.
      name: what they call the object.
      value: ``module:object``, by default ``name``.

    Returns:
      The name that the module was imported under, and the object.

    Raises:
      ConfigError: there is no such file, module or object, or the module cannot be imported.
    """
    where, _, path = (value or name).rpartition(":")
    module, folder, file = where, Path.cwd(), None
    if where.endswith(".py"):
        file = Path(where).expanduser().resolve()
        module, folder = file.stem, file.parent
        if not file.is_file():
            raise ConfigError(f"{setting}: {name}: there is no file {where} (working directory {Path.cwd()})")
    if str(folder) not in sys.path and (file or not sys.flags.safe_path):
        sys.path.insert(0, str(folder))
    found = _imported(setting, name, module)
    there = getattr(found, "__file__", None)
    if file and (there is None or Path(there).resolve() != file):
        raise ConfigError(f"{setting}: {name}: another module is called {module} ({there}); rename the file")
    target = found
    for part in path.split("."):
        if not hasattr(target, part):
            raise _missing(setting, name, where, path, found)
        target = getattr(target, part)
    return module, target


def _imported(setting: str, name: str, module: str) -> Any:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    # A script without a main guard may end the process.
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{setting}: {name}: there is no module {missing!r}; install it, or start in its folder (here: "
                f"{Path.cwd()}), or add that to PYTHONPATH"
            ) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{setting}: {name}: {module} cannot be imported: {type(error).__name__} in {frame.filename}, line "
            f"{frame.lineno} ({str(error).partition(chr(10))[0]})"
        ) from error


def _missing(setting: str, name: str, where: str, path: str, module: Any) -> ConfigError:
    if module.__name__ == "__main__" or "(" in path or "<" in path:
        return ConfigError(
            f"{setting}: {name} was made in a script or notebook; continue there, or move it into a module"
        )
    own = [x for x, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__ and x[0] != "_"]
    close = difflib.get_close_matches(path, own, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(own) or 'none of its own'}"
    return ConfigError(f"{setting}: {name}: {where} has no object {path!r}; {hint}")
