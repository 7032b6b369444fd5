"""Truth: the published parameter counts, bounds and position embeddings, timm's own model, torch's BatchNorm."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from stabilitylab.errors import InputError
from stabilitylab.models.heads import mlp_head
from stabilitylab.models.vit import Model, build, sincos_positions, timm_arguments

VIT_S = Model(dim=384, depth=12, heads=12)


def small(**changes: object) -> Model:
    return Model(**({"dim": 32, "depth": 2, "heads": 4, "patch_size": 2} | changes))


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(("dim", "millions"), [(384, 21.67), (768, 85.80)])
def test_the_published_sizes(dim: int, millions: float) -> None:
    with torch.device("meta"):
        model = timm.models.VisionTransformer(**timm_arguments(Model(dim=dim, depth=12, heads=12), 224, 3))
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.01)


def test_timm_takes_the_weights_and_gives_the_same_features() -> None:
    torch.manual_seed(0)
    ours = build(small(), 8, 1).eval()
    plain = timm.models.VisionTransformer(**timm_arguments(small(), 8, 1)).eval()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(plain(images), ours(images), rtol=0, atol=1e-5)


def test_every_weight_is_drawn_from_its_published_range() -> None:
    torch.manual_seed(0)
    model = build(VIT_S, 224, 3)
    bounds = {
        "patch_embed.proj.weight": math.sqrt(6 / (3 * 16 * 16 + 384)),
        "blocks.5.attn.qkv.weight": math.sqrt(6 / (384 + 384)),
        "blocks.5.attn.proj.weight": math.sqrt(6 / (384 + 384)),
        "blocks.5.mlp.fc1.weight": math.sqrt(6 / (384 + 4 * 384)),
    }
    weights = dict(model.named_parameters())
    for name, bound in bounds.items():
        values = weights[name].detach()
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.999 * bound
        # the variance of a uniform distribution; the mean of n draws of x^2 has sd bound^2 * sqrt(4/45) / sqrt(n)
        spread = 5 * bound**2 * math.sqrt(4 / 45 / values.numel())
        assert float(values.double().square().mean()) == pytest.approx(bound**2 / 3, abs=spread)
    assert all((each == 0).all() for name, each in weights.items() if name.endswith("bias"))
    assert weights["cls_token"].abs().max() < 1e-5
    assert model.norm.eps == 1e-6


def test_positions_by_their_formula() -> None:
    rows, columns, dim = 3, 5, 16
    found = sincos_positions((rows, columns), dim)
    assert found.shape == (1, 1 + rows * columns, dim)
    assert (found[0, 0] == 0).all()
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            token = found[0, 1 + row * columns + column]
            torch.testing.assert_close(token, torch.tensor(expected), atol=1e-6, rtol=0)


def test_what_is_trained() -> None:
    def frozen(model: nn.Module) -> set[str]:
        return {name for name, each in model.named_parameters() if not each.requires_grad}

    assert frozen(build(small(), 8, 1)) == {"pos_embed"}
    assert frozen(build(small(positions="learned"), 8, 1)) == set()
    assert build(small(positions="none"), 8, 1).pos_embed is None
    projection = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert frozen(build(small(patch_projection="frozen"), 8, 1)) == {"pos_embed"} | projection


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize("stem", ["patchify", "convolutional"])
def test_shapes(pooling: str, stem: str) -> None:
    model = build(small(pooling=pooling, stem=stem), 8, 1)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 32)
    if pooling == "avg":  # the mean of the patch tokens
        images = torch.randn(2, 1, 8, 8)
        model.eval()
        torch.testing.assert_close(model(images), model.forward_features(images)[:, 1:].mean(dim=1))


def test_the_published_stem() -> None:
    model = build(Model(dim=192, depth=11, heads=3, mlp_ratio=3, stem="convolutional"), 224, 3)
    channels = [each.out_channels for each in model.patch_embed.modules() if isinstance(each, nn.Conv2d)]
    assert channels == [24, 48, 96, 192, 192]
    model.reset_classifier(1000)
    assert count(model) / 1e6 == pytest.approx(4.6, abs=0.05)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small(stem="convolutional", patch_projection="frozen"), "there is no patch projection"),
        (small(patch_size=3), "model.patch_size is 3, which does not divide data.image_size, 8"),
        (small(heads=5), "model.heads is 5, which does not divide model.dim, 32"),
        (small(dim=30, heads=3), "sincos positions need a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(model: Model, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(model, 8, 1)


def test_heads_as_published() -> None:
    projector = mlp_head([384, 4096, 4096, 256])
    kinds = [type(each).__name__ for each in projector]
    assert kinds == ["Linear", "SyncBatchNorm", "ReLU"] * 2 + ["Linear", "SyncBatchNorm"]
    assert not any(each.bias is not None for each in projector if isinstance(each, nn.Linear))
    assert [each.affine for each in projector if isinstance(each, nn.BatchNorm1d)] == [True, True, False]
    assert count(projector) == 384 * 4096 + 4096 * 4096 + 4096 * 256 + 4 * 4096
    without = mlp_head([384, 64, 32], batch_norm=False)
    assert [type(each).__name__ for each in without] == ["Linear", "ReLU", "Linear"]
    assert all(each.bias is not None for each in without if isinstance(each, nn.Linear))
