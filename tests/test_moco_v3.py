"""Truth: the loss from its formula with loops in float64, the momentum from its definition, and invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from stabilitylab.methods.moco_v3 import Method, contrast
from stabilitylab.models.vit import Model, build


def method(seed: int = 0, **changes: Any) -> Method:
    torch.manual_seed(seed)
    sizes = {"hidden": 24, "dim": 12}
    model = Model(dim=32, depth=2, heads=4, patch_size=2)
    return Method(Method.Config(**(sizes | changes)), lambda: build(model, 8, 1))


def views(seed: int = 0, samples: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, 1, 8, 8, generator=generator)
    return first, first + 0.3 * torch.randn(samples, 1, 8, 8, generator=generator)


def slow_contrast(q: torch.Tensor, k: torch.Tensor, temperature: float) -> float:
    q, k = q.detach(), k.detach()
    total = 0.0
    for i in range(len(q)):
        similar = [float(q[i] @ k[j] / (q[i].norm() * k[j].norm())) / temperature for j in range(len(k))]
        total -= similar[i] - math.log(sum(math.exp(each) for each in similar))
    return 2 * temperature * total / len(q)


def test_the_loss_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    for temperature in (0.07, 0.2, 1.0):
        assert float(contrast(q, k, temperature)) == pytest.approx(slow_contrast(q, k, temperature), rel=1e-12)


def test_the_loss_does_not_depend_on_scale_or_order() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(contrast(q, k, 0.2), contrast(3 * q, 0.1 * k, 0.2))
    torch.testing.assert_close(contrast(q, k, 0.2), contrast(q[order], k[order], 0.2))


def test_the_step_is_two_directions_on_a_moved_momentum_encoder() -> None:
    made = method().train()
    with torch.no_grad():  # let the two encoders differ, as after some steps
        for each in made.backbone.parameters():
            each.add_(0.05 * torch.randn_like(each) * each.requires_grad)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    first, second = views()
    output = made((first, second), 0.25)
    momentum = 1 - (1 - 0.99) * (1 + math.cos(math.pi * 0.25)) / 2
    assert output.scalars["momentum"] == pytest.approx(momentum, rel=1e-12)

    slow = method(seed=1).train()  # a twin that is written out: each view alone, the average by its definition
    slow.load_state_dict(before)
    with torch.no_grad():
        for name, value in slow.named_parameters():
            if name.startswith("momentum_"):
                current = dict(slow.named_parameters())[name.removeprefix("momentum_")]
                value.copy_(momentum * value + (1 - momentum) * current)
        keys = [slow.momentum_projector(slow.momentum_backbone(view)) for view in (first, second)]
    queries = [slow.predictor(slow.projector(slow.backbone(view))) for view in (first, second)]
    expected = slow_contrast(queries[0], keys[1], 0.2) + slow_contrast(queries[1], keys[0], 0.2)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    for (name, found), value in zip(made.state_dict().items(), slow.state_dict().values(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_go_to_the_query_side_alone() -> None:
    made = method()
    made(views(), 0.0).loss.backward()
    with_gradient = {name.split(".")[0] for name, each in made.named_parameters() if each.grad is not None}
    assert with_gradient == {"backbone", "projector", "predictor"}
    trainable = [each for each in made.parameters() if each.requires_grad]
    assert all(each.grad is not None for each in trainable)


def test_the_momentum_average_does_not_drift_where_both_sides_are_equal() -> None:
    made = method(momentum_schedule="constant")
    before = [each.clone() for each in made.momentum_backbone.parameters()]
    for _ in range(200):
        made.move(0.0)
    assert all(torch.equal(*pair) for pair in zip(before, made.momentum_backbone.parameters(), strict=True))


@pytest.mark.parametrize(("momentum", "same"), [(0.0, True), (1.0, False)])
def test_the_ends_of_the_momentum(momentum: float, same: bool) -> None:
    made = method(momentum=momentum, momentum_schedule="constant")
    with torch.no_grad():
        for each in made.backbone.parameters():
            each.add_(1.0 * each.requires_grad)
    made(views(), 0.5)
    pairs = zip(made.backbone.parameters(), made.momentum_backbone.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) is same


def test_buffers_and_predictor_do_not_move_into_the_momentum_encoder() -> None:
    made = method()
    made(views(), 0.0)
    names = {name.split(".")[0] for name, _ in made.named_parameters() if name.startswith("momentum")}
    assert names == {"momentum_backbone", "momentum_projector"}
    # both saw two views in train mode, with their own statistics
    assert int(made.momentum_projector[1].num_batches_tracked) == 2
    assert int(made.projector[1].num_batches_tracked) == 2


def test_each_view_passes_a_backbone_with_batch_norm_alone() -> None:
    class Backbone(nn.Module):
        num_features = 6

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(64, 6), nn.BatchNorm1d(6)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layer(images.flatten(1)))

    torch.manual_seed(0)
    made = Method(Method.Config(hidden=8, dim=4), Backbone)
    made(views(), 0.0)
    assert int(made.backbone.norm.num_batches_tracked) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes", [{"predictor_layers": 0}, {"batch_norm": False}, {"projector_layers": 1}, {"predictor_layers": 1}]
)
def test_every_switch_trains(changes: dict[str, Any]) -> None:
    made = method(**changes)
    optimizer = torch.optim.AdamW([each for each in made.parameters() if each.requires_grad], lr=1e-3)
    losses = []
    for _ in range(15):
        output = made(views(), 0.0)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < losses[0]


def test_the_named_outputs() -> None:
    output = method()(views(), 0.0)
    shapes = {name: tuple(value.shape) for name, value in output.outputs.items()}
    embeddings = dict.fromkeys(["projection", "positive", "prediction", "key"], (10, 12))
    assert shapes == {"representation": (10, 32), **embeddings}
    assert not any(value.requires_grad for value in output.outputs.values())
    swapped = method()(views()[::-1], 0.0).outputs
    torch.testing.assert_close(output.outputs["positive"], swapped["projection"])  # the other view, the same networks
    torch.testing.assert_close(output.outputs["projection"], swapped["positive"])
    made = method().eval()
    encoded = made.encode(views()[0])
    torch.testing.assert_close(encoded["representation"], made.backbone(views()[0]))
    assert normalize(encoded["projection"]).shape == (10, 12)
