"""The errors whose message alone a user sees: one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the setting, its value and what is allowed."""

    @classmethod
    def unknown(cls, setting: str, name: str, allowed: Iterable[str], close: Sequence[str] = ()) -> ConfigError:
        """The error for a name that is not among ``allowed``, with the first of ``close``, or else the nearest name."""
        allowed = list(allowed)
        close = close or difflib.get_close_matches(name, allowed, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return cls(f"{setting}: {name!r} is unknown{hint}; allowed: {', '.join(allowed)}")


class Refused(ValueError):
    """A network has layers without known Kronecker factors; the message says why.

    Attributes:
      layers: their names.
    """

    def __init__(self, why: str, layers: Iterable[str]) -> None:
        super().__init__(why)
        self.layers = tuple(layers)


class RunError(RuntimeError):
    """A run that cannot continue; the message is one line that says why and what helps."""

    status = 1
    """Exit status of the process."""


class Stopped(RunError):
    """A run that was asked to stop and did so after a checkpoint; it can be continued."""

    status = 75  # EX_TEMPFAIL: not a failure, but to be tried again.


class RecordError(ValueError):
    """A file of a run that cannot be used; the message names the file."""


class Unreadable(RecordError):
    """A file that exists and cannot be read now (permissions, a network drive); it may be whole."""
