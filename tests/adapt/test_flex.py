"""FlexAttention in the place of torch's: the same losses' gradients for everything that decides who sees whom, and how.

Torch refuses its own backward pass on a processor, since the fused one is missing there: the unfused one, which the tests ask for
past that refusal, computes the same masks and scores.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from hornbook import families
from hornbook.adapt import flex
from hornbook.adapt.dropout import attention_dropout
from hornbook.adapt.flex import use_flex
from hornbook.adapt.recompute import recompute
from hornbook.errors import UserError
from hornbook.generation.cache import DenseCache
from hornbook.model import Context, initialize
from tests.reference.models import CONFIGS
from tests.reference.tiny import GPT2, LLAMA, VOCAB, tiny_model

ROWS, LENGTH = 2, 150  # more than a block of pairs
DOCUMENTS = torch.tensor([[0] * 40 + [1] * 90 + [2] * 20, [0] * 130 + [1] * 20])
POSITIONS = torch.tensor([[*range(40), *range(90), *range(20)], [*range(130), *range(20)]])
PADDING = torch.arange(LENGTH)[None] >= torch.tensor([[0], [135]])  # the second row begins with more than a block of padding
CONTEXTS = {
    "plain": Context(),
    "packed": Context(documents_bt=DOCUMENTS, positions_bt=POSITIONS),
    "padded": Context(padding_bs=PADDING),
    "prefix": Context(prefix_b=torch.tensor([30, 140])),
}
LONG = {"vocab_size": VOCAB, "max_position_embeddings": 256}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "type_vocab_size": 2, "num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
T5 = {"model_type": "t5", "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 20}  # fmt: skip
LONG_LLAMA = {**LLAMA, **LONG}
MODELS = {
    "grouped heads, rope": LONG_LLAMA,
    "a window and none, sinks": {"model_type": "gpt_oss", **CONFIGS["gpt_oss"], **LONG, "sliding_window": 20},
    "softcaps and windows": {"model_type": "gemma2", **CONFIGS["gemma2"], **LONG, "sliding_window": 20},
    "alibi": {"model_type": "bloom", **CONFIGS["bloom"], **LONG},
    "both ways": {"model_type": "bert", **BERT, **LONG},
}


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "NO_BACKWARD", ())
    monkeypatch.setattr(torchs, "_validate_device", lambda *_: None)


def gradients(model: Any, *given: Any) -> list[torch.Tensor]:
    """What the model says and the gradients of a weighted sum of it, by all parameters."""
    model.zero_grad()
    hidden = model.hidden(*given)
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    return [hidden.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]


CASES = [
    pytest.param(config, ctx, id=f"{model}, {context}", marks=() if context == "packed" else pytest.mark.slow)
    for model, config in MODELS.items()
    for context, ctx in CONTEXTS.items()
]


@pytest.mark.parametrize(("config", "ctx"), CASES)
def test_the_same_answers_and_gradients(on_cpu: None, config: dict[str, Any], ctx: Context) -> None:
    model = tiny_model(config)
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    plain = gradients(model, ids, ctx)
    use_flex(model)
    torch.testing.assert_close(gradients(model, ids, ctx), plain, rtol=1e-10, atol=1e-10)


def test_buckets_of_distances_of_an_encoder_and_a_decoder(on_cpu: None) -> None:
    """T5's learned table has its gradient through the scores; cross-attention stays torch's."""
    model = families.build_any(T5)
    initialize(model, 0, std=0.3).double()
    source, target = (torch.randint(VOCAB, (ROWS, length), generator=torch.Generator().manual_seed(1)) for length in (LENGTH, 140))

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(source, target, Context(memory_padding_bs=PADDING))
        logits.logsumexp(-1).sum().backward()
        return [logits.detach(), *(each.grad for each in model.parameters() if each.grad is not None)]

    plain = step()
    use_flex(model)
    torch.testing.assert_close(step(), plain, rtol=1e-10, atol=1e-10)


def test_what_does_not_train_is_left_alone(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(LLAMA), torch.tensor([[1, 2, 3]])
    names, before = list(model.state_dict()), model(ids)
    monkeypatch.setattr(flex, "_fused", lambda device: (pytest.fail, pytest.fail))
    use_flex(model)
    with torch.no_grad():
        assert model(ids).equal(before)
    assert model(ids, Context(cache=DenseCache(8))).equal(before)
    assert list(model.state_dict()) == names


def test_documents_are_blocks_that_are_not_computed() -> None:
    """Four documents of two blocks each: of 64 pairs of blocks 12 hold a pair that is seen, and half of a diagonal block is."""
    documents = torch.arange(4).repeat_interleave(256)[None]
    found = flex._blocks(torchs.create_block_mask, Context(documents_bt=documents), True, None, torch.zeros(1, 1024, 1))
    assert found is not None and found.to_dense().sum() == 12
    assert flex._blocks(torchs.create_block_mask, Context(), False, None, torch.zeros(1, 8, 1)) is None


def test_a_copy_computes_with_its_own_weights_and_recomputes(on_cpu: None) -> None:
    ids, ctx = torch.randint(VOCAB, (ROWS, LENGTH)), CONTEXTS["packed"]
    model = tiny_model(LONG_LLAMA)
    plain = gradients(model, ids, ctx)
    use_flex(model)
    recompute(model, "blocks")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(gradients(twin, ids, ctx), plain, rtol=1e-10, atol=1e-10)


def test_keys_drop_out_as_they_do_without(on_cpu: None) -> None:
    model, ids = tiny_model({**GPT2, "attn_pdrop": 0.4}).train(), torch.randint(VOCAB, (ROWS, 60))
    attention_dropout(model, "keys")
    torch.manual_seed(5)
    plain = gradients(model, ids)
    use_flex(model)
    torch.manual_seed(5)
    torch.testing.assert_close(gradients(model, ids), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.slow  # compiling takes half a minute
def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what runs on a GPU a processor has the forward pass, in float32."""
    monkeypatch.setattr(flex, "NO_BACKWARD", ())
    monkeypatch.setattr(flex, "_trains", lambda ctx: True)
    monkeypatch.setattr(
        flex, "_fused", lambda device: (torch.compile(torchs.flex_attention), torch.compile(torchs.create_block_mask))
    )
    model, ctx = tiny_model(MODELS["alibi"], dtype=torch.float32), CONTEXTS["packed"]
    ids = torch.randint(VOCAB, (ROWS, LENGTH))
    with torch.no_grad():
        plain = model.hidden(ids, ctx)
        use_flex(model)
        torch.testing.assert_close(model.hidden(ids, ctx), plain, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="attention = 'flex' cannot train on this device(?s:.)*on cpu(?s:.)*Fix: "):
        use_flex(tiny_model(LLAMA))
    monkeypatch.setattr(flex, "NO_BACKWARD", ())
    with pytest.raises(UserError, match="no dropout of weights(?s:.)*attention_dropout"):
        use_flex(tiny_model({**GPT2, "attn_pdrop": 0.1}))
