"""Truth: events planted in runs by `plot_runs`: each picture must show them where they are."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Annotation
from plot_cases import CASES, INF, NAN, assert_readable, by_gid, drawn, lags, texts, xs
from plot_runs import Planted, make

from stabilitylab.findings import Event


def test_gradients_marks_spikes_where_they_are(analyses):
    figure = drawn("gradients", analyses["plain"])
    shown = figure.axes[::2]
    assert [axes.get_title(loc="left") for axes in shown] == ["patch_embed", "blocks.2", "blocks.5", ""]
    assert "10 layers" in figure.get_suptitle()
    assert "2 gradient spikes in 2" in figure.get_suptitle()
    assert "1 kNN dip" in figure.get_suptitle()
    first, last = shown[0], figure.axes[1]
    assert xs(first, "peaks") == [400]
    assert xs(first, "onsets") == [400]
    assert xs(shown[1], "peaks") == []
    assert first.get_yscale() == "log"
    (peak,) = by_gid(first, "peaks")
    assert peak.get_ydata()[0] == pytest.approx(6.0, rel=0.5)  # 6 times the level, times noise of 13 %
    line = max(first.lines, key=lambda each: len(each.get_xdata()))
    assert np.nanmax(line.get_ydata()) == peak.get_ydata()[0]
    assert "close-up" in last.get_title(loc="left")
    low, high = last.get_xlim()
    assert low < 400 < high
    assert high - low < 300


def test_gradients_shades_dips_on_the_same_steps(analyses):
    figure = drawn("gradients", analyses["plain"])
    for axes in figure.axes[::2]:
        (band,) = by_gid(axes, "dips")
        edges = np.concatenate([path.vertices[:, 0] for path in band.get_paths()])
        assert (edges.min(), edges.max()) == (450, 550)
    limits = [axes.get_xlim() for axes in figure.axes[::2]]
    assert len(set(limits)) == 1


def test_gradients_puts_crosses_where_nothing_is_finite(analyses):
    figure = drawn("gradients", analyses["broken"])
    whole = [axes for axes in figure.axes if axes.get_title(loc="left") == "patch_embed"]
    assert xs(whole[0], "not finite") == [5200, 5201]
    assert by_gid(whole[0], "not finite")[0].get_ydata().tolist() == [1, 1]
    assert "not finite" in texts(figure)
    assert "not finite" not in texts(drawn("gradients", analyses["plain"]))


def test_gradients_without_knn_and_with_a_frozen_layer_says_so(analyses):
    figure = drawn("gradients", analyses["bare"])
    assert "kNN not recorded" in figure.get_suptitle()
    assert any("patch_embed has no gradient (frozen)" in text for text in texts(figure))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["blocks.0", "blocks.3", "blocks.5"]


def test_gradients_of_a_million_steps_keeps_spike_and_inf(million):
    figure = drawn("gradients", million)
    first, second = figure.axes[0], figure.axes[2]
    tallest = max(second.lines, key=lambda each: len(each.get_xdata()))
    assert tallest.get_xdata()[np.nanargmax(tallest.get_ydata())] == 777_777
    assert xs(first, "not finite") == [500_001]
    assert xs(first, "peaks") == [333_333]


def test_a_thousand_spikes_are_marked_once_for_each_place(analyses):
    crowd = [Event(s, s, s, s, "spike", "gradients.norm", "patch_embed", 2.0, float(s)) for s in range(0, 1000)]
    figure = drawn("gradients", replace(analyses["plain"], events=tuple(crowd)))
    assert 100 <= len(by_gid(figure.axes[0], "peaks")[0].get_xdata()) <= 200


def test_layers_shows_spikes_in_their_cells(analyses):
    figure = drawn("layers", analyses["plain"])
    (image,) = by_gid(figure, "cells")
    cells = np.asarray(image.get_array())
    assert cells.shape == (10, 320)
    assert divmod(int(np.nanargmax(cells)), 320) == (0, 400 * 320 // 1000)
    assert int(np.nanargmax(cells[5])) == 408 * 320 // 1000
    assert np.nanmax(cells) == pytest.approx(np.log2(6), abs=0.6)  # noise of 13 % and the largest of three steps
    assert image.get_extent() == [-0.5, 999.5, 9.5, -0.5]
    assert any("largest of 4 steps" in text for text in texts(figure))


def test_layers_blackens_what_is_not_finite_and_grays_what_is_frozen(analyses):
    figure = drawn("layers", analyses["broken"])
    broken = np.ma.filled(figure.axes[0].images[1].get_array(), False)
    columns = {(0, 200 * 320 // 400), (0, 201 * 320 // 400), (2, 300 * 320 // 400)}
    assert {(int(row), int(column)) for row, column in np.argwhere(broken)} == columns
    figure = drawn("layers", analyses["bare"])
    assert np.isnan(by_gid(figure, "cells")[0].get_array().filled(np.nan)[0]).all()
    assert "no gradient" in texts(figure)


def test_layers_names_rows_of_three_and_of_150_layers(analyses):
    few, many = drawn("layers", analyses["three"]), drawn("layers", analyses["deep"])
    named = [text.get_text() for text in few.axes[0].get_yticklabels()]
    assert named == ["patch_embed", "blocks.0", "projector"]
    named = [text.get_text() for text in many.axes[0].get_yticklabels()]
    assert 20 <= len(named) <= 60
    assert (named[0], named[-1]) == ("patch_embed", "predictor")
    circled = by_gid(many, "peaks")[0]
    assert sorted(zip(circled.get_xdata(), circled.get_ydata(), strict=True)) == [(300, 0), (310, 149)]


def test_knn_draws_binomial_bands_and_dips(analyses):
    figure = drawn("knn", analyses["plain"])
    axes = figure.axes[0]
    bank, queue = (each for each in axes.lines if each.get_gid() is None)
    if bank.get_linestyle() != "-":
        bank, queue = queue, bank
    assert queue.get_linestyle() == "--"
    accuracy = analyses["plain"].run["knn.accuracy"]
    np.testing.assert_allclose(bank.get_ydata(), 100 * accuracy["bank"])
    (band,) = by_gid(axes, "band")
    row = 40
    p = accuracy["bank"].iloc[row]
    at = band.get_paths()[0].vertices
    heights = sorted(set(at[at[:, 0] == accuracy.index[row]][:, 1]))
    error = 1.96 * np.sqrt(p * (1 - p) / 360)
    np.testing.assert_allclose([heights[0], heights[-1]], [100 * (p - error), 100 * min(p + error, 1)])
    assert xs(axes, "dip") == [500]
    assert by_gid(axes, "step") == []


def test_knn_band_follows_from_the_number_of_samples_where_no_error_was_recorded(tmp_path, analyses):
    without = make(tmp_path / "run", replace(CASES["plain"], leave_out=("knn.standard_error",)))
    paths = [by_gid(drawn("knn", each), "band")[0].get_paths()[0] for each in (without, analyses["plain"])]
    np.testing.assert_allclose(paths[0].vertices, paths[1].vertices)


def test_knn_of_ten_runs_names_each_beside_its_end(tmp_path):
    runs = [
        make(
            tmp_path / f"group-{number}" / ("run" if number < 2 else f"a-rather-long-name-of-a-run-{number}"),
            Planted(3, 300, seed=number, final=0.9 + number / 1000, spectrum=False),
        )
        for number in range(10)
    ]
    figure = drawn("knn", *runs)
    figure.draw_without_rendering()
    named = [each for each in figure.axes[0].texts if isinstance(each, Annotation)]
    assert len({each.get_text() for each in named}) == 10
    assert {"group-0/run", "group-1/run"} <= {each.get_text().split("  ")[0] for each in named}
    assert len({each.get_color() for each in named}) == 10
    assert len([each for each in figure.axes[0].lines if each.get_gid() is None]) == 20
    assert_readable(figure)


def test_knn_leaves_out_runs_without_it_and_says_so(analyses):
    figure = drawn("knn", analyses["plain"], analyses["bare"], analyses["three"])
    assert any("1 without kNN" in text for text in texts(figure))
    assert "2 kNN dips in 2 runs" in figure.get_suptitle()


def test_spectrum_keeps_zeros_on_the_log_axis(analyses):
    figure = drawn("spectrum", analyses["broken"])
    representation, projection = (axes for axes in figure.axes if axes.get_yscale() == "log")
    for axes in (representation, projection):
        assert 2 <= len(by_gid(axes, "spectrum")) <= 14
        low = axes.get_ylim()[0]
        assert all(np.min(each.get_ydata()) > low for each in by_gid(axes, "spectrum"))
    assert projection.get_yticklabels()[0].get_text() == "0"
    assert max(xs(projection, "floor")) == 64
    assert xs(projection, "dead") == list(range(45, 65))
    assert xs(representation, "floor") == xs(representation, "dead") == []
    assert "20 of 64 directions dead" in figure.get_suptitle()
    assert "epresentation: no dead directions" in figure.get_suptitle()
    steps = [each.get_zorder() for each in by_gid(projection, "spectrum")]
    assert steps == sorted(steps)


def test_spectrum_says_collapse_and_shades_it(analyses):
    event = Event(5100, 5100, 5150, 5300, "collapse", "spectrum.projection", "0", 64.0, 1e9)
    figure = drawn("spectrum", replace(analyses["broken"], events=(event,)))
    assert "projection: complete collapse at step 5,100" in figure.get_suptitle()
    assert "no collapse" not in figure.get_suptitle().split("; ")[1]
    without = drawn("spectrum", replace(analyses["broken"], events=()))
    assert "directions dead and no collapse" in without.get_suptitle().split("; ")[1]
    (band,) = by_gid(figure, "collapse")
    edges = band.get_paths()[0].vertices[:, 0]
    assert (edges.min(), edges.max()) == (5100, 5300)


def test_lags_points_right_where_the_later_layer_follows(analyses):
    figure = drawn("lags", analyses["plain"])
    axes, bars = figure.axes
    assert "later layer follows patch_embed \N{RIGHTWARDS ARROW}" in axes.get_title(loc="right")
    (marks,) = by_gid(axes, "leads")
    assert set(marks.get_xdata()) == {4.0}
    assert marks.get_ydata().tolist() == list(range(9))
    assert axes.get_ylim() == (8.5, -0.5)
    low, high = axes.get_xlim()
    assert low == -high
    (intervals,) = by_gid(axes, "intervals")
    unbounded = replace(analyses["plain"], lags=analyses["plain"].lags.assign(low=-INF, high=INF))
    (open_ended,) = by_gid(drawn("lags", unbounded), "intervals")
    assert np.isfinite(np.array(open_ended.get_segments())).all()
    assert [tuple(segment[:, 0]) for segment in intervals.get_segments()] == [(1.0, 9.0)] * 9
    assert [bar.get_width() for bar in bars.patches] == [12.0] * 9
    assert "patch_embed leads 9 of 9 later layers" in figure.get_suptitle()


def test_lags_tells_verdicts_apart_by_marker(analyses):
    names = list(analyses["plain"].run.layers.names)
    table = lags(names, "leads", 0.0, -1.0, 1.0, 9)
    table.loc[:4, "verdict"] = ["leads", "follows", "together", "inconclusive", "too few events"]
    figure = drawn("lags", replace(analyses["plain"], lags=table))
    kinds = ("leads", "follows", "together", "inconclusive", "too few events")
    assert len({by_gid(figure.axes[0], kind)[0].get_marker() for kind in kinds}) == 5
    table.loc[:1, "verdict"] = "together"
    table.loc[5:, "verdict"] = "too few events"
    said = drawn("lags", replace(analyses["plain"], lags=table)).get_suptitle().strip()
    assert said == "No order between patch_embed and 9 later layers: together 3, inconclusive 1, too few events 5"


def test_lags_of_too_few_events_is_gray_and_says_so(analyses):
    figure = drawn("lags", analyses["three"])
    assert "Too few events" in figure.get_suptitle()
    (marks,) = by_gid(figure, "too few events")
    red, green, blue = matplotlib.colors.to_rgb(marks.get_color())
    assert red == green == blue
    names = ["patch_embed", "blocks.0"]
    nothing = drawn("lags", replace(analyses["three"], lags=lags(names, "too few events", NAN, NAN, NAN, 0)))
    assert any("no event of the first layer has a match" in text for text in texts(nothing))


def test_training_shows_what_is_there(analyses, tmp_path):
    figure = drawn("training", analyses["broken"])
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == ["loss", "learning rate", "momentum of"]
    assert xs(figure.axes[0], "not finite") == [5200, 5201, 5300]
    assert "Loss not finite at 3 steps, first at 5,200" in figure.get_suptitle()
    assert len(by_gid(figure, "spikes")) == 3
    only = make(tmp_path / "run", replace(CASES["three"], leave_out=("training.loss", "training.momentum")))
    assert len(drawn("training", only).axes) == 1


def test_training_draws_where_divergence_begins(analyses):
    event = Event(5150, 5160, 5190, 5399, "divergence", "training.loss", "loss", INF, INF)
    figure = drawn("training", replace(analyses["broken"], events=(event,)))
    assert [each.get_xdata()[0] for each in by_gid(figure, "divergence")] == [5150] * 3
    assert "divergence begins" in texts(figure)


def test_training_gives_a_constant_room(analyses):
    low, high = drawn("training", analyses["constant"]).axes[0].get_ylim()
    assert low < 2.0 < high
    assert high - low > 0.02


def test_updates_draws_the_median_over_tensors_of_a_layer(analyses):
    analysis = analyses["plain"]
    figure = drawn("updates", analysis)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["patch_embed", "blocks.2", "blocks.5"]
    ratios = analysis.run["updates.ratio"][["blocks.2.weight", "blocks.2.bias"]].to_numpy(dtype=float)
    line = max(figure.axes[1].lines, key=lambda each: len(each.get_xdata()))
    np.testing.assert_allclose(line.get_ydata(), ratios.min(axis=1))  # the lower of two: a bias may be all update
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    assert len(by_gid(figure.axes[0], "spikes")) == 1
    assert by_gid(figure.axes[1], "spikes") == []
