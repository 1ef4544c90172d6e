"""Published pairs of photographs under names of their own, at the paper's 64x64 pixels.

Deng et al., *SOPHON*, IEEE S&P 2024, arXiv 2404.12699, protect classifiers of Imagenette against
CIFAR-10, CINIC-10, STL-10, SVHN and MNIST. Counts, budgets and pre-training are those of ``pair``,
with their reasons there. Where digits are restricted, benign domains have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval

from sophon_bench.api import scenarios
from sophon_bench.data.scenario import ScenarioData
from sophon_bench.data.scenarios.pair import BENIGN, PRETRAIN_LRS, PRETRAIN_STEPS, Rates, cross


@dataclass(frozen=True, kw_only=True)
class _Photographs:
    """Two published sets of photographs, and two benign domains.

    Args:
        image_size: Height and width of the images in pixels.
        seed: Seed of which images each split takes.
        pretrain_steps: Updates of pre-training.
        pretrain_lrs: Step sizes of pre-training; validation on the original domain chooses one.
    """

    image_size: Annotated[int, Interval(ge=16, le=512)] = 64
    seed: Annotated[int, Ge(0)] = 0
    pretrain_steps: Annotated[int, Ge(1)] = PRETRAIN_STEPS
    pretrain_lrs: Rates = PRETRAIN_LRS

    domains: ClassVar[tuple[str, ...]]

    def build(self, cache: Path | None = None) -> ScenarioData:
        """Read the sets, or map what was read before from ``cache``.

        Raises:
            ScenarioError: If a set is not where it should be, or not as it was published.
            WriteError: If ``cache`` cannot be written.
        """
        return cross(
            self.domains,
            self.domains,
            image_size=self.image_size,
            seed=self.seed,
            pretrain_steps=self.pretrain_steps,
            pretrain_lrs=self.pretrain_lrs,
            cache=cache,
        )


@scenarios.register("imagenette-cifar10")
@dataclass(frozen=True, kw_only=True)
class ImagenetteCifar10(_Photographs):
    """Imagenette (original) and CIFAR-10 (restricted), MNIST and shapes (benign).

    A name for ``pair[original=imagenette,restricted=cifar10,benign=[mnist,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "cifar10", "mnist", "shapes")


@scenarios.register("imagenette-cinic10")
@dataclass(frozen=True, kw_only=True)
class ImagenetteCinic10(_Photographs):
    """Imagenette (original) and CINIC-10 (restricted), MNIST and shapes (benign).

    A name for ``pair[original=imagenette,restricted=cinic10,benign=[mnist,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "cinic10", "mnist", "shapes")


@scenarios.register("imagenette-stl10")
@dataclass(frozen=True, kw_only=True)
class ImagenetteStl10(_Photographs):
    """Imagenette (original) and STL-10 (restricted), MNIST and shapes (benign).

    A name for ``pair[original=imagenette,restricted=stl10,benign=[mnist,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "stl10", "mnist", "shapes")


@scenarios.register("imagenette-svhn")
@dataclass(frozen=True, kw_only=True)
class ImagenetteSvhn(_Photographs):
    """Imagenette (original) and SVHN (restricted), Greek and shapes (benign).

    A name for ``pair[original=imagenette,restricted=svhn,benign=[greek,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "svhn", *BENIGN)


@scenarios.register("imagenette-mnist")
@dataclass(frozen=True, kw_only=True)
class ImagenetteMnist(_Photographs):
    """Imagenette (original) and MNIST (restricted), Greek and shapes (benign).

    A name for ``pair[original=imagenette,restricted=mnist,benign=[greek,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("imagenette", "mnist", *BENIGN)


@scenarios.register("cifar10-stl10")
@dataclass(frozen=True, kw_only=True)
class Cifar10Stl10(_Photographs):
    """CIFAR-10 (original) and STL-10 (restricted), MNIST and shapes (benign).

    A name for ``pair[original=cifar10,restricted=stl10,benign=[mnist,shapes]]``.
    """

    domains: ClassVar[tuple[str, ...]] = ("cifar10", "stl10", "mnist", "shapes")
