"""What a tuned attacker reaches: selected checkpoints, candidates and their envelope.

Utilities are fractions, costs are in units. Budgets are multiples (``times``) of a cell's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from sophon_bench import protocol
from sophon_bench.analysis.statistics import Groups, Positions
from sophon_bench.results.frames import PLACE, Results
from sophon_bench.results.records import OR

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HEAD = ("scenario", "revision", "backbone", "precision", "protocol", "budget", "utility")
"""What all rows of one place begin with."""

RAN = ("ok", "diverged")
"""Statuses of a trial that an attacker may choose: what failed or was skipped protects nothing."""

ENVELOPE = "envelope"
"""Name of the row of a tuned attacker: the best trial of all, chosen on the selection split."""

STRETCHED_ENVELOPE = "envelope, {}× budget"
"""Name of the row of a tuned attacker who goes on to so many budgets."""


CHOICE = ("model", "setting", "seed")
"""Within these an attacker chooses."""


class Setting(NamedTuple):
    """What is attacked, and with how many samples."""

    role: str
    domain: str
    samples: int


def multiples(stretch: int) -> list[float]:
    """The multiples of the budget that an envelope is read at, where trials went on to so many."""
    longer = (times for times in protocol.STRETCHED_AT if times <= stretch)
    return sorted({*protocol.SCORED_AT, *longer, float(stretch)})


class Envelope(NamedTuple):
    """What the tuned attacker of one model picks in one setting.

    Attributes:
        seeds: Those on which one of the model's own trials ran, in order.
        picks: (seeds, times) rows of `Outcomes.points`, -1 where nothing is scored so early.
        tests: (seeds, times) their test utilities, NaN where there is none.
    """

    seeds: list[int]
    picks: Positions
    tests: NDArray[np.float64]


class Outcomes:
    """Cells with their selected checkpoints, and the tuned envelope of every attacked model.

    An attacked model is a row of `models`: that of a defense; ``undefended``, all cells of models
    released without a defense; ``scratch``, random initialisation, all cells of control attacks.
    What an attacker picks is a row of `points`, -1 for none, by the selection split alone.

    Attributes:
        cells: `Results.cells` by position, with ``place``, ``setting`` and ``model`` (of its
            defense), rows of `places`, `settings` and `models`; ``defense_label`` and
            ``attack_label``, selectors with the version where one place has two of a selector;
            ``before`` and ``after``, rows of `stages`.
        points: `Results.points` with ``position``, the row of `cells`.
        stages: `Results.models` by position.
        places: `PLACE` of each place, in the order of tables.
        models: ``place``, ``kind`` (``defense``, ``undefended``, ``scratch``), ``defense_label``
            (null but for defenses) and whether it is a ``control``. Defenses come first, in the
            order of tables: by place, the undefended model, then by label.
        settings: The settings, in order.
        times: The multiples of the budget that checkpoints are selected at.
        selected: (cells, times) the checkpoint of each cell: the earliest of those with the
            highest selection utility within the budget.
    """

    def __init__(self, results: Results) -> None:
        import pandas as pd

        cells = results.cells.reset_index(drop=True)
        self.stages = results.models.reset_index(drop=True)
        self.places, cells["place"] = _numbered(cells, PLACE, budget=cells["budget"].astype(str))
        settings, cells["setting"] = _numbered(cells, Setting._fields)
        self.settings = [Setting(*row) for row in settings.itertuples(index=False)]
        cells["defense_label"] = _labels(cells, "defense")
        cells["attack_label"] = _labels(cells, "attack")
        self.models, cells["model"] = _models(cells, len(self.places))
        cells["before"] = results.models.index.get_indexer(cells["pretrained"])
        cells["after"] = results.models.index.get_indexer(cells["released"])
        self.cells = cells
        self.points = results.points.reset_index(drop=True)
        self.points["position"] = results.cells.index.get_indexer(self.points["cell"])
        longest = int(cells["stretch"].max()) if len(cells) else 1
        stretches = cells["stretch"].unique().tolist()
        self.times = sorted({*multiples(longest), *map(float, stretches)})
        # Each with one row more, the last one, for nothing: -1.
        self._selection = np.append(self.points["selection"].to_numpy(), -np.inf)
        self._test = np.append(self.points["test"].to_numpy(), np.nan)
        self._position = np.append(self.points["position"].to_numpy(), -1)
        self.selected = self._selected()
        selectors = pd.factorize(cells["attack"], sort=True)[0]
        order = np.lexsort((np.arange(len(cells)), cells["stretch"], selectors))
        self._rank = np.empty_like(order)
        self._rank[order] = np.arange(len(cells))

    def _selected(self) -> Positions:
        budget = self.cells["budget"].to_numpy()[self.points["position"]]
        limits = budget[:, None] * np.array(self.times) * protocol.ROUNDING
        within = self.points["units"].to_numpy()[:, None] <= limits
        selection = self.points["selection"].to_numpy()[:, None]
        groups = Groups(self.points["position"].to_numpy())
        found = np.full((len(self.cells), len(self.times)), -1)
        found[groups.numbers] = groups.highest(np.where(within, selection, -np.inf))
        return found

    def envelope(self, groups: Groups) -> Positions:
        """(groups, times) what the selection split picks of each group's cells within a budget.

        Equals are told apart by the trial's selector, so that equal models have equal envelopes.

        Args:
            groups: Of positions in `cells`.
        """
        order = np.lexsort((self._rank[groups.rows], groups.of_rows))
        ranked = Groups(groups.of_rows[order], groups.rows[order])
        picks = self.selected[ranked.rows]
        found = ranked.highest(self._selection[picks])
        none = np.full((1, len(self.times)), -1)
        return np.take_along_axis(np.vstack([picks, none]), found, axis=0)

    def tests(self, picks: Positions) -> NDArray[np.float64]:
        """Test utilities of what is picked, NaN where there is nothing."""
        return self._test[picks]

    def picked(self, picks: Positions) -> Positions:
        """The cells whose checkpoints are picked, -1 where there is none."""
        return self._position[picks]

    def controls(self, model: int) -> tuple[int, int]:
        """The rows in `models` of the undefended model and scratch in the place of a model."""
        place = int(self.models["place"].to_numpy()[model])
        return self.undefended(place), self.scratch(place)

    def undefended(self, place: int) -> int:
        """The row in `models` of a place's undefended model."""
        return len(self.models) - 2 * (len(self.places) - place)

    def scratch(self, place: int) -> int:
        """The row in `models` of a place's random initialisation."""
        return self.undefended(place) + 1

    @cached_property
    def budgets(self) -> list[int]:
        """The whole budget of each model, in units."""
        found: list[int] = self.places["budget"].take(self.models["place"]).tolist()
        return found

    @cached_property
    def stand_ins(self) -> DataFrame:
        """Pairs ``cell`` and ``other`` for cells that are not finite from their first update.

        They count as the same trial against the undefended model, or as all trials of that attack
        where the same one is not among them: protection by crash is no protection. What has
        neither counts as itself and is not listed.
        """
        of = ["place", "setting", "seed", "attack_name"]
        cells = self.cells[[*of, "attack", "attack_version"]].reset_index(names="cell")
        crashed = cells[(self.cells["nonfinite_step"] == 1).to_numpy()]
        undefended = self.cells["defense_control"] & ~self.cells["attack_control"]
        found = crashed.merge(cells[undefended.to_numpy()], on=of, suffixes=("", "_other"))
        same = found["attack"] == found["attack_other"]
        same &= found["attack_version"] == found["attack_version_other"]
        found = found[same | ~same.groupby(found["cell"]).transform("any")]
        return found[["cell", "cell_other"]].rename(columns={"cell_other": "other"})

    def with_stand_ins(self, groups: Groups) -> Groups:
        """The same groups of `cells` with what each cell counts as in its place (`stand_ins`)."""
        import pandas as pd

        rows = pd.DataFrame({"group": groups.numbers[groups.of_rows], "cell": groups.rows})
        rows = rows.merge(self.stand_ins, on="cell", how="left")
        cells = rows["other"].fillna(rows["cell"]).astype("int64")
        return Groups(rows["group"].to_numpy(), cells.to_numpy())

    @cached_property
    def counted(self) -> Positions:
        """(cells, times) `selected` of what each cell counts as (`stand_ins`)."""
        crashed = np.unique(self.stand_ins["cell"].to_numpy())
        found = self.selected.copy()
        found[crashed] = self.envelope(self.with_stand_ins(Groups(crashed, crashed)))
        return found

    @cached_property
    def members(self) -> DataFrame:
        """The cells of every model: ``model``, ``setting``, ``seed``, ``place``, ``cell``, ``own``.

        Control attacks are no ``own`` trials of the defense that they were run on.
        """
        import pandas as pd

        cells = self.cells[["model", "setting", "seed", "place"]].reset_index(names="cell")
        control, scratch = (self.cells[f"{of}_control"] for of in ("defense", "attack"))
        cells["own"] = ~scratch
        undefended, fresh = cells[control & ~scratch].copy(), cells[scratch].copy()
        undefended["model"] = self.undefended(undefended["place"])
        fresh["model"] = self.scratch(fresh["place"])
        fresh["own"] = True
        return pd.concat([cells, undefended, fresh], ignore_index=True)

    @cached_property
    def attacks(self) -> Mapping[tuple[int, Setting], Positions]:
        """The own cells of each model in each setting, in order."""
        own = self.members[self.members["own"]]
        return {key: own["cell"].to_numpy()[rows] for key, rows in self._by_setting(own).items()}

    def _by_setting(self, rows: DataFrame) -> dict[tuple[int, Setting], Positions]:
        """Positions in a frame with ``model`` and ``setting``, by both, in order."""
        model, setting = (rows[name].to_numpy() for name in ("model", "setting"))
        groups = Groups(model * max(1, len(self.settings)) + setting)
        keys = zip(model[groups.first].tolist(), setting[groups.first].tolist(), strict=True)
        return {
            (model, self.settings[setting]): rows
            for (model, setting), rows in zip(keys, groups.positions(), strict=True)
        }

    @cached_property
    def settings_of(self) -> Mapping[int, list[Setting]]:
        """The settings that each model has `attacks` in, in order."""
        found: dict[int, list[Setting]] = {}
        for model, setting in self.attacks:
            found.setdefault(model, []).append(setting)
        return found

    @cached_property
    def stretches(self) -> Mapping[tuple[int, Setting], int]:
        """How many budgets one of the `attacks` went on to, on the seed that went least far."""
        rows = self.members[self.members["own"]]
        stretch = self.cells["stretch"].take(rows["cell"]).to_numpy()
        longest = rows.assign(stretch=stretch).groupby(list(CHOICE))["stretch"].max()
        shortest = longest.groupby(level=[0, 1]).min().to_dict()
        return {(model, self.settings[n]): found for (model, n), found in shortest.items()}

    @cached_property
    def candidates(self) -> DataFrame:
        """What is chosen from, one row per candidate: `CHOICE`, ``cell``, ``own``, ``choice``.

        A model's trials that ran, as what they count as, on each seed that it has any on, and
        random initialisation besides. Rows of one ``choice`` are of one attacker.
        """
        import pandas as pd

        of = [*CHOICE, "place"]
        trials = self.members.merge(self.stand_ins, on="cell", how="left")
        trials["cell"] = trials["other"].fillna(trials["cell"]).astype("int64")
        trials = trials[self.cells["status"].isin(RAN).to_numpy()[trials["cell"]]]
        is_scratch = (self.models["kind"] == "scratch").to_numpy()
        fresh = self.members[is_scratch[self.members["model"]]].drop(columns=["model", "own"])
        attacked = trials.loc[~is_scratch[trials["model"]], of].drop_duplicates()
        more = attacked.merge(fresh, on=["setting", "seed", "place"]).assign(own=False)
        found = pd.concat([trials, more])[[*CHOICE, "cell", "own"]]
        found = found.sort_values("own", ascending=False).drop_duplicates([*CHOICE, "cell"])
        found["choice"] = found.groupby(list(CHOICE)).ngroup()
        return found

    @cached_property
    def choices(self) -> DataFrame:
        """One row per attacker: `CHOICE`, ``own``: one of the model's own trials ran."""
        return self.candidates.groupby(list(CHOICE))["own"].any().reset_index()

    @cached_property
    def best(self) -> Positions:
        """(choices, times) the tuned envelope: what each attacker picks within each budget."""
        rows = self.candidates
        return self.envelope(Groups(rows["choice"].to_numpy(), rows["cell"].to_numpy()))

    @cached_property
    def envelopes(self) -> Mapping[tuple[int, Setting], Envelope]:
        """The tuned envelope of each model in each setting that one of its own trials ran in."""
        own = self.choices["own"].to_numpy()
        seeds, best = self.choices["seed"].to_numpy()[own], self.best[own]
        tests = self.tests(best)
        return {
            key: Envelope(seeds[rows].tolist(), best[rows], tests[rows])
            for key, rows in self._by_setting(self.choices[own]).items()
        }

    def utilities(self, model: int, setting: Setting, times: float) -> dict[int, float]:
        """The envelope's test utility within ``times`` the budget by seed, where there is one."""
        found = self.envelopes.get((model, setting))
        if found is None:
            return {}
        tests = found.tests[:, self.times.index(times)].tolist()
        return {s: test for s, test in zip(found.seeds, tests, strict=True) if not math.isnan(test)}

    def seeds(self, model: int, setting: Setting) -> list[int]:
        """The seeds that the envelope is known on."""
        found = self.envelopes.get((model, setting))
        return [] if found is None else found.seeds

    def head(self, position: int) -> dict[str, Any]:
        """The columns of `HEAD` of one cell."""
        (found,) = self.cells[list(HEAD)].iloc[[position]].to_dict("records")
        return dict(found)

    def suites(self, groups: Groups) -> list[str | None]:
        """The suites that asked for the cells of each group."""
        return [
            OR.join(sorted({suite for label in labels for suite in label.split(OR)})) or None
            for labels in groups.distinct(self.cells["suite"])
        ]


def outcomes(results: Results) -> Outcomes:
    """The outcomes of records, found once however many functions ask."""
    if results not in _OUTCOMES:
        _OUTCOMES[results] = Outcomes(results)
    return _OUTCOMES[results]


_OUTCOMES: WeakKeyDictionary[Results, Outcomes] = WeakKeyDictionary()


def _numbered(cells: DataFrame, names: Sequence[str], **by: Any) -> tuple[DataFrame, Any]:
    """Distinct values of some columns, in order, and which of them each row has.

    Args:
        cells: The rows.
        names: The columns.
        by: What a column is ordered by instead of itself.
    """
    keys = cells[list(names)].assign(**by)
    numbers = keys.groupby(list(names)).ngroup()
    distinct = cells[list(names)].assign(number=numbers).drop_duplicates("number")
    return distinct.sort_values("number").drop(columns="number").reset_index(drop=True), numbers


def _labels(cells: DataFrame, kind: str) -> Series:
    """Selectors, with the version where two versions of one are in one place."""
    selector, version = cells[kind], cells[f"{kind}_version"]
    ambiguous = version.groupby([cells["place"], selector]).transform("nunique") > 1
    return selector.mask(ambiguous, selector + "@" + version.str[:7])


def _models(cells: DataFrame, places: int) -> tuple[DataFrame, Any]:
    """The table of attacked models, and the model of each cell's defense."""
    import pandas as pd

    label = ["place", "defense_label"]
    models = cells.groupby(label)["defense_control"].any().reset_index(name="control")
    models = models.assign(last=~models["control"]).sort_values(["place", "last", "defense_label"])
    models = models.drop(columns="last").reset_index(drop=True)
    number = models.reset_index(names="model").set_index(label)["model"]
    of_cells = number.reindex(pd.MultiIndex.from_frame(cells[label])).to_numpy()
    controls = pd.DataFrame(
        {
            "place": np.repeat(np.arange(places), 2),
            "kind": ["undefended", "scratch"] * places,
            "defense_label": None,
            "control": True,
        }
    )
    models = pd.concat([models.assign(kind="defense"), controls], ignore_index=True)
    return models, of_cells
