"""Named experiments: a question, the hyperparameter that varies, and what records say of it.

A study is a data file next to this one. It is crossed and run like anything else; its table and its
picture are derived from the records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.analysis.series import shown
from sophon_bench.leaderboard import answers as analysis
from sophon_bench.leaderboard import columns, figures, layout, vega
from sophon_bench.leaderboard.columns import Column, frame, records
from sophon_bench.leaderboard.names import Legend
from sophon_bench.leaderboard.provenance import distinct, made_on
from sophon_bench.leaderboard.render import Flat, Place, Table, flat_rows, to_markdown
from sophon_bench.plugins.registry import Registry, unknown
from sophon_bench.plugins.selectors import SelectorError, Trial, check_parameters
from sophon_bench.plugins.suites import Name, read_document, trials
from sophon_bench.results import Results
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import Records

if TYPE_CHECKING:
    from pandas import DataFrame

STUDIES = Path(__file__).parent / "studies"


class Study(BaseModel):
    """A named experiment, read from a YAML file.

    Attributes:
        question: What it answers, in one sentence.
        axis: The hyperparameter that varies: the table's first column, the picture's x.
        defenses: Selectors; all of them have the axis.
        attacks: Selectors of what they are attacked with.
        seeds: Of data, pre-training, defense and attack.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    version: int = Field(ge=1)
    question: str
    axis: str
    defenses: list[str] = Field(min_length=1)
    attacks: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)

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


def varied(study: Study, registry: Registry) -> list[Trial]:
    """The study's defenses.

    Raises:
        SelectorError: If one does not have the axis, or two of a family would stand at one place
            of it; or for a malformed selector, an unknown parameter or value.
        UnknownName: For a name that is not registered.
    """
    found = trials(registry, study.defenses)
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


def findings(
    study: Study,
    cells: Records,
    frozen: Sequence[Frozen],
    *,
    command: str,
    attacks: Sequence[str],
) -> tuple[DataFrame, list[Place]]:
    """What the records of a study say: rows of `analysis.ablation`, and their table.

    Below it stand what was attacked with (``attacks``) and the ``command`` that made the records.
    """
    results = Results.of(cells)
    found = analysis.ablation(results, study.axis, frozen)
    restricted = results.cells["role"] == "restricted"
    samples, seeds = results.cells.loc[restricted, "samples"], results.cells["seed"]
    notes = [
        f"study {study.label}: {study.question}",
        f"command: {command}",
        f"attacks: {', '.join(attacks)}; seeds {distinct(seeds)}; n = {distinct(samples)}",
        f"records: {made_on(results.cells)}",
        *(
            f"{study.axis} {shown(row['value'])}: {row['defense']}"
            for row in records(found)
            if not row["control"]
        ),
    ]
    return found, ablation(found, notes)


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


def write(
    study: Study,
    found: DataFrame,
    places: Sequence[Place],
    out: Path,
    *,
    command: str,
) -> list[Path]:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into ``out``, which is made.

    No picture if there is nothing to draw. Returns the files.

    Raises:
        OSError: ``out`` cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = flat_rows(Flat(frames=[found], columns=(*columns.SCORES, columns.LISTED)))
    document = {"study": study.model_dump(), "command": command, "rows": rows}
    files = {
        "md": f"# {study.name}: {study.question}\n\n{to_markdown(places)}".encode(),
        "json": (json.dumps(document, indent=1) + "\n").encode(),
    }
    if (figure := figures.ablation(frame(rows))) is not None:
        files["png"] = vega.encode(figure, "png")
    written = []
    for suffix, content in files.items():
        written.append(out / f"{study.name}.{suffix}")
        write_atomic(written[-1].absolute(), content)
    return written
