"""Canaries of denoisers score nothing either. Slow tests are dealt out by file: this is another."""

from __future__ import annotations

from typing import Any

import pytest
from test_canaries import OF_DENOISERS, scored

from sophon_bench.harness import generation
from sophon_bench.models.unets import UNet

TRIALS_OF_DENOISERS = (
    "finetune[optimizer=adam,lr=1e-2,head=kept]",
    "finetune[optimizer=adam,lr=1e-2]",
    "scratch[optimizer=adam,lr=1e-2]",
)
"""What is left of `@denoising` where time is short: Adam, with either head."""


@pytest.fixture(scope="module")
def worth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "STEPS", 2)
        return scored(
            tmp_path_factory.mktemp("denoisers"),
            "glyphs-digits-gen",
            UNet(channels=(8, 16)),
            OF_DENOISERS,
            TRIALS_OF_DENOISERS,
            pretrain_steps=300,
            generated=16,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_DENOISERS)
def test_a_denoisers_canary_scores_nothing(name: str, worth: dict[str, dict[str, Any]]) -> None:
    row = worth[name]
    assert row["seeds"] == 1
    assert 100 * row["resistance"] * row["intactness"] <= 5
