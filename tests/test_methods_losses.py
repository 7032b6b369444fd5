"""Truth: the formulas of the papers, with loops in double precision and autograd through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive_methods as naive
import pytest
import torch
from given_embeddings import SAMPLES, WIDTH, embeddings, keys, method
from torch import Tensor
from torch.nn.functional import normalize

Twin = Callable[[Any, list[Tensor]], Tensor]
LABELS = torch.tensor([0, 3, -1, 1, 4, 4, 2])
INDICES = torch.tensor([3, 7, 0, 19, 12, 5, 6])


def moco_v3(made: Any, views: list[Tensor], symmetric: bool = True) -> Tensor:
    pairs = [(0, 1), (1, 0)] if symmetric else [(0, 1)]
    losses = [naive.info_nce(views[q], keys(made, views[k]), 0.3) for q, k in pairs]
    return 2 * 0.3 * sum(losses)


def queue(made: Any, views: list[Tensor], symmetric: bool = False) -> Tensor:
    pairs = [(0, 1), (1, 0)] if symmetric else [(0, 1)]
    held = made.queue.keys.clone()
    losses = [naive.info_nce_with_queue(views[q], keys(made, views[k]), held, 0.3) for q, k in pairs]
    return sum(losses) / len(losses)


def end_to_end(made: Any, views: list[Tensor], symmetric: bool = False) -> Tensor:
    pairs = [(0, 1), (1, 0)] if symmetric else [(0, 1)]
    losses = [naive.info_nce(views[q], views[k], 0.3) for q, k in pairs]
    return sum(losses) / len(losses)


def directclr(made: Any, views: list[Tensor]) -> Tensor:
    first, second = (view[:, :3] for view in views)
    return (naive.info_nce(first, second, 0.3) + naive.info_nce(second, first, 0.3)) / 2


def memory_bank(made: Any, views: list[Tensor]) -> Tensor:
    torch.manual_seed(5)
    sampled, bank = torch.randint(20, (30,)).tolist(), made.bank.clone()
    terms = []
    for query, image in zip(views[0], INDICES.tolist(), strict=True):
        others = [bank[each] for each in sampled if each != image]
        terms.append(naive.info_nce_with_queue(query[None], bank[image][None], torch.stack(others), 0.3))
    return sum(terms) / len(terms)


def byol(made: Any, views: list[Tensor], symmetric: bool = True) -> Tensor:
    loss = naive.distance(views[0], keys(made, views[1]))
    return loss + naive.distance(views[1], keys(made, views[0])) if symmetric else loss


def simsiam(made: Any, views: list[Tensor], symmetric: bool = True, stop: bool = True) -> Tensor:
    targets = [view.detach() if stop else view for view in views]
    losses = [naive.distance(views[0], targets[1]), naive.distance(views[1], targets[0])][: 1 + symmetric]
    return sum(losses) / len(losses) / 2 - 1  # half the squared distance is one minus the cosine


def swav(made: Any, views: list[Tensor]) -> Tensor:
    prototypes = normalize(made.prototypes.weight.detach().clone(), dim=1)
    scores = [torch.stack([naive.cosine(row, each) for row in view for each in prototypes]).view(-1, 6)
              for view in views]  # fmt: skip
    assigned = [naive.sinkhorn(each.detach().clone(), 0.1, 3) for each in scores[:2]]
    return naive.swapped(assigned, scores, 0.3)


def dino(made: Any, views: list[Tensor], centering: str = "mean") -> Tensor:
    student, teacher = made.prototypes.weight, made.momentum_prototypes.weight
    outputs = [torch.stack([naive.cosine(row, each) for row in view for each in student]).view(-1, 6)
               for view in views]  # fmt: skip
    targets = [torch.stack([naive.cosine(row, each) for row in keys(made, view) for each in teacher]).view(-1, 6)
               for view in views[:2]]  # fmt: skip
    # a quarter of the way, half of the warm-up: half-way between the temperatures
    if centering == "mean":
        aims = naive.dino_targets(targets, made.center, 0.055)
    else:
        aims = naive.sinkhorn(torch.cat(targets).detach(), 0.055, 3).split(len(targets[0]))
    return naive.swapped([each.detach() for each in aims], outputs, 0.3)


def supervised(made: Any, views: list[Tensor]) -> Tensor:
    labeled = LABELS >= 0
    smooth = 0.9 * torch.eye(WIDTH, dtype=torch.float64)[LABELS[labeled]] + 0.1 / WIDTH
    return naive.cross_entropy(smooth, views[0][labeled], 1.0)


T = {"temperature": 0.3}
SMALL_SWAV = T | {"prototypes": 6, "epsilon": 0.1, "frozen_prototypes": 0}
SMALL_DINO = T | {"prototypes": 6, "frozen_prototypes": 0, "teacher_warmup": 0.5}
CASES: list[tuple[str, dict[str, Any], Twin, int]] = [
    ("moco_v3", T, moco_v3, 2),
    ("moco_v3", T | {"symmetric": False}, lambda made, views: moco_v3(made, views, False), 2),
    ("moco_v1", T | {"queue": 9}, queue, 2),
    ("moco_v2", T | {"queue": 14, "symmetric": True}, lambda made, views: queue(made, views, True), 2),
    ("end_to_end", T, end_to_end, 2),
    ("end_to_end", T | {"symmetric": True}, lambda made, views: end_to_end(made, views, True), 2),
    ("memory_bank", T | {"negatives": 30}, memory_bank, 2),
    ("simclr", T, lambda made, views: naive.nt_xent(views[0], views[1], 0.3), 2),
    ("byol", {}, byol, 2),
    ("byol", {"symmetric": False}, lambda made, views: byol(made, views, False), 2),
    ("swav", SMALL_SWAV, swav, 2),
    ("swav", SMALL_SWAV, swav, 4),
    ("directclr", T | {"d0": 3}, directclr, 2),
    ("dino", SMALL_DINO, dino, 2),
    ("dino", SMALL_DINO, dino, 4),
    ("dino", SMALL_DINO | {"centering": "sinkhorn"}, lambda made, views: dino(made, views, "sinkhorn"), 4),
    ("vicreg", {}, lambda made, views: naive.vicreg(*views, (25.0, 25.0, 1.0)), 2),
    ("barlow_twins", {}, lambda made, views: naive.barlow_twins(*views, 5e-3), 2),
    ("simsiam", {}, simsiam, 2),
    ("simsiam", {"symmetric": False}, lambda made, views: simsiam(made, views, False), 2),
    ("simsiam", {"stop_gradient": False}, lambda made, views: simsiam(made, views, stop=False), 2),
    ("supervised", {}, supervised, 2),
]


@pytest.mark.parametrize(("name", "config", "twin", "number"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_loss_and_gradients_are_those_of_the_formula(
    name: str, config: dict[str, Any], twin: Twin, number: int
) -> None:
    made = method(name, **config)
    if name == "dino":  # a center as after some steps
        made.center = torch.linspace(-0.3, 0.2, 6, dtype=torch.float64)
    views, again = embeddings(number), embeddings(number)
    expected = twin(made, [view.flatten(1) for view in again])
    torch.manual_seed(5)
    output = made(tuple(views), 0.25, INDICES, LABELS)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    output.loss.backward()
    expected.backward()
    for view, other in zip(views, again, strict=True):
        missing = torch.zeros_like(view)
        found, true = (missing if each.grad is None else each.grad for each in (view, other))
        torch.testing.assert_close(found, true, rtol=1e-7, atol=1e-9)
    assert max(float(view.grad.abs().max()) for view in views if view.grad is not None) > 1e-3


def test_every_method_is_among_the_cases() -> None:
    from stabilitylab import plugins

    assert {name for name, *_ in CASES} == set(plugins.names("methods"))


SCALE_FREE = ["barlow_twins", "byol", "directclr", "dino", "end_to_end", "memory_bank", "moco_v1", "moco_v2",
              "moco_v3", "simclr", "simsiam", "swav"]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, *_ in {case[0]: case for case in CASES}.values()])
def test_neither_the_order_nor_the_scale_of_the_embeddings_matters(name: str) -> None:
    config = next(config for each, config, *_ in CASES if each == name)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    losses = []
    for change in (lambda x: x, lambda x: x[order], lambda x: 300 * x):
        torch.manual_seed(2)
        views = tuple(change(view.detach()) for view in embeddings())
        permuted = change is not None and losses and len(losses) == 1
        indices, labels = (INDICES[order], LABELS[order]) if permuted else (INDICES, LABELS)
        made = method(name, **config)
        torch.manual_seed(3)
        losses.append(made(views, 0.25, indices, labels).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    # the 1e-5 beside the variance of Barlow Twins is all that knows of a scale
    assert (losses[2] == pytest.approx(losses[0], rel=1e-4)) is (name in SCALE_FREE)


@pytest.mark.parametrize("name", ["byol", "dino", "moco_v1", "moco_v2", "moco_v3"])
def test_a_momentum_of_zero_is_the_shared_encoder(name: str) -> None:
    small = {"prototypes": 6} if name == "dino" else {}
    made = method(name, momentum=0.0, **small)
    shared = method(name, **small)
    with torch.no_grad():
        shared.momentum_backbone.scale.copy_(shared.backbone.scale)
    views = tuple(embeddings())
    assert made(views, 0.5).loss.item() == pytest.approx(shared(views, 0.5).loss.item(), rel=1e-12)


def test_without_a_momentum_encoder_the_batch_as_a_queue_is_the_end_to_end_mechanism() -> None:
    views = embeddings()
    together = method("end_to_end", temperature=0.3)
    expected = together(tuple(views), 0.0).loss.item()
    apart = method("moco_v1", temperature=0.3, queue=SAMPLES - 1, momentum=0.0)
    rows = [view.detach().flatten(1) for view in views]
    total = 0.0
    for i in range(SAMPLES):  # the negatives of a query are the keys of all others
        apart.queue.keys = normalize(torch.cat([rows[1][:i], rows[1][i + 1 :]]), dim=1)
        total += apart((views[0][i : i + 1], views[1][i : i + 1]), 0.0).loss.item()
    assert total / SAMPLES == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["moco_v3", "moco_v2", "simclr", "directclr", "dino", "swav", "vicreg", "byol"])
def test_autocast_does_not_reach_the_loss(name: str) -> None:
    config = next(config for each, config, *_ in CASES if each == name)
    made = method(name, **config).float()
    views = tuple(view.detach().float() for view in embeddings())
    state = {key: value.clone() for key, value in made.state_dict().items()}
    plain = made(views, 0.25, INDICES).loss.item()
    made.load_state_dict(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(views, 0.25, INDICES).loss.item() == pytest.approx(plain, rel=1e-5)


def test_an_unlabeled_batch_has_a_loss_of_zero_and_its_images_do_not_count() -> None:
    made = method("supervised")
    views = tuple(embeddings())
    output = made(views, 0.0, None, torch.full((SAMPLES,), -1))
    assert (output.loss.item(), float(output.diagnostics["accuracy"])) == (0.0, 0.0)
    right = views[0].flatten(1).argmax(dim=1)
    right[2:] = -1
    assert float(made(views, 0.0, None, right).diagnostics["accuracy"]) == 1.0
