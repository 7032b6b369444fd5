"""Truth: brute force in numpy, scikit-learn's neighbors and logistic regression, scipy's intervals, torch's SGD."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from test_training import go
from torch.nn.functional import cross_entropy, normalize

from stabilitylab import InputError
from stabilitylab.cli import main
from stabilitylab.evaluation import knn
from stabilitylab.evaluation.features import Features
from stabilitylab.evaluation.judge import Judging, judge
from stabilitylab.evaluation.knn import neighbors, vote
from stabilitylab.evaluation.linear import logistic_regression, train_linear

NOTHING = [word for name in ("knn", "linear", "logistic", "ranks") for word in ("--set", f"{name}=false")]


def clouds(number: int, spread: float = 1.0, width: int = 12, classes: int = 4, seed: int = 0) -> Features:
    """Classes around fixed centers."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (number,), generator=generator)
    return Features(centers[labels] + spread * torch.randn(number, width, generator=generator), labels)


# ---- nearest neighbors


@pytest.mark.parametrize("cells", [1, 40_000, 105_000, 2**24])
def test_neighbors_by_brute_force(cells: int) -> None:
    bank, queries = (normalize(clouds(n, seed=n).values, dim=1) for n in (5003, 70))
    similarity, index = neighbors(queries, bank, 9, cells)
    every = (queries.double() @ bank.double().T).numpy()
    expected = np.sort(every, axis=1)[:, ::-1][:, :9]
    np.testing.assert_allclose(similarity, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(every, index.numpy(), 1), expected, rtol=0, atol=1e-6)


@pytest.fixture
def compared_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of integers, also where they are slow or not worth it; the number of queries in each exact search."""

    def exact(*given: Any) -> Any:
        numbers.append(len(given[0]))
        return original(*given)

    numbers: list[int] = []
    original = knn._exact
    monkeypatch.setattr(knn, "_exact", exact)
    monkeypatch.setattr(knn, "_multiplies_integers", lambda _: True)
    monkeypatch.setattr(knn, "WORTH", 0.1)
    monkeypatch.setattr(knn, "ROWS", 100)
    return numbers


@pytest.mark.parametrize("cells", [100_000, 2**24])
@pytest.mark.parametrize("spread", [3.0, 0.3, 1e-4, 0.0])  # the last two: all of a class nearer than rounding can tell
def test_neighbors_from_rounded_products_are_the_exact_ones(
    spread: float, cells: int, compared_whole: list[int]
) -> None:
    bank, queries = (clouds(number, spread, width=48, seed=number).values for number in (6007, 300))
    bank[:4] *= 1.7  # a few are longer than one
    queries, bank = queries / queries.norm(dim=1).mean(), bank / bank.norm(dim=1).mean()
    similarity, index = neighbors(queries, bank, 9, cells)
    every = queries.double() @ bank.double().T
    expected = every.topk(9, dim=1).values
    torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(every.gather(1, index), expected, rtol=0, atol=2e-6)
    assert all(len(set(each)) == 9 for each in index.tolist())
    assert compared_whole == [300] if spread < 1e-3 else sum(compared_whole) < 100


def test_only_the_queries_that_rounding_may_have_misled_are_compared_whole(compared_whole: list[int]) -> None:
    """A tenth of the queries lies where more entries than there are candidates differ by less than the rounding."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = (normalize(torch.randn(n, 48, generator=generator), dim=1) for n in (6000, 500))
    bank[:1000] = normalize(bank[0] + 1e-5 * bank[:1000], dim=1)
    queries[::10] = normalize(bank[0] + 1e-3 * queries[::10], dim=1)
    queries[5] = torch.nan
    similarity, index = neighbors(queries, bank, 9)
    known = ~queries.isnan().any(dim=1)
    every = queries.double() @ bank.double().T
    expected = every[known].topk(9, dim=1).values
    torch.testing.assert_close(similarity[known].double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(every.gather(1, index)[known], expected, rtol=0, atol=1e-6)
    assert len(compared_whole) == 1
    assert 51 <= compared_whole[0] < 75


def test_the_bound_of_the_rounding_holds_and_is_not_idle() -> None:
    """Vectors that a step of one size suits badly, among them constant and huge ones."""
    generator = torch.Generator().manual_seed(0)
    for bank in (
        torch.randn(500, 40, generator=generator),
        torch.randn(500, 40, generator=generator) ** 3 + 7,
        torch.full((500, 40), 0.1),
        torch.eye(40).repeat(5, 1) * 1e6,
    ):
        rounded = knn._rounded(bank)
        again = rounded.mean.double() + rounded.step.double() * rounded.integers.double()
        lost = (bank.double() - again).norm(dim=1)
        assert lost.max() <= rounded.error * (1 + 1e-4) + 1e-6 * bank.abs().max()
        assert rounded.error <= rounded.step / 2 * 40**0.5 * (1 + 1e-4)
        assert rounded.integers.abs().max() <= 127


@pytest.mark.parametrize("nearest", [1.5e-4, -0.5])
def test_neighbors_that_are_hardly_or_not_similar_are_found_too(nearest: float, compared_whole: list[int]) -> None:
    """Rounding turns some of the nearest away from the query."""
    query = normalize(clouds(1, width=48).values, dim=1).double()
    bank = clouds(3000, width=48, seed=1).values.double()
    bank = normalize(bank - bank @ query.T @ query, dim=1)
    cosine = torch.full((3000, 1), -0.9, dtype=torch.float64)
    cosine[:200, 0] = torch.linspace(nearest - 1e-3, nearest, 200)
    bank = (cosine * query + (1 - cosine**2).sqrt() * bank).float()
    similarity, index = neighbors(query.float().expand(200, -1), bank, 9)
    expected = (query @ bank.double().T).topk(9, dim=1)
    torch.testing.assert_close(similarity.double(), expected.values.expand(200, -1), rtol=0, atol=1e-6)
    for each in index.tolist():
        assert set(each) == set(expected.indices[0].tolist())
    assert compared_whole in ([], [200])


@pytest.mark.parametrize("width", [1, 2, 15, 16, 40])
def test_neighbors_of_features_of_any_length_and_width(width: int, compared_whole: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (30 * torch.randn(n, width, generator=generator) for n in (3000, 200))
    similarity, index = neighbors(queries, bank, 5)
    every = queries.double() @ bank.double().T
    expected = every.topk(5, dim=1).values
    torch.testing.assert_close(similarity.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(every.gather(1, index), expected, rtol=1e-5, atol=1e-4)
    assert all(len(set(each)) == 5 for each in index.tolist())
    if width < 16:  # torch's product of integers is wrong for a single dimension
        assert compared_whole == [200]


def test_equal_neighbors_are_each_named_once() -> None:
    bank = torch.eye(3).repeat_interleave(5, dim=0)
    for cells in (1, 30, 10**6):
        similarity, index = neighbors(torch.eye(3), bank, 5, cells)
        assert (similarity == 1).all()
        assert [sorted(each) for each in index.tolist()] == [list(range(5)), list(range(5, 10)), list(range(10, 15))]
    _, index = neighbors(torch.eye(3), torch.ones(1000, 3), 5)
    assert all(len(set(each)) == 5 for each in index.tolist())
    with pytest.raises(InputError, match="k is 16, but the bank holds 15 images"):
        neighbors(torch.eye(3), bank, 16)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_votes_are_those_of_scikit_learn(temperature: float) -> None:
    bank, queries = clouds(400, 1.5), clouds(200, 1.5, seed=1)
    found = neighbors(normalize(queries.values, dim=1), normalize(bank.values, dim=1), 20)
    ours = vote(found[0], bank.labels[found[1]], 4, [(20, temperature), (5, temperature)])
    for k in (5, 20):
        twin = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
        )
        twin.fit(bank.values.numpy(), bank.labels.numpy())
        agree = ours[k, temperature].numpy() == twin.predict(queries.values.numpy())
        assert agree.mean() >= 0.995  # float32 against float64 where two classes have nearly the same votes


def test_a_neighbor_without_a_class_has_no_vote_and_cold_votes_do_not_overflow() -> None:
    similarity, labels = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[-1, 1, 0]])
    assert vote(similarity, labels, 2, [(3, 1e-4)])[3, 1e-4].tolist() == [1]
    assert vote(similarity, labels, 2, [(3, 1e4)])[3, 1e4].tolist() in ([0], [1])


PEAK = """
import resource, sys, torch
torch.set_num_threads(1)
from stabilitylab.evaluation.knn import neighbors
bank, queries = torch.randn(int(sys.argv[1]), 16), torch.randn(500, 16)
neighbors(queries[:8], bank[:100], 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neighbors(queries, bank, 5, 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_memory_does_not_grow_with_the_bank() -> None:
    def peak(bank: int) -> float:
        words = [sys.executable, "-c", PEAK, str(bank)]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1024

    # all similarities at once would be 191 MB; those of a chunk are 4
    assert peak(100_000) < 50


# ---- linear classifiers


def test_every_rate_is_trained_as_by_torchs_sgd() -> None:
    train, rates = clouds(96), [0.1, 1.0]
    weight, bias = train_linear(train.values, train.labels, 4, rates, epochs=3, batch_size=1024, seed=5)
    for at, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(5)
        w = (0.01 * torch.randn(1, 12, 4, generator=generator))[0].requires_grad_()
        b = torch.zeros(4, requires_grad=True)
        size = 6  # a sixteenth of 96
        optimizer = torch.optim.SGD([w, b], lr=rate * size / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * 16)
        for _ in range(3):
            for rows in torch.randperm(96, generator=generator).split(size):
                optimizer.zero_grad()
                cross_entropy(train.values[rows] @ w + b, train.labels[rows]).backward()
                optimizer.step()
                schedule.step()
        torch.testing.assert_close(weight[at], w.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(bias[at], b.detach(), rtol=1e-3, atol=1e-5)


def test_probe_and_logistic_regression_reach_the_optimum() -> None:
    train, held_out = clouds(600, 1.2), clouds(500, 1.2, seed=1)
    optimum = LogisticRegression(C=1e3, max_iter=2000).fit(train.values.numpy(), train.labels.numpy())
    best = float((optimum.predict(held_out.values.numpy()) == held_out.labels.numpy()).mean())
    rows = {each["measure"]: each for each in judge(train, held_out, Judging(epochs=30, seeds=2), lambda _: None)}
    assert rows["linear probe"]["value"] == pytest.approx(best, abs=0.03)
    assert rows["logistic regression"]["value"] == pytest.approx(best, abs=0.03)
    assert rows["kNN"]["value"] > best - 0.1
    apart = [clouds(200, 0.01, seed=seed) for seed in (2, 3)]
    for row in judge(*apart, Judging(epochs=20, seeds=1), lambda _: None):
        assert row["value"] == 1 or "low" not in row


def test_intervals_are_wilsons_and_nothing_is_chosen_on_the_held_out_images() -> None:
    train, held_out = clouds(300, 2.0), clouds(150, 2.0, seed=1)
    rows = judge(train, held_out, Judging(epochs=4, seeds=3), lambda _: None)
    for row in rows[:3]:
        p, n, z = row["value"], 150, norm.ppf(0.975)
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert (row["low"], row["high"]) == (pytest.approx(middle - half), pytest.approx(middle + half))
    turned = Features(held_out.values, (held_out.labels + 1) % 4)  # other truths, the same choices
    again = judge(train, turned, Judging(epochs=4, seeds=3), lambda _: None)
    for one, other in zip(rows[:2], again[:2], strict=True):
        chosen = ("k", "temperature", "rate")
        assert [one.get(name) for name in chosen] == [other.get(name) for name in chosen]
    assert rows[1]["sd_seeds"] >= 0


def test_a_constant_feature_changes_nothing() -> None:
    train, held_out = clouds(200), clouds(100, seed=1)
    wider = [torch.cat([each.values, torch.full((len(each.values), 1), 7.0)], dim=1) for each in (train, held_out)]
    plain = logistic_regression(train.values, train.labels, held_out.values)
    assert (plain == logistic_regression(wider[0], train.labels, wider[1])).all()


def test_one_class_is_refused() -> None:
    one = Features(torch.randn(40, 3), torch.zeros(40, dtype=torch.int64))
    with pytest.raises(InputError, match="all of one class"):
        judge(one, one, Judging(), lambda _: None)


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluated") / "r"
    go(path, train__steps=4, checkpoint__every=2)
    return path


FAST = ["--set", "epochs=2", "--set", "seeds=2", "--set", "rates=[1.0]", "--set", "k=[5]"]


def evaluate(*words: str) -> Any:
    return CliRunner().invoke(main, ["evaluate", *words])


def test_a_run_keeps_its_evaluation(run: Path) -> None:
    done = evaluate(str(run), "--json", *FAST)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["step"], result["training_images"]) == (4, 1438)
    names = [each["measure"] for each in result["measures"]]
    assert names == ["kNN", "linear probe", "logistic regression", "effective rank", "RankMe", "participation ratio"]
    assert all(each["low"] <= each["value"] <= each["high"] for each in result["measures"][:3])
    kept = list((run / "evaluations").glob("00000004-*.json"))
    assert json.loads(kept[0].read_text()) == result
    assert result["measures"][0]["images"] == 359
    # weights and images are the same, whichever way they are named
    again = json.loads(evaluate(str(run / "checkpoints/00000004"), "--json", *FAST).stdout)
    assert again["measures"] == result["measures"]
    table = evaluate(str(run / "checkpoints/00000002"), *FAST)
    assert table.exit_code == 0
    assert "linear probe" in table.stdout
    assert "2 seeds" in " ".join(table.stdout.split()), table.stdout  # may be folded


def folder(path: Path, classes: int = 2, size: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for number in range(classes):
        for index in range(12):
            (path / f"c{number}").mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, (size, size + 7, 3), dtype=np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(path / f"c{number}" / f"{index}.png")
    return path


def test_other_images_of_another_size_and_kind_are_fitted(run: Path, tmp_path: Path) -> None:
    done = evaluate(str(run), "--json", "--data", str(folder(tmp_path / "f")), *FAST, "--set", "data.workers=0")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["measures"][0]["value"] > 0.9  # dark and bright
    assert str(tmp_path / "f") in result["images"] or "f" in result["images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "holds no weights; expected a run with checkpoints"),
        (["{run}", "--data", "{empty}"], "{empty}"),
        (["{run}", "--data", "{flat}"], "has no classes, so nothing can be judged on it"),
        (["{run}", "--data", "{single}"], "class"),
        (["{run}", "--set", "model.dim=64"], "there and"),
        (["{run}", "--set", "kk=3"], "evaluate.kk is not known; evaluate has knn, k, temperature"),
        (["{run}", "--set", "epochs=0"], "evaluate.epochs was 0"),
        (["{run}", "--set", "rates=[]"], "evaluate.rates was []"),
        (["{run}", "--set", "rates=[nan]"], "evaluate.rates was nan"),
        (["{run}", "--set", "temperature=[]"], "evaluate.temperature was []"),
        (["{run}", "--set", "temperature=[0.0]"], "evaluate.temperature was 0.0"),
        (["{run}", "--set", "temperature=[-1.0]"], "evaluate.temperature was -1.0"),
        (["{run}", "--set", "k=[]"], "evaluate.k was []"),
        (["{run}", "--set", "k=-1"], "evaluate.k was -1: Input should be greater than 0"),
        (["{run}", *NOTHING], "all off"),
        (["{run}", "--set", "k=[100000]"], "evaluate.k is [100000], but no more than"),
        (["{run}", "--set", "optimizer.lr=3"], "optimizer.lr has no effect on an evaluation, which takes knn, k"),
        (["{weights}"], "which images a published checkpoint is judged on must be said: --data FOLDER"),
    ],
)
def test_what_cannot_be_judged_is_said(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    empty, flat, weights = tmp_path / "empty", tmp_path / "flat", tmp_path / "x.pth.tar"
    empty.mkdir()
    flat.mkdir()
    torch.save({"state_dict": {"module.base_encoder.cls_token": torch.zeros(1)}}, weights)
    for file in folder(tmp_path / "f").rglob("*.png"):
        file.rename(flat / f"{file.parent.name}-{file.name}")
    places = {"run": run, "empty": empty, "flat": flat, "weights": weights, "single": folder(tmp_path / "s", 1)}
    done = evaluate(*(word.format(**places) for word in words), "--json", "--set", "data.workers=0")
    assert done.exit_code == 1, done.output
    assert message.format(**places) in done.stderr
    assert "Traceback" not in done.output


def test_a_backbone_that_diverged_is_not_judged(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "checkpoints/00000004"
    broken.mkdir(parents=True)
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    state = load_file(run / "checkpoints/00000004/backbone.safetensors")
    state["norm.bias"][0] = float("nan")
    save_file(state, broken / "backbone.safetensors")
    done = evaluate(str(broken), "--json")
    assert done.exit_code == 1
    assert "not finite for 1438 of 1438 images" in done.stderr


def test_json_is_json_where_a_number_is_none(run: Path, tmp_path: Path) -> None:
    """One held-out image has no rank."""
    images = folder(tmp_path / "f")
    options = ("--set", "linear=false", "--set", "logistic=false", "--set", "k=[1]", "--set", "rank_images=2")
    done = evaluate(str(run), "--json", "--data", str(images), *options, "--set", "data.held_out_fraction=0.01")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
