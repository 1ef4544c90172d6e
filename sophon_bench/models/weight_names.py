"""Weights under the names of a file, matched with a backbone whatever wraps them, or refused."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sophon_bench.models.weight_files import (
    DEEPEST,
    NAMED,
    CheckpointError,
    Content,
    Weights,
    counts,
    few,
    shortened,
    shown,
)
from sophon_bench.models.weight_hints import renaming, resembling

if TYPE_CHECKING:
    from sophon_bench.models.backbones import Backbone

INNER_WRAPPERS = frozenset(
    {
        "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module",
        "_forward_module",
    }
)  # fmt: skip
"""Components that wrappers of single modules put into a name: compiled, parallel, checkpointed."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A model's state dict, and how the file's names were read where they are not the expected."""

    weights: dict[str, Tensor]
    notes: list[str]


def fitted(
    content: Content, backbone: Backbone, num_outputs: int | None, *, prefix: str | None = None
) -> Fitted:
    """The model of the backbone that a file holds.

    Names may be this benchmark's own (``body.…``, ``head.…``) or timm's, behind any wrappers that
    all of them, or all of the body's, have in common. Floating-point values of another precision
    are converted; BatchNorm's counters may be missing, or be whole numbers of any type.

    Args:
        num_outputs: Classes of the original domain; None: as many as the head of the file has.
        prefix: What the model's names begin with; tensors outside of it are ignored. ``""`` takes
            names as they stand. None: the one model that there is.

    Raises:
        CheckpointError: If names, shapes or kinds of numbers are not those of the backbone, if
            there is more than one model, or if there is something besides.
        BackboneError: If there is no such backbone.
    """
    alone = num_outputs is None  # nobody chooses a prefix: the file has to hold the model alone
    backbone = backbone.with_head(None)
    if num_outputs is None:
        num_outputs = _head_width(content, backbone)
    layouts = _layouts(backbone, num_outputs)
    prefix = prefix and dotted(prefix)
    under = {n: t for n, t in content.tensors.items() if n.startswith(prefix or "")}
    candidates = _candidates(under, layouts, prefix)
    whole = [c for c in candidates if not c.problems]
    fits = [c for c in whole if c.prefix == prefix] or whole
    elsewhere = [] if fits else [c for c in _candidates(content.tensors, layouts) if not c.problems]
    file = repr(str(content.file))
    model = backbone.label if alone else f"{backbone.label} of {num_outputs} classes"
    if len(fits) > 1:
        places = " or ".join(repr(c.prefix) for c in fits)
        advice = f"save one of them alone, {places}" if alone else f"choose {_options(fits)}"
        raise CheckpointError(f"{file} holds {len(fits)} models that can be a {model}: {advice}")
    if prefix and not under:
        known = _options(elsewhere) if elsewhere else _beginnings(content.tensors, prefix)
        raise CheckpointError(f"{file}: no name begins with {prefix!r}; there is {known}")
    closest = min(fits or candidates, key=lambda c: sum(map(len, c.problems.values())))
    if closest.problems or closest.entangled:
        found = {**closest.problems, "unexpected": closest.inside}
        words = "; ".join(f"{len(s)} {kind} ({few(s)})" for kind, s in found.items() if s)
        hints = [_rule(closest), f"{_options(elsewhere)} fits" if elsewhere else ""]
        whose = "of any number of classes" if alone else "for the original domain"
        hints = hints if any(hints) else [_hint(closest, backbone, num_outputs, whose)]
        raise CheckpointError("; ".join([f"{file} is no {model}: {words}", *filter(None, hints)]))
    if closest.unexpected and prefix is None:
        advice = "save the model alone" if alone else f"{_options(fits)} takes the model alone"
        raise CheckpointError(
            f"{file} holds more than a {model}: {len(closest.unexpected)} unexpected "
            f"({few(closest.unexpected)}); {advice}"
        )
    weights = closest.weights()
    if not closest.layout.stem:
        weights = backbone.adopt(weights, num_outputs)
    return Fitted(weights=weights, notes=closest.notes(prefix))


def head_width(content: Content, backbone: Backbone, *, prefix: str | None = None) -> int | None:
    """Classes that the head in a file is for; None where that is not one number.

    Args:
        prefix: As of `fitted`.
    """
    start = dotted(prefix or "")
    under = {name: t for name, t in content.tensors.items() if name.startswith(start)}
    widths = _widths_of(under, backbone.with_head(None))
    return widths.pop() if len(widths) == 1 else None


def first_outputs(
    weights: Weights, backbone: Backbone, num_outputs: int, chosen: Sequence[int]
) -> dict[str, Tensor]:
    """The same model with some outputs of its head first, and the others in their order behind.

    Args:
        weights: Of a model of the backbone.
        num_outputs: Outputs that its head has.
        chosen: Which of them come first, in this order.
    """
    others = sorted({*range(num_outputs)} - {*chosen})
    order = torch.tensor([*chosen, *others])
    wider = _layouts(backbone.with_head(None), num_outputs + 1)[0].expected
    return {
        name: tensor if tensor.shape == wider[name].shape else tensor[order]
        for name, tensor in weights.items()
    }


def dotted(prefix: str) -> str:
    """A prefix with the dot that ends it; the empty one is whole."""
    return prefix if prefix.endswith(".") or not prefix else f"{prefix}."


@dataclass(frozen=True)
class _Layout:
    """Names that a model's state dict may have; of the values, only shapes and types count."""

    expected: Weights
    stem: str
    """What names of the body begin with."""
    head: frozenset[str]


def _layouts(backbone: Backbone, num_outputs: int) -> tuple[_Layout, _Layout]:
    """This benchmark's own names, and timm's."""
    own = backbone.build(num_outputs, torch.Generator(), fresh=True).state_dict()
    plain = backbone.timm_state(num_outputs)
    body = {name for name in own if name.startswith("body.")}
    bare = {name.removeprefix("body.") for name in body}
    return (
        _Layout(own, "body.", frozenset(own.keys() - body)),
        _Layout(plain, "", frozenset(plain.keys() - bare)),
    )


@dataclass(frozen=True)
class _Candidate:
    """Tensors of a file that may be a model.

    Attributes:
        tensors: All that are looked at.
        layout: What the names are compared with.
        prefix: What names of the model begin with in the file.
        start: What names of its body begin with, before timm's own.
        sources: The names in the file, by the expected name that each is taken for.
    """

    tensors: Weights
    layout: _Layout
    prefix: str
    start: str
    sources: Mapping[str, Sequence[str]]

    @cached_property
    def problems(self) -> dict[str, list[str]]:
        """What keeps the tensors from being a model, by its kind; nothing if they are one."""
        expected = self.layout.expected
        # in order of the state dict: a file has none
        sources = {name: sorted(self.sources[name]) for name in expected if name in self.sources}
        pairs = [
            (source, self.tensors[source], expected[name])
            for name, (source, *others) in sources.items()
            if not others
        ]
        found = {
            f"names of {len(expected)} missing": [
                self.place(n) for n in expected if n not in self.sources and not counts(n)
            ],
            "there more than once": [
                f"{self.place(name)} as {' and '.join(map(shown, some))}"
                for name, some in sources.items()
                if len(some) > 1
            ],
            "of another shape": [
                f"{shown(source)} is {tuple(tensor.shape)} where {tuple(like.shape)} is expected"
                for source, tensor, like in pairs
                if tensor.shape != like.shape and not (counts(source) and tensor.numel() == 1)
            ],
            "of another kind": [
                f"{shown(source)} holds {words}"
                for source, tensor, like in pairs
                if (words := _other_numbers(source, tensor, like))
            ],
        }
        return {words: some for words, some in found.items() if some}

    @cached_property
    def unexpected(self) -> list[str]:
        """Names of the file that are none of the model's."""
        return sorted(self.tensors.keys() - {*chain(*self.sources.values())})

    @property
    def inside(self) -> list[str]:
        """Those of them that are under the prefix."""
        return [name for name in self.unexpected if name.startswith(self.prefix)]

    @property
    def entangled(self) -> bool:
        """Whether any of them is in the model's own modules, so that more than it is computed."""

        def modules(names: Iterable[str]) -> set[str]:
            return {name.removeprefix(self.prefix).partition(".")[0] for name in names}

        return bool(modules(self.inside) & modules(chain(*self.sources.values())))

    @property
    def wrapper(self) -> str:
        """What names of the body have in them besides."""
        return self.start.removeprefix(self.prefix).removeprefix(self.layout.stem)

    @property
    def depth(self) -> int:
        """How many components that is."""
        return self.wrapper.count(".")

    def place(self, name: str) -> str:
        """Where an expected name is looked for in the file."""
        if name in self.layout.head:
            return self.prefix + name
        return self.start + name.removeprefix(self.layout.stem)

    def bare(self, name: str, outer: str) -> str:
        """A name of the file as the layout would have it, without ``outer`` if not the body's."""
        if name.startswith(self.start):
            return self.layout.stem + _unwrapped(name.removeprefix(self.start))
        return _unwrapped(name.removeprefix(outer))

    def weights(self) -> dict[str, Tensor]:
        """The tensors of one that has no problems, under the expected names."""
        found = {}
        for name, like in self.layout.expected.items():
            if name not in self.sources:
                found[name] = torch.zeros_like(like)
                continue
            tensor = self.tensors[self.sources[name][0]]
            found[name] = (tensor.reshape(()) if counts(name) else tensor).to(like.dtype)
        return found

    def notes(self, chosen: str | None) -> list[str]:
        """How names were read, but for a prefix that was asked for."""
        found = []
        if self.prefix and self.prefix != chosen:
            found.append(f"names are read without their prefix {self.prefix!r}")
        if self.wrapper:
            found.append(f"names of the body are read without {self.wrapper!r} in them")
        inner = {
            word
            for name, (source, *_) in self.sources.items()
            for word in set(source.split(".")) - set(self.place(name).split("."))
        }
        if inner:
            words = " and ".join(repr(word) for word in sorted(inner))
            found.append(f"names are read without {words} in them")
        return found


def _other_numbers(name: str, tensor: Tensor, like: Tensor) -> str:
    """What a tensor holds instead of what is expected, or nothing if it holds that."""
    if counts(name) and tensor.numel() == 1 and not tensor.is_complex():
        value = tensor.item()
        whole = float(value).is_integer() and abs(value) < 2**63
        return "" if whole else f"{value} where a whole number is expected"
    if (tensor.is_floating_point(), tensor.is_complex()) == (like.is_floating_point(), False):
        return ""
    types = (str(one.dtype).removeprefix("torch.") for one in (tensor, like))
    return " where ".join(types) + " is expected"


def _unwrapped(name: str) -> str:
    """A name without wrappers of modules inside of it."""
    first, *rest = name.split(".")
    return ".".join([first, *(word for word in rest if word not in INNER_WRAPPERS)])


def _candidates(
    tensors: Weights, layouts: tuple[_Layout, _Layout], chosen: str | None = None
) -> list[_Candidate]:
    """What may be a model in a file: each body that is as whole as any, with the nearest head.

    At least one; where there is nothing like the model, one without tensors.
    """
    own, plain = layouts
    body = {name.removeprefix(own.stem) for name in own.expected.keys() - own.head}
    bodies = _places(tensors, body)
    heads = defaultdict(list)
    for layout in layouts:
        for prefix, of_head in _places(tensors, layout.head).items():
            heads[prefix].append((layout, of_head))
    whole = min(sum(not counts(name) for name in body), max(map(len, bodies.values()), default=0))

    def candidate(
        layout: _Layout, prefix: str, start: str, of_head: Mapping[str, Sequence[str]]
    ) -> _Candidate:
        of_body = {layout.stem + name: some for name, some in bodies[start].items()}
        return _Candidate(tensors, layout, prefix, start, {**of_body, **of_head})

    def headless(start: str) -> _Candidate:
        layout = own if start.endswith(own.stem) and start != chosen else plain
        return candidate(layout, start.removesuffix(layout.stem), start, {})

    found = []
    for start in (start for start, names in bodies.items() if len(names) >= whole):
        near = [
            candidate(layout, prefix, start, of_head)
            for prefix in _enclosing(start)
            for layout, of_head in heads.get(prefix, ())
            # a head beside timm's own names is timm's
            if layout is plain or start != prefix
        ]
        found.append(
            max(near, key=lambda c: (len(c.prefix), len(c.sources)), default=headless(start))
        )
    # a head is the nearest body's
    found = [
        headless(c.start)
        if c.depth and any(o.prefix == c.prefix and o.depth <= c.depth for o in found if o is not c)
        else c
        for c in found
    ]
    if chosen is not None:  # it, or what stands behind it
        found = [c for c in found if c.prefix.startswith(chosen) and (chosen or not c.prefix)]
    if found:
        return sorted(found, key=lambda c: c.prefix)
    prefix = _common(tensors) if chosen is None else chosen
    layout = own if any(name.startswith(prefix + own.stem) for name in tensors) else plain
    return [_Candidate(tensors, layout, prefix, prefix + layout.stem, {})]


def _common(names: Iterable[str]) -> str:
    """What all names begin with, in whole components."""
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 - of text, up to a dot
    return shared[: shared.rfind(".") + 1]


def _places(names: Iterable[str], part: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Where the names of a part of a model are: names of the file by prefix and expected name."""
    places: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        words = name.split(".")
        for at in range(max(0, len(words) - DEEPEST), len(words)):
            rest = ".".join(words[at:])
            for own in dict.fromkeys((rest, _unwrapped(rest))):
                if own in part:
                    places[name.removesuffix(rest)][own].append(name)
                    break
    return {prefix: dict(found) for prefix, found in places.items()}


def _options(candidates: Iterable[_Candidate]) -> str:
    return " or ".join(f"--prefix {c.prefix!r}" for c in candidates)


def _beginnings(names: Iterable[str], prefix: str) -> str:
    """What names begin with, closest to a prefix first."""
    known = {dotted(name.partition(".")[0]) for name in names if "." in name}
    close = difflib.get_close_matches(prefix, known, n=NAMED, cutoff=0)
    return " or ".join(repr(shortened(word)) for word in close) or "none"


def _hint(candidate: _Candidate, backbone: Backbone, num_outputs: int, whose: str) -> str:
    """What the file probably is, if that can be told; ``whose`` is the head that is expected."""
    likely = _resembling(candidate, backbone.name)
    if backbone.name.split(".")[0] not in likely:
        if likely:
            return f"it looks like --backbone {' or '.join(likely)}"
        return "timm's names and this benchmark's own (body.…, head.…) are understood"
    widths = _widths(candidate, backbone, num_outputs)
    if widths == {num_outputs}:
        return ""
    counts = " or ".join(map(str, sorted(widths)))
    head = f"its head is for {counts} classes" if widths else "it has no head"
    return f"{head}: expected the model with its head {whose}"


def _widths(candidate: _Candidate, backbone: Backbone, num_outputs: int) -> set[int]:
    """Numbers of classes that the head of a candidate for so many outputs is for."""
    stem, expected = candidate.layout.stem, candidate.layout.expected
    (wider,) = (x.expected for x in _layouts(backbone, num_outputs + 1) if x.stem == stem)
    return {
        len(tensor)
        for name, sources in candidate.sources.items()
        if expected[name].shape != wider[name].shape
        and (tensor := candidate.tensors[sources[0]]).ndim
    }


def _head_width(content: Content, backbone: Backbone) -> int:
    """The number of classes of the model in a file; 1 where it has no head."""
    widths = _widths_of(content.tensors, backbone)
    if len(widths) > 1:
        raise CheckpointError(
            f"{str(content.file)!r} holds heads of {' and '.join(map(str, sorted(widths)))} "
            f"classes: save one model alone"
        )
    return widths.pop() if widths else 1


def _widths_of(tensors: Weights, backbone: Backbone) -> set[int]:
    """Numbers of classes that heads of models among tensors are for."""
    candidates = _candidates(tensors, _layouts(backbone, 1))
    return {width for one in candidates for width in _widths(one, backbone, 1)}


def _resembling(candidate: _Candidate, name: str) -> list[str]:
    """Architectures that a file looks like, read as the candidate or without a common prefix."""
    tensors, prefix, common = candidate.tensors, candidate.prefix, _common(candidate.tensors)
    readings = (
        {candidate.bare(n, prefix): t.shape for n, t in tensors.items() if n.startswith(prefix)},
        {_unwrapped(n.removeprefix(common)): t.shape for n, t in tensors.items()},
    )
    found = (
        resembling({n.removeprefix("body."): shape for n, shape in reading.items()}, name)
        for reading in readings
    )
    return next(filter(None, found), [])


def _rule(candidate: _Candidate) -> str:
    """The renaming that explains all that is missing and all that is unexpected, or nothing."""
    missing = {
        name: tensor.shape
        for name, tensor in candidate.layout.expected.items()
        if name not in candidate.sources
    }
    for outer in _enclosing(candidate.prefix):
        given = {
            candidate.bare(name, outer): candidate.tensors[name].shape
            for name in candidate.unexpected
            if name.startswith(outer)
        }
        rules = renaming(given, missing)
        if rules:
            words = ", ".join(f"{given!r} for {expected!r}" for given, expected, _ in rules)
            count = sum(count for _, _, count in rules)
            return f"its names differ from those expected by one rule: {words} ({count} names)"
    return ""


def _enclosing(prefix: str) -> Iterator[str]:
    """A prefix, and the shorter ones that it begins with, `DEEPEST` at most."""
    words = prefix.split(".")[:-1]
    for at in range(len(words), max(-1, len(words) - DEEPEST), -1):
        yield "".join(f"{word}." for word in words[:at])
