"""Truth: spikes planted beside values that are no noise: of nothing, of nearly nothing, and not finite ones."""

import numpy as np
import pandas as pd
import pytest

from stabilitylab.detectors import spike


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e-15])
@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_gradients_of_nearly_nothing_hide_no_spike_as_those_of_nothing_do_not(size, memory):
    """One or two steps in twenty-five, as of a batch that is all alike; the next spike is five times the level."""
    rng = np.random.default_rng(0)
    log = rng.standard_normal((400, 10))
    for at in range(1, 400):
        log[at] = memory * log[at - 1] + np.sqrt(1 - memory**2) * log[at]
    values = np.exp(0.15 * log)
    lost = np.arange(60, 400, 25)
    values[lost] *= size
    values[lost[::3] + 1] *= size
    spikes = np.arange(72, 390, 50)
    values[spikes] *= 5
    found = spike.Detector().detect("gradients.norm", pd.DataFrame(values), {})
    hit = np.mean([sum(each.peak == at for each in found) for at in spikes]) / 10
    assert hit > 0.95
    assert len([each for each in found if each.peak not in spikes]) <= 1


def test_a_fall_that_stays_is_followed_however_deep():
    log = 0.1 * np.random.default_rng(0).standard_normal((900, 5))
    log[400:] -= 12
    log[700] += np.log(5)
    found = spike.Detector().detect("gradients.norm", pd.DataFrame(np.exp(log)), {})
    assert [each.peak for each in found] == [700] * 5


@pytest.mark.parametrize("last", [1, 20, 500, 1000])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_layer_that_breaks_for_good_is_a_spike_but_one_that_is_frozen_is_none(last, layers):
    """NaN to the end where another layer goes on or breaks too, however long; and zero to the end."""
    rng = np.random.default_rng(0)
    values = np.exp(0.1 * rng.standard_normal((1000, 2)))
    values[-last:, :layers] = np.nan
    events = spike.Detector().detect("gradients.norm", pd.DataFrame(values), {})
    broken = [(each.label, each.start, each.stop) for each in events if np.isinf(each.height)]
    assert broken == [(str(layer), 1000 - last, 999) for layer in range(layers)]
    events = spike.Detector().detect("gradients.norm", pd.DataFrame(np.nan_to_num(values)), {})
    assert not [each for each in events if np.isinf(each.height)]


@pytest.mark.parametrize("tails", ["normal", "t5"])
@pytest.mark.parametrize(("peak", "noise", "least"), [(27, 0.3, 0.9), (10, 0.19, 0.9), (0, 0.19, 0.0), (0, 0.4, 0.0)])
def test_a_shift_that_begins_with_a_peak_begins_with_a_spike(tails, peak, noise, least):
    """The level rises by three for good, and the noise from 0.19 to more; of a mere rise nothing is a spike."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((1000, 60)) if tails == "normal" else rng.standard_t(5, (1000, 60)) / np.sqrt(5 / 3)
    log = np.where(np.arange(1000)[:, None] < 500, 0.19, noise) * z
    log[500:] += np.log(3)
    if peak:
        log[501] = np.log(peak)
    found = spike.Detector().detect("gradients.norm", pd.DataFrame(np.exp(log)), {})
    begin = {each.label for each in found if each.kind == "spike" and 494 <= each.start <= 512}
    shifts = {each.label for each in found if each.kind == "shift"}
    assert len(shifts) >= 50
    assert len(begin) / 60 >= least
    assert peak or len(begin) / 60 <= 0.1
    assert all(each.height == pytest.approx(3, rel=0.4) for each in found if each.kind == "shift")
