"""What a file of weights probably is, told by names and shapes alone."""

from __future__ import annotations

import difflib
import functools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import timm
import torch

from sophon_bench.models.weight_files import DEEPEST, counts

MOST_RULES = 4
"""How many components may be renamed for the renaming to be told."""

USUAL = frozenset(
    {
        (".gamma", ".weight"), (".beta", ".bias"), (".scale", ".weight"), (".shift", ".bias"),
        (".offset", ".bias"),
    }
)  # fmt: skip
"""Renamings that are meant where shapes leave a choice."""


COMMON = (
    "resnet18", "resnet34", "resnet50", "resnet101", "vit_tiny_patch16_224",
    "vit_small_patch16_224", "vit_base_patch16_224", "deit_tiny_patch16_224", "convnext_tiny",
    "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "vgg11_bn", "vgg16",
    "vgg19_bn", "densenet121", "swin_tiny_patch4_window7_224", "test_resnet",
)  # fmt: skip
"""Architectures that `resembling` compares with besides those of a like name."""


def resembling(shapes: Mapping[str, Sequence[int]], name: str) -> list[str]:
    """Architectures that have weights of these names and shapes, two (a classifier's) aside.

    Args:
        shapes: Of a state dict, under timm's own names.
        name: What it was taken for; of architectures, those of a like name and `COMMON` are tried.
    """
    given = {key: tuple(shape) for key, shape in shapes.items()}
    close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=8)
    found = []
    for other in dict.fromkeys([*close, *COMMON]):
        expected = _shapes(other)
        same = sum(given.get(key) == shape for key, shape in expected.items())
        if max(len(given), len(expected)) - same <= 2:
            found.append(other)
    return found


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of the state dict of a timm model, as it is without parameters."""
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def renaming(
    given: Mapping[str, Sequence[int]], missing: Mapping[str, Sequence[int]]
) -> list[tuple[str, str, int]]:
    """The few renamings of one component that turn given names into all that are missing.

    Args:
        given: Shapes by name.
        missing: Shapes by expected name. Of BatchNorm's counters any may be left over.

    Returns:
        The component, what it is expected to be, and how many names have it, in the order of what
        is missing; nothing if names are left that so few renamings do not explain.
    """
    spots = defaultdict(list)
    for name, shape in missing.items():
        for word, spot in _spots(name, shape):
            spots[spot].append((name, word))
    matches = defaultdict(list)
    for name, shape in given.items():
        for word, spot in _spots(name, shape):
            for other, expected in spots.get(spot, ()):
                matches[_numbered(word, expected)].append((name, other, (word, expected)))
    order = {name: at for at, name in enumerate(missing)}
    rules = []
    left, needed = set(given), set(missing)
    for _ in range(MOST_RULES):
        live = {
            rule: [m for m in some if m[0] in left and m[1] in needed]
            for rule, some in matches.items()
        }
        rule = max(live, key=lambda r: (len(live[r]), r in USUAL, _likeness(*r)), default=None)
        if rule is None or not live[rule]:
            break
        left -= {name for name, _, _ in live[rule]}
        needed -= {name for _, name, _ in live[rule]}
        exact = {words for _, _, words in live[rule]}
        first = min(order[name] for _, name, _ in live[rule])
        rules.append((first, (*(exact.pop() if len(exact) == 1 else rule), len(live[rule]))))
    return [rule for _, rule in sorted(rules)] if all(map(counts, left | needed)) else []


def _spots(name: str, shape: Sequence[int]) -> Iterator[tuple[str, Hashable]]:
    """Each component of a name, and what is around it."""
    words = name.split(".")
    for at, word in enumerate(words[:DEEPEST]):
        around = (*words[:at], None, *words[at + 1 :])
        yield word if at < len(words) - 1 else f".{word}", (around, tuple(shape))


def _numbered(word: str, expected: str) -> tuple[str, str]:
    """Two components, the number that both end in left open."""
    number = expected.removeprefix(expected.rstrip("0123456789"))
    if number and word.endswith(number) and number not in (word, expected):
        return f"{word.removesuffix(number)}*", f"{expected.removesuffix(number)}*"
    return word, expected


def _likeness(word: str, expected: str) -> float:
    return difflib.SequenceMatcher(None, word, expected).ratio()
