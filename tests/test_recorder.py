"""Truth: the same loop without a recorder, slow twins written by hand, scikit-learn's neighbors, numpy's SVD."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from stabilitylab import HeldOut, InputError, Recorder, Run, plugins
from stabilitylab.probe import Target

SAMPLES, FEATURES, CLASSES = 48, 10, 3


class Model(nn.Module):
    """Everything that a careless probe could disturb: dropout, batch norm, frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(16, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.drop(self.norm(self.first(x)).relu()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(x))


def data(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    images = torch.randn(SAMPLES, FEATURES, generator=generator) + 1.5 * nn.functional.one_hot(labels, FEATURES)
    return images, labels


def held_out(model: Model) -> HeldOut:
    def encode(images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = model.features(images)
        return {"representation": features, "projection": model.last(features)}

    return HeldOut(*data(2), *data(3), encode, chunk=20)


def training(model: Model, optimizer: torch.optim.Optimizer, first: int, stop: int) -> Iterator[dict[str, Any]]:
    images, labels = data()
    for step in range(first, stop):
        torch.manual_seed(step)
        features = model.features(images)
        loss = nn.functional.cross_entropy(model.last(features), labels)
        optimizer.zero_grad()
        loss.backward()
        outputs = {"representation": features, "labels": labels}
        yield {"loss": loss, "outputs": outputs, "images": SAMPLES, "scalars": {"momentum": 0.99}}
        optimizer.step()


def build(seed: int = 0) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def record(path: Path, steps: int = 50, probes: dict[str, Any] | None = None) -> Run:
    model, optimizer = build()
    with Recorder(path, model, optimizer, probes=probes, held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, steps):
            recorder.step(**step)
    return Run(path)


def only(name: str, **parameters: Any) -> dict[str, Any]:
    return {each: (parameters if each == name else False) for each in plugins.names("probes")}


# ---- a probe changes nothing


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    modes = [module.training for module in model.modules()]
    return [*(t.clone() for t in tensors), torch.get_rng_state(), np.random.get_state()[1], random.getstate(), modes]


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_a_probe_changes_nothing(tmp_path: Path, name: str) -> None:
    after = []
    for recorded in (False, True):
        model, optimizer = build()
        recorder = None
        if recorded:
            recorder = Recorder(tmp_path / "r", model, optimizer, probes=only(name, every=1), held_out=held_out(model))
        for step in training(model, optimizer, 0, 50):
            if recorder:
                recorder.step(**step)
        if recorder:
            recorder.close()
        after.append(states(model, optimizer))
    for without, with_probe in zip(*after, strict=True):
        if isinstance(without, torch.Tensor | np.ndarray):
            np.testing.assert_array_equal(np.asarray(without), np.asarray(with_probe))
        else:
            assert without == with_probe
    assert len(Run(tmp_path / "r").series) > 0


class Count(TorchDispatchMode):
    """Count the tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counted(tmp_path: Path, probes: dict[str, Any], steps: int = 20) -> Counter[str]:
    model, optimizer = build()
    recorder = Recorder(tmp_path / "c", model, optimizer, probes=probes, held_out=held_out(model), flush_seconds=1e9)
    seen: Counter[str] = Counter()
    for step in training(model, optimizer, 0, steps):
        if recorder.index == 0:  # the first step may allocate
            recorder.step(**step)
            continue
        with Count() as count:
            recorder.step(**step)
        seen += count.seen
    with Count() as count:
        recorder.flush()
    assert count.seen["_local_scalar_dense"] == 0
    recorder.close()
    return seen


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_no_probe_waits_for_the_device(tmp_path: Path, name: str) -> None:
    every = plugins.load("probes", name).Parameters().every
    seen = counted(tmp_path, only(name), steps=2 * every + 2)
    assert seen["_local_scalar_dense"] == 0
    assert seen["nonzero"] == 0


def test_two_operations_a_series_and_step_for_gradients(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    images, labels = data()
    recorder = Recorder(tmp_path / "c", model, probes=only("gradients"), flush_seconds=1e9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        with Count() as count:
            recorder.step(loss)
        count.seen.pop("detach")  # of the loss: a view, without work
        assert count.seen == {"_foreach_norm": 2, "stack": 2}
    recorder.close()


# ---- right numbers


def test_gradients_and_updates_equal_a_slow_twin(tmp_path: Path) -> None:
    model, optimizer = build()
    slow: dict[str, list[list[float]]] = {"gradients.norm": [], "gradients.max": [], "updates.ratio": []}
    trainable = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with Recorder(tmp_path / "r", model, optimizer, flush_steps=7) as recorder:
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


def test_spectrum_equals_numpys_svd_of_the_features(tmp_path: Path) -> None:
    model, optimizer = build()
    model.eval()
    encode = held_out(model).encode
    with torch.no_grad():
        features = encode(torch.cat([data(2)[0], data(3)[0]]))
    model.train()
    with Recorder(tmp_path / "r", model, optimizer, probes=only("spectrum"), held_out=held_out(model)) as recorder:
        recorder.step()
    run = Run(tmp_path / "r")
    for name in ("representation", "projection"):
        values = features[name].double().numpy()
        variances = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2 / (len(values) - 1)
        np.testing.assert_allclose(run[f"spectrum.{name}"].iloc[0], variances, rtol=1e-5, atol=1e-12)
        share = variances[variances > 0] / variances.sum()
        assert run["spectrum.rank"][name].iloc[0] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


# ---- the loop


def test_a_loop_without_held_out_images_says_what_it_left_out(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer) as recorder:
        for step in training(model, optimizer, 0, 3):
            recorder.step(step["loss"])
    run = Run(tmp_path / "r")
    assert {"gradients.norm", "updates.ratio", "training.loss", "training.lr"} <= set(run.series)
    assert "needs held-out images" in run.header["left_out"]["knn"]
    with pytest.raises(InputError, match="needs held-out images"):
        Recorder(tmp_path / "s", model, optimizer, probes={"knn": {}})
    with pytest.raises(InputError, match="no probe is named 'gradient'; did you mean gradients"):
        Recorder(tmp_path / "s", model, optimizer, probes={"gradient": {}})
    assert not (tmp_path / "s").exists()


def test_continuing_gives_the_series_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = record(tmp_path / "whole", 40, {"knn": {"every": 4, "k": 5}})
    model, optimizer = build()
    probes = {"knn": {"every": 4, "k": 5}}
    recorder = Recorder(tmp_path / "parts", model, optimizer, probes=probes, held_out=held_out(model))
    for step in training(model, optimizer, 0, 22):
        recorder.step(**step)
    recorder.settle()  # a checkpoint after 22 steps
    state = recorder.state()
    saved = {name: value.clone() for name, value in state.items()}
    recorder.close("interrupted")
    recorder = Recorder(tmp_path / "parts", model, optimizer, probes=probes, held_out=held_out(model), first_step=22)
    recorder.load_state(saved)
    for step in training(model, optimizer, 22, 40):
        recorder.step(**step)
    recorder.close()
    again = Run(tmp_path / "parts")
    assert again.series == whole.series
    for series in whole.series:
        if not whole.about(series).get("wall_clock"):
            np.testing.assert_array_equal(again[series].to_numpy(), whole[series].to_numpy(), err_msg=series)
            assert list(again[series].index) == list(whole[series].index)


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    model, optimizer = build()
    for error, status in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")):
        with pytest.raises(error), Recorder(tmp_path / status, model, optimizer) as recorder:
            for step in training(model, optimizer, 0, 5):
                recorder.step(step["loss"])
                if recorder.index == 3:
                    raise error("boom")
        run = Run(tmp_path / status)
        assert run.status == status
        assert len(run["gradients.norm"]) == 3


def test_a_probe_that_fails_is_switched_off_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = plugins.load("probes", "spectrum")

    def fail(self: Any, step: Any) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(kind, "measure", fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = record(tmp_path / "r", 5)
    assert [str(each.message) for each in told] == [
        "the probe 'spectrum' failed at step 0 and is off now: ZeroDivisionError: nothing to divide"
    ]
    assert len(run["gradients.norm"]) == 5
    assert "ZeroDivisionError" in run.header["disabled"]["spectrum"]["traceback"]


def test_a_probe_that_fails_later_keeps_what_it_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = plugins.load("probes", "spectrum")
    measure = kind.measure

    def fail_at_50(self: Any, step: Any) -> Any:
        if step.index == 50:
            raise ZeroDivisionError("nothing to divide")
        return measure(self, step)

    monkeypatch.setattr(kind, "measure", fail_at_50)
    with pytest.warns(UserWarning, match="failed at step 50"):
        run = record(tmp_path / "r", 60)
    assert list(run["spectrum.rank"].index) == [0]
    assert len(run["gradients.norm"]) == 60


def test_the_loss_may_be_a_tensor_or_a_number(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model) as recorder:
        for loss in (torch.tensor(1.0), 2.0, torch.tensor([3.0])):
            recorder.step(loss)
    assert Run(tmp_path / "r")["training.loss"]["loss"].tolist() == [1.0, 2.0, 3.0]


def test_wrong_parameters_of_a_probe_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"probes\.updates\.evry is not known; probes\.updates has every"):
        Recorder(tmp_path / "r", nn.Linear(2, 1), probes={"updates": {"evry": 3}})


def test_images_without_labels_have_a_spectrum_and_no_accuracy(tmp_path: Path) -> None:
    model, optimizer = build()
    fixed = HeldOut(data(2)[0], None, data(3)[0], None, held_out(model).encode)
    with Recorder(tmp_path / "r", model, optimizer, held_out=fixed) as recorder:
        recorder.step()
    run = Run(tmp_path / "r")
    assert "spectrum.rank" in run
    assert "knn.accuracy" not in run
    assert "needs the labels" in run.header["left_out"]["knn"]


def test_a_frozen_first_layer_stays_the_first_layer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    with Recorder(tmp_path / "r", model) as recorder:
        recorder.step(1.0)
    run = Run(tmp_path / "r")
    assert (run.layers.names, run.layers.first) == (("0", "1"), "0")


def test_a_queued_class_that_is_not_held_out_is_never_right(tmp_path: Path) -> None:
    model, optimizer = build()
    with Recorder(tmp_path / "r", model, optimizer, probes=only("knn", every=1), held_out=held_out(model)) as recorder:
        for step in training(model, optimizer, 0, 2):
            step["outputs"]["labels"] = torch.full((SAMPLES,), 77)
            recorder.step(**step)
    assert (Run(tmp_path / "r")["knn.accuracy"]["queue"] == 0).all()


@pytest.mark.parametrize("name", plugins.names("probes"))
def test_every_series_is_named_after_its_probe_and_says_its_schedule(tmp_path: Path, name: str) -> None:
    model, optimizer = build()
    kind = plugins.load("probes", name)
    target = Target(model, optimizer, record(tmp_path / "r", 2).layers, held_out(model))
    made = kind(kind.Parameters(), target)
    assert all(series.startswith(f"{name}.") for series in made.labels)
    assert all(field.description for field in kind.Parameters.model_fields.values())
