"""Truth: norms of the whole tensors in float64, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stabilitylab.norms import norms


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense = [torch.randn(size, generator=generator) for size in (3, 40, 7)]
    index = torch.tensor([[0, 2, 2]])
    return [
        dense[0],
        dense[1].reshape(5, 8).half(),
        dense[2].double(),
        torch.complex(dense[2], dense[2].flip(0)),
        torch.empty(0, 4),
        torch.sparse_coo_tensor(index, torch.tensor([1.0, 2.0, 3.0]), (4,), check_invariants=True),
        torch.tensor(-5.0),
        dense[1].reshape(8, 5).t().bfloat16(),
    ]


def slowly(tensor: Tensor, order: float) -> float:
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    values = [abs(each) for each in dense.flatten().tolist()]
    return max(values, default=0.0) if order != 2 else sum(each**2 for each in values) ** 0.5


@pytest.mark.parametrize("order", [2.0, float("inf")])
def test_every_kind_of_tensor_in_one_call(order: float) -> None:
    found = norms(tensors(), order)
    torch.testing.assert_close(
        found.double(), torch.tensor([slowly(each, order) for each in tensors()]).double(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("order", [2.0, float("inf")])
def test_nan_and_inf_stay(order: float) -> None:
    found = norms([torch.tensor([1.0, float("nan")]), torch.tensor([float("-inf")]), torch.ones(1)], order)
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == [float("inf"), 1.0]


def test_half_precision_does_not_overflow() -> None:
    assert norms([torch.full((400, 400), 300.0, dtype=torch.float16)]).item() == pytest.approx(120000.0, rel=1e-3)


def test_float32_stays_float32_and_float64_stays_float64() -> None:
    assert norms([torch.ones(2), torch.ones(2).bfloat16()]).dtype == torch.float32
    assert norms([torch.ones(2).double()]).dtype == torch.float64
