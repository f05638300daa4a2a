"""One self-contained page of charts, tables and text: plotly.js is embedded once, and the page loads nothing.

Only this module makes HTML, and escapes all text. `look.styles` escapes the names in charts.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import plotly.offline


class Chart(NamedTuple):
    """A figure in a section.

    Attributes:
      name: of its element, unique in the page.
      title: above the figure.
      figure: see `look`.
      note: below the figure: how to read it.
      height: in pixels.
      wide: whether it fills a row.
    """

    name: str
    title: str
    figure: go.Figure
    note: str = ""
    height: int = 330
    wide: bool = False


class Table(NamedTuple):
    """A table of the findings, with its title, often "", and the note below it."""

    title: str
    frame: pd.DataFrame
    note: str


class Section(NamedTuple):
    """A part of the page; `render` leaves out empty ones.

    Attributes:
      name: its anchor.
      title: its heading.
      text: paragraphs, plain text.
      charts: its figures.
      tables: title -> table.
      folded: whether it is closed at first; for tables only, because a chart that is drawn unseen has no width.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    folded: bool = False

    @property
    def empty(self) -> bool:
        """Whether it has only text."""
        return not self.charts and not self.tables


_STYLE = """
:root { color-scheme: light dark; --fg: #1c2024; --soft: #5c6670; --bg: #fcfcfd; --card: #ffffff; --line: #dfe3e8;
  --grid: #e8ebef; --accent: #0067a8; --warn: #b3410e; --warn-bg: #fff4ec; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e9ec; --soft: #9aa5b0; --bg: #121518; --card: #191d21;
  --line: #2d343b; --grid: #2a3037; --accent: #6bb8f0; --warn: #ffa977; --warn-bg: #2c2019; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px 20px 60px; background: var(--bg); color: var(--fg);
  font: 16px/1.5 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; }
h3 { font-size: .95rem; margin: 0 0 2px; font-weight: 600; }
p { margin: 6px 0; max-width: 80ch; } p.note, .sub { color: var(--soft); font-size: .86rem; }
nav { margin: 6px 0 14px; font-size: .9rem; } nav a { margin-right: 14px; color: var(--accent); white-space: nowrap; }
.answer { border-left: 4px solid var(--accent); padding: 4px 0 4px 16px; margin: 14px 0; }
.answer p { font-size: 1.06rem; }
.warn { background: var(--warn-bg); border-left: 4px solid var(--warn); padding: 8px 14px; margin: 14px 0;
  font-size: .92rem; } .warn ul { margin: 2px 0; padding-left: 18px; }
.loud { color: var(--warn); font-weight: 700; font-size: 1.1rem; }
/* auto-fill: the width of a chart must not depend on whether the next one is drawn already. */
html { overflow-y: scroll; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 370px), 1fr)); gap: 14px;
  margin: 12px 0; }
.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 10px 6px;
  min-width: 0; overflow: hidden; }
.wide { grid-column: 1 / -1; }
.legend { position: sticky; top: 0; z-index: 2; background: var(--bg); padding: 6px 0; font-size: .86rem; }
.legend span { margin-right: 16px; white-space: nowrap; display: inline-block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; margin: 4px 0 14px; }
th, td { padding: 3px 4px 3px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { font-weight: 600; vertical-align: bottom; }
thead th { white-space: normal; min-width: 76px; }
.text td { white-space: normal; overflow-wrap: anywhere; text-align: left; } .text thead { display: none; }
summary { cursor: pointer; } summary h2 { display: inline-block; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 8px 12px;
  font-size: .84rem; }
/* Charts follow the reader's colours: only !important overrides plotly's inline ones. */
.js-plotly-plot text { fill: var(--fg) !important; }
.js-plotly-plot .hoverlayer .hovertext text { fill: inherit !important; }
.js-plotly-plot .hoverlayer .axistext text { fill: var(--bg) !important; }
.js-plotly-plot .hoverlayer .axistext path { fill: var(--fg) !important; }
.js-plotly-plot .hoverlayer .legend rect { fill: var(--card) !important; stroke: var(--line) !important; }
.js-plotly-plot .xgrid, .js-plotly-plot .ygrid { stroke: var(--grid) !important; }
.js-plotly-plot .zerolinelayer path { stroke: var(--line) !important; }
.js-plotly-plot :is(.updatemenu-item-rect, .slider-rail-rect, .updatemenu-dropdown-button rect)
  { fill: var(--card) !important; stroke: var(--line) !important; }
.js-plotly-plot .slider-grip-rect { fill: var(--accent) !important; stroke: var(--card) !important; }
.js-plotly-plot .slider-tick-rect { fill: var(--line) !important; }
"""

_CONFIG = {
    "responsive": True,
    # Scrolling must not zoom a chart, and on a phone buttons would cover the legend.
    "scrollZoom": False,
    "displayModeBar": False,
}


_DASHARRAYS = {"solid": "", "dash": "6 3", "dot": "2 2", "dashdot": "6 2 2 2", "longdash": "9 3"}


def _legend(entries: Sequence[Mapping[str, str]]) -> str:
    """One legend for all charts, which stays in sight; entries as of `look.styled`."""
    lines = "".join(
        f'<span><svg width="26" height="8"><line x2="26" y1="4" y2="4" stroke="{one["color"]}" stroke-width="3" '
        f'stroke-dasharray="{_DASHARRAYS[one["dash"]]}"/></svg> {html.escape(one["name"])}</span>'
        for one in entries
    )
    return f'<div class="legend">{lines}</div>' if entries else ""


def _chart(chart: Chart) -> str:
    # A legend of its own would take half of a small chart; in a wide one it also hides and shows arms.
    chart.figure.update_layout(showlegend=chart.wide)
    drawn = chart.figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config=_CONFIG,
        default_height=f"{chart.height}px",
        div_id=chart.name,
        auto_play=False,
    )
    note = f'<p class="note">{html.escape(chart.note)}</p>' if chart.note else ""
    kind = "chart wide" if chart.wide else "chart"
    return f'<div class="{kind}"><h3>{html.escape(chart.title)}</h3>{drawn}{note}</div>'


def _table(frame: pd.DataFrame, *, words: bool = False) -> str:
    """A table as HTML; ``words``: of text, which wraps, instead of numbers."""
    drawn = frame.to_html(border=0, na_rep="", index_names=False, classes="text" if words else None, justify="unset")
    return f'<div class="scroll">{drawn}</div>'


def _noted(table: Table) -> str:
    title = f"<h3>{html.escape(table.title)}</h3>" if table.title else ""
    return f'{title}{_table(table.frame)}<p class="note">{html.escape(table.note)}</p>'


def _section(section: Section) -> str:
    parts = [f"<p>{html.escape(text)}</p>" for text in section.text]
    for title, frame in section.tables:
        words = list(frame.columns) == ["value"]
        parts.append((f"<h3>{html.escape(title)}</h3>" if title else "") + _table(frame, words=words))
    if section.charts:
        parts.append(f'<div class="grid">{"".join(map(_chart, section.charts))}</div>')
    heading = f'<h2 id="{section.name}">{html.escape(section.title)}</h2>'
    if section.folded:
        return f"<details><summary>{heading}</summary>{''.join(parts)}</details>"
    return f"<section>{heading}{''.join(parts)}</section>"


def render(
    title: str,
    subtitle: str,
    notice: str,
    answer: Sequence[tuple[str, str]],
    legend: Sequence[Mapping[str, str]],
    tables: Sequence[Table],
    charts: Sequence[Chart],
    warnings: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """The page.

    Args:
      title: its heading.
      subtitle: a line below.
      notice: shown above everything, unless "".
      answer: questions and answers.
      legend: of all charts, see `look.styled`.
      tables: of the findings.
      charts: of the findings.
      warnings: for whoever cites a number.
      sections: the rest; empty ones are left out.
    """
    kept = [section for section in sections if not section.empty]
    links = " ".join(f'<a href="#{s.name}">{html.escape(s.title)}</a>' for s in kept)
    said = "".join(f"<p><b>{html.escape(question)}</b> {html.escape(text)}</p>" for question, text in answer)
    beware = "".join(f"<li>{html.escape(text)}</li>" for text in warnings)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f"<script>{plotly.offline.get_plotlyjs()}</script>",
            "</head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f'<p class="sub">{html.escape(subtitle)}</p>',
            f'<p class="loud">{html.escape(notice)}</p>' if notice else "",
            f'<div class="answer">{said}</div>',
            _legend(legend),
            f'<div class="grid two">{"".join(map(_chart, charts))}</div>' if charts else "",
            *map(_noted, tables),
            f'<div class="warn"><b>Before you cite this</b><ul>{beware}</ul></div>' if warnings else "",
            f"<nav>{links}</nav>",
            *map(_section, kept),
            "<noscript><p>The figures need JavaScript; their numbers are in figures/*.csv.</p></noscript>",
            "</body></html>",
        ]
    )
