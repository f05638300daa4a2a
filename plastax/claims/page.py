"""The verdicts as one page of HTML, as a Markdown table, and as a table of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from plastax.claims import rules
from plastax.claims.judging import SCORE, Evidence, Judged, Lead, Part
from plastax.claims.rules import Finding
from plastax.errors import ConfigError
from plastax.records.files import write_atomic
from plastax.records.layout import read_config, read_environment
from plastax.records.loading import write_table
from plastax.report.html.look import clear, figure, over_tasks, plain, styles
from plastax.report.html.page import Chart, Section, Table, render
from plastax.report.style import legend_looks

COLOURS = {rules.SUPPORTED: "#1b7f4d", rules.NOT_SUPPORTED: "#b3410e", rules.UNDECIDED: "#7d868f"}
NOTE = (
    "A claim is supported if every part of it is, and not supported if one part is not. A part is supported if its "
    "95 % interval lies above what it has to exceed, and not supported if the interval excludes the smallest effect "
    "that the claim speaks of."
)
CHART = (
    "A point is the effect of a part, with its 95 % interval, in units of the smallest effect that the claim speaks of "
    "(a dash); a ring is what it has to exceed. Intervals are Student's over seeds, or Fisher's over methods."
)


def number(finding: Finding) -> str:
    """The effect and its interval.

    Examples:
      >>> number(rules.exceeds(np.array([0.2, 0.3, 0.4]), size=0.1))
      '+0.3 [+0.0516, +0.548]'
    """
    if np.isnan(finding.effect):
        return "no value"
    ends = f" [{finding.low:+.3g}, {finding.high:+.3g}]" if np.isfinite(finding.low) else ""
    return f"{finding.effect:+.3g}{ends}"


def wanted(finding: Finding) -> str:
    """How many seeds or methods would decide an undecided finding; "" for a decided one."""
    if finding.verdict != rules.UNDECIDED:
        return ""
    if np.isnan(finding.effect) and finding.unit == "seeds":
        return "too few seeds have a value"
    more = (
        f"{rules.MOST} {finding.unit} or more" if finding.needed >= rules.MOST else f"{finding.needed} {finding.unit}"
    )
    return f"about {more} would decide"


def frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row for each part of each claim, judged or only shown, with all numbers."""
    rows = []
    for one in judged:
        parts = [(part, found, True) for part, found in zip(one.claim.parts, one.findings)]
        parts += [(part, found, False) for part, found in zip(one.claim.shown, one.shown)]
        rows += [
            {"claim": one.claim.number, "claim_verdict": one.decisive.verdict, "part": part.label, "judged": counts}
            | found._asdict()
            for part, found, counts in parts
        ]
    return pd.DataFrame(rows)


def markdown(judged: Sequence[Judged], command: str) -> str:
    """The table for a README: a row for each claim."""
    lines = ["| claim | source | verdict | effect that decides, 95 % interval |", "| --- | --- | --- | --- |"]
    for one in judged:
        found = one.decisive
        more = f"; {wanted(found)}" if found.verdict == rules.UNDECIDED else ""
        cells = f"{one.claim.number}. {one.claim.sentence}", one.claim.source, f"**{found.verdict}**"
        lines.append(f"| {' | '.join(cells)} | {one.part.label}: {number(found)}{more} |")
    return "\n".join([*lines, "", f'Repeat: `{command}`, one claim: `{command} ARGS="--claims 3"`.', ""])


def _forest(judged: Judged) -> Chart:
    """The parts of a claim with their intervals."""
    parts = [*zip(judged.claim.parts, judged.findings), *zip(judged.claim.shown, judged.shown)][::-1]
    labels = ["<br>".join(textwrap.wrap(plain(part.label), 34)) for part, _ in parts]
    made = figure("effect, in units of the smallest one claimed", "")
    scale = np.array([abs(found.size) for _, found in parts])
    for name, symbol, values in (
        ("smallest effect claimed", "line-ns-open", [found.size for _, found in parts]),
        ("to be exceeded", "circle-open", [found.above for _, found in parts]),
    ):
        made.add_scatter(x=values / scale, y=labels, mode="markers", name=name, hoverinfo="skip",
                         marker={"symbol": symbol, "size": 11, "color": "#7d868f"})  # fmt: skip
    ends = np.array([[found.effect, found.low, found.high] for _, found in parts]).T / scale
    made.add_scatter(
        x=ends[0],
        y=labels,
        mode="markers",
        name="effect",
        marker={"size": 8, "color": [COLOURS[found.verdict] for _, found in parts]},
        error_x={"array": ends[2] - ends[0], "arrayminus": ends[0] - ends[1], "color": clear("#7d868f", 0.8)},
        text=[f"{number(found)}: {found.verdict}" for _, found in parts],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )
    made.update_layout(margin={"l": 220, "r": 12, "t": 8, "b": 44})
    return Chart(f"effects-{judged.claim.number}", "Effects", made, CHART, 110 + 34 * len(parts), wide=True)


def _curves(judged: Judged, runs: Mapping[str, Evidence]) -> list[Chart]:
    """The measures that a claim compares with performance, task by task."""
    seen: dict[tuple[str, str, float | None], Chart] = {}
    for part in (*judged.claim.parts, *judged.claim.shown):
        for measure in (SCORE, part.measure) if isinstance(part, Lead) else (part.measure,):
            key = (part.run, measure.variable, measure.eps)
            if key in seen or len(seen) == 6:
                continue
            values = runs[part.run].values(measure).assign_coords(method=runs[part.run].data.method)
            made = over_tasks(values, measure.label)
            if made is not None:
                name = f"curve-{judged.claim.number}-{len(seen)}"
                seen[key] = Chart(name, f"{part.run}: {measure.label}", made)
    return list(seen.values())


def _section(judged: Judged, runs: Mapping[str, Evidence], command: str) -> Section:
    claim = judged.claim

    def rows(parts: Sequence[Part], findings: Sequence[Finding]) -> pd.DataFrame:
        return pd.DataFrame(
            [
                {
                    "verdict": found.verdict,
                    "effect": number(found),
                    "has to exceed": f"{found.above:g}",
                    "smallest effect claimed": f"{found.size:g}",
                    "sample": f"{found.samples} {found.unit}",
                    "": wanted(found),
                }
                for found in findings
            ],
            index=[part.label for part in parts],
        )

    tables = [("What is judged", rows(claim.parts, judged.findings))]
    if claim.shown:
        tables.append(("Beside it, for comparison", rows(claim.shown, judged.shown)))
    text = [
        f"{claim.sentence}. Verdict: {judged.decisive.verdict}.",
        f"Source: {claim.source}.",
        f'Repeat it: {command} ARGS="--claims {claim.number}"',
    ]
    charts = [_forest(judged), *_curves(judged, runs)]
    return Section(f"claim-{claim.number}", f"Claim {claim.number}", text, charts, tables)


def _provenance(directories: Mapping[str, Path], runs: Mapping[str, Evidence]) -> pd.DataFrame:
    rows = {}
    for name, directory in directories.items():
        data, settings, here = runs[name].data, read_config(directory)["settings"], read_environment(directory)
        first = settings.get("first_seed", 0)
        rows[name] = {
            "run": str(directory),
            "arms": data.sizes["arm"],
            "seeds": f"{first} to {first + data.sizes['seed'] - 1}",
            "tasks": data.sizes["task"],
            "natural eps": f"{runs[name].natural:.3g}",
            "code": f"{here.get('source', '')} {str(here.get('git_revision') or '')[:8]}".strip(),
            "command": runs[name].record,
        }
    return pd.DataFrame(rows).T


def write(
    judged: Sequence[Judged],
    refused: Mapping[str, ConfigError],
    runs: Mapping[str, Evidence],
    directories: Mapping[str, Path],
    folder: Path,
    command: str,
) -> Path:
    """Writes ``report.html``, ``claims.md`` and ``claims.csv``.

    Args:
      judged: the claims that could be judged.
      refused: claim -> why it could not be.
      runs: name -> evidence.
      directories: name -> run directory.
      folder: where to; made if it is missing.
      command: that repeats all of it.

    Returns:
      The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    provenance = _provenance(directories, runs)
    table = pd.DataFrame(
        [
            {
                "verdict": one.decisive.verdict,
                "effect": number(one.decisive),
                "of the part that decides": one.part.label,
                "": wanted(one.decisive),
            }
            for one in judged
        ],
        index=[f"{one.claim.number}. {one.claim.sentence}" for one in judged],
    )
    counts = {name: sum(one.decisive.verdict == name for one in judged) for name in rules.VERDICTS}
    warnings = [f"{claim}: {error}" for claim, error in refused.items()]
    if provenance["code"].nunique() > 1:
        warnings.append("The runs were trained with different code.")
    warnings += [text for text in {one.data.attrs.get("notice", "") for one in runs.values()} if text]
    warnings.append("A change point of a steady decline is its middle. An order in time is not a cause.")
    largest = max(runs.values(), key=lambda one: one.data.sizes["arm"]).data
    content = render(
        "The paper's claims, tested",
        f"{len(judged)} claims, {len(runs)} runs. {command}",
        "",
        [("Verdicts:", ", ".join(f"{count} {name}" for name, count in counts.items()) + ".")],
        [*styles(largest).values()] if len(legend_looks(largest)) else [],
        [Table("", table, NOTE)],
        [],
        warnings,
        [*(_section(one, runs, command) for one in judged), Section("runs", "Runs", tables=[("", provenance)])],
    )
    write_atomic(folder / "report.html", lambda file: file.write(content.encode()))
    write_atomic(folder / "claims.md", lambda file: file.write(markdown(judged, command).encode()))
    write_table(frame(judged), folder / "claims.csv")
    return folder / "report.html"
