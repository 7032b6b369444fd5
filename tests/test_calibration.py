"""Truth: series whose rate of false alarms is counted in many more of them, and spikes that are planted anew."""

import numpy as np
import pandas as pd
import pytest

from stabilitylab.calibration import calibrate
from stabilitylab.detectors import spike
from stabilitylab.synthetic import noise

DETECTOR = spike.Detector(spike.Parameters(false_alarms=5))  # a rate that can be counted


def frame(kind, shape, seed):
    return pd.DataFrame(np.exp(0.2 * noise(kind, shape, np.random.default_rng(seed))))


@pytest.mark.parametrize("kind", ["gaussian", "autocorrelated"])
def test_rate_is_that_of_new_noise_and_power_that_of_new_spikes(kind):
    frames = [frame(kind, (3000, 6), seed) for seed in (0, 2, 3, 4)]
    several = [calibrate(each, *DETECTOR.examine("g", each), DETECTOR) for each in frames]
    found = several[0]
    many = frame(kind, (3000, 30), 1)
    rate = len(DETECTOR.detect("g", many, {})) / many.size * 1e4
    told = np.mean([each.false_alarms.value for each in several])
    assert told == pytest.approx(rate, rel=0.4)  # 24 layers in all say no more
    assert found.false_alarms.low <= found.false_alarms.value <= found.false_alarms.high
    at = np.arange(200, 2900, 120)
    many.iloc[at] *= 2
    seen = {(each.label, each.peak) for each in DETECTOR.detect("g", many, {})}
    power = np.mean([(str(label), step) in seen for label in many for step in at])
    assert found.power[2.0].value == pytest.approx(power, abs=0.12)
    assert found.power[10.0].value > 0.97


def test_the_same_seed_draws_the_same_and_spikes_are_no_noise():
    plain = frame("gaussian", (3000, 3), 2)
    spiked = plain.copy()
    spiked.iloc[300::300] *= 30
    results = [calibrate(each, *DETECTOR.examine("g", each), DETECTOR) for each in (plain, spiked, spiked)]
    assert results[1] == results[2]
    assert results[1].false_alarms.value < 2 * results[0].false_alarms.value + 2


def test_what_layers_have_together_and_what_is_too_early_is_no_noise():
    """The same noise makes the same false alarms, however many spikes it has."""
    plain = frame("gaussian", (2000, 6), 5)
    told = []
    for at in ([], [8, *range(150, 2000, 100)]):
        spiked = plain.copy()
        spiked.iloc[at] *= 3.2  # near the threshold
        told.append(calibrate(spiked, *spike.Detector().examine("g", spiked), spike.Detector()).false_alarms.value)
    assert max(told) < 1


def test_short_records_say_it_too():
    """Of many series of 200 steps, those that each says of itself are as many as there are."""
    told, there = [], 0
    for seed in range(8):
        each = frame("autocorrelated", (200, 24), seed)
        found = calibrate(each, *DETECTOR.examine("g", each), DETECTOR)
        told.append(found.false_alarms.value)
        there += len(DETECTOR.detect("g", each, {}))
        assert found.power[2.0].value < 0.95 < found.power[10.0].value
    assert 0.5 < np.mean(told) / (there / (8 * 200 * 24) * 1e4) < 1.5


def test_what_is_too_short_or_never_quiet_cannot_be_said():
    assert calibrate(frame("gaussian", (150, 3), 0), [], {}, DETECTOR) is None
    assert calibrate(pd.DataFrame(np.zeros((2000, 2))), [], {}, DETECTOR) is None
    assert calibrate(pd.DataFrame(np.full((2000, 2), np.nan)), [], {}, DETECTOR) is None
