"""Truth: logs of which one thing is odd by design, which the import must say, and sound ones, of which it must not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from torch.utils.tensorboard import SummaryWriter

from stabilitylab.importing import import_run, survey


def norms(rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = ("patch_embed", "blocks.0")
    return pd.DataFrame({f"grad_norm/{name}": np.exp(0.1 * rng.standard_normal(rows)) for name in names})


def written(path, frame: pd.DataFrame):
    frame.to_csv(path, index_label="step")
    return [path]


@pytest.mark.parametrize("every", [3, 10])
def test_values_that_are_held_are_told(tmp_path, every):
    whole = norms()
    filled = whole.iloc[::every].reindex(whole.index).ffill()
    note = next(each for each in survey(written(tmp_path / "filled.csv", filled)).notes() if "the one before" in each)
    held = int((whole.index % every != 0).sum())
    assert note.startswith(f"{held} of 200 values of grad_norm/patch_embed are exactly the one before")
    assert "1 more column" in note


def test_neither_noise_nor_what_stands_still_is_held(tmp_path):
    sound = norms().assign(**{"grad_norm/frozen": 0.0, "grad_norm/fixed": 1.5, "lr": 1e-3})
    assert not [each for each in survey(written(tmp_path / "sound.csv", sound)).notes() if "the one before" in each]


def test_tables_beside_event_files_are_named(tmp_path):
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1.0 + step, step)
    assert not [each for each in survey([tmp_path / "logs"]).notes() if "and not" in each]
    written(tmp_path / "logs" / "norms.csv", norms(10))
    plan, notes = import_run([tmp_path / "logs"], tmp_path / "run")
    assert [each.name for each in plan.series] == ["training.loss"]
    assert [each for each in notes if "and not" in each and "norms.csv" in each]


@pytest.mark.parametrize(("series", "meant"), [("gradient.norm", "gradients.norm"), ("knn.acuracy", "knn.accuracy")])
def test_a_series_that_nobody_judges_is_told_if_another_is_called_nearly_so(tmp_path, series, meant):
    log = written(tmp_path / "log.csv", norms())
    notes = survey(log, [f"grad_norm/patch_embed={series}"]).notes()
    assert f"no analysis knows a series {series}; did you mean {meant}?" in notes
    for other in (meant, "eval.loss"):
        assert not [each for each in survey(log, [f"grad_norm/patch_embed={other}"]).notes() if "did you mean" in each]
