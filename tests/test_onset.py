"""Truth: rises whose half height lies at a known sample, and invariances."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stabilitylab.detectors import spike
from stabilitylab.detectors._onset import WINDOW, half_rise
from stabilitylab.synthetic import spike_shape

RISES = {
    "at once": ([1.0], 0),
    "a plateau": ([1.0, 1.0, 1.0, 1.0, 1.0], -4),
    "a ramp": ([0.2, 0.4, 0.6, 0.8, 1.0], -2),
    "a slow ramp": (list(np.arange(1, 10) / 9), -4),
    "a ramp and a plateau": ([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0], -4),
    "a low foot": ([0.3, 0.3, 0.3, 0.3, 1.0, 1.0], -1),
    "a high foot": ([0.7, 0.7, 0.7, 1.0, 1.0], -4),
}


def rise(values: list[float]) -> np.ndarray:
    return np.concatenate([np.zeros(WINDOW + 2 - len(values)), values])


@pytest.mark.parametrize("name", RISES)
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_a_rise_without_noise_is_read_where_it_has_half_its_height(name: str, correlation: float) -> None:
    values, expected = RISES[name]
    for height in (0.5, 2.0):
        found = half_rise(height * rise(values)[None], np.array([correlation]), np.array([0.02]))
        assert found.tolist() == [expected]


def test_each_rise_is_judged_alone_and_whatever_its_unit() -> None:
    rng = np.random.default_rng(0)
    rises = np.stack([rise(values) for values, _ in RISES.values()]) + 0.2 * rng.standard_normal((7, WINDOW + 2))
    correlation, scale = rng.uniform(0, 0.9, 7), rng.uniform(0.1, 0.3, 7)
    together = half_rise(rises, correlation, scale)
    one_by_one = [half_rise(rises[[i]], correlation[[i]], scale[[i]])[0] for i in range(7)]
    assert together.tolist() == one_by_one
    assert half_rise(50 * rises, correlation, 50 * scale).tolist() == together.tolist()


def test_noise_hides_the_onset_of_a_ramp_less_than_its_single_samples_do() -> None:
    rng = np.random.default_rng(1)
    form, right, by_samples = np.log(4.0) * np.arange(1, 6) / 5, 0, 0
    rises = rise(list(form)) + 0.25 * rng.standard_normal((2000, WINDOW + 2))
    for found, each in zip(half_rise(rises, np.zeros(2000), np.full(2000, 0.25)), rises, strict=True):
        right += abs(found + 2) <= 1
        by_samples += abs(int(np.argmax(each >= each[-1] / 2)) - (WINDOW + 1) + 2) <= 1
    assert right > 0.97 * 2000 > by_samples


@pytest.mark.parametrize(("length", "ramp"), [(1, 0), (5, 0), (1, 2), (1, 4), (3, 4)])
def test_onsets_of_found_spikes_are_right_within_a_step(length: int, ramp: int) -> None:
    rng = np.random.default_rng(2)
    log = 0.25 * rng.standard_normal((2000, 20))
    form = spike_shape(4.0, length, ramp)
    starts = range(150, 1900, 130)
    for start in starts:
        log[start : start + len(form)] += form[:, None]
    events = spike.Detector().detect("gradients.norm", pd.DataFrame(np.exp(log)), {})
    half = int(np.argmax(form >= form[-1] / 2))
    late = [each.onset - (start + half) for each in events for start in starts if abs(each.peak - start) < 20]
    assert len(late) > 0.8 * 20 * len(starts)
    assert np.mean(np.abs(late) <= 1) > 0.95
    assert all(each.start <= each.onset <= each.peak <= each.stop for each in events)
