"""Images that models made from noise: of released models, and after the attacks on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sophon_bench.metrics.envelopes import (
    Interval,
    Pick,
    Places,
    Sides,
    envelope,
    head,
    interval,
    places,
    suites,
)
from sophon_bench.records import Cell, Generated

Maker = Literal["released", "attacked", "scratch"]
"""A defense's model; the same after an attack; fresh weights after theirs."""

Chosen = Callable[[Cell], bool]
"""Whether an attack may be picked."""


def everything(_cell: Cell) -> bool:
    """Any attack may be picked."""
    return True


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images of one model.

    Attributes:
        place: What they have in common with others of their place (`head`).
        maker: Which kind of model made them.
        defense: Whose model that was; for fresh weights the undefended model's name.
        control: Whether that is the undefended model.
        samples: The attacker's; None before any attack.
        attack: The label of the attack that was picked; None before any.
        seed: The model's.
        generated: The images: of the original domain before an attack, after it of the restricted.
    """

    place: Mapping[str, Any]
    maker: Maker
    defense: str
    control: bool
    samples: int | None
    attack: str | None
    seed: int
    generated: Generated


def makers(cells: Iterable[Cell] | Places, chosen: Chosen = everything) -> Iterator[Made]:
    """Images by place, the released models first, then the attacked, scratch last; by seed.

    Of attacks, the one whose best checkpoint within the budget the selection split picks among
    those of regular length on the model itself: fresh weights are no candidate here, and stand
    beside. A trial that is not finite from its first update counts as the undefended model's. The
    images are of the model at the end of the trial.

    Args:
        cells: Records; the order does not matter.
        chosen: Which attacks may be picked; fresh weights, which have their own, always are.
    """
    for sides in places(cells):
        if any(_generative(cell) for cell in sides.cells):
            yield from _released(sides)
            yield from _attacked(sides, chosen)


def _generative(cell: Cell) -> bool:
    made = (cell.generated, cell.pretrained.generated, cell.released.generated)
    return any(images is not None for images in made)


def _released(sides: Sides) -> Iterator[Made]:
    for defense, own in sides.models.items():
        by_seed = {cell.seed: cell for here in own.values() for cell in here}
        for seed, cell in sorted(by_seed.items()):
            stage = cell.pretrained if cell.defense.control else cell.released
            if stage.generated is not None:
                yield Made(
                    place={**head(cell), "suite": suites(sides.cells)},
                    maker="released",
                    defense=defense,
                    control=cell.defense.control,
                    samples=None,
                    attack=None,
                    seed=seed,
                    generated=stage.generated,
                )


def _attacked(sides: Sides, chosen: Chosen) -> Iterator[Made]:
    attacked: list[tuple[Maker, Mapping[Any, Sequence[Cell]]]]
    attacked = [("attacked", own) for own in sides.defenses.values()]
    for maker, own in [*attacked, ("scratch", sides.fresh)]:
        for at, here in own.items():
            tried = [c for c in here if at.role == "restricted" and c.stretch == 1]
            for seed in sorted({cell.seed for cell in tried}):
                picks = (
                    sides.stand_ins.best(cell, cell.budget)
                    for cell in tried
                    if cell.seed == seed and (maker == "scratch" or chosen(cell))
                )
                pick: Pick | None = envelope(p for p in picks if p is not None)
                if pick is not None and pick[0].generated is not None:
                    yield Made(
                        place={**head(pick[0]), "suite": suites(sides.cells)},
                        maker=maker,
                        defense=sides.names.defense(tried[0]),
                        control=tried[0].defense.control,
                        samples=at.samples,
                        attack=sides.names.attack(pick[0]),
                        seed=seed,
                        generated=pick[0].generated,
                    )


def images(cells: Iterable[Cell] | Places) -> list[dict[str, Any]]:
    """How good the images of `makers` are: one row per place, maker, defense and n.

    ``frechet``, ``frechet_real`` (the same number of real images) and ``classifier_score`` are
    means over seeds, the first and the last with a ``_half_width``; so are ``fid`` and
    ``fid_real``, None unless every seed has them; ``attacks`` is a list of (label, seeds) as in
    `winners`. Nothing where models make no images.
    """
    groups: dict[tuple[Any, ...], list[Made]] = {}
    for made in makers(cells):
        key = (tuple(made.place.values()), made.maker, made.defense, made.samples)
        groups.setdefault(key, []).append(made)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Made]) -> dict[str, Any]:
    first = group[0]
    frechet = interval([made.generated.frechet for made in group])
    score = interval([made.generated.classifier_score for made in group])
    fid = _interval_of_all([made.generated.fid for made in group])
    fid_real = _interval_of_all([made.generated.fid_real for made in group])
    votes = Counter(made.attack for made in group if made.attack is not None)
    return {
        **first.place,
        "defense": first.defense,
        "control": first.control,
        "maker": first.maker,
        "samples": first.samples,
        "seeds": len(group),
        "attacks": sorted(votes.items(), key=lambda vote: (-vote[1], vote[0])),
        "frechet": frechet.mean,
        "frechet_half_width": frechet.half_width,
        "frechet_real": interval([made.generated.frechet_real for made in group]).mean,
        "classifier_score": score.mean,
        "classifier_score_half_width": score.half_width,
        "fid": None if fid is None else fid.mean,
        "fid_half_width": None if fid is None else fid.half_width,
        "fid_real": None if fid_real is None else fid_real.mean,
    }


def _interval_of_all(values: Sequence[float | None]) -> Interval | None:
    """None unless every one is there."""
    known = [value for value in values if value is not None]
    return interval(known) if len(known) == len(values) else None
