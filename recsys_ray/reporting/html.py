"""Building blocks of report.html: page, sections, pictures and tables. Whatever comes from a run is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from recsys_ray.reporting.figure_style import as_data_url

STYLE = """
body { margin: 2.5rem auto; max-width: 60rem; padding: 0 1.5rem; background: #fff; color: #333;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .4rem; padding-top: .8rem; border-top: 1px solid #e3e3e3; }
p { margin: .2rem 0 .6rem; max-width: 46rem; overflow-wrap: anywhere; } .quiet { color: #6b6b6b; }
img { width: 100%; height: auto; display: block; }
.numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1.2rem 2rem; margin: 1.6rem 0; }
.numbers b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers small { display: block; color: #6b6b6b; line-height: 1.35; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(27rem, 100%), 1fr)); gap: 0 2rem; }
.tables > *, .pair > * { min-width: 0; } .tables table { width: 100%; } .tables :is(th, td) { padding-right: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid #ececec; }
th { font-weight: 600; vertical-align: bottom; } .number { text-align: right; } td.number { white-space: nowrap; }
tr > .number:last-child, .tables tr > .number:last-child { padding-right: 0; }
summary { cursor: pointer; } pre { font-size: .82rem; background: #f7f7f7; padding: 1rem; overflow-x: auto; }
@media (max-width: 44rem) { .numbers, .pair { grid-template-columns: 1fr; } }
"""


class LargeNumber(NamedTuple):
    """A number that a page shows large, as text."""

    name: str
    value: str
    meaning: str


def html_page(title: str, sections: Iterable[str], kind: str = "training report") -> str:
    """Returns a page that needs no other file; `kind` follows the title in the browser's tab."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: {escape(kind)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def html_section(heading: str, *parts: str) -> str:
    """Returns the parts under a heading."""
    return f"<h2>{escape(heading)}</h2>{''.join(parts)}"


def html_numbers(numbers: Iterable[LargeNumber]) -> str:
    """Returns numbers in large type, each with its name and its meaning."""
    cells = (f"<div>{escape(n.name)}<b>{escape(n.value)}</b><small>{escape(n.meaning)}</small></div>" for n in numbers)
    return f'<div class="numbers">{"".join(cells)}</div>'


def html_pair(left: str, right: str) -> str:
    """Returns two parts next to each other, or below each other on a narrow screen."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def html_tables(tables: Iterable[str]) -> str:
    """Returns tables in as many columns as the screen has room for."""
    return f'<div class="tables">{"".join(tables)}</div>'


def html_folded(summary: str, body: str) -> str:
    """Returns a part that is shown on a click."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def html_quiet(text: str) -> str:
    """Returns a paragraph in grey."""
    return f'<p class="quiet">{escape(text)}</p>'


def html_picture(figure: Figure | None, caption: str, instead: str) -> str:
    """Returns a figure under its caption, or the text `instead` where there is no figure."""
    if figure is None:
        return html_quiet(instead)
    return f'<p>{escape(caption)}</p><img alt="{escape(caption)}" src="{as_data_url(figure)}">'


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Iterable[int] = (), caption: str = "") -> str:
    """Returns a table, which scrolls where the screen is too narrow for it. No word or number is ever broken.

    numbers: the columns to align on the right.
    """
    right = set(numbers)

    def line(cells: Sequence[Any], tag: str) -> str:
        marks = (' class="number"' if index in right else "" for index in range(len(cells)))
        return f"<tr>{''.join(f'<{tag}{mark}>{escape(str(cell))}</{tag}>' for mark, cell in zip(marks, cells, strict=True))}</tr>"

    header = line(head, "th") if any(head) else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}{header}{"".join(line(row, "td") for row in rows)}</table></div>'


def formatted(value: Any, form: str) -> str:
    """Formats a finite number; anything else is n/a."""
    return form.format(value) if isinstance(value, (int, float)) and math.isfinite(value) else "n/a"


def readable(value: Any) -> str:
    """Returns any value of a record as text, numbers with as many digits as people read."""
    match value:
        case bool() | None:
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return formatted(value, "{:,.4g}" if abs(value) < 1000 else "{:,.0f}")
        case str():
            return value
    return json.dumps(value, default=str)
