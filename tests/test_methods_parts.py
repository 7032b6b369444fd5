"""Truth: scipy's linear programming, lightly's losses, a list as a queue, and each method's own state loaded again."""

from __future__ import annotations

import warnings
from typing import Any

import naive_methods as naive
import numpy as np
import pytest
import torch
from given_embeddings import SAMPLES, embeddings, keys, method
from scipy.optimize import linprog
from torch.nn.functional import normalize

from stabilitylab.errors import InputError
from stabilitylab.methods._contrast import against_batch, against_dictionary
from stabilitylab.methods._prototypes import sinkhorn, usage
from stabilitylab.methods._queue import Queue

# ---- assignment to prototypes


def exact(scores: np.ndarray) -> np.ndarray:
    """The transport that maximizes the scores: rows of mass one, columns of N / K."""
    number, prototypes = scores.shape
    rows = np.kron(np.eye(number), np.ones(prototypes))
    columns = np.kron(np.ones(number), np.eye(prototypes))
    sums = np.concatenate([np.ones(number), np.full(prototypes, number / prototypes)])
    return linprog(-scores.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=sums).x.reshape(scores.shape)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])  # at 1e-3 the exponentials of these scores leave double precision
def test_sinkhorn_comes_to_the_exact_transport(epsilon: float) -> None:
    scores = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = sinkhorn(scores, epsilon, 5000)
    np.testing.assert_allclose(plan, exact(scores.numpy()), atol=2e-3)


def test_sinkhorn_is_alternate_scaling_and_leaves_out_rows_of_minus_infinity() -> None:
    scores = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = sinkhorn(scores, 0.2, 3)
    torch.testing.assert_close(plan, naive.sinkhorn(scores, 0.2, 3))
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(9, dtype=torch.float64))
    longer = torch.cat([scores, torch.full((3, 4), -torch.inf)])
    torch.testing.assert_close(sinkhorn(longer, 0.2, 3)[:9], plan)


def test_the_use_of_prototypes() -> None:
    assert float(usage(torch.eye(4))) == pytest.approx(1)
    assert float(usage(torch.eye(4)[:1].expand(9, 4))) == pytest.approx(1 / 4)


def test_random_keys_are_not_assigned_along() -> None:
    config = {"prototypes": 6, "frozen_prototypes": 0, "queue": 10, "queue_from": 0.0}
    made, plain = method("swav", **config), method("swav", **config | {"queue": 0})
    plain.prototypes.load_state_dict(made.prototypes.state_dict())
    views = tuple(embeddings())
    first = made(views, 0.5).loss.item()
    assert first == pytest.approx(plain(views, 0.5).loss.item(), rel=1e-12)
    # the embeddings of the step before are: a twin assigns both together
    weight = normalize(made.prototypes.weight.detach().clone(), dim=1)
    newer = embeddings(seed=1)
    scores = [normalize(view.flatten(1), dim=1) @ weight.T for view in newer]
    older = [normalize(view.flatten(1), dim=1) @ weight.T for view in views]
    together = [torch.cat(pair).detach() for pair in zip(scores, older, strict=True)]
    assigned = [naive.sinkhorn(each, 0.05, 3)[:SAMPLES] for each in together]
    expected = naive.swapped(assigned, scores, 0.1).item()
    assert made(tuple(newer), 0.5).loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_frozen_prototypes_stay_as_they_are_and_thaw_as_new_ones_of_adamw(name: str) -> None:
    """The first step of Adam moves each weight by the learning rate."""
    made = method(name, prototypes=6, frozen_prototypes=3)
    optimizer = torch.optim.AdamW([each for each in made.parameters() if each.requires_grad], 1e-2, weight_decay=0.5)
    before = made.prototypes.weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad()
        made(tuple(embeddings(seed=step)), 0.0).loss.backward()
        made.after_backward(step)
        optimizer.step()
        assert torch.equal(made.prototypes.weight.detach(), before) is (step < 3)
    moved = made.prototypes.weight.detach() - before * (1 - 1e-2 * 0.5)
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-2), rtol=1e-3, atol=1e-6)


def test_prototypes_are_of_length_one_after_each_update_as_its_authors_have_it() -> None:
    made = method("swav", prototypes=6, frozen_prototypes=0, temperature=0.3)
    optimizer = torch.optim.AdamW([each for each in made.parameters() if each.requires_grad], 1e-2, weight_decay=0.5)
    twin = normalize(made.prototypes.weight.detach().clone(), dim=1).requires_grad_()
    twin_optimizer = torch.optim.AdamW([twin], 1e-2, weight_decay=0.5)
    made.backbone.requires_grad_(False)
    for seed in range(4):
        views = embeddings(seed=seed)
        scores = [normalize(view.detach().flatten(1), dim=1) @ twin.T for view in views]
        assigned = [naive.sinkhorn(each.detach().clone(), 0.05, 3) for each in scores]
        twin_optimizer.zero_grad()
        naive.swapped(assigned, scores, 0.3).backward()  # the scaling is not differentiated
        twin_optimizer.step()
        optimizer.zero_grad()
        made(tuple(views), 0.0).loss.backward()
        optimizer.step()
        made.after_update()
        with torch.no_grad():
            twin.copy_(normalize(twin, dim=1))
        torch.testing.assert_close(made.prototypes.weight, twin, rtol=1e-6, atol=1e-7)


def test_prototypes_count_with_length_one_in_every_mode() -> None:
    made, views = method("swav", prototypes=6, frozen_prototypes=0).eval(), tuple(embeddings())
    before = made(views, 0.0)
    with torch.no_grad():
        made.prototypes.weight.mul_(torch.linspace(0.1, 9, 6)[:, None])
    after = made(views, 0.0)
    assert after.loss.item() == pytest.approx(before.loss.item(), rel=1e-9)
    torch.testing.assert_close(after.outputs["prediction"], before.outputs["prediction"])


def test_the_center_follows_the_mean_of_the_teacher_after_the_loss() -> None:
    made = method("dino", prototypes=6, center_momentum=0.9)
    views = embeddings()
    weight = made.momentum_prototypes.weight
    mean = torch.stack([naive.cosine(row, each) for view in views for row in keys(made, view) for each in weight])
    center = torch.zeros(6, dtype=torch.float64)
    for _ in range(3):
        made(tuple(views), 0.0)
        center = 0.9 * center + 0.1 * mean.view(-1, 6).mean(dim=0)
        torch.testing.assert_close(made.center, center)
    made.eval()(tuple(views), 0.0)
    torch.testing.assert_close(made.center, center)
    made = method("dino", prototypes=6, centering="sinkhorn")
    made(tuple(views), 0.0)
    assert not made.center.any()


# ---- queue and bank


def test_the_queue_is_first_in_first_out_and_knows_ages() -> None:
    torch.manual_seed(0)
    queue = Queue(7, 3)
    assert queue.age().isnan()
    expected = [(row, None) for row in queue.keys]
    for step, number in enumerate([3, 3, 3, 7, 1]):
        new = torch.randn(number, 3)
        queue.push(new)
        expected = [(row, age if age is None else age + 1) for row, age in expected[number:]]
        expected += [(row / row.norm(), 0) for row in new]
        start = int(queue.start)
        held = torch.cat([queue.keys[start:], queue.keys[:start]])  # oldest first
        torch.testing.assert_close(held, torch.stack([row for row, _ in expected]))
        ages = [age for _, age in expected if age is not None]
        assert float(queue.age()) == pytest.approx(sum(ages) / len(ages)), step
    with pytest.raises(InputError, match=r"method\.queue is 7, shorter than the 8 keys of a step"):
        queue.push(torch.randn(8, 3))
    with pytest.raises(InputError, match=r"method\.queue is 7, shorter than the 8 keys"):
        Queue(7, 3, 8)


def test_keys_of_the_step_enter_the_queue_after_its_loss_and_not_in_eval_mode() -> None:
    made = method("moco_v2", queue=10, symmetric=False)
    views = embeddings()
    before = made.queue.keys.clone()
    made.eval()(tuple(views), 0.0)
    assert torch.equal(made.queue.keys, before)
    made.train()(tuple(views), 0.0)
    torch.testing.assert_close(made.queue.keys[:SAMPLES], normalize(keys(made, views[1]), dim=1))
    assert torch.equal(made.queue.keys[SAMPLES:], before[SAMPLES:])


def test_a_queue_of_the_batch_is_the_batch() -> None:
    first, second = (view.detach().flatten(1) for view in embeddings())
    itself = torch.eye(SAMPLES, dtype=torch.bool)
    by_queue, told = against_dictionary(first, second, normalize(second, dim=1), 0.3, itself)
    by_batch, also = against_batch(first, second, 0.3)
    torch.testing.assert_close(by_queue, by_batch)
    torch.testing.assert_close(told["positive"], also["positive"])


def test_the_bank_keeps_a_part_of_what_it_held() -> None:
    made = method("memory_bank", negatives=4, bank_momentum=0.75)
    before, indices, view = made.bank.clone(), torch.tensor([3, 7, 0, 19, 12, 5, 6]), embeddings()[0]
    output = made((view,), 0.0, indices)
    assert torch.equal(output.outputs["key"], before[indices])
    for index, row in zip(indices.tolist(), view.detach().flatten(1), strict=True):
        mixed = 0.75 * before[index] + 0.25 * row / row.norm()
        torch.testing.assert_close(made.bank[index], mixed / mixed.norm())
    others = [each for each in range(20) if each not in indices.tolist()]
    assert torch.equal(made.bank[others], before[others])
    assert (float(made.ages[3]), bool(made.ages[others].isnan().all())) == (0, True)


# ---- another library


def lightly(name: str, made: Any, views: list[torch.Tensor]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = pytest.importorskip("lightly.loss")
    first, second = (view.flatten(1) for view in views[:2])
    if name == "simclr":
        return losses.NTXentLoss(temperature=0.3)(first, second)
    if name == "barlow_twins":
        return losses.BarlowTwinsLoss(lambda_param=5e-3)(first, second)
    if name == "vicreg":
        return losses.VICRegLoss()(first, second)
    if name == "simsiam":
        loss = losses.NegativeCosineSimilarity()
        return (loss(first, second.detach()) + loss(second, first.detach())) / 2
    weight = normalize(made.prototypes.weight.detach().clone(), dim=1)
    scores = [normalize(view.flatten(1), dim=1) @ weight.T for view in views]
    if name == "swav":
        return losses.SwaVLoss(temperature=0.3)(scores[:2], scores[2:])
    teacher = normalize(made.momentum_prototypes.weight, dim=1)
    targets = [normalize(keys(made, view), dim=1) @ teacher.T for view in views[:2]]
    loss = losses.DINOLoss(6, student_temp=0.3).double()
    return loss(targets, scores, teacher_temp=0.055)


@pytest.mark.parametrize("name", ["simclr", "barlow_twins", "vicreg", "simsiam", "swav", "dino"])
def test_losses_and_gradients_are_those_of_lightly(name: str) -> None:
    prototypes: dict[str, Any] = {"prototypes": 6, "frozen_prototypes": 0, "temperature": 0.3}
    config = {"simclr": {"temperature": 0.3}, "swav": prototypes, "dino": prototypes | {"teacher_warmup": 0.5}}
    made = method(name, **config.get(name, {}))
    number = 4 if name in ("swav", "dino") else 2
    views, again = embeddings(number, samples=11), embeddings(number, samples=11)
    expected = lightly(name, made, again)
    loss = made(tuple(views), 0.25).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for view, other in zip(views, again, strict=True):
        assert view.grad is not None
        torch.testing.assert_close(view.grad, other.grad, rtol=1e-5, atol=1e-8)
