"""GGUF files by ggml's own writer and names, and the row order of llama.cpp's converter, so that no table of ours is used."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from hornbook.families import family
from hornbook.families.weights import to_published
from hornbook.model import TransformerModel
from hornbook.text.tokenizer import Tokenizer

NAMES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3, "gpt2": gguf.MODEL_ARCH.GPT2}


def published(model: TransformerModel) -> dict[str, Tensor]:
    tied = {name for name, _ in model.ties}
    ours = {name: value.detach() for name, value in model.state_dict().items() if name not in tied}
    return to_published(family(model.config).weights(model.config), ours)


def write(path: Path, model: TransformerModel, tokenizer: Tokenizer, kind: str = "F32", pre: str = "llama-bpe") -> Path:
    """The model in the format, its matrices in the type `kind`."""
    config, name = model.config, model.config["model_type"]
    writer = GGUFWriter(path, name)
    writer.add_block_count(config.get("num_hidden_layers", config.get("n_layer")))
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    writer.add_embedding_length(config.get("hidden_size", config.get("n_embd")))
    writer.add_feed_forward_length(config.get("intermediate_size", 4 * config.get("n_embd", 0)))
    writer.add_head_count(config.get("num_attention_heads", config.get("n_head")))
    if name == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
    if name == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    vocabulary(writer, tokenizer, pre)
    names = gguf.get_tensor_name_map(NAMES[name], config.get("num_hidden_layers", config.get("n_layer")))
    for theirs, tensor in published(model).items():
        rows = tensor.float().numpy()
        if name == "gpt2" and any(part in theirs for part in ("c_attn.w", "c_proj.w", "c_fc.w")):
            rows = np.ascontiguousarray(rows.T)
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if name == "llama" and part in theirs:
                rows = permuted(rows, config[heads])
        quantized = GGMLQuantizationType[kind if rows.ndim == 2 else "F32"]
        stem, _, suffix = theirs.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quantize(rows, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    model = tokenizer.document["model"]
    rows = {i: (text, 1) for text, i in model["vocab"].items()} | {i: (name, 3) for name, i in tokenizer.specials.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([rows[i][0] for i in range(len(rows))])
    writer.add_token_types([rows[i][1] for i in range(len(rows))])
    writer.add_token_merges(json.loads(json.dumps(model["merges"])))
    writer.add_bos_token_id(tokenizer.special("<|bos|>"))
    writer.add_eos_token_id(tokenizer.special("<|end|>"))


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def differences(one: TransformerModel, two: TransformerModel) -> float:
    """The largest difference of any weight."""
    theirs = two.state_dict()
    return max(float((value - theirs[name]).abs().max()) for name, value in one.state_dict().items())


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max().to(torch.float64))
