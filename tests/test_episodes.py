"""Truth: a closed form, the root of a sum of squares, and `math.hypot`, which never leaves the range of numbers."""

import math

import numpy as np
import pytest

from stabilitylab import episodes
from stabilitylab.episodes import layer_magnitudes
from stabilitylab.run import Run, RunWriter


def test_magnitude_of_a_layer_is_the_root_of_the_sum_of_squares(tmp_path):
    writer = RunWriter(
        tmp_path / "r", {"layers": {"names": ["x", "y"], "of": {"a": "x", "b": "x", "c": "y"}, "first": "x"}}
    )
    writer.declare("gradients.norm", ["a", "b", "c"])
    values = np.array([[3, 4, 1], [np.nan, 4, 1], [np.inf, 4, 1], [0, 0, 0], [3e30, 4e30, 1]], dtype=np.float32)
    writer.write("gradients.norm", np.arange(5), values)
    writer.close("completed")
    frame = layer_magnitudes(Run(tmp_path / "r"))
    np.testing.assert_allclose(frame["x"], [5, np.nan, np.inf, 0, 5e30], rtol=1e-6)
    np.testing.assert_allclose(frame["y"], [1, 1, 1, 0, 1])


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-20, 1.0, 1e100, 1e153, 1e200, 1e307])
def test_magnitudes_do_not_leave_the_range_of_numbers_when_squared(tmp_path, size):
    writer = RunWriter(tmp_path / "r", {"layers": {"names": ["x"], "of": {"a": "x", "b": "x"}, "first": "x"}})
    writer.declare("gradients.norm", ["a", "b"])
    values = size * np.array([[3, 4], [0, 2], [np.nan, 1], [1, np.inf], [0, 0]], dtype=float)
    writer.write("gradients.norm", np.arange(5), values)
    writer.close("completed")
    found = layer_magnitudes(Run(tmp_path / "r"))["x"]
    np.testing.assert_allclose(found, [math.hypot(*row) if row[0] == row[0] else np.nan for row in values], rtol=1e-12)


@pytest.mark.parametrize(("cells", "most"), [(4_000_000, 2), (60, 20), (1, 40)])
def test_many_layers_of_a_short_run_are_read_together(tmp_path, monkeypatch, cells, most):
    """Reading one layer at a time took 61 s of the processor for 1,250 layers of 200 steps."""
    of = {f"{layer}.{name}": str(layer) for layer in range(40) for name in "ab"}
    writer = RunWriter(tmp_path / "r", {"layers": {"names": list(map(str, range(40))), "of": of, "first": "0"}})
    writer.declare("gradients.norm", list(of))
    values = np.random.default_rng(0).lognormal(size=(10, 80))
    writer.write("gradients.norm", np.arange(10), values)
    writer.close("completed")
    read, asked = Run.read, []
    monkeypatch.setattr(Run, "read", lambda run, name, labels: asked.append(labels) or read(run, name, labels))
    monkeypatch.setattr(episodes, "CELLS", cells)
    found = layer_magnitudes(Run(tmp_path / "r"))
    np.testing.assert_allclose(found, np.hypot(values[:, ::2], values[:, 1::2]), rtol=1e-12)
    assert found.columns.tolist() == list(map(str, range(40)))
    assert len(asked) <= most
    assert max(len(each) for each in asked) * 10 <= max(cells, 20)
