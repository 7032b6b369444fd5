"""Truth: toy networks that are known to collapse or not, trained here; spectra of noise in which nothing is dead."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from stabilitylab.analysis import analyze
from stabilitylab.detectors import collapse
from stabilitylab.run import Run, RunWriter
from stabilitylab.stats.spectrum import feature_std, resolution

DIMENSIONS, BATCH, TEMPERATURE, RATE, SAMPLES = 16, 32, 0.1, 0.01, 500


@cache
def toy(depth: int, noise: float = 0.0, start: float = 0.05, steps: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Train a linear network by InfoNCE on white data, and return the spectra of its embeddings as it learns.

    Args:
        depth: number of square weight matrices, without a bias.
        noise: standard deviation of the augmentation of the last half of the dimensions; that of the data is 1.
        start: standard deviation of the first weights.
        steps: of plain gradient descent.
        seed: of data and weights.

    References:
        Jing et al., 2022, Understanding dimensional collapse in contrastive self-supervised learning. ICLR.
    """
    rng = np.random.default_rng(seed)
    weights = [start * rng.standard_normal((DIMENSIONS, DIMENSIONS)) for _ in range(depth)]
    scale = np.where(np.arange(DIMENSIONS) < DIMENSIONS // 2, 0.0, noise)
    rows = []
    for step in range(steps + 1):
        if step % 250 == 0:
            embedded = rng.standard_normal((SAMPLES, DIMENSIONS)) @ product(weights)
            rows.append(np.linalg.eigvalsh(np.cov(embedded.T))[::-1])
        data = rng.standard_normal((BATCH, DIMENSIONS))
        views = [data + scale * rng.standard_normal(data.shape) for _ in range(2)] if noise else [data, data]
        for weight, gradient in zip(weights, gradients(weights, *views), strict=True):
            weight -= RATE * gradient
    return framed(rows, 250)


def product(weights: list[np.ndarray]) -> np.ndarray:
    whole = np.eye(DIMENSIONS)
    for each in weights:
        whole = whole @ each
    return whole


def gradients(weights: list[np.ndarray], one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Return the gradient of InfoNCE on embeddings that are not normalized, for each matrix."""
    logits = one @ (whole := product(weights)) @ (other @ whole).T / TEMPERATURE
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = chances / chances.sum(axis=1, keepdims=True) - np.eye(BATCH)
    of_product = (one.T @ error @ other + other.T @ error.T @ one) @ whole / (BATCH * TEMPERATURE)
    return [product(weights[:at]).T @ of_product @ product(weights[at + 1 :]).T for at in range(len(weights))]


def framed(rows, every=50):
    columns = [str(each) for each in range(len(rows[0]))]
    return pd.DataFrame(np.array(rows), index=pd.Index(every * np.arange(len(rows)), name="step"), columns=columns)


def detect(frame, samples=SAMPLES):
    return collapse.Detector().detect("spectrum.projection", frame, {"samples": samples})


class TestToys:
    @pytest.mark.parametrize(("depth", "dead"), [(1, 0), (2, 4), (3, 8)])
    def test_depth_leaves_0_4_and_8_of_16_directions_dead(self, depth, dead):
        """The published definition counts below 1e-3 of the largest; the detector must agree with it at the end."""
        spectra = toy(depth, steps=3000 if dead else 1000)
        by_definition = int((spectra.iloc[-1] < 1e-3 * spectra.iloc[-1, 0]).sum())
        assert by_definition == pytest.approx(dead, abs=1)
        counted = collapse.Detector().count(spectra, {"samples": SAMPLES})
        assert counted["dead"].iloc[-1] == by_definition
        assert [each.stop for each in detect(spectra)] == ([3000] if dead else [])

    @pytest.mark.parametrize(("noise", "gap"), [(0.01, 1), (1.0, 5), (1.5, 14)])
    def test_augmentation_opens_a_gap_which_is_no_death(self, noise, gap):
        spectra = toy(1, noise, start=0.25, steps=1000)
        last = spectra.iloc[-1].to_numpy()
        assert gap / 2 < last[:8].mean() / last[8:].mean() < 2 * gap
        assert detect(spectra) == []

    def test_augmentation_twice_the_data_kills_some_of_its_dimensions_and_no_other(self):
        (event,) = detect(toy(1, 2.0, start=0.25, steps=1000))
        assert (event.stop, int(event.label) >= 8) == (1000, True)

    def test_a_run_of_the_toy_says_how_many_are_dead_at_last(self, tmp_path):
        spectra = toy(3, steps=3000)
        writer = RunWriter(tmp_path / "toy", {"layers": {"names": ["w"], "of": {"w": "w"}, "first": "w"}})
        writer.declare("spectrum.projection", list(spectra.columns), samples=SAMPLES)
        writer.update()
        writer.write("spectrum.projection", spectra.index.to_numpy(), spectra.to_numpy())
        writer.close("completed")
        (told,) = (each for each in analyze(Run(tmp_path / "toy")).findings if each.kind == "collapse")
        assert told.verdict == "dimensional"
        assert told.numbers["dead_last"] == (spectra.iloc[-1] < 1e-3 * spectra.iloc[-1, 0]).sum()
        assert f"at most; {told.numbers['dead_last']} at last" in told.sentence


def power(exponent):
    return lambda rng, n, d: rng.standard_normal((n, d)) * np.arange(1, d + 1) ** (-exponent / 2)


def exponential(rng, n, d):
    return rng.standard_normal((n, d)) * np.exp(-0.25 * np.arange(d))


def turned(rng, n, d):
    return exponential(rng, n, d) @ np.linalg.qr(np.random.default_rng(5).standard_normal((d, d)))[0]


def heavy(rng, n, d):
    return rng.standard_t(2, (n, d))


def heavy_together(rng, n, d):
    return rng.standard_normal((n, d)) / np.sqrt(rng.chisquare(2, (n, 1)) / 2)


def layer_norm(rng, n, d):
    cloud = power(1)(rng, n, d)
    cloud -= cloud.mean(axis=1, keepdims=True)
    return cloud / cloud.std(axis=1, keepdims=True)


QUIET = {
    "power 1": power(1), "power 2": power(2), "power 4": power(4), "exponential": exponential, "heavy": heavy,
    "heavy together": heavy_together, "layer norm": layer_norm,
}  # fmt: skip


def spectra_of(cloud, n, d, rounded=float, seed=0):
    rng = np.random.default_rng(seed)
    return framed([np.linalg.eigvalsh(np.cov(cloud(rng, n, d).T).astype(rounded))[::-1] for _ in range(4)])


class TestNothing:
    @pytest.mark.parametrize("cloud", QUIET)
    @pytest.mark.parametrize(("samples", "dimensions"), [(8, 16), (33, 64), (66, 64), (400, 64), (198, 192)])
    def test_in_steep_heavy_and_few(self, cloud, samples, dimensions):
        assert detect(spectra_of(QUIET[cloud], samples, dimensions), samples) == []

    @pytest.mark.parametrize("size", [1.0, 1e-3])
    def test_in_what_rounding_makes_zero_or_negative(self, size):
        """Eigenvalues that float16 cannot hold are zero, and small ones of a float32 solver are anything."""
        halves = (size * spectra_of(power(4), 500, 64)).astype(np.float16).astype(float)
        assert (halves.to_numpy() == 0).any() or size == 1
        assert detect(halves) == []
        singles = size * spectra_of(turned, 500, 64, np.float32).astype(float)
        assert (singles.to_numpy() < 0).any()
        assert detect(singles) == []

    def test_but_directions_that_are_null_in_float16_are_found(self):
        spectra = np.ones((8, 16))
        spectra[4:, 10:] = 0
        (event,) = detect(framed(spectra))
        assert (event.start, event.label) == (200, "10")


class TestTelling:
    """Random features of 16 dimensions every 50 steps, of which some are dead or all are small at times."""

    def told(self, tmp_path, scales, deviation=None):
        rng = np.random.default_rng(0)
        features = [rng.standard_normal((SAMPLES, DIMENSIONS)) * scale for scale in scales]
        rows = [np.cov(each.T) for each in features]
        frame = framed([np.linalg.eigvalsh(r)[::-1] if np.isfinite(r).all() else np.full(16, np.nan) for r in rows])
        writer = RunWriter(tmp_path / "run", {"layers": {"names": ["w"], "of": {"w": "w"}, "first": "w"}})
        writer.declare("spectrum.representation", list(frame.columns), samples=SAMPLES)
        writer.write("spectrum.representation", frame.index.to_numpy(), frame.to_numpy())
        if deviation is not None:
            writer.declare("spectrum.feature_std", ["representation"])
            rows = np.array([[feature_std(each + deviation)] for each in features])
            writer.write("spectrum.feature_std", frame.index.to_numpy(), rows)
        writer.close("completed")
        (told,) = (each for each in analyze(Run(tmp_path / "run")).findings if each.kind == "collapse")
        return told

    ALIVE, DEAD, EQUAL = np.ones(16), np.where(np.arange(16) < 10, 1, 1e-4), np.full(16, 1e-5)

    def test_every_collapse_is_told_and_whether_the_record_ends_in_one(self, tmp_path):
        told = self.told(tmp_path, [*[self.ALIVE] * 8, *[self.EQUAL] * 6, *[self.ALIVE] * 6, *[self.DEAD] * 10])
        assert "All embeddings become equal in the representation, from step 400 to step 650; " in told.sentence
        assert "; 6 directions are dead from step 1,000 to the end." in told.sentence
        assert (told.verdict, told.numbers["collapses"], told.numbers["at_end"]) == ("complete", 2, True)
        assert (told.numbers["dead"], told.numbers["since"], told.numbers["until"]) == (16, 400, 650)

    def test_a_spectrum_that_is_not_finite_ends_no_collapse(self, tmp_path):
        told = self.told(tmp_path, [*[self.ALIVE] * 8, *[self.EQUAL] * 6, np.full(16, np.nan)])
        assert "from step 400 to the end." in told.sentence
        assert told.numbers["at_end"] is True

    def test_one_large_spectrum_makes_no_collapse_of_the_others(self, tmp_path):
        told = self.told(tmp_path, [*[self.ALIVE] * 10, 2000 * self.ALIVE, *[self.ALIVE] * 10])
        assert told.verdict == "none"

    def test_a_scale_that_shrinks_is_no_collapse_where_the_normalized_features_are_known(self, tmp_path):
        """The same spectra; with a mean of one they are features that become equal."""
        scales = [np.exp(-each / 2) * self.ALIVE for each in range(20)]
        for name, mean, verdict in (("unknown", None, "complete"), ("equal", 1.0, "complete"), ("small", 0.0, "none")):
            told = self.told(tmp_path / name, scales, mean)
            assert told.verdict == verdict
            assert ("Or their scale shrank" in told.sentence) == (name == "unknown")

    def test_what_could_not_have_been_found_is_said(self, tmp_path):
        growing = [np.where(np.arange(16) < 2 + each // 3, 1, 1e-4) for each in range(40)]
        told = self.told(tmp_path, growing)
        assert told.verdict == "none"
        assert "even 50 % of them dead might have been missed, and fewer than 0.1 would be expected" in told.sentence


def test_the_resolution_is_that_of_rounding():
    assert resolution(np.array([[1.0, 0.1, -0.02], [1.0, 0.1, 0.02]])).tolist() == [[0.02], [0.0]]
    assert resolution(np.array([[1.0, 0.5, 0.0]])).item() == 2.0**-24
