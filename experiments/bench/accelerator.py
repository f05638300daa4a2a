"""What an accelerator does with plastax: one table, of one GPU in at most 8 minutes.

    python -m experiments.bench.accelerator --out build/accelerator

Hessian products and Lanczos steps against the speed of matrix products, float32, TF32 and bf16; training of more and
more networks side by side, PPO and a supervised network; Kronecker factors and spectra on and off; loops against
batches of probes, networks, decompositions; convolutions by patches against XLA's; and spectra of one network on this
device and on the CPU. Every choice of `plastax.platforms` is one of these comparisons, so they say what it should be.

Lines go to the terminal, to ``<out>.txt`` and as JSON to ``<out>.jsonl`` as soon as they are measured: a run that is
cut keeps them. What fails is a line that says why, and what the time does not suffice for is left out with a line.
Sides of a comparison are compiled and run once before they are timed, and run in turn; times are medians and wait for
the device. Results of the sides are compared with the first one's. Inputs are random numbers.

It needs jax, flax, optax, numpy and rich, and no wheels on a machine that has these: gymnax, wandb, tyro, orbax,
xarray, pandas, plotly and matplotlib are not imported, and CartPole is a copy of gymnax's. Leave JAX_PLATFORMS unset,
or name the CPU last (``cuda,cpu``), for the comparison with the CPU. Where there is no other device than a CPU,
everything runs at toy sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import jaxlib
import numpy as np

from experiments.bench._measure import rounds_of
from experiments.bench._trials import PARTS, TOY, Sizes, Trial, trials
from plastax import platforms
from plastax.version import __version__

FEWEST, MOST = 3, 50
"""Timed rounds of a trial."""
SECONDS = 1.5
"""For the rounds of a trial, unless the fewest take longer."""


def described() -> str:
    """Device, versions and what `platforms` chooses."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    parts = [
        f"{device.platform}: {device.device_kind} x {len(jax.devices())}",
        f"{memory / 2**30:.0f} GiB" if memory else "",
        f"plastax {__version__}, jax {jax.__version__}, jaxlib {jaxlib.__version__}",
        " ".join(device.client.platform_version.split()),
        ", ".join(f"{name} {value}" for name, value in platforms.chosen()._asdict().items()),
    ]
    return "; ".join(filter(None, parts))


def measured(trial: Trial, roof: dict[str, float]) -> Iterator[dict[str, Any]]:
    """The rows of a trial.

    Args:
      trial: what to time.
      roof: side of the trials of the roofline -> its rate, which is added here.
    """
    sides = trial.sides()
    results = [side.run() for side in sides]
    answers = [None if side.read is None else side.read(result) for side, result in zip(sides, results)]
    del results
    once = sum(times.wall[0] for times in rounds_of(sides, 1))
    times = rounds_of(sides, max(FEWEST, min(MOST, int(SECONDS / once))))
    chosen = getattr(platforms.chosen(), trial.choice, None)
    first = times[0].median()[0]
    for side, answer, taken in zip(sides, answers, times):
        seconds = taken.median()[0]
        rate, notes = trial.work / seconds, []
        if trial.part == "roofline":
            roof[side.name] = rate
        elif trial.unit == "FLOP":
            notes += [f"{rate / roof[name]:.1%} of {name}" for name in ("float32", "tf32", "bf16") if name in roof]
        elif trial.unit == "n^3" and "float32" in roof:
            notes.append(f"costs {roof['float32'] / rate:.0f} n^3")
        if trial.read and "memory" in roof:
            notes.append(f"{trial.read / seconds / roof['memory']:.0%} of memory")
        if side is not sides[0]:
            notes.append(f"{seconds / first:.2f}x {sides[0].name}")
            if answer is not None:
                notes.append(trial.agreement(*(np.asarray(x, np.float64) for x in (answers[0], answer))))
        notes += ["chosen"] if side.name == chosen else []
        yield {
            "part": trial.part, "what": trial.what, "side": side.name, "seconds": seconds,
            "fastest": min(taken.wall), "rounds": len(taken.wall), "rate": rate, "unit": trial.unit,
            "compile_s": side.compile_s, "memory": side.memory, "notes": notes,
        }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    head = f"{row['part']:14} {row['what']:52} {row['side']:19}"
    if "seconds" not in row:
        return f"{head} {row['notes'][0]}"
    compiled = f"{row['compile_s']:.1f} s" if row["compile_s"] else ""
    memory = "" if row["memory"] is None else f"{row['memory'] / 1e6:,.1f} MB"
    rate = f"{row['rate']:.3g} {row['unit']}/s"
    numbers = f"{1e3 * row['seconds']:>12,.3f} ms {rate:>18} {compiled:>8} {memory:>13}"
    return f"{head}{numbers}  {', '.join(row['notes'])}".rstrip()


def rows(chosen: Iterable[Trial], minutes: float) -> Iterator[dict[str, Any]]:
    """The rows of trials, until the minutes are over; a trial that has begun is finished."""
    end, roof = time.monotonic() + 60 * minutes, dict[str, float]()
    for trial in chosen:
        said = {"part": trial.part, "what": trial.what, "side": ""}
        if time.monotonic() > end:
            yield said | {"notes": ["left out: no time"]}
            continue
        try:
            yield from measured(trial, roof)
        except Exception as error:  # One comparison that fails on a new machine must not cost the others.
            yield said | {"notes": [f"failed: {type(error).__name__}: {error}".partition("\n")[0]]}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures, writes line by line, and gives the rows out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write <out>.txt and <out>.jsonl")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing after these (default: 7)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--toy", action="store_true", help="toy sizes, as always on a CPU: to see that everything runs")
    options = parser.parse_args(arguments)
    done = []
    with contextlib.ExitStack() as stack:
        texts: list[TextIO] = []
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            paths = [Path(f"{options.out}.{end}") for end in ("txt", "jsonl")]
            texts = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]

        def say(text: str, row: dict[str, Any]) -> None:
            print(text, flush=True)
            for file, written in zip(texts, (text, json.dumps(row))):
                print(written, file=file, flush=True)

        say(described(), {"machine": described()})
        sizes = TOY if options.toy or jax.default_backend() == "cpu" else Sizes()
        chosen = (trial for trial in trials(sizes) if trial.part in options.parts)
        for row in rows(chosen, options.minutes):
            say(line(row), row)
            done.append(row)
    return done


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    main()
