"""The range of a setting: checked, and said, in one way."""

from __future__ import annotations

import math
from typing import Any, get_args

from plastax.errors import ConfigError


def check(
    config: Any,
    group: str,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuses settings outside a range, and NaN.

    Args:
      config: has the settings as attributes: numbers, or sequences of numbers, of which each is checked. A traced value
        (of a sweep, whose values were checked) passes.
      group: what the settings' names begin with in the message, such as ``training``; "" for nothing.
      names: of the settings.
      least: the smallest value that is allowed.
      above: a value that must be exceeded.
      most: the largest value that is allowed.
      below: a value that must not be reached; `math.inf`: any finite number will do.

    Raises:
      ConfigError: ``training.epochs: 0 is not allowed; give 1 or more``.
    """
    for name in names:
        value = getattr(config, name)
        numbers = [
            one for one in (value if isinstance(value, tuple | list) else (value,)) if isinstance(one, int | float)
        ]
        inside = all(
            (least is None or one >= least)
            and (above is None or one > above)
            and (most is None or one <= most)
            and (below is None or one < below)
            and one == one
            for one in numbers
        )
        if not inside:
            setting = f"{group}.{name}" if group else name
            raise ConfigError(f"{setting}: {value} is not allowed; give {_words(least, above, most, below)}")


def check_choices(config: Any, group: str, **kinds: Any) -> None:
    """Refuses settings that are not among the strings of a `Literal`.

    Args:
      config: has the settings as attributes.
      group: what the settings' names begin with in the message.
      **kinds: setting -> its `Literal`.

    Raises:
      ConfigError: ``training.optimizer: 'adma' is unknown (did you mean 'adam'?); allowed: sgd, adam``.
    """
    for name, kind in kinds.items():
        if (value := getattr(config, name)) not in get_args(kind):
            raise ConfigError.unknown(f"{group}.{name}", value, get_args(kind))


def _words(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    if least is not None and most is not None:
        return f"a number from {least} to {most}"
    if least is not None and below is None:
        return f"{least} or more"
    words = (("at least", least), ("above", above), ("at most", most), ("below", below))
    bounds = [f"{word} {bound}" for word, bound in words if bound is not None and math.isfinite(bound)]
    number = "a finite number" if below == math.inf else "a number"
    return " ".join([number, *[" and ".join(bounds)] * bool(bounds)])
