"""Every attack on the undefended embedded scenario: one that does not learn there is broken."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sophon_bench.api import Incompatible, Samples, attacks, scenarios
from sophon_bench.harness import loop
from sophon_bench.harness.bench import Bench, Weights
from sophon_bench.models.backbones import Backbone

pytestmark = pytest.mark.slow

SAMPLES = 200
SAMPLING_ERROR = 0.03
"""One and a half standard deviations of a difference on the test split of 497."""


def quiet(_fraction: float | None, _words: str) -> None:
    pass


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    data = scenarios.get("glyphs-digits").cls().build(tmp_path_factory.mktemp("data"))
    return Bench(data, Backbone.of("test_resnet"), device=torch.device("cpu"), precision="fp32")


@pytest.fixture(scope="module")
def undefended(glyphs: Bench) -> Weights:
    return loop.pretrain(glyphs, 0, quiet).weights


@pytest.fixture(scope="module")
def linear_probe(glyphs: Bench, undefended: Weights) -> float:
    """Test accuracy of logistic regression on the frozen features."""
    model = glyphs.load(undefended).eval()
    train, _ = glyphs.attacker(glyphs.data.restricted, SAMPLES, 0)
    test = glyphs.samples(glyphs.data.restricted, "test")

    @torch.no_grad()
    def columns(samples: Samples) -> object:
        return model.features(samples.inputs).double().numpy()

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    probe.fit(columns(train), train.targets.numpy())
    return float(probe.score(columns(test), test.targets.numpy()))


@pytest.mark.parametrize("name", [n for n in attacks.names() if not attacks.get(n).control])
def test_an_attack_learns_at_least_what_a_linear_probe_does(
    name: str, glyphs: Bench, undefended: Weights, linear_probe: float
) -> None:
    budget = glyphs.data.steps * 64
    try:
        found = loop.attack(
            glyphs,
            undefended,
            attacks.get(name).cls(),
            samples=SAMPLES,
            seed=0,
            budget=budget,
            tick=quiet,
        )
    except Incompatible as reason:
        pytest.skip(f"does not apply to this backbone: {reason}")
    assert (found.status, found.reason) == ("ok", None)
    best = max(found.curve, key=lambda point: point.selection)
    assert best.test >= linear_probe - SAMPLING_ERROR
