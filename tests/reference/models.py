"""Small models of every family, a small tokenizer, and a model whose every word is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from hornbook.families import FAMILIES, build
from hornbook.model import TransformerModel, initialize
from hornbook.text.tokenizer import Tokenizer

TEXTS = (
    "The baker met the miller at the bridge. The miller had a sack of flour, and the baker had none.\n",
    'A fox ran over the hill; the hen did not run. "Why don\'t you run?" asked the fox.\n',
    "Zoë paid 12 coins. 你好，世界。 🙂\n",
)
# The families that continue a text; the others are compared with transformers alone.
DECODERS = sorted(name for name, family in FAMILIES.items() if family.ARCHITECTURES[0].endswith(("CausalLM", "LMHeadModel")))
WIDTH = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
LLAMA = {
    **WIDTH, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6}
GEMMA = {**LLAMA, **SLIDING, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
ROPES = {
    kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in (("full_attention", 1e6), ("sliding_attention", 1e4))
}
NEOX = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
              "max_position_embeddings": 64},
    "dots1": {**LLAMA, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
              "first_k_dense_replace": 1, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
              **SLIDING},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0},
    "gemma3_text": {**GEMMA, "rope_parameters": ROPES},
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    "gpt_neox": {**{key: value for key, value in WIDTH.items() if key != "head_dim"}, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
                 "rope_parameters": NEOX, "max_position_embeddings": 64, "tie_word_embeddings": False},
    "gpt_oss": {**LLAMA, **SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama": {**LLAMA, "attention_bias": True},
    "mistral": {**LLAMA, "sliding_window": 7},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": LLAMA,
    "phi3": {**LLAMA, "sliding_window": None, "pad_token_id": 0},
    "qwen2": {**LLAMA, **SLIDING, "use_sliding_window": True},
    "qwen2_moe": {**LLAMA, **MOE, "shared_expert_intermediate_size": 24},
    "qwen3": {**LLAMA, "attention_bias": False, "tie_word_embeddings": True},
    "qwen3_moe": {**LLAMA, **MOE},
}  # fmt: skip


def small_config(family: str, vocab: int = 99, **changes: Any) -> dict[str, Any]:
    """A published config.json of a few thousand parameters."""
    ends = {"bos_token_id": None, "eos_token_id": None}
    names = {"model_type": family, "architectures": [FAMILIES[family].ARCHITECTURES[0]]}
    return {**names, "vocab_size": vocab, **ends, **CONFIGS[family], **changes}


def small_model(family: str, vocab: int = 99, seed: int = 0, **changes: Any) -> TransformerModel:
    """A random model whose every bias and norm matters, and whose choices are far apart."""
    model = initialize(build(small_config(family, vocab, **changes)), seed, std=0.25)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def tokenized_model(family: str, seed: int = 0, **changes: Any) -> tuple[TransformerModel, Tokenizer]:
    """A small model that shares its vocabulary and special tokens with the small tokenizer."""
    tokenizer = small_tokenizer()
    ends = {"bos_token_id": tokenizer.special("<|bos|>"), "eos_token_id": tokenizer.special("<|end|>")}
    return small_model(family, tokenizer.vocab_size, seed, **{**ends, **changes}), tokenizer


@cache
def small_tokenizer(vocab: int = 300) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab=vocab)


def reciting_model(tokenizer: Tokenizer, ids: Sequence[int], sure: float = 30.0) -> TransformerModel:
    """At position t it says ids[t + 1], whatever it read; past the end it says `<|end|>`.

    No layers: each position's embedding is one-hot, and the head maps each to its word, `sure` nats ahead of every other word.
    """
    length = 128
    config = small_config(
        "gpt2", tokenizer.vocab_size, n_embd=length, n_layer=0, n_head=1, n_positions=length, tie_word_embeddings=False
    )  # fmt: skip
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("stem.positions.weight").copy_(torch.eye(length))
        model.get_parameter("tower.norm.weight").fill_(1.0)
        peak = float(model.tower.norm(torch.eye(length)[0])[0]) - float(model.tower.norm(torch.eye(length)[0])[1])
        for position in range(length):
            word = ids[position + 1] if position + 1 < len(ids) else tokenizer.special("<|end|>")
            model.get_parameter("head.out.weight")[word, position] = sure / peak
    return model
