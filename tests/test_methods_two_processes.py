"""Truth: one process on the whole batch; and for ShuffleBN the halves of a known permutation, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import Convolutional, method
from torch.nn.functional import normalize
from two_methods import CASES, SAMPLES, batch, made_for, own_half, trained


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_methods.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, folder]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("name", "crops"), CASES)
def test_two_processes_are_one_on_the_whole_batch(ranks: list[Any], name: str, crops: bool) -> None:
    one = trained(made_for(name, crops), slice(None), crops)
    first, second = (each[f"{name} {crops}"] for each in ranks)
    assert set(one) == set(first) == set(second)
    steps = {key: key.partition(" ")[2] for key in one}  # empty for a buffer
    largest = {step: max(float(one[key].nan_to_num().abs().max()) for key in one if steps[key] == step)
               for step in steps.values()}  # fmt: skip
    for key, value in one.items():
        if key.startswith("loss"):
            assert float(first[key] + second[key]) / 2 == pytest.approx(float(value), rel=1e-4), key
        else:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=0, equal_nan=True, msg=key)
            atol = 2e-5 * largest[steps[key]] + 1e-6  # some gradients are sums that cancel
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=atol, equal_nan=True, msg=key)


@pytest.mark.parametrize("shuffles", [True, False])
def test_keys_with_batch_norm_are_of_shuffled_halves_in_their_own_order(ranks: list[Any], shuffles: bool) -> None:
    torch.manual_seed(11)  # the seed of the first rank: its order is everybody's
    order = torch.randperm(SAMPLES) if shuffles else torch.arange(SAMPLES)
    made, images = method("moco_v2", Convolutional), batch(0)[1]
    expected = torch.empty(SAMPLES, 12)
    with torch.no_grad():
        for rank in (0, 1):
            half = order[own_half(rank)]
            expected[half] = normalize(made.momentum_projector(made.momentum_backbone(images[half])), dim=1)
    found = torch.cat([each[f"shuffle_bn {shuffles}"] for each in ranks])
    torch.testing.assert_close(found, expected)
    other = torch.cat([each[f"shuffle_bn {not shuffles}"] for each in ranks])
    assert not torch.allclose(other, expected, atol=1e-3)  # the statistics of a half tell which one it is
