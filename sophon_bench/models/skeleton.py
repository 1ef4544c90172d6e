"""A backbone without numbers: shapes alone, on torch's meta device, however large it is."""

from __future__ import annotations

from typing import Any

import timm
import torch

from sophon_bench.models.architecture import BackboneError, Precision
from sophon_bench.models.backbones import Backbone
from sophon_bench.models.timm_models import TimmModel


def skeleton(backbone: Backbone, num_outputs: int, *, precision: Precision = "fp32") -> TimmModel:
    """The model of a backbone on the meta device, in train mode; nothing is allocated or drawn.

    Args:
        backbone: Weights that it starts from do not matter.
        num_outputs: Width of the head's output.
        precision: ``bf16`` runs the model under autocast.

    Raises:
        BackboneError: If timm cannot build it of its parameters.
    """
    parameters: dict[str, Any] = dict(backbone.bare.parameters)
    try:
        with torch.device("meta"):
            body = timm.create_model(backbone.name, num_classes=num_outputs, **parameters)
    except Exception as error:
        raise BackboneError(f"backbone {backbone.label!r} cannot be built: {error}") from error
    return TimmModel(body, num_outputs, precision=precision)
