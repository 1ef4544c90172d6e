"""Published results: the records of a run, and who stands for them, JSON lines in one file.

An entry holds records, not scores: every table is derived from them. Nothing in a file is executed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from sophon_bench.analysis.frozen import Frozen
from sophon_bench.leaderboard import tables
from sophon_bench.leaderboard.columns import records
from sophon_bench.leaderboard.finding import with_recipe
from sophon_bench.leaderboard.layout import from_random
from sophon_bench.plugins.registry import NAME, NAME_LENGTH
from sophon_bench.results import documents
from sophon_bench.results.files import write_atomic
from sophon_bench.results.records import Record, Records
from sophon_bench.results.store import StoreError
from sophon_bench.results.untrusted import LARGEST_ENTRY, UNSEEN, printable

if TYPE_CHECKING:
    from pandas import Series

PUBLISHED = Path(__file__).parent / "results"

Label = Literal["self-reported", "spot-checked", "reproduced"]

Line = Annotated[str, msgspec.Meta(min_length=1, max_length=300, pattern=rf"\A[^{UNSEEN}]*\Z")]
"""One line of text, whose characters can be seen."""


class EntryError(StoreError):
    """A file that is no entry, or one whose records are not what they were; says what and where."""


class Head(Record, frozen=True, kw_only=True):
    """Who publishes records.

    Attributes:
        name: Of the file, in lower case with hyphens.
        title: Of what is submitted, for people.
        authors: Who stands for it.
        link: Where the method is described, an ``https`` address.
        label: ``self-reported``; ``spot-checked`` (some cells were made again by a reviewer and
            agreed); ``reproduced`` (all of them).
        submitted: The day, as ``2026-01-31``.
    """

    name: Annotated[str, msgspec.Meta(pattern=NAME, max_length=NAME_LENGTH)]
    title: Line
    authors: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=50)]
    link: Annotated[
        str, msgspec.Meta(pattern=rf"\Ahttps://[^\s<>\"'\\{UNSEEN}]+\Z", max_length=300)
    ]
    label: Label = "self-reported"
    submitted: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")]


class Entry(Head, frozen=True, kw_only=True, gc=True):
    """Records of a run, published: of defenses and their controls."""

    records: Records

    @classmethod
    def of(cls, head: Mapping[str, Any], records: Records) -> Entry:
        """An entry of what `Head` should be.

        Raises:
            msgspec.ValidationError: If it is not.
        """
        return cls(records=records, **msgspec.structs.asdict(msgspec.convert(head, Head)))

    @property
    def head(self) -> dict[str, Any]:
        """Who publishes them."""
        return {name: getattr(self, name) for name in Head.__struct_fields__}


def read(file: Path) -> Entry:
    """The entry in a file.

    Raises:
        EntryError: If it cannot be read, is no entry, is not whole, or is not called as it says;
            names the record that is damaged or missing.
    """
    try:
        head, found = documents.read_file(file, LARGEST_ENTRY)
        if head is None:
            raise StoreError(f"{str(file)!r} is not an entry of 'sophon-bench submit'")
        entry = Entry.of(head, found)
    except StoreError as error:
        raise EntryError(str(error)) from error
    except msgspec.ValidationError as error:
        words = printable(str(error))
        raise EntryError(f"{str(file)!r} is not an entry: {words}") from error
    if file.name != f"{entry.name}.jsonl":
        raise EntryError(f"{str(file)!r} says that its name is {entry.name!r}; call it so")
    return entry


def read_all(files: Iterable[Path]) -> list[Entry]:
    """Entries in the order of their names."""
    return [read(file) for file in sorted(files)]


def published() -> list[Entry]:
    """Every entry that comes with the package."""
    return read_all(PUBLISHED.glob("*.jsonl"))


def report(entries: Sequence[Entry], frozen: Sequence[Frozen]) -> tables.Report:
    """One report of all entries: each is judged by its own controls, ranks are of all.

    Places whose models started from pre-trained weights come first, since those are what people
    release. The entry with most seeds tells the controls. Defenses of one name in several entries
    are told apart by the entry's.
    """
    most = sorted(entries, key=lambda entry: (-len(entry.records.seeds), entry.name))
    reports = [
        (entry, with_recipe(tables.report(entry.records, frozen), entry.records)) for entry in most
    ]
    owners = Counter(
        label
        for _, found in reports
        for label in {row["defense"] for row in records(found.scores) if not row["control"]}
    )
    whole = tables.united(
        tables.renamed(found, {n: f"{n} ({entry.name})" for n in owners if owners[n] > 1})
        for entry, found in reports
    )
    return whole.map(lambda df: df.sort_values("backbone", key=_from_random, kind="stable"))


def _from_random(backbones: Series) -> Series:
    return backbones.map(from_random).astype(bool)


def write(entry: Entry, folder: Path) -> Path:
    """Write an entry under its name.

    Raises:
        EntryError: If another is there, or it has more bytes than `read` takes.
        OSError: If it cannot be written.
    """
    file = folder / f"{entry.name}.jsonl"
    content = documents.json_lines(entry.head, entry.records)
    if len(content) > LARGEST_ENTRY:
        raise EntryError(
            f"an entry has at most {LARGEST_ENTRY >> 20} MiB, and this one would have "
            f"{len(content) >> 20}; submit its defenses one by one (--defense)"
        )
    if file.exists() and file.read_bytes() != content:
        raise EntryError(
            f"{str(file)!r} is there, with other content; choose another name or --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file.absolute(), content)
    return file
