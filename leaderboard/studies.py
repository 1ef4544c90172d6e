"""Named experiments: a question, what is crossed to answer it, and what records say.

A study is a data file next to this one. It is crossed and run like anything else; its table and its
picture are derived from the records.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.series import order, shown
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns, figures, granularity, layout, reported, tables, vega
from sophon_bench.leaderboard.columns import Column, Row, frame, percent, records
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.provenance import distinct, made_on
from sophon_bench.leaderboard.render import Flat, Place, Table, flat_rows, to_markdown
from sophon_bench.leaderboard.reported import Reported
from sophon_bench.leaderboard.vega import Figure
from sophon_bench.plugins.registry import Registry, unknown
from sophon_bench.plugins.selectors import SelectorError, Trial, check_parameters
from sophon_bench.plugins.suites import Name, read_document, trials
from sophon_bench.results import Results
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

STUDIES = Path(__file__).parent / "studies"

View = Literal["axis", "domains", "claims", "paper", "sizes"]


class Study(BaseModel):
    """A named experiment, read from a YAML file.

    Attributes:
        question: What it answers, in one sentence.
        view: What is shown of the records. ``axis``: scores by the value of a hyperparameter;
            ``domains``: what fine-tuning reaches on every domain, by how like the restricted one it
            is; ``claims``: intactness, non-fine-tunability, and how robust it is; ``paper``: the
            usual tables, and a paper's figures beside them; ``sizes``: what the backbones take,
            which needs no records.
        axis: The hyperparameter that varies, with the view of that name: the table's first column,
            the picture's x. All defenses have it.
        scenarios: Selectors.
        backbones: Selectors; none: the scenario's own.
        defenses: Selectors.
        attacks: Selectors of what they are attacked with.
        benign: Whether the same trials are run on the benign domains.
        samples: The attacker's n; none: the scenario's middle one.
        seeds: Of data, pre-training, defense and attack.
        image_size: Of the view ``sizes``, in pixels.
        paper: Figures of a paper, with the view of that name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    version: int = Field(ge=1)
    question: str
    view: View = "axis"
    axis: str = ""
    scenarios: list[str] = ["glyphs-digits"]
    backbones: list[str] = []
    defenses: list[str] = Field(default=[], validate_default=True)
    attacks: list[str] = Field(default=[], validate_default=True)
    benign: bool = False
    samples: list[Annotated[int, Field(ge=2)]] = []
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[], validate_default=True)
    image_size: int | None = Field(default=None, ge=1)
    paper: list[Reported] = []

    @field_validator("defenses", "attacks", "seeds")
    @classmethod
    def _crossed(cls, value: list[Any], info: ValidationInfo) -> list[Any]:
        if not value and info.data.get("view") != "sizes":
            raise ValueError("List should have at least 1 item")
        return value

    @property
    def label(self) -> str:
        """As tables carry it."""
        return f"{self.name} v{self.version}"


def study_files() -> dict[str, Path]:
    """Every study's file by its name."""
    return {file.stem: file for file in sorted(STUDIES.glob("*.yaml"))}


def load_study(name: str) -> Study:
    """The study called ``name``, or the one in the YAML file of that path.

    Raises:
        SelectorError: If there is none, or the file is not a study.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else study_files().get(name)
    if path is None or not path.is_file():
        hint = "'sophon-bench list studies' shows all"
        raise SelectorError(unknown("study", name, study_files(), otherwise=hint))
    return read_document("study", path, Study)


def varied(study: Study, registry: Registry, selectors: Sequence[str] = ()) -> list[Trial]:
    """The study's defenses, or those of ``selectors`` in their place.

    Raises:
        SelectorError: If one does not have the axis, or two of a family would stand at one place
            of it; or for a malformed selector, an unknown parameter or value.
        UnknownName: For a name that is not registered.
    """
    found = trials(registry, selectors or study.defenses)
    if study.view != "axis":
        return found
    places: dict[tuple[str, str], Trial] = {}
    for trial in found:
        check_parameters(trial.entry, [study.axis])
        fixed = {key: value for key, value in trial.parameters.items() if key != study.axis}
        value = shown(trial.parameters[study.axis])
        other = places.setdefault((f"{trial.name}{fixed}", value), trial)
        if other is not trial:
            raise SelectorError(
                f"study {study.name!r}: {other.label} and {trial.label} are both at "
                f"{study.axis}={value}; a list counts by its length"
            )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What was run for a study.

    Attributes:
        study: The question.
        cells: The records.
        frozen: Which budgets and n count for scores.
        command: What makes the records again.
        attacks: Selectors of what was attacked with.
        replaced: Options that were given in place of what the study declares.
        similarities: Rows of `relatedness.similarities`.
    """

    study: Study
    cells: Records
    frozen: Sequence[Frozen]
    command: str
    attacks: Sequence[str]
    replaced: Sequence[str] = ()
    similarities: Sequence[Row] = ()

    @functools.cached_property
    def results(self) -> Results:
        """The records as frames."""
        return Results.of(self.cells)

    @property
    def notes(self) -> list[str]:
        """Lines below every table: the question, and how the records were made."""
        cells = self.results.cells
        samples = cells.loc[cells["role"] == "restricted", "samples"]
        return [
            *_asked(self.study, self.replaced, self.command),
            f"attacks: {', '.join(self.attacks)}; seeds {distinct(cells['seed'])}; "
            f"n = {distinct(samples)}",
            f"records: {made_on(cells)}",
        ]


class Findings(NamedTuple):
    """What a study says: flat rows, tables, and a picture if there is something to draw."""

    rows: Sequence[Row]
    places: Sequence[Place]
    figure: Figure | None


def measured_notes(study: Study, replaced: Sequence[str], command: str, machine: str) -> list[str]:
    """Lines below the table of a study without records."""
    return [*_asked(study, replaced, command), f"machine: {machine}"]


def _asked(study: Study, replaced: Sequence[str], command: str) -> list[str]:
    """The question, what was given in place of the study's, and the command."""
    shortened = f"in part: {', '.join(replaced)} in place of what the study declares"
    return [
        f"study {study.label}: {study.question}",
        *([shortened] if replaced else []),
        f"command: {command}",
    ]


def findings(outcome: Outcome) -> Findings:
    """What the records of a study say, in its view."""
    return VIEWS[outcome.study.view](outcome)


def by_axis(outcome: Outcome) -> Findings:
    """Scores by the value of a hyperparameter."""
    axis = outcome.study.axis
    found = analysis.ablation(outcome.results, axis, outcome.frozen)
    values = [
        f"{axis} {shown(row['value'])}: {row['defense']}"
        for row in records(found)
        if not row["control"]
    ]
    rows = flat_rows(Flat(frames=[found], columns=(*columns.SCORES, columns.LISTED)))
    places = ablation(found, [*outcome.notes, *values])
    return Findings(rows, places, figures.ablation(frame(rows)))


def by_domain(outcome: Outcome) -> Findings:
    """What fine-tuning reaches on every domain, by its similarity to the restricted one."""
    found = granularity.with_similarity(analysis.by_domain(outcome.results), outcome.similarities)
    scores = analysis.scores(outcome.results, outcome.frozen)
    places = granularity.places(found, scores, outcome.notes)
    first = next(iter(layout.by_place(found).values()))
    return Findings(records(found), places, granularity.figure(first))


def claims(outcome: Outcome) -> Findings:
    """Intactness and non-fine-tunability by domain, and the latter by what the attacker chooses."""
    found = granularity.with_similarity(analysis.by_domain(outcome.results), ())
    scores = analysis.scores(outcome.results, outcome.frozen)
    kept = granularity.places(found, scores, [])
    robust = robustness(outcome.results, outcome.notes)
    rows = [*records(found), *robust.rows]
    return Findings(rows, [*kept, *robust.places], robust.figure)


def beside_paper(outcome: Outcome) -> Findings:
    """The usual tables, and a paper's figures beside the scores."""
    report = tables.report(outcome.cells, outcome.frozen)
    rows = reported.beside(outcome.study.paper, report.scores)
    places = [reported.place(rows, outcome.notes), *tables.places(report)]
    return Findings(rows, places, reported.figure(rows, report.scores))


VIEWS: Mapping[str, Callable[[Outcome], Findings]] = {
    "axis": by_axis,
    "domains": by_domain,
    "claims": claims,
    "paper": beside_paper,
}


VARIED = ("optimizer", "lr", "batch_size", "head", "scope")
"""Hyperparameters of fine-tuning, by whose values non-fine-tunability is looked at."""


def robustness(results: Results, notes: Sequence[str]) -> Findings:
    """What the best of the trials with each value of a hyperparameter reaches."""
    cells = results.cells[(results.cells["role"] == "restricted") & ~results.cells["derived"]]
    own = cells[~cells["attack_control"]].drop_duplicates("attack")
    parameters = dict(zip(own["attack"], own["attack_parameters"], strict=True))
    rows: list[Row] = []
    for name in VARIED:
        having = {attack: p[name] for attack, p in parameters.items() if name in p}
        values = {str(value): value for value in having.values()}.values()
        for value in sorted(values, key=order) if len(values) > 1 else ():
            chosen = [attack for attack, other in having.items() if other == value]
            found = records(analysis.recipe(results, chosen))
            rows += [{**row, "choice": name, "value": shown(value)} for row in found]
    places = layout.places(frame(rows), lambda df: [_robust(df, notes)]) if rows else []
    return Findings(rows, places, _robust_figure(results))


def _robust(found: DataFrame, notes: Sequence[str]) -> Table:
    rows = records(found)
    legend = Legend.of([found], {}, "defense")
    defenses = [*dict.fromkeys(row["defense"] for row in rows if not row["control"])]
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = row["choice"], row["value"], row["samples"]
        line = lines.setdefault(key, {"choice": f"{row['choice']} {row['value']}"})
        line |= {"trials": row["undefended_trials"], "samples": row["samples"]}
        line |= {"undefended": row["undefended_after"]}
        line[row["defense"]] = row
    columns_ = [
        Column(key="choice", header="trials with"),
        Column(key="samples", header="n"),
        Column(key="trials"),
        Column(key="undefended", format=lambda line: percent(line["undefended"])),
        *(Column(key=d, header=legend(d), format=_reached(d)) for d in defenses),
    ]
    return Table(
        title=f"Non-fine-tunability by what the attacker chooses: restricted {rows[0]['utility']} "
        "in % after the best of the trials with each value, picked on the selection split",
        columns=columns_,
        body=[*lines.values()],
        notes=[*notes, *legend.notes(defenses)],
    )


def _reached(defense: str) -> Callable[[Row], str]:
    def text(line: Row) -> str:
        row = line.get(defense, {})
        return percent(row.get("protected_after"), row.get("protected_half_width"))

    return text


def _robust_figure(results: Results) -> Figure | None:
    """Sweeps over step sizes of the first place and n, a panel per optimizer and batch size."""
    sweeps = analysis.sweeps(results)
    if sweeps.empty:
        return None
    (_, first), *_ = sweeps.groupby([*figures.PICTURED], sort=False)
    styles = vega.styles(row["defense"] for row in records(first) if not row["control"])
    return figures.families(first, styles)


def ablation(found: DataFrame, notes: Sequence[str]) -> list[Place]:
    """Scores by the value of a hyperparameter, one table per place, each with these notes.

    ``found`` are rows of `analysis.ablation`, at least one.
    """
    return layout.places(found, lambda df: [_ablation_table(df, notes)])


def _ablation_table(found: DataFrame, notes: Sequence[str]) -> Table:
    rows, reasons = layout.footnotes(records(found))
    plugins = {row["family"]: row["defense_name"] for row in rows}
    legend = Legend(plugins, {})
    axis = rows[0]["axis"]
    controls = [{**row, "name": row["defense"], "family": None} for row in rows if row["control"]]
    tried = [
        {**row, "name": shown(row["value"]), "family": legend(row["family"])}
        for row in rows
        if not row["control"]
    ]
    several = len({row["family"] for row in tried}) > 1
    family = [Column(key="family", header="defense")] if several else []
    return Table(
        title=f"Scores{layout.over(rows)}, by {axis}: {layout.plural(rows[0]['utility'])} in %, "
        "restricted after the tuned attack and after the best of the listed trials alone; "
        "cost of protection as a multiple of pre-training",
        columns=[Column(key="name", header=axis), *family, *columns.ABLATION],
        quiet=[*controls, *layout.scratch_rows(rows, "name")],
        body=tried,
        notes=[
            *layout.score_notes(rows, reasons),
            *layout.flag_notes(rows, Legend({}, {})),
            *notes,
            *(legend.notes(plugins) if several else []),
        ],
    )


def write(study: Study, found: Findings, out: Path, *, command: str) -> list[Path]:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into ``out``, which is made.

    No picture if there is nothing to draw. Returns the files.

    Raises:
        OSError: ``out`` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    document = {"study": study.model_dump(), "command": command, "rows": found.rows}
    files = {
        "md": f"# {study.name}: {study.question}\n\n{to_markdown(found.places)}".encode(),
        "json": msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n",
    }
    if found.figure is not None:
        files["png"] = vega.encode(found.figure, "png")
    written = []
    for suffix, content in files.items():
        written.append(out / f"{study.name}.{suffix}")
        write_atomic(written[-1].absolute(), content)
    return written
