"""Truth: numpy on the outputs of the layers, layer after layer by hand."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_loop import build, data, held_out
from torch import Tensor, nn

from stabilitylab import InputError, Recorder, Run, plugins
from stabilitylab.probe import Probe, Step
from stabilitylab.target import make_target

Pair = namedtuple("Pair", "index hidden")


@dataclass
class Output:
    counts: Tensor
    hidden: Tensor


def made(model: nn.Module, inputs: Any) -> Probe:
    kind = plugins.load("probes", "activations")
    return kind(kind.Parameters(), make_target(model, inputs=inputs))


def sizes(model: nn.Module, inputs: Any) -> dict[str, list[float]]:
    """RMS, largest entry and zeros of each layer."""
    probe = made(model, inputs)
    found = probe.measure(Step(0, probe.target))
    assert found is not None
    names = ("activations.rms", "activations.max", "activations.zeros")
    rows = zip(*(found[name].tolist() for name in names), strict=True)
    return dict(zip(probe.labels["activations.rms"], map(list, rows), strict=True))


def by_hand(output: Tensor) -> list[float]:
    values = output.detach().double().numpy()
    return [float(np.sqrt((values**2).mean())), float(np.abs(values).max()), float((values == 0).mean())]


class Chain(nn.Module):
    """Layers one after the other, each of which may wrap what it returns."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda x: x, get: Callable[[Any], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

            def forward(self, x: Tensor) -> Any:
                return wrap(x + self.linear(self.norm(x)).relu())

        self.patch_embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.unused = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        self.get = get

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = self.get(block(x))
        return self.head(self.norm(x)).relu_()


def images(samples: int = 5) -> Tensor:
    return torch.randn(samples, 7, 4, generator=torch.Generator().manual_seed(1))


WRAPPED: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda x: x, lambda x: x),
    "tuple": (lambda x: (x, None), lambda x: x[0]),
    "named tuple": (lambda x: Pair(torch.arange(3), x), lambda x: x.hidden),
    "list in a tuple": (lambda x: (None, [x, x * 2]), lambda x: x[1][0]),
    "dict": (lambda x: {"length": 7, "hidden": x}, lambda x: x["hidden"]),
    "dataclass": (lambda x: Output(torch.arange(3), x), lambda x: x.hidden),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_each_layer_reads_as_computed_by_hand_whatever_wraps_its_output(kind: str) -> None:
    wrap, get = WRAPPED[kind]
    model = Chain(wrap, get)
    outputs = {}
    with torch.no_grad():
        x = outputs["patch_embed"] = model.patch_embed(images())
        for index, block in enumerate(model.blocks):
            x = outputs[f"blocks.{index}"] = get(block(x))
        x = outputs["norm"] = model.norm(x)
        outputs["head"] = model.head(x)  # before it is changed in place
    found = sizes(model, images())
    assert list(found) == ["patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    for name, output in outputs.items():
        np.testing.assert_allclose(found[name], by_hand(output), rtol=1e-6, atol=1e-7)


def test_the_output_of_transformers_is_read() -> None:
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTModel(ViTConfig(image_size=16, patch_size=8, **size)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    found = sizes(model, {"pixel_values": pixels})
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found["layers.0"], by_hand(hidden[1]), rtol=1e-5, atol=1e-7)


def test_padded_samples_are_read_with_the_rest_and_not_as_nested_tensors() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x, padding = torch.randn(3, 6, 8), torch.zeros(3, 6, dtype=torch.bool)
    padding[0, 4:] = True
    found = sizes(model, {"src": x, "src_key_padding_mask": padding})
    model.train()  # in which nothing is fused; there is no dropout
    for each in model.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    for each in model.layers:
        each.self_attn.dropout = 0.0
    with torch.no_grad():
        expected = by_hand(model.layers[0](x, src_key_padding_mask=padding))
    np.testing.assert_allclose(found["layers.0"], expected, rtol=1e-5, atol=1e-7)


def test_zeros_are_counted_exactly() -> None:
    class Rectified(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    torch.manual_seed(0)
    model = nn.Sequential(Rectified(4, 8), nn.Linear(8, 2))
    with torch.no_grad():
        zeros = int((model[0](images()) == 0).sum())
    assert 0 < zeros < 5 * 7 * 8
    assert sizes(model, images())["0"][2] == pytest.approx(zeros / (5 * 7 * 8), rel=1e-6)


def test_float16_is_squared_in_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).half()
    for layer in model:
        nn.init.eye_(layer.weight)
    found = sizes(model, torch.full((3, 4), 60000.0, dtype=torch.float16))
    np.testing.assert_allclose(found["0"], [60000.0, 60000.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_kept(value: float) -> None:
    model = Chain()
    with torch.no_grad():
        model.blocks[0].linear.bias[0] = value
    found = sizes(model, images())
    assert not np.isfinite(found["blocks.0"][:2]).any()
    assert not np.isfinite(found["norm"][:2]).any()
    assert np.isfinite(found["patch_embed"]).all()
    assert found["blocks.0"][2] == 0


def test_of_a_layer_that_runs_twice_the_last_run_is_read() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(10 * self.shared(x)))

    model = Twice()
    with torch.no_grad():
        expected = by_hand(model.shared(10 * model.shared(images())))
    np.testing.assert_allclose(sizes(model, images())["shared"], expected, rtol=1e-6)


def test_what_cannot_be_measured_is_said_at_construction() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> list:
            return [x.long()]

    with pytest.raises(InputError, match="no layer whose module returns"):
        made(Nothing(), images())
    with pytest.raises(InputError, match="pass inputs="):
        made(Chain(), None)
    with pytest.raises(InputError, match="does not run on the inputs that it is to be shown: RuntimeError"):
        made(Chain(), torch.zeros(3, 5))
    with pytest.raises(InputError, match="lazy modules"):
        made(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), images())


def test_lazy_modules_are_measured_once_they_have_shapes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with Recorder(tmp_path / "r", model, inputs=images()) as recorder:
        for _ in range(2):
            model(images()).sum().backward()
            recorder.step()
    assert list(Run(tmp_path / "r")["activations.rms"].columns) == ["0", "1"]


def test_without_inputs_some_held_out_images_are_shown(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer, held_out=held_out(model)) as recorder:
        recorder.step()
    model.eval()
    with torch.no_grad():
        expected = by_hand(model.first(data(2)[0][:32]))
    run = Run(tmp_path / "r")
    found = [run[f"activations.{name}"]["first"].iloc[0] for name in ("rms", "max", "zeros")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert run.about("activations.rms")["shown"] == "fixed inputs, in eval mode"
