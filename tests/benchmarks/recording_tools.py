"""Tools that record the gradients of a training step, ours among them, and the training whose steps they record."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab import Recorder, plugins
from stabilitylab.methods.moco_v3 import Method
from stabilitylab.models import vit

CHEAP = ("training", "gradients", "updates", "weights", "adam")
WANDB_FREQUENCY = 1000
"""log_freq of ``wandb.watch`` by default."""


class Training:
    """MoCo v3 with a ViT-S/16 on random images."""

    def __init__(self, batch: int, size: int, depth: int, hidden: int, device: str) -> None:
        torch.manual_seed(0)
        config = Method.Config(hidden=hidden)
        self.model = Method(config, lambda: vit.build(vit.Model(depth=depth), size, 3)).to(device).train()
        self.trainable = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=1.5e-4 * batch / 256, weight_decay=0.1)
        self.views = tuple(torch.randn(batch, 3, size, size, device=device) for _ in range(2))
        self.device = device
        self.loss = torch.zeros(())

    def now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> tuple[float, float]:
        """Train one step; return the seconds of all of it, and of its backward pass."""
        started = self.now()
        loss = self.model(self.views, 0.0).loss
        self.optimizer.zero_grad()
        before = self.now()
        loss.backward()
        after = self.now()
        self.optimizer.step()
        self.loss = loss.detach()
        return self.now() - started, after - before


# ---- the tools: each a function that records one step whose gradients are there


def ours(training: Training, names: Sequence[str], folder: Path) -> Recorder:
    probes: dict[str, Any] = {name: {} if name in names else False for name in plugins.names("probes")}
    never = {"flush_steps": 10**9, "flush_seconds": 1e9, "self_check": 0}
    return Recorder(folder, training.model, training.optimizer, probes=probes, **never)


def recording(training: Training, recorder: Recorder) -> Callable[[], object]:
    return lambda: recorder.step(training.loss, scalars={"momentum": 0.99}, images=len(training.views[0]))


def plain(training: Training) -> Callable[[], object]:
    return lambda: {name: each.grad.norm().item() for name, each in training.trainable.items() if each.grad is not None}


def lightning(training: Training) -> Callable[[], object]:
    from lightning.pytorch.utilities import grad_norm

    return lambda: grad_norm(training.model, 2)


def cockpit(training: Training) -> Callable[[], object]:
    from backpack import extend
    from cockpit import Cockpit, quantities
    from cockpit.utils import schedules

    extend(nn.MSELoss())
    watching = Cockpit(training.trainable.values(), quantities=[quantities.GradNorm(schedules.linear(1))])
    steps = iter(range(10**9))

    def record() -> None:
        about = {"batch_size": len(training.views[0]), "individual_losses": None, "loss": training.loss}
        with watching(next(steps), info={**about, "optimizer": training.optimizer}):
            pass  # the backward pass stands here

    return record


def offline_wandb(folder: Path) -> Any:
    """Return the library, with a run that writes into the folder."""
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    if wandb.run is None:
        folder.mkdir(exist_ok=True)
        wandb.init(mode="offline", dir=folder, project="speed")
    return wandb


def wandb_hooks(training: Training, frequency: int, folder: Path) -> dict[str, Callable[[Tensor], object]]:
    """Return the hooks that ``wandb.watch`` sets, by parameter; of a copy, whose own gradients never exist."""
    wandb = offline_wandb(folder)
    copy = deepcopy(training.model)
    wandb.watch(copy, log="gradients", log_freq=frequency)
    hooks = {name: list((each._backward_hooks or {}).values()) for name, each in copy.named_parameters()}
    return {name: each[0] for name, each in hooks.items() if each}


def wandb_watch(training: Training, hooks: dict[str, Callable[[Tensor], object]]) -> Callable[[], object]:
    import wandb

    def record() -> None:
        for name, hook in hooks.items():
            gradient = training.trainable[name].grad
            assert gradient is not None
            hook(gradient)
        wandb.log({"step": 0})  # what was logged reaches the disk with the first call that commits

    return record


def wandb_on_disk(training: Training, folder: Path, watch: bool, few: int = 5, many: int = 15) -> float:
    """Return how many bytes a step W&B writes offline: of histograms by ``wandb.watch``, or of one norm a tensor.

    Two runs of different length are compared, so that what is written once does not count.
    """
    norms = {name: each.grad.norm().item() for name, each in training.trainable.items() if each.grad is not None}
    sizes = []
    for steps in (few, many):
        place = folder / f"{watch} {steps}"
        wandb = offline_wandb(place)
        record = wandb_watch(training, wandb_hooks(training, 1, place)) if watch else None
        for step in range(steps):
            if record is not None:
                record()
            else:
                wandb.log({name: norm * (1 + 0.1 * math.sin(step)) for name, norm in norms.items()})
        wandb.finish()
        sizes.append(sum(each.stat().st_size for each in place.rglob("*.wandb")))
    return (sizes[1] - sizes[0]) / (many - few)


class Tools:
    """Those that can be built here, and why the others cannot."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.missing: dict[str, str] = {}
        self.record: dict[str, Callable[[], object]] = {}
        self.recorders: dict[str, Recorder] = {}
        self.hooks: dict[str, dict[str, Callable[[Tensor], object]]] = {}
        installed = [name for name in CHEAP if name in plugins.names("probes")]
        for name, probes in {"ours, gradients": ["gradients"], "ours, all cheap probes": installed}.items():
            self.recorders[name] = ours(training, probes, folder / str(len(self.recorders)))
            self.record[name] = recording(training, self.recorders[name])
        for name in sorted(set(CHEAP) - set(installed)):
            self.missing[f"probe {name}"] = "not installed"
        for frequency in (1, WANDB_FREQUENCY):
            self._add(f"wandb.watch, log_freq={frequency}", lambda each=frequency: self._wandb(training, each, folder))
        self._add("Lightning, grad_norm", lambda: lightning(training))
        self._add("Cockpit 1.0.2, GradNorm", lambda: cockpit(training))
        self._add("loop of p.grad.norm().item()", lambda: plain(training))

    def _add(self, name: str, make: Callable[[], Callable[[], object]]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                record = make()
                record()
        except Exception as error:  # a tool that does not run here is told, and the others go on
            self.missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            self.record[name] = record

    def _wandb(self, training: Training, frequency: int, folder: Path) -> Callable[[], object]:
        hooks = self.hooks[f"wandb.watch, log_freq={frequency}"] = wandb_hooks(training, frequency, folder)
        return wandb_watch(training, hooks)
