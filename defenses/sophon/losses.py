r"""What the defender minimises on the restricted domain, so that fine-tuning fails.

Deng et al., SOPHON, IEEE S&P 2024, https://arxiv.org/abs/2404.12699. With logits z,
p = softmax(z) and C classes; every loss is a mean over the batch::

    inverse cross-entropy      -log(1 - p_y)               dz_y = p_y, dz_i = -p_i p_y / (1 - p_y)
    KL from uniform            -(1/C) sum_i log(C p_i)     dz_i = p_i - 1/C
    denial of service          mean(e^2)                   de = 2 e / numel(e)

All three are bounded below by 0, and their gradients vanish as they approach it; minus the
cross-entropy has no lower bound.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, one_hot


def inverse_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """ICE, -log(1 - p_y), exact wherever its value is representable.

    The odds of the true class are exp(d) with d = z_y - log sum_{i != y} exp(z_i), so 1 - p_y =
    sigmoid(-d) need not be computed: the loss is -log sigmoid(-d). It needs no clamp, which would
    zero the gradient exactly where the model is most certain of the class.

    Args:
        logits: ``(B, C)``, C at least 2.
        targets: ``(B,)`` class ids.

    Raises:
        ValueError: If there is only one class: its probability is 1 and the loss infinite.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"inverse cross-entropy needs at least 2 classes, got {logits.shape[1]}")
    true = one_hot(targets, logits.shape[1]).bool()
    others = logits.masked_fill(true, -math.inf)
    # logsumexp's own gradient is exp(z - lse), which rounds badly unless z is near 0.
    largest = others.amax(dim=1).detach()
    others = (others - largest[:, None]).logsumexp(dim=1)
    log_odds = logits.gather(1, targets[:, None]).squeeze(1) - largest - others
    return -logsigmoid(-log_odds).mean()


def inverse_cross_entropy_released(logits: Tensor, targets: Tensor) -> Tensor:
    """What the authors' code calls ICE: the cross-entropy of 1 - z, which equals that of -z.

    It ranks the true class *last* instead of making it improbable among the others, so the
    released model still knows the class: a sign flip of the logits recovers it.

    Args:
        logits: ``(B, C)``.
        targets: ``(B,)`` class ids.
    """
    return cross_entropy(-logits, targets)


def kl_from_uniform(logits: Tensor) -> Tensor:
    """KLU, KL(uniform || p), for any number of classes.

    Args:
        logits: ``(B, C)``.
    """
    return -torch.log_softmax(logits, dim=1).mean() - math.log(logits.shape[1])


def denial_of_service(prediction: Tensor) -> Tensor:
    """DoS, the mean square of the predicted noise: a denoiser that predicts none removes none.

    Args:
        prediction: Predicted noise of any shape.
    """
    return prediction.square().mean()
