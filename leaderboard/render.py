"""Tables in five formats, each written by the library for it: rich, tabulate, csv, msgspec."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import reader, writer
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from sophon_bench.leaderboard.columns import SUPERSCRIPTS, Column, Row, records, shown_in

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console
    from rich.table import Table as RichTable

FORMATS = ("console", "md", "latex", "csv", "json")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns over three groups of rows: what is judged, what stands above it, what concludes it.

    Args:
        title: What the numbers are.
        columns: What is shown of each row, the first being its name.
        body: What is judged.
        quiet: Controls and the like, set apart above.
        loud: What it comes to, set apart below.
        notes: Lines that stand below the table.
    """

    title: str
    columns: Sequence[Column]
    body: Sequence[Row]
    quiet: Sequence[Row] = ()
    loud: Sequence[Row] = ()
    notes: Sequence[str] = ()

    def headers(self, view: str) -> list[str]:
        """The names of the columns that a view shows."""
        return [column.title for column in shown_in(view, self.columns)]

    def lines(self, group: str, view: str) -> list[list[str]]:
        """The rows of ``quiet``, ``body`` or ``loud`` in words, as a view shows them."""
        columns = shown_in(view, self.columns)
        return [[column.text(row) for column in columns] for row in getattr(self, group)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The tables of one scenario, backbone and budget.

    Args:
        title: Which.
        tables: In their order.
        verdict: What they come to.
    """

    title: str
    tables: Sequence[Table]
    verdict: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Flat:
    """Flat rows with stable keys: frames of several kinds of rows, in order.

    Args:
        frames: What JSON and CSV show, one below the other.
        columns: The columns of all of them.
        first: Which frame's columns come first in CSV.
    """

    frames: Sequence[DataFrame]
    columns: Sequence[Column]
    first: int = 0


def printed(form: str, places: Callable[[], Sequence[Place]], flat: Flat) -> str:
    """Tables, or the flat rows that they are of, in one of `FORMATS`."""
    if form in ("csv", "json"):
        return to_csv(flat) if form == "csv" else to_json(flat)
    return {"console": to_console, "md": to_markdown, "latex": to_latex}[form](places())


MARGIN = 2
"""Width that the console puts between columns."""


def to_console(places: Iterable[Place], width: int | None = None) -> str:
    """Tables as wide as the terminal, or as numbers need; colours only on one.

    Names and attacks fold where the terminal is narrow; a number with its interval never does.

    Args:
        places: In their order.
        width: In characters; None: the terminal's.
    """
    from rich.console import Console

    width = width or shutil.get_terminal_size((120, 40)).columns
    console = Console(
        file=io.StringIO(), width=width, force_terminal=sys.stdout.isatty(), markup=False,
        emoji=False, highlight=False, legacy_windows=False,
    )  # fmt: skip
    for place in places:
        console.print(place.title, style="bold")
        if place.verdict:
            console.print(place.verdict)
        for table in place.tables:
            console.print(table.title, style="italic")
            console.print()
            _print_table(console, table, width)
            for note in table.notes:
                console.print(note)
        console.print()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _print_table(console: Console, table: Table, width: int) -> None:
    from rich import box
    from rich.table import Table as RichTable

    groups = {
        style: lines
        for name, style in (("quiet", "dim"), ("body", ""), ("loud", "bold"))
        if (lines := table.lines(name, "console"))
    }
    headers = table.headers("console")
    widths = _widths([headers, *(line for lines in groups.values() for line in lines)], width)
    drawn: RichTable = RichTable(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, MARGIN - 1, 0, 0),
        header_style="",
    )  # fmt: skip
    for number, (header, each) in enumerate(zip(headers, widths, strict=True)):
        drawn.add_column(header, width=each, justify="right" if number else "left", overflow="fold")
    for style, lines in groups.items():
        for whole, run in itertools.groupby(lines, lambda line: _fits(line, widths)):
            # Rich takes much longer for a hundred rows than for one of a hundred lines
            for block in [[*run]] if whole else [[line] for line in run]:
                cells = ("\n".join(parts) for parts in zip(*block, strict=True))
                drawn.add_row(*cells, style=style)
        drawn.add_section()
    console.width = max(width, sum(widths) + MARGIN * len(widths))
    console.print(drawn)
    console.print()
    console.width = width


def _fits(line: Sequence[str], widths: Sequence[int]) -> bool:
    """Whether no cell has to be folded; tabs and the like are as wide as Rich makes them."""
    from rich.cells import cell_len

    cells = zip(line, widths, strict=True)
    return all(cell.isprintable() and cell_len(cell) <= width for cell, width in cells)


def _widths(lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Widths of the columns: of whole cells, or what there is but at least the longest words.

    Rich would take from the widest column what is missing, and break its numbers.
    """
    from rich.cells import cell_len

    first, *others = ([*cells] for cells in zip(*lines, strict=True))
    names = min(max(map(cell_len, first)), int(0.4 * width))
    whole = [max(map(cell_len, cells)) for cells in others]
    widths = [max(cell_len(word) for cell in cells for word in _words(cell)) for cells in others]
    for _ in range(width - names - sum(widths) - MARGIN * len(lines[0])):
        missing = [most - has for most, has in zip(whole, widths, strict=True)]
        if not any(missing):
            break
        widths[missing.index(max(missing))] += 1
    return [names, *widths]


def _words(cell: str) -> list[str]:
    """Where a cell may be broken; a number and its interval are one word."""
    return re.findall(r"\S+(?: ± \S+)?", cell) or [""]


def _tabulated(lines: Sequence[Any], headers: Sequence[str], form: str) -> str:
    from tabulate import tabulate

    aligned = ["left", *("right" for _ in headers[1:])]
    return tabulate(lines, headers, tablefmt=form, colalign=aligned, disable_numparse=True)


def to_markdown(places: Iterable[Place]) -> str:
    """Tables in GitHub's Markdown."""
    return "\n\n".join(part for place in places for part in _markdown(place)) + "\n"


def _markdown(place: Place) -> Iterator[str]:
    yield f"### {markdown_text(place.title)}"
    if place.verdict:
        yield _one_cell(place.verdict)
    for table in place.tables:
        yield f"**{markdown_text(table.title)}**"
        loud = [[f"**{cell}**" for cell in line] for line in table.lines("loud", "md")]
        lines = [*table.lines("quiet", "md"), *table.lines("body", "md"), *loud]
        escaped = [[_one_cell(cell) for cell in line] for line in [table.headers("md"), *lines]]
        yield _tabulated(escaped[1:], escaped[0], "pipe")
        yield from map(markdown_text, table.notes)


def _one_cell(text: str) -> str:
    """Reasons are anybody's words: a bar or a new line in one would end its cell."""
    return " ".join(markdown_text(text).splitlines()).replace("|", r"\|")


def markdown_text(text: str) -> str:
    """Anybody's words in Markdown: no HTML, no code, no link, no image, no address of a link."""
    text = text.replace("\\", r"\\").replace("`", r"\`")
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)  # no tag begins as <0.7 does
    text = re.sub(r"\](?=[(\[])", r"]\\", text)
    return re.sub(r"(?<!\S)\[(?=[^\[\]]*\]:)", r"\\[", text)


LATEX = {
    "\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "→": r"$\to$", "≤": r"$\le$", "₀": "$_0$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{chr(sign): f"$^{chr(digit)}$" for digit, sign in SUPERSCRIPTS.items()},
    "\ue000": r"\textbf{", "\ue001": "}", "\ue002": "{}",
}  # fmt: skip
"""What LaTeX does not print as it is. The last three are around what is bold, and before a line
that begins with a bracket: the end of the line above would take it for its own."""

HIDDEN = {ord(sign): chr(0xE100 + number) for number, sign in enumerate(LATEX)}
SHOWN = {0xE100 + number: text for number, text in enumerate(LATEX.values())}
"""Signs pass tabulate, which knows a few of them only, in places of Unicode that nobody uses."""


def to_latex(places: Iterable[Place]) -> str:
    """Tables for LaTeX with ``booktabs``, each in a ``table`` with its title as the caption.

    The best of a column of scores is in bold.
    """
    return "\n".join(_latex(place, table) for place in places for table in place.tables)


def _latex(place: Place, table: Table) -> str:
    from tabulate import SEPARATING_LINE

    loud = [[_bold(cell) for cell in line] for line in table.lines("loud", "latex")]
    lines: list[Any] = []
    for group in filter(None, [table.lines("quiet", "latex"), _with_best(table), loud]):
        lines += [SEPARATING_LINE] * bool(lines)
        lines += [[cell.translate(HIDDEN) for cell in _guarded(line)] for line in group]
    headers = [header.translate(HIDDEN) for header in table.headers("latex")]
    drawn = _tabulated(lines, headers, "latex_booktabs")
    caption = ". ".join([f"{place.title}. {table.title}", *table.notes]).translate(HIDDEN)
    text = f"\\begin{{table}}\n\\caption{{{caption}}}\n{drawn}\n\\end{{table}}\n"
    return text.translate(SHOWN)


def _guarded(line: Sequence[str]) -> Iterator[str]:
    first, *others = line
    yield f"\ue002{first}" if first.startswith("[") else first
    yield from others


def _bold(text: str) -> str:
    return f"\ue000{text}\ue001"


def _with_best(table: Table) -> list[list[str]]:
    """The lines of the body, and in bold what is highest where that is best."""
    lines = table.lines("body", "latex")
    for number, column in enumerate(shown_in("latex", table.columns)):
        values = [column.sort_value(row) for row in table.body]
        known = [value for value in values if value is not None]
        if not column.best or len(values) < 2 or not known:
            continue
        best = lines[values.index(max(known))][number]
        for line in lines:
            if line[number] == best:
                line[number] = _bold(best)
    return lines


def to_csv(flat: Flat) -> str:
    """Flat rows as CSV, each column once; lists are joined by semicolons.

    Text that a spreadsheet would take for a formula has an apostrophe before it, as has text that
    begins with one: `from_csv` takes it away again.
    """
    keys = {column.key for column in shown_in("csv", flat.columns)}
    first = flat.frames[flat.first]
    order = dict.fromkeys(key for df in (first, *flat.frames) for key in df if key in keys)
    rows = (row for df in flat.frames for row in records(df))
    return _csv_line(order) + "".join(_csv_line(map(row.get, order)) for row in rows)


def from_csv(text: str) -> list[dict[str, str]]:
    """The rows that `to_csv` wrote, by their keys: text as it was, numbers as text, None as ``""``.

    Other readers find an apostrophe before text that begins with one of `FORMULA`.
    """
    lines = [
        [cell.removeprefix("'") for cell in line] for line in reader(io.StringIO(text, newline=""))
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
"""Beginnings of text that get an apostrophe: of formulas, and the apostrophe itself."""


def _csv_line(cells: Iterable[Any]) -> str:
    """A line as csv writes it; pandas leaves a carriage return unquoted, which no reader undoes."""
    line = io.StringIO()
    writer(line).writerow([_csv_cell(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(cell: Any) -> Any:
    if cell is None or isinstance(cell, int | float):
        return cell
    text = "; ".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell)
    return f"'{text}" if text.startswith(FORMULA) else text


def flat_rows(flat: Flat) -> list[Row]:
    """Flat rows as plain values, each with the keys of its kind of rows."""
    keys = {column.key for column in shown_in("json", flat.columns)}
    return [row for df in flat.frames for row in records(df[[key for key in df if key in keys]])]


def to_json(flat: Flat) -> str:
    """Flat rows as JSON; pandas would round numbers to 15 digits."""
    return msgspec.json.format(msgspec.json.encode(flat_rows(flat)), indent=1).decode() + "\n"
