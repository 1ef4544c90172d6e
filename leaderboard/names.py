"""What tables call defenses and attacks, whose selectors may be longer than a table is wide.

A name that the user gave stands for its selector; a long selector that has none is shortened to
the plugin's name and a number. Either way the selector stands in a legend below the table.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sophon_bench.leaderboard.columns import Row, records
from sophon_bench.plugins.selectors import SelectorError, format_selector, parse

if TYPE_CHECKING:
    from pandas import DataFrame

LONGEST = {"defense": 40, "attack": 104}
"""Letters of the longest selector that stands in tables as it is, by what it is of.

A defense heads a column, and as many stand side by side as there are; an attack heads a line, which
may fold, and what tells it from its neighbours is better read there than in a legend.
"""


class Legend:
    """What tables call plugins: the names that were given, and numbers in place of long selectors.

    Args:
        plugins: Names of plugins by their labels.
        names: Names that the user gave, by label.
        longest: Letters of the longest label that is not numbered.
    """

    def __init__(
        self,
        plugins: Mapping[str, str],
        names: Mapping[str, str],
        longest: int = LONGEST["defense"],
    ) -> None:
        self._shown = dict(names)
        numbers = Counter[str]()
        for label, plugin in plugins.items():
            if len(label) > longest and label not in names:
                numbers[plugin] += 1
                self._shown[label] = f"{plugin} #{numbers[plugin]}"

    @classmethod
    def of(cls, frames: Iterable[DataFrame], names: Mapping[str, str], kind: str) -> Legend:
        """The legend of the defenses or the attacks in frames with their names, in their order."""
        plugins: dict[str, str] = {}
        for df in frames:
            if kind in df:
                known = df.loc[df[kind].notna(), [kind, f"{kind}_name"]].drop_duplicates()
                plugins |= dict(known.itertuples(index=False, name=None))
        return cls(plugins, names, LONGEST[kind])

    def __call__(self, label: str) -> str:
        """What a label is called."""
        return self._shown.get(label, label)

    def rows(self, rows: Iterable[Row], kind: str = "defense") -> list[dict[str, Any]]:
        """Rows whose defenses, or attacks, are called as in tables."""
        return [{**row, kind: self(row[kind])} for row in rows]

    def notes(self, labels: Iterable[str]) -> list[str]:
        """What the names among these labels stand for, a line each."""
        return [
            f"{self(label)}: {label}" for label in dict.fromkeys(labels) if label != self(label)
        ]


class Attacks:
    """Attacks of one place, in words of the hyperparameters that vary there.

    Args:
        trials: One row per attack and defense, with ``attack``, ``parameters``, ``attack_name``
            and ``attack_label``, which is the attack without what tells two versions apart.
        names: Names that the user gave, by label.
    """

    def __init__(self, trials: DataFrame, names: Mapping[str, str]) -> None:
        tried = trials[trials["parameters"].notna()] if len(trials) else trials
        rows = records(tried.drop_duplicates("attack")) if len(tried) else []
        self._rows = {row["attack"]: row for row in rows}
        self._trials = Counter(row["attack_name"] for row in rows)
        self._values: dict[tuple[str, str], Counter[str]] = {}
        for row in rows:
            for key, value in row["parameters"].items():
                counts = self._values.setdefault((row["attack_name"], key), Counter())
                counts[repr(value)] += 1
        long = {
            attack: row["attack_name"]
            for attack, row in self._rows.items()
            if len(self._selector(attack)) > LONGEST["attack"]
        }
        self._legend = Legend(long, names, longest=0)
        self.notes = self._legend.notes

    def _varied(self, attack: str) -> dict[str, Any]:
        """What varies there, without the defaults that most trials leave alone."""
        if attack not in self._rows:
            return {}
        row = self._rows[attack]
        changed = _changed(row["attack_label"])

        def told(key: str, value: Any) -> bool:
            values = self._values[row["attack_name"], key]
            often = 2 * values[repr(value)] > self._trials[row["attack_name"]]
            return value is not None and len(values) > 1 and (key in changed or not often)

        return {key: value for key, value in row["parameters"].items() if told(key, value)}

    def _selector(self, attack: str) -> str:
        varied = self._varied(attack)
        if not varied:
            return attack
        row = self._rows[attack]
        version = attack.removeprefix(row["attack_label"])
        return format_selector(row["attack_name"], varied) + version

    def name(self, attack: str) -> str:
        """As a selector."""
        called = self._legend(attack)
        return self._selector(attack) if called == attack else called

    def short(self, attack: str) -> str:
        """In words: ``finetune adam lr=0.01``."""
        row, called = self._rows.get(attack), self._legend(attack)
        if row is None or called != attack:
            return called
        varied = self._varied(attack).items()
        return " ".join(
            [row["attack_name"], *(v if isinstance(v, str) else f"{k}={v}" for k, v in varied)]
        )

    def voted(self, votes: Iterable[tuple[str, int]]) -> str:
        """The attack picked on most seeds, and on how many if not on all."""
        (attack, count), *others = votes
        seeds = count + sum(each for _, each in others)
        return self.short(attack) + ("" if count == seeds else f" ({count}/{seeds})")

    def order(self, attack: str) -> tuple[str, list[tuple[bool, float, str]], str]:
        """What lines of attacks are sorted by."""
        varied = [_size(value) for value in self._varied(attack).values()]
        return (self._rows[attack]["attack_name"], varied, attack)


@functools.cache
def _changed(label: str) -> Mapping[str, Any]:
    """The hyperparameters that a selector names; none if it is not one."""
    try:
        return parse(label).parameters
    except SelectorError:
        return {}


def _size(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, "" if number else repr(value))


def with_names(df: DataFrame, names: Mapping[str, str]) -> DataFrame:
    """The frame with the names that the user gave: ``name``, and of an attack ``trial_name``.

    A column is there only if some row has a name.
    """
    for kind, key in (("attack", "trial_name"), ("defense", "name")):
        given = df[kind].map(names) if kind in df else None
        if given is not None and given.notna().any():
            df = df.copy()
            df.insert(df.columns.get_loc(kind) + 1, key, given.astype(object))
    return df


def is_envelope(row: Row) -> bool:
    """Whether the row is of the tuned envelope, which has no hyperparameters of its own."""
    return row["parameters"] is None
