"""The command: trains the runs that claims need, judges the claims, writes the page and prints the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from plastax import drawing, output
from plastax.claims import judging
from plastax.claims.judging import Claim, Evidence, Judged
from plastax.claims.training import Planned, train
from plastax.errors import ConfigError
from plastax.study import settings
from plastax.study.api import Study


@dataclass(frozen=True)
class Options:
    """Tests claims about plasticity: trains the runs that they need, judges them, writes one page."""

    preset: str = "default"
    """Sizes of the runs: smoke (does it work?), default, or accelerator (larger streams, more seeds)."""
    claims: tuple[int, ...] = ()
    """Numbers of the claims to judge; by default all. Only the runs that they need are trained."""
    given: tuple[str, ...] = ()
    """Your own runs in place of trained ones: digits=runs/random_label/<run id>."""
    runs_dir: Path = Path("runs")
    """Directory of all runs: <runs-dir>/claims-<name>/<run id>; the page is <runs-dir>/claims/<preset>/report.html."""


@dataclass(frozen=True)
class Design:
    """A run that claims need, as data.

    Attributes:
      rate: learning rate.
      steps: gradient steps of a task.
      study: arguments of `plastax.Study`.
      presets: preset -> arguments that replace some of them, or ``rate`` and ``steps``.
      spectra: the probes whose thresholds are `EPS` and the natural one.
    """

    rate: float
    steps: int
    study: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    spectra: Sequence[str] = ()

    def planned(self, name: str, preset: str, runs_dir: Path, first_seed: int) -> Planned:
        """The run under a preset."""
        changes = dict(self.presets.get(preset, {}))
        natural = 1 / (changes.pop("rate", self.rate) * changes.pop("steps", self.steps))
        given = {**self.study, **changes}
        more = {**self.study.get("settings", {}), **changes.get("settings", {})}
        more |= {f"{probe}.eps": tuple(sorted((*EPS, natural))) for probe in self.spectra}
        more |= {"first_seed": first_seed, "wandb": "disabled"}
        study = Study(**(given | {"settings": more, "name": f"claims-{name}", "runs_dir": runs_dir}))
        return Planned(name, study, natural, command(preset))


EPS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Thresholds of eps-ranks: four decades absolute, without the first, and relative to the norm, without the last."""


def command(preset: str) -> str:
    """The command of a preset."""
    return "make claims" + (f" PRESET={preset}" if preset != "default" else "")


def main(
    designs: Mapping[str, Design],
    claims: Sequence[Claim],
    first_seeds: Mapping[str, int],
    args: Sequence[str] | None = None,
) -> None:
    """Runs the command line; see `settings.main` for the exit status.

    Args:
      designs: name -> run.
      claims: all claims.
      first_seeds: preset -> first of the seeds that are judged; no setting was chosen on them.
      args: `sys.argv[1:]` by default.
    """

    def run() -> None:
        with output.refusals():
            options = tyro.cli(Options, args=args, prog="make claims")
        test(designs, claims, first_seeds, options)

    settings.main(run)


def test(
    designs: Mapping[str, Design], claims: Sequence[Claim], first_seeds: Mapping[str, int], options: Options
) -> tuple[list[Judged], Path]:
    """Trains, judges, writes and prints; arguments as of `main`.

    Returns:
      The judged claims and the page.

    Raises:
      ConfigError: an option is not allowed, a given run does not fit, or no claim could be judged.
    """
    if options.preset not in first_seeds:
        raise ConfigError.unknown("preset", options.preset, first_seeds)
    known = {claim.number: claim for claim in claims}
    if unknown := [number for number in options.claims if number not in known]:
        raise ConfigError.unknown("claims", str(unknown[0]), map(str, known))
    chosen = [known[number] for number in options.claims or known]
    needed = sorted(set().union(*(claim.runs for claim in chosen)), key=list(designs).index)
    planned = {
        name: designs[name].planned(name, options.preset, options.runs_dir, first_seeds[options.preset])
        for name in needed
    }
    given = _given(options.given, planned)
    # Given runs are checked before anything is trained.
    runs: dict[str, Evidence] = {name: planned[name].given(run) for name, run in given.items()}
    console = output.Console(stderr=True)
    directories = given | train({name: one for name, one in planned.items() if name not in given}, console)
    runs |= {name: planned[name].read(directories[name]) for name in planned if name not in given}
    judged, refused = [], {}
    for claim in chosen:
        try:
            judged.append(judging.judge(claim, runs))
        except ConfigError as error:
            refused[f"Claim {claim.number}"] = error
    for name, why in refused.items():
        output.say(console, f"{name} is not judged: {why}")
    if not judged:
        raise ConfigError("no claim could be judged")
    drawing.import_matplotlib()
    from plastax.claims import page

    folder = options.runs_dir / "claims" / options.preset
    made = page.write(judged, refused, runs, directories, folder, command(options.preset))
    output.say(output.Console(), page.markdown(judged, command(options.preset)))
    output.say(console, f"everything is in {made}")
    return judged, made


def _given(texts: Sequence[str], planned: Mapping[str, Planned]) -> dict[str, Path]:
    """Name -> run directory of ``name=directory``."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"given: {text!r} is not allowed; give a name and a run directory, digits=runs/...")
        if name not in planned:
            raise ConfigError.unknown("given", name, planned)
        found[name] = Path(path)
    return found
