"""Truth: attention written by hand in float64, loop by loop; closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attention_by_hand import (
    CAUSAL,
    CHOSEN,
    FLOAT,
    HEADS,
    ROOT,
    SIZE,
    WIDTH,
    L,
    N,
    Transformer,
    added,
    by_hand,
    measured,
    tokens,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from stabilitylab import InputError, plugins
from stabilitylab.target import make_target

# ---- every way to write attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
BOOL = torch.rand(N, 1, L, L, generator=torch.Generator().manual_seed(5)) > 0.4
BOOL[..., 0] = True
LOWEST = torch.zeros(N, 1, L, L, dtype=torch.float64).masked_fill(~BOOL, torch.finfo(torch.float64).min)


def fused(**arguments: Any) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **arguments)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads in the first axis, as in fairseq."""
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    logits = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype), q, k.transpose(1, 2), beta=0, alpha=ROOT)
    return torch.bmm(F.softmax(logits, dim=-1), v).unflatten(0, (N, HEADS))


def talking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A linear layer between product and softmax, which mixes nothing here."""
    logits = (q @ k.mT * ROOT).permute(0, 2, 3, 1)
    return F.linear(logits, torch.eye(HEADS, dtype=q.dtype)).permute(0, 3, 1, 2).softmax(dim=-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("nhie,nhje->nhij", q * ROOT, k)
    return torch.einsum("nhij,nhje->nhie", torch.softmax(logits + LOWEST, dim=3, dtype=torch.float64), v)


WAYS: dict[str, tuple[Attend, Tensor | None, float]] = {
    "fused": (fused(), None, ROOT),
    "fused with a scale": (fused(scale=0.9), None, 0.9),
    "fused with dropout": (fused(dropout_p=0.0), None, ROOT),
    "fused causal": (fused(is_causal=True), CAUSAL, ROOT),
    "fused lower right": (fused(attn_mask=causal_lower_right(L, L)), CAUSAL, ROOT),
    "fused bool mask": (fused(attn_mask=BOOL), BOOL, ROOT),
    "fused mask of a row": (fused(attn_mask=BOOL[:, :, :1]), BOOL[:, :, :1], ROOT),
    "fused float mask": (fused(attn_mask=FLOAT), FLOAT, ROOT),
    "fused lowest mask": (fused(attn_mask=LOWEST), BOOL, ROOT),
    "method": (lambda q, k, v: (q * ROOT @ k.transpose(-2, -1)).softmax(-1) @ v, None, ROOT),
    "bias": (lambda q, k, v: F.softmax(torch.matmul(q, k.mT) * ROOT + FLOAT, dim=-1) @ v, FLOAT, ROOT),
    "module": (lambda q, k, v: nn.Softmax(dim=-1)(q @ k.mT / SIZE**0.5) @ v, None, ROOT),
    "infinity": (
        lambda q, k, v: (q @ k.mT * ROOT).masked_fill(~CAUSAL, -torch.inf).softmax(dim=-1) @ v,
        CAUSAL,
        ROOT,
    ),
    "talking heads": (talking, None, ROOT),
    "masked": (masked, BOOL, ROOT),
}


class Block(nn.Module):
    def __init__(self, attend: Attend, heads: int = HEADS, key_heads: int = HEADS) -> None:
        super().__init__()
        self.attend, self.heads = attend, heads
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, key_heads * WIDTH // heads)
        self.value = nn.Linear(WIDTH, key_heads * WIDTH // heads)
        self.out = nn.Linear(WIDTH, WIDTH)

    def split(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).unflatten(2, (-1, WIDTH // self.heads)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        attended = self.attend(*(self.split(each, y) for each in (self.query, self.key, self.value)))
        return x + self.out(attended.transpose(1, 2).flatten(2))


def hand_written(model: Transformer, mask: Tensor | None, scale: float) -> tuple[list[float], list[float]]:
    entropies, largest, x = [], [], tokens()
    with torch.no_grad():
        for block in model.blocks:
            q, k = (block.split(each, block.norm(x)) for each in (block.query, block.key))
            k = k.repeat_interleave(HEADS // k.shape[1], dim=1)
            found = by_hand(q.numpy() * scale, k.numpy(), added(mask), CHOSEN)
            entropies += found[0]
            largest += found[1]
            x = block(x)
    return entropies, largest


COLUMNS = [f"blocks.{block}.head_{head}" for block in (0, 1) for head in range(HEADS)]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_attention_gives_what_is_computed_by_hand(way: str) -> None:
    attend, mask, scale = WAYS[way]
    model = Transformer(lambda: Block(attend)).double()
    entropy, logit = measured(model, tokens())
    expected = hand_written(model, mask, scale)
    assert list(entropy) == COLUMNS
    np.testing.assert_allclose(list(entropy.values()), expected[0], rtol=1e-9)
    np.testing.assert_allclose(list(logit.values()), expected[1], rtol=1e-9)


def test_heads_in_the_first_axis_are_read_as_one() -> None:
    model = Transformer(lambda: Block(merged)).double()
    entropy, logit = measured(model, tokens())
    entropies, largest = hand_written(model, None, ROOT)
    assert list(entropy) == ["blocks.0.head_0", "blocks.1.head_0"]
    np.testing.assert_allclose(list(entropy.values()), np.reshape(entropies, (2, HEADS)).mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(list(logit.values()), np.reshape(largest, (2, HEADS)).max(axis=1), rtol=1e-9)


def test_queries_that_share_a_key_head() -> None:
    model = Transformer(lambda: Block(fused(enable_gqa=True), key_heads=1)).double()
    entropy, logit = measured(model, tokens())
    expected = hand_written(model, None, ROOT)
    np.testing.assert_allclose(list(entropy.values()), expected[0], rtol=1e-9)
    np.testing.assert_allclose(list(logit.values()), expected[1], rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["fused", "method"])
def test_half_precision(way: str, dtype: torch.dtype) -> None:
    attend, mask, scale = WAYS[way]
    model = Transformer(lambda: Block(attend)).double()
    expected = hand_written(model, mask, scale)
    entropy, logit = measured(model.to(dtype), tokens().to(dtype))
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01  # eight bits, and the second block sees what the first made
    np.testing.assert_allclose(list(entropy.values()), expected[0], atol=tolerance)
    np.testing.assert_allclose(list(logit.values()), expected[1], rtol=tolerance)


def test_under_autocast_the_logits_are_computed_in_float32() -> None:
    model = Transformer(lambda: Block(fused())).double()
    expected = hand_written(model, None, ROOT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy, logit = measured(model.float(), tokens().float())
    np.testing.assert_allclose(list(entropy.values()), expected[0], atol=0.05)
    np.testing.assert_allclose(list(logit.values()), expected[1], rtol=0.05)


# ---- closed forms


def test_uniform_attention_has_the_entropy_of_its_keys_and_one_key_has_none() -> None:
    model = Transformer(lambda: Block(fused())).double()
    for block in model.blocks:
        nn.init.zeros_(block.query.weight)
        nn.init.zeros_(block.query.bias)
    entropy, logit = measured(model, tokens())
    np.testing.assert_allclose(list(entropy.values()), np.log(L), rtol=1e-12)
    assert set(logit.values()) == {0.0}
    causal = Transformer(lambda: Block(fused(is_causal=True))).double()
    causal.load_state_dict(model.state_dict())
    entropy, _ = measured(causal, tokens())
    np.testing.assert_allclose(list(entropy.values()), np.mean(np.log(np.array(CHOSEN) + 1)), rtol=1e-12)
    sharp = Transformer(lambda: Block(fused(scale=1e6))).double()
    entropy, logit = measured(sharp, tokens())
    np.testing.assert_allclose(list(entropy.values()), 0, atol=1e-6)
    assert min(logit.values()) > 1e5


def test_queries_without_a_key_do_not_count() -> None:
    none = BOOL.clone()
    none[0] = False
    first = nn.ModuleList([Block(fused(attn_mask=none))]).double()

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = first, nn.Linear(WIDTH, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks[0](x))

    entropy, logit = measured(Once(), tokens())
    block = first[0]
    with torch.no_grad():
        q, k = (block.split(each, block.norm(tokens())).numpy() for each in (block.query, block.key))
    expected = by_hand(q * ROOT, k, added(none), CHOSEN)
    np.testing.assert_allclose(list(entropy.values()), expected[0], rtol=1e-9)
    np.testing.assert_allclose(list(logit.values()), expected[1], rtol=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("way", ["fused", "method"])
def test_what_is_not_finite_is_kept(way: str, value: float) -> None:
    model = Transformer(lambda: Block(WAYS[way][0])).double()
    with torch.no_grad():
        model.blocks[1].query.bias[0] = value  # of the first head
    entropy, logit = measured(model, tokens())
    assert np.isnan(entropy["blocks.1.head_0"])
    assert not np.isfinite(logit["blocks.1.head_0"])
    assert all(np.isfinite(entropy[name]) for name in COLUMNS if name != "blocks.1.head_0")


@pytest.mark.parametrize("queries", [1, 2, 11, 50])
def test_as_many_queries_as_are_wanted_or_there(queries: int) -> None:
    model = Transformer(lambda: Block(fused())).double()
    with torch.no_grad():
        block = model.blocks[0]
        q, k = (block.split(each, block.norm(tokens())).numpy() for each in (block.query, block.key))
    chosen = {1: [0], 2: [0, 10], 11: list(range(L)), 50: list(range(L))}[queries]
    entropy, logit = measured(model, tokens(), queries)
    expected = by_hand(q * ROOT, k, added(None), chosen)
    np.testing.assert_allclose(list(entropy.values())[:HEADS], expected[0], rtol=1e-9)
    np.testing.assert_allclose(list(logit.values())[:HEADS], expected[1], rtol=1e-9)


# ---- what is attention, and whose


def test_other_softmaxes_are_no_attention() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.out = nn.Linear(WIDTH, L), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            gates = self.router(x).softmax(dim=-1)  # (N, L, L) by chance
            features = x.unflatten(2, (HEADS, SIZE)).transpose(1, 2).softmax(dim=-1)  # linear attention's
            return self.out(features.transpose(1, 2).flatten(2)) * gates.amax(dim=-1, keepdim=True)

    with pytest.raises(InputError, match="saw no attention in the model"):
        measured(Transformer(Router).double(), tokens())
    with pytest.raises(InputError, match="pass inputs="):
        kind = plugins.load("probes", "attention")
        kind(kind.Parameters(), make_target(Transformer(Router)))
    with pytest.raises(InputError, match="does not run on the inputs that it is to be shown"):
        measured(Transformer(lambda: Block(fused())), torch.zeros(3, 5))


def test_a_block_that_attends_twice_and_one_that_runs_twice() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.TransformerDecoderLayer(WIDTH, HEADS, 16, batch_first=True)])
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.head(self.blocks[0](self.blocks[0](x, memory), memory))

    model = Decoder()
    x, memory = torch.randn(N, 5, WIDTH), torch.zeros(N, 7, WIDTH)
    entropy, _ = measured(model, {"x": x, "memory": memory})
    assert list(entropy) == [
        *(f"blocks.0.head_{head}" for head in range(HEADS)),
        *(f"blocks.0.call_1.head_{head}" for head in range(HEADS)),
    ]
    assert [entropy[f"blocks.0.call_1.head_{head}"] for head in range(HEADS)] == pytest.approx([np.log(7)] * HEADS)
    kind = plugins.load("probes", "attention")
    probe = kind(kind.Parameters(), make_target(model, inputs=(x, memory)))
    columns = probe.about["attention.entropy"]["columns"]
    assert columns["blocks.0.call_1.head_1"] == {"layer": "blocks.0", "call": 1, "head": 1}


def test_attention_outside_of_any_block_has_the_name_of_its_module() -> None:
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    x = tokens().float()
    assert list(measured(model, (x, x, x))[0]) == ["model.head_0", "model.head_1"]


def test_the_momentum_encoder_inside_the_model_is_not_read_as_one_of_its_blocks() -> None:
    class Momentum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Transformer(lambda: Block(fused()))
            self.momentum_backbone = Transformer(lambda: Block(fused()))

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x) - self.momentum_backbone(x)

    entropy, _ = measured(Momentum().double(), tokens())
    expected, _ = measured(Transformer(lambda: Block(fused())).double(), tokens())
    assert list(entropy.values()) == list(expected.values())
