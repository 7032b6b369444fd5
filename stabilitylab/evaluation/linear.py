"""Linear classifiers on fixed features: the published schedule with many learning rates at once, and a quick one.

Shape suffixes: N images, D features, C classes, R learning rates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["logistic_regression", "train_linear"]


def train_linear(
    features_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    rates: Sequence[float],
    *,
    epochs: int = 90,
    batch_size: int = 1024,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return weights (R, D, C) and biases (R, C) of linear classifiers, one for each learning rate.

    SGD with momentum 0.9 and no weight decay, half a cosine over the training, weights from N(0, 0.01), as MoCo v3
    probes (Chen, Xie and He, 2021); the rate in use is the given one times batch_size / 256. All rates see the same
    batches.

    Args:
        features_ND: as the backbone gives them.
        labels_N: classes, int64.
        classes: number of classes.
        rates: learning rates per 256 samples.
        epochs: passes over the images.
        batch_size: samples in a step; at most a sixteenth of the images, so that a small set is seen in many steps.
        seed: of the weights and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    number, width, device = len(features_ND), features_ND.shape[1], features_ND.device
    batch_size = max(1, min(batch_size, number // 16))
    weight_RDC = torch.randn(1, width, classes, generator=generator).mul_(0.01).expand(len(rates), -1, -1)
    weight_RDC = weight_RDC.clone().to(device).requires_grad_()
    bias_RC = torch.zeros(len(rates), 1, classes, device=device, requires_grad=True)
    rate_R = torch.tensor(list(rates), device=device).reshape(-1, 1, 1) * batch_size / 256
    speed = [torch.zeros_like(each) for each in (weight_RDC, bias_RC)]
    steps = number // batch_size
    for step in range(epochs * steps):
        if step % steps == 0:
            order_N = torch.randperm(number, generator=generator).to(device)
        chosen = order_N[step % steps * batch_size : (step % steps + 1) * batch_size]
        logits = features_ND[chosen] @ weight_RDC + bias_RC
        goals = labels_N[chosen].repeat(len(rates))
        loss = cross_entropy(logits.flatten(0, 1), goals, reduction="sum") / batch_size
        gradients = torch.autograd.grad(loss, (weight_RDC, bias_RC))
        factor = (1 + math.cos(math.pi * step / (epochs * steps))) / 2
        with torch.no_grad():
            for value, velocity, gradient in zip((weight_RDC, bias_RC), speed, gradients, strict=True):
                velocity.mul_(0.9).add_(gradient)
                value -= rate_R * factor * velocity
    return weight_RDC.detach(), bias_RC.detach()[:, 0]


def logistic_regression(features_ND: Tensor, labels_N: Tensor, held_out_ND: Tensor, most_steps: int = 500) -> Tensor:
    """Return the classes that a logistic regression on standardized features gives the held-out images, shape (N,)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = features_ND.mean(dim=0), features_ND.std(dim=0).clamp_min(1e-6)
    train, test = (((each - mean) / std).cpu().numpy() for each in (features_ND, held_out_ND))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a little short of the optimum classifies alike
        fitted = LogisticRegression(max_iter=most_steps).fit(train, labels_N.cpu().numpy())
    return torch.from_numpy(fitted.predict(test))
