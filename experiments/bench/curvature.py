"""Cost of curvature: plastax against other libraries, against plain programs, and against what the machine can do.

On ReLU networks with softmax cross-entropy and random data, float32: `a` is 784-256-256-10 with 2,048 examples, `b`
784-1000-1000-1000-10 with 1,200, `small` 64-32-24-10 with 512. Timed are one Hessian product; Lanczos with full
orthogonalisation; stochastic Lanczos quadrature; Kronecker factors; and loops against `vmap`. Every result is compared
with plastax's before it is timed, and what is off is said. All sides of a group run in turn, in one process; ratios are
medians over rounds of one side to the group's first. "of bound" is the least time in which this machine, at the speed
that it shows in a large matrix product and in reading memory, could do a side's matrix products and basis reads, over
the time taken. Memory is the compiler's account of temporaries and results, or, with a ~, by how much the process grew.

    python -m experiments.bench.curvature --problems a b --pin --out curvature.json

Peers that are not installed are left out. `make bench` installs those in JAX; those in PyTorch are the extra
`bench-torch` and need a PyTorch beside it, for example

    pip install torch --index-url https://download.pytorch.org/whl/cpu && pip install -e ".[bench-torch]"
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.bench._bars import Bar, Options, judged, machine, report, table
from experiments.bench._groups import INTERVAL, ITEMS, Group
from experiments.bench._measure import Roofline, Side, Times, available_memory, first_run, roofline, rounds_of
from experiments.bench._peers import PEERS, Builders
from experiments.bench._problem import Problem, make

SIZES = {
    "small": ((64, 32, 24, 10), 512),
    "a": ((784, 256, 256, 10), 2048),
    "b": ((784, 1000, 1000, 1000, 10), 1200),
}


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """What to time."""

    problems: tuple[Literal["small", "a", "b"], ...] = ("small", "a")
    """Networks. All of `b` takes hours."""
    items: tuple[Literal["hvp", "lanczos", "slq", "kronecker", "batching"], ...] = (
        "hvp", "lanczos", "slq", "kronecker", "batching",
    )  # fmt: skip
    """What to compute."""
    peers: tuple[Literal["matfree", "laplax", "curvlinops", "hessian-eigenthings", "pyhessian"], ...] = (
        "matfree", "laplax", "curvlinops", "hessian-eigenthings", "pyhessian",
    )  # fmt: skip
    """Other libraries to run."""
    order: int = 100
    """Lanczos steps."""
    probes: int = 10
    """Probes of the quadrature; vectors and networks in the comparison of loops with `vmap`."""
    rounds: int = 9
    """Most timed rounds of each side, taken in turn after one that is not counted."""
    budget: float = 300.0
    """Seconds for the timed rounds of one group: there are as many as fit. If none fits, the first run counts."""


class Measured(NamedTuple):
    """A group's sides with their times, and what there is to say about those that are off or missing."""

    problem: str
    group: str
    sides: dict[str, tuple[Side, Times]]
    notes: list[str]


def objection(group: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """What is wrong with a side's result beside plastax's, empty if nothing is."""
    if not np.all(np.isfinite(theirs)):
        return "is not finite"
    if group == "quadrature":
        off = abs(theirs[0] - ours[0]) / np.hypot(theirs[1], ours[1])
        return f"has a trace {off:.1f} standard errors away" if off > 5 else ""
    if group == "lanczos":
        off = abs(theirs[-1] / ours[-1] - 1.0)
        copies = int(np.sum(theirs > (1.0 - 1e-4) * theirs[-1]))
        wrong = f"has a largest eigenvalue off by {off:.1e}" if off > 1e-2 else ""
        ghosts = f"has {copies} copies of the largest eigenvalue" if copies > 1 else ""
        return ", ".join(filter(None, (wrong, ghosts)))
    if theirs.shape != ours.shape:
        return f"has shape {theirs.shape} instead of {ours.shape}"
    off = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
    return f"differs by {off:.1e}" if off > 1e-3 else ""


def peer_sides(problem: Problem, names: tuple[str, ...]) -> tuple[dict[str, Builders], list[str]]:
    """What the peers that work can build, and a line for each of the others."""
    found, notes = {}, []
    for name in names:
        try:
            found[name] = PEERS[name](problem)
        except Exception as error:  # whatever keeps somebody else's library from running is a reason to go on without
            notes.append(f"{name}: skipped, {type(error).__name__}: {error}")
    return found, notes


def measure(config: Config, problem: Problem, roof: Roofline, group: Group, builders: dict[str, Builders]) -> Measured:
    """Builds a group's sides, compares their results, and times what is left."""
    title, notes = group.__name__, []
    sides = group(problem, roof)
    for name, build in builders.items():
        try:
            sides += [side._replace(peer=True) for side in build[title]()] if title in build else []
        except Exception as error:
            notes.append(f"{name}: skipped, {type(error).__name__}: {error}")
    kept: list[Side] = []
    first: list[Times] = []
    ours: Any = None
    for side in sides:
        if side.memory is not None and side.memory > 0.8 * available_memory():
            notes.append(f"{side.name}: skipped, needs {side.memory / 1e9:.0f} GB")
            continue
        try:
            result, wall, cpu, grown = first_run(side)
            answer = None if side.read is None else side.read(result)
            del result
        except Exception as error:
            if not side.peer:
                raise
            notes.append(f"{side.name}: skipped, {type(error).__name__}: {error}")
            continue
        ours = answer if ours is None else ours
        if answer is not None and (wrong := objection(title, ours, answer)):
            notes.append(f"{side.name}: {wrong}")
        kept.append(side if side.memory is not None else side._replace(memory=grown, measured=True))
        first.append(Times([wall], [cpu]))
    once = sum(times.wall[0] * side.units for side, times in zip(kept, first))
    rounds = min(config.rounds, int(config.budget / max(once, 1e-9)))
    times = rounds_of(kept, rounds) if rounds else first
    return Measured(problem.name, title, {s.name: (s, t) for s, t in zip(kept, times)}, notes)


def shown(measured: Measured) -> Table:
    """Medians, and ratios to the group's first side."""

    def texts(row: dict[str, Any]) -> dict[str, str]:
        memory, bound = row["memory_bytes"], row["of_bound"]
        return {
            "side": row["side"], "wall s": f"{row['wall_s']:.4g}", "CPU s": f"{row['cpu_s']:.4g}",
            "wall ratio": f"{row['wall_ratio']:.2f}", "CPU ratio": f"{row['cpu_ratio']:.2f}",
            "compile s": "" if row["compile_s"] is None else f"{row['compile_s']:.1f}",
            "memory MB": "" if memory is None else f"{'~' * row['memory_measured']}{memory / 1e6:,.1f}",
            "of bound": "" if bound is None else f"{bound:.0%}", "sweeps": row["sweeps"], "n": f"{row['rounds']}",
        }  # fmt: skip

    return table(f"{measured.problem}: {measured.group.replace('_', ' ')}", map(texts, rows(measured)), left=1)


def rows(measured: Measured) -> list[dict[str, Any]]:
    """The table's numbers."""
    out: list[dict[str, Any]] = []
    _, base = next(iter(measured.sides.values()))
    for side, times in measured.sides.values():
        (wall, cpu), (wall_ratio, cpu_ratio) = times.median(), times.ratio(base).median()
        taken = judged(times.median())
        out.append(
            {"problem": measured.problem, "group": measured.group, "side": side.name, "wall_s": wall, "cpu_s": cpu,
             "wall_ratio": wall_ratio, "cpu_ratio": cpu_ratio, "compile_s": side.compile_s,
             "memory_bytes": side.memory, "memory_measured": side.measured,
             "of_bound": None if side.bound_s is None else side.bound_s / taken,
             "sweeps": side.sweeps, "rounds": len(times.wall)}
        )  # fmt: skip
    return out


def bars(measured: Measured) -> list[Bar]:
    """What must hold of a group; nothing on `small`, where calls cost more than what they compute."""
    sides = measured.sides
    out: list[Bar] = []
    if measured.problem == "small":
        return out

    def ratio(side: str, base: str) -> float:
        return judged(sides[side][1].ratio(sides[base][1]).median())

    def add(text: str, side: str, base: str, limit: float, at_most: bool = True, less: float = 0.0) -> None:
        if side in sides and base in sides:
            out.append(Bar(f"{measured.problem}: {text}", ratio(side, base) - less, limit, at_most))

    if measured.group == "product":
        add("product / jvp(grad) by hand", "plastax", "jvp(grad) by hand", 1.15)
        add("product inside a loop / jvp(grad) by hand", "plastax, inside a loop", "jvp(grad) by hand", 0.8)
    elif measured.group == "lanczos":
        if measured.problem == "b":
            add("Lanczos / its products alone", "plastax", "its products alone", 1.4)
        for name, (side, _) in sides.items():
            if side.peer and side.sweeps:
                add(f"{name} / Lanczos", name, "plastax", 3.0 if name == "matfree, full" else 1.0, at_most=False)
        add("published pipeline / Lanczos", "published pipeline", "plastax", 3.0, at_most=False)
    elif measured.group == "kronecker_factors":
        add("factors / their products alone", "plastax", "their products alone", 1.3)
    elif measured.group == "training_step":
        text = f"share of factors, every {INTERVAL}th step, in the training step"
        add(text, "with factors", "without factors", 0.12, less=1.0)
    return out


def problem_of(config: Config, name: str) -> Problem:
    """The named problem, at its size or tiny."""
    widths, examples = SIZES[name]
    if config.quick:
        return make(name, [min(width, 20) for width in widths], 64, min(config.order, 30), min(config.probes, 3))
    return make(name, widths, examples, config.order, config.probes)


def main(config: Config) -> tuple[list[Measured], list[Bar]]:
    """Times everything, prints tables and bars, and gives both out."""
    config.pinned()
    if config.quick:
        config = dataclasses.replace(config, rounds=1)
    console = Console(width=120)
    roof = roofline(256, 8, 1) if config.quick else roofline()
    console.print(
        f"{machine()}; "
        f"float32 products {roof.flops / 1e9:.0f} GFLOP/s, reading {roof.bytes / 1e9:.1f} GB/s, a processor second"
    )
    done: list[Measured] = []
    with warnings.catch_warnings(), jax.default_matmul_precision("highest"):
        warnings.simplefilter("ignore")
        for name in config.problems:
            problem = problem_of(config, name)
            console.print(
                f"\n{name}: {'-'.join(map(str, problem.widths))}, {problem.examples} examples, {problem.dim:,} "
                f"parameters, order {problem.order}, {problem.probes} probes; {problem.product_flops(False) / 1e9:.3g} "
                f"GFLOP a product, {problem.product_flops(True) / 1e9:.3g} linearised, "
                f"{problem.factor_flops() / 1e9:.3g} the Kronecker factors"
            )
            builders, notes = peer_sides(problem, config.peers)
            for group in (group for item in config.items for group in ITEMS[item]):
                measured = measure(config, problem, roof, group, builders)
                if measured.sides:
                    done.append(measured)
                    console.print(shown(measured))
                notes += [f"{group.__name__}, {note}" for note in measured.notes]
            for note in notes:
                console.print(f"  {note}")
    held = [bar for measured in done for bar in bars(measured)]
    console.print()
    report(
        console, held, config.out, flops_per_cpu_s=roof.flops, bytes_per_cpu_s=roof.bytes,
        rows=[row for measured in done for row in rows(measured)],
    )  # fmt: skip
    return done, held


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    main(tyro.cli(Config))
