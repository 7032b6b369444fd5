"""Truth: the same training without a look; torch's own counts of compilations; the plain model for what wraps it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_recorder import Count
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from stabilitylab import InputError, plugins
from stabilitylab.probe import Probe, Step
from stabilitylab.target import make_target

PROBES = ("activations", "attention")


def made(name: str, model: nn.Module, inputs: Any, **parameters: Any) -> Probe:
    kind = plugins.load("probes", name)
    return kind(kind.Parameters(**parameters), make_target(model, inputs=inputs))


class Net(nn.Module):
    """Convolution, batch norm, dropout, fused attention and a compiled block: what a look could disturb."""

    def __init__(self, block: Callable[[nn.Module], nn.Module] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
        layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList([block(each) for each in layers])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def compiled_block(module: nn.Module) -> nn.Module:
    module.compile(backend="aot_eager")
    return module


@contextmanager
def lone_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "compiled": lambda: torch.compile(Net(), backend="aot_eager"),
    "compiled in place": lambda: compiled_block(Net()),
    "compiled blocks": lambda: Net(compiled_block),
    "wrapped blocks": lambda: Net(lambda block: torch.compile(block, backend="aot_eager")),
    "DDP": lambda: DistributedDataParallel(Net()),
    "compiled DDP": lambda: torch.compile(DistributedDataParallel(Net()), backend="aot_eager"),
    "bfloat16": lambda: Net().bfloat16(),
    "channels last": lambda: Net().to(memory_format=torch.channels_last),
}


def everything(model: nn.Module) -> list[Any]:
    """All that a look could change."""
    tensors = [*model.state_dict().values(), *(each.grad for each in model.parameters() if each.grad is not None)]
    flags = [each.requires_grad for each in model.parameters()] + [each.training for each in model.modules()]
    hooks = [
        len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._forward_hooks_always_called)
        for each in model.modules()
    ]
    settings = [
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_autocast_cache_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._len_torch_function_stack(),
    ]
    states = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]
    return [*(each.clone() for each in tensors), flags, hooks, settings, states]


def assert_same(before: list[Any], after: list[Any]) -> None:
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def step_of(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    parameters = list(model.parameters())
    model(pictures(step).to(parameters[0].dtype)).float().square().mean().backward()
    with torch.no_grad():
        for each in parameters:
            each -= 0.1 * each.grad
            each.grad = None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch compiling a block
@pytest.mark.parametrize("kind", MODELS)
def test_a_look_changes_nothing_and_compiles_nothing(tmp_path: Path, kind: str) -> None:
    with lone_process(tmp_path):
        torch._dynamo.reset()
        model = MODELS[kind]()
        dtype = next(model.parameters()).dtype
        for step in range(2):
            step_of(model, step)
        model(pictures().to(dtype)).sum().backward()
        before, counted = everything(model), {name: dict(each) for name, each in counters.items()}
        for name in PROBES:
            probe = made(name, model, pictures(7).to(dtype))
            with dynamo.patch(error_on_recompile=True):
                found = probe.measure(Step(0, probe.target))
            assert found is not None
            assert all(each.isfinite().all() and not each.requires_grad for each in found.values())
            assert_same(before, everything(model))
        with dynamo.patch(error_on_recompile=True):
            step_of(model, 3)
        assert {name: dict(each) for name, each in counters.items()} == counted
        twin = MODELS[kind]()
        for step in range(2):
            step_of(twin, step)
        twin(pictures().to(dtype)).sum().backward()
        step_of(twin, 3)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "bfloat16"])
def test_every_wrapper_reads_as_the_plain_model(tmp_path: Path, kind: str) -> None:
    with lone_process(tmp_path):
        for name in PROBES:
            plain, wrapped = (made(name, each, pictures()) for each in (Net(), MODELS[kind]()))
            assert plain.labels == wrapped.labels
            expected, found = (each.measure(Step(0, each.target)) for each in (plain, wrapped))
            for series in expected:
                torch.testing.assert_close(found[series], expected[series], rtol=1e-5, atol=1e-6)
    assert wrapped.labels["attention.logit"][0] == "blocks.0.head_0"


@pytest.mark.parametrize("name", PROBES)
def test_a_look_does_not_wait_for_the_device(name: str) -> None:
    probe = made(name, Net(), pictures())
    with Count() as count:
        probe.measure(Step(0, probe.target))
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"} & set(count.seen)


def test_a_look_inside_autocast_leaves_the_next_pass_its_gradients() -> None:
    gradients = []
    for looks in (False, True):
        model = Net()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if looks:
                for name in PROBES:
                    probe = made(name, model, pictures())
                    found = probe.measure(Step(0, probe.target))
                    assert all(each.isfinite().all() for each in found.values())
            torch.manual_seed(1)
            loss = model(pictures(1)).float().square().mean()
        loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", PROBES)
def test_a_model_that_fails_leaves_no_hook_behind(name: str) -> None:
    model = Net()
    probe = made(name, model, pictures())
    model.head = nn.Linear(5, 3)
    before = everything(model)
    with pytest.raises(InputError):
        probe.measure(Step(0, probe.target))
    assert_same(before, everything(model))


@pytest.mark.parametrize("name", PROBES)
def test_nothing_grows_with_the_looks(name: str) -> None:
    probe = made(name, Net(), pictures())
    held = set(vars(probe))
    for step in range(5):
        probe.measure(Step(step, probe.target))
    assert set(vars(probe)) == held
    assert not any(isinstance(each, Tensor) for each in vars(probe).values())
