"""How like the restricted domain every other domain looks to the pre-trained model."""

from __future__ import annotations

from typing import Any

import torch

from sophon_bench.data.scenario import DomainData
from sophon_bench.execution.plan import PretrainStage
from sophon_bench.execution.runs import Job
from sophon_bench.harness.bench import Bench

MOST = 500
"""Images of a split that a classifier is fitted to, or judged by."""


def similarities(job: Job) -> list[dict[str, Any]]:
    """Rows of ``scenario``, ``backbone``, ``domain`` and ``similarity``: one per seed and domain.

    The pre-trained models of a job that was run are taken from its store.
    """
    rows = []
    for stage in job.plan.models:
        if not isinstance(stage, PretrainStage):
            continue
        record = job.store.model(stage.key)
        if record.weights is None:
            continue
        setting = stage.setting
        bench = Bench(
            setting.data, setting.backbone, device=job.device, precision=setting.precision
        )
        found = similarity(bench, job.store.weights(record))
        where = {"scenario": record.scenario.label, "backbone": record.backbone}
        rows += [{**where, "domain": name, "similarity": value} for name, value in found.items()]
    return rows


def similarity(bench: Bench, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """By domain, from 0 to 1: twice the error of who tells it from the restricted domain.

    A logistic regression on the model's features, standardised, is fitted to the defender's
    restricted images and the domain's training images, and judged by its balanced error on the
    restricted selection split and the domain's test images. 0 where it is never wrong, 1 where it
    has to guess. This is 1 minus half of the proxy A-distance of Ben-David et al., *Analysis of
    Representations for Domain Adaptation*, NeurIPS 2006.

    Args:
        bench: The scenario's data, and the backbone.
        weights: A model's state dict.
    """
    model = bench.load(weights).eval()
    restricted = bench.data.restricted

    def features(domain: DomainData, split: str) -> Any:
        samples = bench.samples(domain, split)
        index = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:MOST]
        with torch.no_grad():
            parts = [model.features(samples[rows].inputs).float() for rows in index.split(64)]
        return torch.cat(parts).cpu().numpy()

    near = features(restricted, "defender"), features(restricted, "selection")
    found = {}
    for domain in bench.data.domains:
        pool = "attacker" if domain is restricted else "train"
        far = features(domain, pool), features(domain, "test")
        found[domain.name] = min(1.0, 2 * _error(near, far))
    return found


def _error(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    """The balanced error of a classifier fitted to the first of each pair, on the second."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    sides = np.repeat([0, 1], [len(one[0]), len(other[0])])
    classifier.fit(np.concatenate([one[0], other[0]]), sides)
    wrong = [np.mean(classifier.predict(side[1]) != n) for n, side in enumerate((one, other))]
    return float(np.mean(wrong))
