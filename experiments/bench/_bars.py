"""What benchmarks have in common beside their measurements: options, tables, the bars that must hold, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark with bars can be told."""

    pin: bool = False
    """Stay on one core."""
    quick: bool = False
    """Tiny sizes and one round, to see that everything runs; the numbers then mean nothing."""
    out: Path | None = None
    """Write the numbers into this file, as JSON."""

    def pinned(self) -> None:
        """Keeps the process on one core, if asked; call it before JAX counts the cores."""
        if self.pin:
            if not hasattr(os, "sched_setaffinity"):
                raise SystemExit("--pin needs Linux: this system cannot keep a process on one core")
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Bar(NamedTuple):
    """A number that must not be above its limit, or not below it."""

    text: str
    value: float
    limit: float
    at_most: bool

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def judged(pair: tuple[float, float]) -> float:
    """The one of (wall, processor) that bars are about: processor time, or wall time on an accelerator."""
    return pair[jax.default_backend() == "cpu"]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Device, cores and load, for the first line of a report."""
    return f"{jax.devices()[0].device_kind}, {cores()} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def table(title: str, rows: Iterable[Mapping[str, str]], left: int = 0) -> Table:
    """Rows of head -> text, whose first ``left`` columns are words; at least one row."""
    rows = list(rows)
    out = Table(title=title, title_justify="left")
    for column, head in enumerate(rows[0]):
        out.add_column(head, justify="left" if column < left else "right")
    for row in rows:
        out.add_row(*row.values())
    return out


def report(console: Console, held: Sequence[Bar], out: Path | None, **numbers: Any) -> None:
    """Prints the bars and writes them with all other numbers."""
    for bar in held:
        sign, verdict = ("<=" if bar.at_most else ">="), ("ok" if bar.ok else "missed")
        console.print(f"  {verdict:6}  {bar.value:6.3f} {sign} {bar.limit:4.2f}  {bar.text}")
    console.print(f"load {os.getloadavg()[0]:.1f}")
    if out:
        bars = [{**bar._asdict(), "ok": bar.ok} for bar in held]
        out.write_text(json.dumps({"cores": cores(), **numbers, "bars": bars}, indent=1))
