"""Truth: events planted in runs by `plot_runs`, closed forms, slow twins of thinning, and what a reader must not see.

Pictures are tested by what is in the figure; a text that covers another one is a failure in any picture.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from plot_cases import NAMES, REFUSED, SITUATIONS, assert_readable, drawn, texts
from plot_runs import Planted, make

from stabilitylab import plots, plugins
from stabilitylab.errors import InputError


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


def test_a_name_beyond_the_font_is_drawn_without_a_warning(tmp_path):
    analysis = make(tmp_path / "\N{CJK UNIFIED IDEOGRAPH-540D}", Planted(3, 60))
    assert plots.picture("training", [analysis], tmp_path / "a.png").exists()


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
