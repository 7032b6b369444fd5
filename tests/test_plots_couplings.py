"""Truth: what `stabilitylab.synthetic` planted around the spikes, and what a reader must see of it."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plot_cases import assert_readable, by_gid, texts

from stabilitylab import plots, plugins, synthetic
from stabilitylab.analysis import analyze
from stabilitylab.errors import InputError
from stabilitylab.run import Run


def drawn(analysis):
    figure = Figure(figsize=(11.0, 7.6))
    FigureCanvasAgg(figure)
    plugins.load("plots", "couplings")(figure, [analysis])
    figure.draw_without_rendering()
    return figure


def make(path, spikes, **fields):
    synthetic.write(path, layers=4, tensors=2, random_spikes=spikes, spacing=220, sd=0.05, **fields)
    return analyze(Run(path), draws=400)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(
        tmp_path_factory.mktemp("runs") / "whole", 12, steps=6000, updates=True, update_lead=5, adam=True,
        loss_follow=3, dip_follow=20, rank=True, taps=("projection", "representation"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def picture(whole):
    return drawn(whole)


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def test_every_signal_peaks_where_it_was_planted(picture):
    figure = picture
    for title, offset in (("patch_embed", 0), ("update / weight norm", -5), ("loss", 3)):
        (median,) = by_gid(panel(figure, title), "median")
        steps, ratio = median.get_data()
        assert steps[np.argmax(ratio)] == offset
        assert ratio.max() == pytest.approx(4, rel=0.25)
    (median,) = by_gid(panel(figure, "kNN accuracy"), "median")
    steps, points = median.get_data()
    assert 20 <= steps[np.argmin(points)] <= 70
    assert points.min() == pytest.approx(-10, abs=2)
    (quiet,) = by_gid(panel(figure, "Adam's RMS"), "median")
    assert np.nanmax(np.abs(np.log(quiet.get_ydata()))) < 0.2
    assert_readable(figure)


def test_the_words_are_those_of_the_verdicts(picture):
    assert "Before: updates. After: loss, accuracy." in picture.get_suptitle()
    assert "5 steps before (12 of 12)" in texts(picture)
    assert any(each.startswith("every 50 steps") for each in texts(picture))


def test_three_spikes_are_drawn_one_by_one_and_what_is_missing_is_named(tmp_path):
    figure = drawn(make(tmp_path / "few", 3, steps=1500, taps=()))
    axes = panel(figure, "loss")
    assert len(by_gid(axes, "each")) == 3
    assert by_gid(axes, "interval") == []
    assert any("not recorded: update / weight norm, Adam's RMS" in each for each in texts(figure))
    assert any(each.startswith("too few events (") and each.endswith(" here, 3 spikes)") for each in texts(figure))
    assert "Around 3 gradient spikes of patch_embed" in figure.get_suptitle()
    assert_readable(figure)


def test_a_run_without_a_spike_or_without_gradients_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"series gradients\.norm .* no finite spike of patch_embed"):
        drawn(make(tmp_path / "quiet", 0, steps=300))
    made = synthetic.synthesize(steps=300)
    series = {name: frame for name, frame in made.series.items() if name != "gradients.norm"}
    synthetic.write(tmp_path / "none", replace(made, series=series))
    with pytest.raises(InputError, match=r"no series 'gradients\.norm'"):
        drawn(analyze(Run(tmp_path / "none")))
    assert len(plots.caption("couplings")) > 80
