"""Truth: what every method promises, asked of each installed one; a new file is tested without a new test."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stabilitylab import InputError, plugins
from stabilitylab.methods import Images
from stabilitylab.models.vit import Model, build
from stabilitylab.training.config import resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare
from stabilitylab.training.presets import PRESETS

NAMES = list(plugins.names("methods"))
SMALL = {"hidden": 24, "dim": 12, "queue": 32, "prototypes": 6, "frozen_prototypes": 0, "negatives": 30, "d0": 12}
IMAGES, SAMPLES, WIDTH, CLASSES = 40, 12, 32, 4
INDICES = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(3))[:SAMPLES]
LABELS = torch.arange(SAMPLES) % CLASSES


class Convolutional(nn.Module):
    """A backbone with BatchNorm, which a sample shares with its batch."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, WIDTH)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def vit(*other_sizes: int) -> nn.Module:
    return build(Model(dim=WIDTH, depth=1, heads=4, patch_size=4), 8, 1, other_sizes)


def method(name: str, make_backbone: Any = vit, **config: Any) -> Any:
    kind = plugins.load("methods", name)
    torch.manual_seed(0)
    fields = {key: value for key, value in SMALL.items() if key in kind.Config.model_fields}
    return kind(kind.Config(**fields, **config), make_backbone, Images(IMAGES, CLASSES, SAMPLES))


def step(made: Any, order: Tensor | None = None, seed: int = 0) -> Any:
    order = torch.arange(SAMPLES) if order is None else order
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    second = first + 0.3 * torch.randn(first.shape, generator=generator)
    torch.manual_seed(7)
    return made((first[order], second[order]), 0.5, INDICES[order], LABELS[order])


@pytest.mark.parametrize("name", NAMES)
def test_outputs_diagnostics_encodings_and_gradients(name: str) -> None:
    made = method(name)
    for _ in range(2):  # ages are NaN before anything came
        output = step(made)
    assert output.loss.shape == ()
    assert bool(output.loss.isfinite())
    assert set(output.outputs) <= {"representation", "projection", "positive", "prediction", "key"}
    assert output.outputs["representation"].shape == (SAMPLES, WIDTH)
    assert all(each.shape[0] == SAMPLES or key == "key" for key, each in output.outputs.items())
    told = {**output.outputs, **output.diagnostics}
    assert not [key for key, each in told.items() if each.requires_grad]
    assert set(output.diagnostics) == set(made.diagnostics)
    assert all(each.shape == () and bool(each.isfinite()) for each in output.diagnostics.values())

    output.loss.backward()
    silent = [key for key, each in made.named_parameters() if each.requires_grad and each.grad is None]
    assert silent == []
    assert [key for key, each in made.named_parameters() if not each.requires_grad and each.grad is not None] == []

    before = deepcopy(made.eval().state_dict())
    encoded = made.encode(torch.randn(5, 1, 8, 8))
    if momentum := any(key.startswith("momentum_") for key, _ in made.named_parameters()):
        encoded |= made.encode_momentum(torch.randn(5, 1, 8, 8))
    assert hasattr(made, "encode_momentum") is momentum
    assert {len(each) for each in encoded.values()} == {5}
    assert encoded["representation"].shape == (5, WIDTH)
    for key in ("projection", "momentum_projection"):
        if key in encoded:
            assert encoded[key].shape[1] == output.outputs["projection"].shape[1]
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items() if value.isfinite().all())


@pytest.mark.parametrize("make_backbone", [vit, Convolutional])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_batch_does_not_matter(name: str, make_backbone: Any) -> None:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    plain, permuted = method(name, make_backbone), method(name, make_backbone)
    outputs = step(plain), step(permuted, order)
    assert outputs[1].loss.item() == pytest.approx(outputs[0].loss.item(), rel=1e-4)
    torch.testing.assert_close(
        outputs[1].outputs["representation"], outputs[0].outputs["representation"][order], rtol=1e-3, atol=1e-4
    )
    for output in outputs:
        output.loss.backward()
    for each, other in zip(plain.parameters(), permuted.parameters(), strict=True):
        if each.grad is not None:
            torch.testing.assert_close(
                each.grad, other.grad, rtol=1e-3, atol=2e-4 * float(each.grad.abs().max()) + 1e-5
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_goes_on_alike(name: str) -> None:
    made, other = method(name), method(name)
    optimizer = torch.optim.SGD([each for each in made.parameters() if each.requires_grad], 0.05)
    for seed in range(2):
        step(made, seed=seed).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    other.load_state_dict(made.state_dict())
    found, expected = step(other, seed=2), step(made, seed=2)
    assert torch.equal(found.loss, expected.loss)
    for key, value in expected.diagnostics.items():
        assert torch.equal(found.diagnostics[key], value), key
    for key, value in made.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_several_batches_add_up_however_they_are_accumulated(name: str) -> None:
    together, apart = method(name), method(name)
    torch.stack([step(together, seed=seed).loss for seed in range(2)]).sum().backward()
    for seed in range(2):
        step(apart, seed=seed).loss.backward()
    for (key, found), expected in zip(together.named_parameters(), apart.parameters(), strict=True):
        if expected.grad is not None:
            atol = 1e-5 * float(expected.grad.abs().max()) + 1e-7
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=atol, msg=key)


@pytest.mark.parametrize("name", ["byol", "moco_v1", "moco_v3", "simsiam"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_only_queries_are_encoded_with_gradient_and_only_keys_by_the_momentum_encoder(
    name: str, symmetric: bool
) -> None:
    made, seen = method(name, symmetric=symmetric), []
    for part in ("backbone", "momentum_backbone"):
        if hasattr(made, part):
            made.get_submodule(part).register_forward_hook(
                lambda _, images, __, part=part: seen.append((part, torch.is_grad_enabled(), len(images[0])))
            )
    found = {key: each.clone() for key, each in step(made).outputs.items()}
    one = [each for each in seen if each[0] == "backbone"]
    assert one == ([("backbone", True, 2 * SAMPLES)] if symmetric else
                   [("backbone", True, SAMPLES), ("backbone", False, SAMPLES)])  # fmt: skip
    assert sum(number for part, _, number in seen if part != "backbone") == (
        0 if name == "simsiam" else SAMPLES * (1 + symmetric)
    )
    whole = step(method(name, symmetric=True)).outputs["positive"]  # the second view, whoever looks at it
    torch.testing.assert_close(found["positive"], whole, rtol=1e-4, atol=1e-5)


def test_byol_may_have_batch_norm_behind_a_linear_projector() -> None:
    projection = step(method("byol", projector_layers=1, projection_batch_norm=True)).outputs["projection"]
    torch.testing.assert_close(projection.mean(dim=0), torch.zeros(12), rtol=0, atol=1e-5)
    assert bool((projection.var(dim=0, unbiased=False) < 1.001).all())
    plain = step(method("byol", projector_layers=1)).outputs["projection"]
    assert float(plain.mean(dim=0).abs().max()) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_trains_and_what_is_told_stays_near(name: str) -> None:
    plain, half = method(name), method(name)
    expected = step(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = step(half)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.1, abs=0.05)
    output.loss.backward()
    gradients = [each.grad for each in half.parameters() if each.grad is not None]
    assert all(bool(each.isfinite().all()) for each in gradients)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_its_settings_are_known_to_every_preset(name: str, preset: str) -> None:
    config: Any = resolve(preset, {"method.name": name})
    kind = plugins.load("methods", name)
    assert set(kind.settings) <= set(PRESETS)
    assert type(config.method) is kind.Config
    for setting, value in kind.settings.get(preset, {}).items():
        section, field = setting.split(".")
        assert getattr(getattr(config, section), field) == value
    with pytest.raises(InputError, match=r"no setting is named 'method\.temprature'"):
        resolve(preset, {"method.name": name, "method.temprature": 1.0})


def prepared(**settings: Any) -> Any:
    tiny = {"model.depth": 1, "method.hidden": 8, "train.device": "cpu"}
    config = resolve("digits", tiny, {key.replace("__", "."): value for key, value in settings.items()})
    with process_group("cpu") as ranks:
        return prepare(config, open_dataset(config.data), ranks)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method__name": "directclr", "method__d0": 65}, r"method\.d0 is 65; the backbone has 64 coordinates"),
        ({"method__name": "moco_v2", "method__queue": 255}, r"method\.queue is 255, shorter than the 256 keys"),
        ({"method__name": "moco_v1", "method__queue": 256, "method__symmetric": True}, r"shorter than the 512 keys"),
        ({"method__name": "swav", "method__queue": 100}, r"method\.queue is 100, shorter than the 256 keys"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        prepared(**settings)


def test_what_a_method_must_be_told() -> None:
    kind = plugins.load("methods", "supervised")
    with pytest.raises(InputError, match="supervised needs images of at least two classes; there are 0"):
        kind(kind.Config(), vit)
    kind = plugins.load("methods", "memory_bank")
    with pytest.raises(InputError, match="memory_bank keeps a key for each training image, and must know their number"):
        kind(kind.Config(), vit)
    views = (torch.zeros(SAMPLES, 1, 8, 8),) * 2
    with pytest.raises(InputError, match="must be told the labels"):
        method("supervised")(views, 0.0)
    with pytest.raises(InputError, match="must be told which training images"):
        method("memory_bank")(views, 0.0)
