"""Truth: events planted in runs by `plot_runs`, closed forms, slow twins of thinning, and what a reader must not see.

Pictures are tested by what is in the figure; a text that covers another one is a failure in any picture.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, product

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from plot_runs import Planted, layer_names, make

from stabilitylab import plots, plugins
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.layers import layers_of
from stabilitylab.plots import _thinning as thinning
from stabilitylab.plots._choice import first_middle_last
from stabilitylab.plots._level import relative
from stabilitylab.plots._words import count, ordinal, shorten

NAMES = ("gradients", "knn", "lags", "layers", "spectrum", "training", "updates")
NAN, INF = float("nan"), float("inf")


def lags(names, verdict, lag, low, high, matched):
    row = {"first": names[0], "matched": matched, "lag": lag, "low": low, "high": high, "verdict": verdict}
    return pd.DataFrame([row | {"layer": name, "depth": depth} for depth, name in enumerate(names) if depth])


CASES = {
    "plain": Planted(10, 1000, ((0, 400, 6.0), (5, 408, 4.0)), ((450, 550, 0.08),), seed=1),
    "three": Planted(3, 100, ((0, 60, 6.0),), ((70, 90, 0.1),)),
    "deep": Planted(150, 400, ((0, 300, 6.0), (149, 310, 5.0))),
    "broken": Planted(
        10, 400, ((0, 100, 9.0),), not_finite=((0, 200, NAN), (0, 201, INF), (2, 300, NAN)), collapsed=20, first=5000
    ),
    "constant": Planted(10, 200, constant=True, knn=("queue",), final=1.0),
    "bare": Planted(10, 200, frozen=True, knn=(), spectrum=False),
}


SITUATIONS = [
    *product(NAMES, ("plain", "broken", "bare")),
    *product(("gradients", "lags", "layers", "knn"), ("three",)),
    *product(("gradients", "knn", "spectrum", "training", "updates"), ("constant",)),
    *product(("gradients", "lags", "layers"), ("deep",)),
]
"""Which pictures are drawn of which case: those that it could harm."""

REFUSED = {("knn", "bare"), ("spectrum", "bare"), ("lags", "broken"), ("lags", "bare")}
"""Pictures that a case has no series for, or no second layer to compare."""


@pytest.fixture(scope="session")
def analyses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {name: make(folder / name, planted) for name, planted in CASES.items()}
    for name, matched in (("plain", 12), ("three", 2), ("deep", 30)):
        verdict = "leads" if matched >= 5 else "too few events"
        table = lags(list(made[name].run.layers.names), verdict, 4.0, 1.0, 9.0, matched)
        made[name] = replace(made[name], lags=table)
    return made


@pytest.fixture(scope="session")
def million(tmp_path_factory):
    planted = Planted(3, 1_000_000, ((0, 333_333, 6.0), (1, 777_777, 40.0)), not_finite=((0, 500_001, INF),))
    return make(tmp_path_factory.mktemp("runs") / "million", planted)


def drawn(name, *shown):
    """Draw a picture once; the tests only look at it."""
    key = (name, *map(id, shown))
    if key not in DRAWN:
        module = sys.modules[plugins.load("plots", name).__module__]
        figure = Figure(figsize=module.SIZE)
        FigureCanvasAgg(figure)
        module.draw(figure, list(shown))
        DRAWN[key] = (figure, shown)  # what is shown is kept, so that no other gets its id
    return DRAWN[key][0]


DRAWN = {}


def by_gid(where, gid):
    return where.findobj(lambda artist: artist.get_gid() == gid)


def xs(where, gid):
    return sorted(float(x) for artist in by_gid(where, gid) for x in artist.get_xdata())


def texts(figure):
    return [each.get_text() for each in figure.findobj(Text) if each.get_text().strip()]


# the pure functions


@pytest.mark.parametrize("seed", range(5))
def test_thinning_keeps_what_a_slow_loop_over_bins_would_keep(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=20_011)
    values[rng.integers(0, len(values), 40)] = rng.choice([NAN, INF, -INF, 90.0, -90.0], 40)
    rows = set(thinning.thin(values, 1000).tolist())
    assert len(rows) <= 1000
    bins = np.array_split(np.arange(len(values)), 998 // 5)
    place = thinning.bins_of(len(values), len(bins))
    for number in range(len(bins)):
        inside = np.flatnonzero(place == number)
        finite = inside[np.isfinite(values[inside])]
        assert {finite[values[finite].argmax()], finite[values[finite].argmin()]} <= rows
        for mask in (np.isnan(values[inside]), values[inside] == INF, values[inside] == -INF):
            assert not mask.any() or inside[mask][0] in rows


def test_thinning_never_loses_a_lone_spike_or_a_lone_nan():
    for at in (0, 1, 49_999, 50_000, 99_998, 99_999):
        for value in (7.0, -7.0, NAN, INF, -INF):
            values = np.sin(np.arange(100_000) / 1000)
            values[at] = value
            assert at in thinning.thin(values, 500)


def test_thinning_of_special_series():
    assert thinning.thin(np.empty(0)).tolist() == []
    assert thinning.thin(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert len(thinning.thin(np.full(10_000, NAN), 100)) <= 100
    assert len(thinning.thin(np.ones(10_000), 100)) <= 100
    with pytest.raises(ValueError, match="at least 8"):
        thinning.thin(np.ones(10), 7)


def test_pool_max_is_the_maximum_of_each_bin():
    values = np.array([1.0, NAN, 5.0, NAN, NAN, 2.0, INF])
    pooled = thinning.pool_max(values, np.array([0, 0, 0, 1, 1, 3, 3]), 5)
    np.testing.assert_array_equal(pooled, [5.0, NAN, NAN, INF, NAN])


def test_tallest_keeps_the_tallest_of_each_place():
    steps, heights = np.arange(10_000), np.random.default_rng(0).random(10_000)
    heights[[3, 7000]] = 5.0, INF
    chosen = thinning.tallest(steps, heights, 100)
    assert len(chosen) == 100
    assert {3, 7000} <= set(chosen.tolist())
    assert thinning.tallest(steps[:7], heights[:7], 100).tolist() == list(range(7))


def test_widen_joins_and_covers():
    spans = np.array([[50.0, 50.0], [0.0, 10.0], [8.0, 20.0], [51.0, 51.0]])
    assert thinning.widen(spans, 4).tolist() == [[0, 20], [48, 53]]
    assert thinning.widen(np.empty((0, 2)), 4).shape == (0, 2)


def test_spread_moves_labels_apart_and_no_further():
    assert thinning.spread(np.array([1.0, 5.0]), 1.0, 0.0, 10.0).tolist() == [1.0, 5.0]
    np.testing.assert_allclose(thinning.spread(np.array([5.0, 5.0, 5.0]), 1.0, 0.0, 10.0), [4, 5, 6])
    placed = thinning.spread(np.random.default_rng(0).random(10) * 0.1 + 9.9, 0.5, 0.0, 10.0)
    assert placed.min() >= 0
    assert placed.max() <= 10 + 1e-9
    assert np.diff(np.sort(placed)).min() >= 0.5 - 1e-9


def test_relative_is_one_on_a_constant_and_the_ratio_in_a_spike():
    steps, values = np.arange(100, 600), np.full(500, 0.3)
    values[300:390] = 0.9  # so long that a level which is not frozen would rise to it
    values[400] = NAN
    spike = Event(400, 400, 400, 489, "spike", "gradients.norm", "a", 3.0, 10.0)
    expected = np.ones(500)
    expected[300:390] = 3.0
    expected[400] = NAN
    np.testing.assert_allclose(relative(steps, values, [spike]), expected, rtol=1e-12)
    np.testing.assert_allclose(relative(steps, 1e-30 * values, [spike]), expected, rtol=1e-9)
    assert np.isnan(relative(steps, np.zeros(500))).all()
    np.testing.assert_allclose(relative(steps[:5], np.full(5, 2.0)), 1.0)


def test_first_middle_last_stand_for_depth():
    layers = layers_of([f"{name}.weight" for name in layer_names(150)])
    assert first_middle_last(layers, layers.names) == ("patch_embed", "blocks.72", "blocks.145")
    frozen = [name for name in layers.names if name != "patch_embed"]
    assert first_middle_last(layers, frozen) == ("blocks.0", "blocks.73", "blocks.145")
    assert first_middle_last(layers, ["norm", "projector"]) == ("norm", "projector")


def test_words():
    assert [count(number, "dip") for number in (0, 1, 2000)] == ["no dips", "1 dip", "2,000 dips"]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 22, 103)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "22nd", "103rd",
    ]  # fmt: skip
    assert shorten("abc", 10) == "abc"
    assert len(shorten("a" * 50 + "z", 20)) == 20
    assert shorten("a" * 50 + "z", 20).endswith("z")


# every picture


def test_every_file_is_a_picture():
    assert set(NAMES) <= set(plugins.names("plots"))
    assert [name for name in NAMES if plots.overlays(name)] == ["knn"]
    assert all(len(plots.caption(name)) > 80 for name in NAMES)


@pytest.mark.parametrize(("name", "case"), SITUATIONS)
def test_it_is_labeled_and_no_text_covers_another(name, case, analyses):
    analysis = analyses[case]
    if (name, case) in REFUSED:
        with pytest.raises(InputError, match="series"):
            drawn(name, analysis)
        return
    figure = drawn(name, analysis)
    figure.draw_without_rendering()
    assert figure.get_suptitle().strip()
    assert analysis.run.name in " ".join(texts(figure))
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    lowest = min(axes.get_position().y0 for axes in panels)
    assert all(axes.get_xlabel() for axes in panels if axes.get_position().y0 < lowest + 1e-3)
    labels = " ".join(axes.get_ylabel() for axes in figure.axes)
    unit = {"gradients": "own level", "knn": "%", "lags": "layer", "layers": "own level", "spectrum": "variance"}
    assert unit.get(name, "per step") in labels
    assert_readable(figure)


def assert_readable(figure):
    """No text covers another, none leaves the figure."""
    boxes = [(each.get_text(), Text.get_window_extent(each)) for each in shown_texts(figure)]
    title = figure._suptitle  # its second line is blank: the name of the run stands there
    extent = title.get_window_extent()
    boxes.append((title.get_text(), extent.from_extents(extent.x0, (extent.y0 + extent.y1) / 2, extent.x1, extent.y1)))
    width, height = figure.canvas.get_width_height()
    for what, box in boxes:
        assert box.x0 > -1, what
        assert box.y0 > -1, what
        assert box.x1 < width + 1, what
        assert box.y1 < height + 1, what
    for (one, first), (two, second) in combinations(boxes, 2):
        beside = first.x1 <= second.x0 + 1 or second.x1 <= first.x0 + 1
        above = first.y1 <= second.y0 + 2 or second.y1 <= first.y0 + 2
        assert beside or above, f"{one!r} covers {two!r}"


def shown_texts(figure):
    """Return every text that is on the page, but the title of the figure."""
    found = [each for each in figure.texts if each is not figure._suptitle]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        found += legend.get_texts() if legend else []
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes._right_title]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            found += [axis.label, axis.get_offset_text()]
            for tick in axis.get_major_ticks():
                inside = min(limits) <= tick.get_loc() <= max(limits)
                found += [each for each in (tick.label1, tick.label2) if inside]
    return [each for each in found if each.get_visible() and each.get_text().strip()]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_the_series_is_refused_by_name(name, tmp_path):
    everything = ("gradients.norm", "updates.ratio", "training.loss", "training.lr", "training.momentum")
    empty = make(tmp_path / "empty", Planted(3, 60, knn=(), spectrum=False, leave_out=everything))
    with pytest.raises(InputError, match=r"gradients\.norm|updates\.ratio|training\.loss|knn\.accuracy|spectrum\."):
        drawn(name, empty)


@pytest.mark.parametrize("name", ["gradients", "knn", "layers", "spectrum", "training", "updates"])
def test_a_million_steps_become_a_few_thousand_points(name, million):
    figure = drawn(name, million)
    for axes in figure.axes:
        assert all(len(each.get_xdata()) <= 3000 for each in axes.lines)
        assert all(each.get_array().size <= 3 * 320 for each in axes.images)


def test_memory_of_a_million_steps_is_a_few_times_that_of_the_series(million):
    figure = Figure(figsize=(10, 6))
    draw = plugins.load("plots", "gradients")
    tracemalloc.start()
    draw(figure, [million])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 3 * 8 * 1_000_000  # ten copies of the magnitudes of three layers, float64


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_files_are_whole_valid_and_equal_for_equal_analyses(suffix, analyses, tmp_path):
    paths = [plots.picture("training", [analyses["broken"]], tmp_path / f"{n}.{suffix}") for n in "ab"]
    content = [path.read_bytes() for path in paths]
    assert content[0] == content[1]
    if suffix == "png":
        assert content[0].startswith(b"\x89PNG")
        assert content[0].endswith(b"IEND\xaeB`\x82")
    elif suffix == "pdf":
        assert content[0].startswith(b"%PDF")
        assert content[0].rstrip().endswith(b"%%EOF")
    else:
        assert ET.fromstring(content[0]).tag.endswith("svg")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_wrong_names_formats_and_folders_are_refused(analyses, tmp_path):
    one = [analyses["three"]]
    with pytest.raises(InputError, match="did you mean gradients"):
        plots.picture("gradient", one, tmp_path / "a.png")
    with pytest.raises(InputError, match="png, svg, pdf"):
        plots.picture("gradients", one, tmp_path / "a.gif")
    with pytest.raises(InputError, match="no folder"):
        plots.picture("gradients", one, tmp_path / "none" / "a.png")
    with pytest.raises(InputError, match="at least one"):
        plots.picture("gradients", [], tmp_path / "a.png")
    with pytest.raises(InputError):
        plots.picture("spectrum", [analyses["bare"]], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_draw_all_names_what_it_draws_and_what_it_cannot(analyses, tmp_path):
    pair = [analyses["three"], analyses["bare"]]
    told = {path.name: reason for path, reason in plots.draw_all(pair, tmp_path, "svg", ["knn", "training"])}
    assert told == {"knn-of-2-runs.svg": None, "three-training.svg": None, "bare-training.svg": None}
    assert {path.name for path in tmp_path.iterdir()} == set(told)
    ((path, reason),) = plots.draw_all([analyses["bare"]], tmp_path, "svg", ["spectrum"])
    assert path == tmp_path / "spectrum.svg"
    assert "spectrum.representation" in reason
    with pytest.raises(InputError, match="no plot is named"):
        list(plots.draw_all(pair, tmp_path, "svg", ["nothing"]))


def test_no_global_state_no_backend_no_torch(analyses):
    before = dict(matplotlib.rcParams)
    for name in ("training", "knn", "lags"):
        plugins.load("plots", name)(Figure(), [analyses["three"]])
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, stabilitylab.plots, stabilitylab.plugins as p; [p.load('plots', n) for n in p.names('plots')];"
        "print([n for n in ('torch', 'matplotlib.pyplot', 'tkinter') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_house_style_does_not_depend_on_the_users(analyses):
    with matplotlib.style.context("dark_background"):
        figure = Figure()
        plugins.load("plots", "training")(figure, [analyses["three"]])
    assert to_hex(figure.get_facecolor()) == to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


@pytest.mark.parametrize("name", ["gradients", "knn", "layers", "spectrum"])
def test_it_draws_on_a_part_of_a_figure(name, analyses):
    figure = Figure(figsize=(16, 6), layout="constrained")
    parts = figure.subfigures(1, 2)
    plugins.load("plots", name)(parts[1], [analyses["three"]])
    figure.draw_without_rendering()
    assert parts[1].get_suptitle().strip()
    assert not parts[0].axes


# one by one


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
