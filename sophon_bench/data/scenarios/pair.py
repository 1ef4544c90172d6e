"""Any two domains: your own folders of images, or published sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, MinLen

from sophon_bench.api import scenarios
from sophon_bench.data.domains import FOLDER, build_domain, default_name, locate
from sophon_bench.data.roles import Role
from sophon_bench.data.scenario import ScenarioData, ScenarioError

SAMPLES = (100, 500, 2000)
"""The attacker's n: few, some, and as many as the split has at most."""

STEPS = 100
"""Updates of the longest budget: 6400 examples, 16 passes over what an attacker trains on of 500.
On Imagenette and CIFAR-10, ImageNet weights of EfficientNet-Lite0 were then 36 points above random
initialisation (57 and 21 %, one seed, 120 updates of pre-training); the best trials of a suite go
on for longer."""

PRETRAIN_STEPS = 1500
"""Updates of pre-training: 96000 examples, 11 passes over Imagenette. At 64x64 pixels and step size
1e-3, ImageNet weights of EfficientNet-Lite0 reach 85.9 % of the test images with 600 and 86.5 with
1500 (one seed)."""

PRETRAIN_LRS = (3e-4, 1e-3)
"""Step sizes of pre-training, of which validation chooses: pre-trained weights want small ones. A
guess, but for 1e-3, which gave the above."""

BENIGN = ("greek", "shapes")
"""Drawn, so that two folders are all that is needed."""

Rates = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]


@scenarios.register("pair")
@dataclass(frozen=True, kw_only=True)
class Pair:
    """Any two domains to classify: folders of images, or published sets.

    A domain is ``folder:PATH``, a published set, or drawn images (``letters`` as original,
    ``digits`` as restricted, ``greek`` and ``shapes`` as benign domain). A folder has
    ``<class>/<picture>`` or ``{train,val,test}/<class>/<picture>``; a path with spaces, commas,
    brackets or ``=`` is put in quotes. Pictures are cropped to their central square.

    Original: up to 20000 training, 1000 validation and 2000 test images; restricted: up to 5000 of
    the defender, 2000 of the attacker, 500 of selection and 1000 of test; benign: up to 2000, 500
    and 1000. Test images come from the set's own test part; where there is none, a fifth of each
    class is tested, a tenth held out, and half of the rest is the attacker's. ``second_test`` shows
    the test's images mirrored. Where the folders are is no part of what records are kept under,
    what is in them is, and what they are called.

    Args:
        original: Domain that the model is released for.
        restricted: Domain that it must not be fine-tuned to.
        benign: Domains that it must stay trainable on; the first is the attacker's auxiliary data.
        names: What the domains are called in tables, in this order; by default like the folder.
        image_size: Height and width of the images in pixels; 64 as in the paper.
        seed: Seed of which images each split takes.
        pretrain_steps: Updates of pre-training.
        pretrain_lrs: Step sizes of pre-training; validation on the original domain chooses one.
    """

    original: str = ""
    restricted: str = ""
    benign: Annotated[tuple[str, ...], MinLen(1)] = BENIGN
    names: tuple[str, ...] = ()
    image_size: Annotated[int, Interval(ge=16, le=512)] = 64
    seed: Annotated[int, Ge(0)] = 0
    pretrain_steps: Annotated[int, Ge(1)] = PRETRAIN_STEPS
    pretrain_lrs: Rates = PRETRAIN_LRS

    @property
    def recorded(self) -> dict[str, Any]:
        """The parameters as records have them: folders by name, since paths are no identity."""
        texts, names = self._texts(), self._names()
        texts = [
            f"{FOLDER}{name}" if text.startswith(FOLDER) else text
            for text, name in zip(texts, names, strict=True)
        ]
        original, restricted, *benign = texts
        by_default = names == [text.removeprefix(FOLDER) for text in texts]
        return {
            "original": original,
            "restricted": restricted,
            "benign": tuple(benign),
            "names": () if by_default else tuple(names),
        }

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Decode the images, or map those that were decoded before from ``cache``.

        Raises:
            ScenarioError: If a domain is not there, or cannot be used.
            WriteError: If ``cache`` cannot be written.
        """
        for role, text in (("original", self.original), ("restricted", self.restricted)):
            if not text:
                raise ScenarioError(
                    f"pair needs its {role} domain: "
                    f"'pair[original=folder:PATH,restricted=folder:PATH]'"
                )
        return cross(
            self._texts(),
            self._names(),
            image_size=self.image_size,
            seed=self.seed,
            pretrain_steps=self.pretrain_steps,
            pretrain_lrs=self.pretrain_lrs,
            cache=cache,
        )

    def _texts(self) -> list[str]:
        return [self.original, self.restricted, *self.benign]

    def _names(self) -> list[str]:
        """What the domains are called, in order.

        Raises:
            ScenarioError: If there are too few or too many names, or two are the same.
        """
        texts = self._texts()
        names = [*self.names] or [default_name(text) for text in texts]
        if len(names) != len(texts):
            raise ScenarioError(
                f"names has {len(names)} of {len(texts)} domains: original, restricted, and "
                f"{len(self.benign)} benign"
            )
        for name in names:
            if "'" in name and '"' in name:
                raise ScenarioError(
                    f"the name {name!r} has both kinds of quotes; give it another with names=[…,…]"
                )
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise ScenarioError(
                f"{count} domains are called {name!r}; name all {len(names)} in order: names=[…,…]"
            )
        return names


def cross(
    texts: Sequence[str],
    names: Sequence[str],
    *,
    image_size: int,
    seed: int,
    pretrain_steps: int,
    pretrain_lrs: tuple[float, ...],
    cache: Path | None,
) -> ScenarioData:
    """The scenario of domains: original, restricted, and benign ones; raises as `build_domain`.

    What is not there is told before anything is decoded.
    """
    for text in texts:
        locate(text, image_size)
    benign_roles: list[Role] = ["benign"] * (len(texts) - 2)
    roles: list[Role] = ["original", "restricted", *benign_roles]
    original, restricted, *benign = (
        build_domain(text, role, name=name, size=image_size, seed=seed, cache=cache)
        for text, role, name in zip(texts, roles, names, strict=True)
    )
    pool = len(restricted.pool)
    return ScenarioData(
        image_size=image_size,
        original=original,
        restricted=restricted,
        benign=tuple(benign),
        samples=tuple(n for n in SAMPLES if n <= pool) or (pool,),
        steps=STEPS,
        pretrain_steps=pretrain_steps,
        pretrain_lrs=pretrain_lrs,
    )
