"""Truth: slow twins written by hand, scikit-learn's neighbors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from small_loop import SAMPLES, build, data, held_out, only, training
from torch import nn

from stabilitylab import Recorder, Run


def test_gradients_and_updates_equal_a_slow_twin(tmp_path: Path) -> None:
    model, optimizer = build()
    slow: dict[str, list[list[float]]] = {"gradients.norm": [], "gradients.max": [], "updates.ratio": []}
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with Recorder(tmp_path / "r", model, optimizer, flush_steps=7, self_check=0) as recorder:
        for step in training(model, optimizer, 0, 40):
            recorder.step(**step)
            gradients = [torch.zeros(1) if each.grad is None else each.grad for each in trainable.values()]
            slow["gradients.norm"].append([float(g.double().pow(2).sum().sqrt()) for g in gradients])
            slow["gradients.max"].append([float(g.abs().max()) for g in gradients])
            before = {name: each.detach().double().clone() for name, each in trainable.items()}
            saved = {name: each.detach().clone() for name, each in trainable.items()}
            state = {name: value.clone() for name, value in model.state_dict().items()}
            inner = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
            optimizer.step()  # look ahead by one update, then go back
            after = [each.detach().double() for each in trainable.values()]
            slow["updates.ratio"].append(
                [float((new - old).norm() / old.norm()) for new, old in zip(after, before.values(), strict=True)]
            )
            model.load_state_dict(state)
            for parameter, values in optimizer.state.items():
                if parameter in inner:
                    for key, value in values.items():
                        value.copy_(inner[parameter][key])
                else:
                    for value in values.values():
                        value.zero_()
            assert all(torch.equal(saved[name], each) for name, each in trainable.items())
    run = Run(tmp_path / "r")
    for series, expected in slow.items():
        frame = run[series]
        assert list(frame.columns) == list(trainable)
        assert list(frame.index) == list(range(40))
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(frame.to_numpy(), np.array(expected), rtol=2e-4, atol=1e-9)
    assert (run["gradients.norm"][["unused.weight", "unused.bias"]] == 0).all(axis=None)
    assert not any(name.startswith("frozen") for name in run["gradients.norm"].columns)


def test_evidence_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with Recorder(tmp_path / "r", model) as recorder:
        for value in (1.0, float("nan"), float("inf"), 2.0):
            for each in model.parameters():
                each.grad = torch.full_like(each, value)
            recorder.step(value)
    frame = Run(tmp_path / "r")["gradients.norm"]["1.bias"]
    np.testing.assert_array_equal(frame.to_numpy(), [1.0, np.nan, np.inf, 2.0])
    loss = Run(tmp_path / "r")["training.loss"]["loss"]
    np.testing.assert_array_equal(loss.to_numpy(), [1.0, np.nan, np.inf, 2.0])


def test_of_a_loss_that_is_not_reduced_the_mean_is_recorded_and_told(tmp_path: Path) -> None:
    with Recorder(tmp_path / "r", nn.Linear(2, 1)) as recorder:
        recorder.step(torch.tensor(2.0))
        with pytest.warns(UserWarning, match="the loss has 3 values: their mean is recorded"):
            recorder.step(torch.tensor([1, 2, 6]))
    assert Run(tmp_path / "r")["training.loss"]["loss"].tolist() == [2.0, 3.0]


def test_gradients_are_unscaled(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model) as recorder:
        for each in model.parameters():
            each.grad = torch.full_like(each, 1024.0)
        recorder.step(scale=1024.0)
    assert Run(tmp_path / "r")["gradients.max"].to_numpy().tolist() == [[1.0, 1.0]]


def test_half_precision_norms_are_summed_in_float32(tmp_path: Path) -> None:
    model = nn.Linear(400, 400, bias=False).to(torch.bfloat16)
    model.weight.grad = torch.full_like(model.weight, 3.0)
    with Recorder(tmp_path / "r", model) as recorder:
        recorder.step()
    assert Run(tmp_path / "r")["gradients.norm"].iloc[0, 0] == 1200.0  # bfloat16 has no 1200 after 400 x 400 sums


def test_knn_equals_that_of_scikit_learn(tmp_path: Path) -> None:
    model, optimizer = build()
    temperature, k = 0.07, 7
    with Recorder(
        tmp_path / "r", model, optimizer, probes=only("knn", every=1, k=k, queue=80), held_out=held_out(model)
    ) as recorder:
        expected, queue, queue_labels = [], torch.empty(0, 16), torch.empty(0, dtype=torch.int64)
        for step in training(model, optimizer, 0, 6):
            recorder.step(**step)
            # first in, first out
            queue = torch.cat([queue, step["outputs"]["representation"].detach()])[-80:]
            queue_labels = torch.cat([queue_labels, step["outputs"]["labels"]])[-80:]
            model.eval()
            encode = held_out(model).encode
            with torch.no_grad():
                queries, bank = (encode(images)["representation"].numpy() for images in (data(2)[0], data(3)[0]))
            model.train()
            row = []
            for features, labels in ((bank, data(3)[1]), (queue.numpy(), queue_labels)):
                neighbors = KNeighborsClassifier(
                    k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
                )
                row.append((neighbors.fit(features, labels).predict(queries) == data(2)[1].numpy()).mean())
            expected.append(row)
    run = Run(tmp_path / "r")
    np.testing.assert_allclose(run["knn.accuracy"].to_numpy(), expected, atol=1e-6)
    accuracy = run["knn.accuracy"]["bank"]
    np.testing.assert_allclose(run["knn.correct"].mean(axis=1), accuracy, atol=1e-6)
    error = np.sqrt(accuracy * (1 - accuracy) / SAMPLES)
    np.testing.assert_allclose(run["knn.standard_error"]["bank"], error, atol=1e-6)
    assert run.about("knn.accuracy")["samples"] == SAMPLES


def test_unlabeled_samples_have_no_vote(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer, probes=only("knn", every=1), held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, 2):
            step["outputs"]["labels"] = torch.full((SAMPLES,), -1)
            recorder.step(**step)
    assert Run(tmp_path / "r")["knn.accuracy"]["queue"].isna().all()
