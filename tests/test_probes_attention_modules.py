"""Truth: attention written by hand in float64, loop by loop; the attention that transformers returns."""

from __future__ import annotations

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

COLUMNS = [f"blocks.{block}.head_{head}" for block in (0, 1) for head in range(HEADS)]

# ---- torch.nn.MultiheadAttention


class ModuleBlock(nn.Module):
    def __init__(self, call: dict[str, Any], **arguments: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **arguments)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.attention.batch_first else x.transpose(0, 1)
        y = self.attention(y, y, y, **self.call)[0]
        return x + self.out(y if self.attention.batch_first else y.transpose(0, 1))


PADDING = torch.zeros(N, L, dtype=torch.bool)
PADDING[1, 6:] = True
CALLS: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "weights": ({"need_weights": True}, None),
    "no weights": ({"need_weights": False}, None),
    "padding": ({"need_weights": False, "key_padding_mask": PADDING}, ~PADDING[:, None, None, :]),
    "mask": ({"need_weights": True, "attn_mask": ~CAUSAL}, CAUSAL),
    "causal": ({"need_weights": False, "attn_mask": ~CAUSAL, "is_causal": True}, CAUSAL),
    "mask of each head": (
        {"need_weights": False, "attn_mask": FLOAT.repeat(N, 1, 1)},
        FLOAT.expand(N, HEADS, L, L),
    ),
    "both": (
        {"need_weights": False, "attn_mask": ~CAUSAL, "key_padding_mask": PADDING},
        CAUSAL & ~PADDING[:, None, None, :],
    ),
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "batch second"])
@pytest.mark.parametrize("case", CALLS)
def test_the_attention_module_gives_what_is_computed_by_hand(case: str, batch_first: bool) -> None:
    call, mask = CALLS[case]
    model = Transformer(lambda: ModuleBlock(call, batch_first=batch_first)).double()
    entropy, logit = measured(model, tokens())
    entropies, largest, x = [], [], tokens()
    with torch.no_grad():
        for block in model.blocks:
            attention = block.attention
            q, k, _ = (F.linear(x, attention.in_proj_weight, attention.in_proj_bias)).chunk(3, dim=-1)
            q, k = (each.unflatten(2, (HEADS, SIZE)).transpose(1, 2).numpy() for each in (q, k))
            found = by_hand(q * ROOT, k, added(mask), CHOSEN)
            entropies += found[0]
            largest += found[1]
            x = block.eval()(x)
    assert list(entropy) == COLUMNS
    np.testing.assert_allclose(list(entropy.values()), entropies, rtol=1e-9)
    np.testing.assert_allclose(list(logit.values()), largest, rtol=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_fused_layers_of_torch_are_seen() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    padded = {"src": tokens().float(), "src_key_padding_mask": PADDING}
    entropy, _ = measured(model, padded)
    assert list(entropy) == [f"layers.{block}.head_{head}" for block in (0, 1) for head in range(HEADS)]
    assert all(np.isfinite(list(entropy.values())))


# ---- other people's models


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gpt2_equals_what_transformers_returns(implementation: str) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    size: dict[str, Any] = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 32, "vocab_size": 50}
    size |= {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2Model(GPT2Config(**size, attn_implementation=implementation)).eval()
    for each in model.parameters():
        each.data.mul_(20)
    ids = torch.randint(50, (N, L))
    mask = torch.ones(N, L, dtype=torch.long)
    mask[1, 8:] = 0
    entropy, logit = measured(model, {"input_ids": ids, "attention_mask": mask})
    plain = GPT2Model(GPT2Config(**size, attn_implementation="eager")).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        weights = plain(ids, attention_mask=mask, output_attentions=True).attentions
    shares = torch.stack(weights).double()[..., CHOSEN, :]
    expected = torch.special.entr(shares).sum(dim=-1).mean(dim=(1, 3)).flatten()
    np.testing.assert_allclose(list(entropy.values()), expected.tolist(), rtol=1e-4, atol=1e-6)
    assert list(entropy) == [f"h.{block}.head_{head}" for block in (0, 1) for head in range(HEADS)]
    with torch.no_grad():
        embedded = model.wte(ids) + model.wpe(torch.arange(L))
        q, k, _ = model.h[0].attn.c_attn(model.h[0].ln_1(embedded)).double().chunk(3, dim=-1)
    q, k = (each.unflatten(2, (HEADS, SIZE)).transpose(1, 2).numpy() for each in (q, k))
    largest = by_hand(q * ROOT, k, added(CAUSAL & mask.bool()[:, None, None, :]), CHOSEN)[1]
    np.testing.assert_allclose(list(logit.values())[:HEADS], largest, rtol=1e-4)


def test_timm_reads_alike_whether_fused_or_not() -> None:
    import timm

    found = []
    for is_fused in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=3)
        for block in model.blocks:
            block.attn.fused_attn = is_fused
        found.append(measured(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))))
    assert list(found[0][0]) == [f"blocks.{block}.head_{head}" for block in (0, 1) for head in range(3)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-5)
