"""Configs of published models, cut to the fields that decide their shape, each with the count that its authors published.

For models on Hugging Face the count is half of `total_size` (bytes, in a 2-byte format) in the model's own
model.safetensors.index.json. Where authors give only a rounded figure, the count is that of transformers' model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    count: int
    source: str
    config: dict[str, Any]


def gpt2(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024, "n_embd": dim,
        "n_layer": layers, "n_head": heads, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    }  # fmt: skip


MIXTRAL_ACTIVE = "12.9B: Mistral AI, 'Mixtral of experts', 11 December 2023; 13B in Jiang et al. 2024, section 2.1"
PUBLISHED = {
    "gpt2": Published(124_439_808, "the '124M' of openai/gpt-2; transformers' count", gpt2(768, 12, 12)),
    "gpt2-xl": Published(1_557_611_200, "the '1558M' of openai/gpt-2; transformers' count", gpt2(1600, 48, 25)),
    "llama-3-8b": Published(8_030_261_248, "meta-llama/Meta-Llama-3-8B: total_size 16,060,522,496", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
        "attention_bias": False, "tie_word_embeddings": False,
    }),
    "qwen3-8b": Published(8_190_735_360, "Qwen/Qwen3-8B: total_size 16,381,470,720", {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 40960,
        "attention_bias": False, "tie_word_embeddings": False,
    }),
    "mixtral-8x7b": Published(46_702_792_704, "mistralai/Mixtral-8x7B-v0.1: total_size 93,405,585,408", {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "sliding_window": None, "tie_word_embeddings": False,
    }),
    "bert-base": Published(109_514_298, "the '110M' of Devlin et al. 2019, section 3; transformers' count", {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 30522, "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    }),
    "vit-b16": Published(86_567_656, "the '86M' of Dosovitskiy et al. 2021, table 1; transformers' count", {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224,
        "patch_size": 16, "num_channels": 3, "qkv_bias": True, "id2label": {str(i): f"LABEL_{i}" for i in range(1000)},
    }),
}  # fmt: skip
