"""llama2.c's model.bin and tokenizer.bin (github.com/karpathy/llama2.c, export.py version 0): a small Llama as plain floats.

Seven integers, then every weight in float32, kind by kind over all layers; rope turns neighbouring channels. Nothing is read
before the file has exactly the size that its header asks for.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import DamagedError, UserError
from hornbook.model.rope import halved
from hornbook.text.scored import BYTE, ScoredTokenizer
from hornbook.text.sentencepiece import BYTE as BYTE_PIECE
from hornbook.text.sentencepiece import CONTROL, NORMAL, SPACE, UNKNOWN, Vocabulary

HEADER, VERSIONED = struct.Struct("<7i"), 0x616B3432
NAMES, BEGIN = ("<unk>", "<s>", "</s>"), "<s>"


def read_llama2c(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], ScoredTokenizer]:
    """The published config, weights and tokenizer of a model.bin and the tokenizer file beside it."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        raise UserError("the file cannot be read", where=str(path), why=str(error), fix="name a llama2.c model.bin") from error
    if len(head) < HEADER.size:
        raise _damaged(path, "it ends inside its header")
    dim, hidden, layers, heads, kv_heads, rows, context = HEADER.unpack(head)
    if dim == VERSIONED:
        raise UserError("this version is not read", where=str(path), why="version 0 is", fix="export it with --version 0")
    vocab, tied = abs(rows), rows > 0
    if min(dim, hidden, layers, heads, kv_heads, vocab, context) < 1 or dim % (2 * heads) or heads % kv_heads:
        raise _damaged(path, f"its header makes no Llama: {[dim, hidden, layers, heads, kv_heads, rows, context]}")
    kv, half = dim // heads * kv_heads, dim // heads // 2
    shapes = {
        "embed_tokens": (vocab, dim), "input_layernorm": (layers, dim), "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv, dim), "self_attn.v_proj": (layers, kv, dim), "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim), "mlp.gate_proj": (layers, hidden, dim), "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim), "norm": (dim,), "cos and sin": (2, context, half),
        **({} if tied else {"lm_head": (vocab, dim)}),
    }  # fmt: skip
    whole = HEADER.size + 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if size != whole:
        raise _damaged(path, f"it has {size} bytes, and its header asks for {whole}")
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": dim,
        "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "hidden_act": "silu",
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 1,  # a text ends where the next one begins
    }  # fmt: skip
    return config, _weights(path, shapes, heads, kv_heads), _tokenizer(path, vocab)


def _weights(path: Path, shapes: dict[str, tuple[int, ...]], heads: int, kv_heads: int) -> dict[str, Tensor]:
    flat, at, published = torch.from_numpy(np.fromfile(path, "<f4", offset=HEADER.size)), 0, {}
    for name, shape in shapes.items():
        stack = flat[at : at + int(np.prod(shape))].view(shape)
        at += stack.numel()
        if name in ("embed_tokens", "norm", "lm_head"):
            published[f"{'' if name == 'lm_head' else 'model.'}{name}.weight"] = stack
        elif name != "cos and sin":
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            for layer, rows in enumerate(stack):
                published[f"model.layers.{layer}.{name}.weight"] = rows if turned is None else halved(rows, turned)
    return published


def _tokenizer(model: Path, vocab: int) -> ScoredTokenizer:
    """The vocabulary beside the model: the longest piece's length, then for every id its score, length and bytes."""
    files = [model.with_name(f"tok{vocab}.bin"), model.with_name("tokenizer.bin")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UserError("there is no tokenizer beside the model", where=str(files[0]), fix="copy llama2.c's tokenizer file there")
    data, at = path.read_bytes(), 4
    pieces, scores = [], []
    for i in range(vocab):
        if at + 8 > len(data):
            raise _damaged(path, f"it ends before piece {i} of {vocab}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + max(length, 0)
        if length < 0 or at > len(data):
            raise _damaged(path, f"piece {i} has {length} bytes")
        try:
            pieces.append(data[at - length : at].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _damaged(path, f"piece {i} is not UTF-8") from error
        scores.append(score)
    if at != len(data):
        raise _damaged(path, f"{len(data) - at} bytes follow its {vocab} pieces")
    pieces = [*NAMES[:vocab], *(piece.replace(" ", SPACE) for piece in pieces[len(NAMES) :])]
    types = [UNKNOWN, CONTROL, CONTROL][:vocab] + [
        BYTE_PIECE if BYTE.fullmatch(piece) else NORMAL for piece in pieces[len(NAMES) :]
    ]
    config = {"bos_token": BEGIN, "eos_token": BEGIN, "add_bos_token": True}
    return ScoredTokenizer(Vocabulary(pieces, scores, types, unigram=False).document(str(path)), config, str(path))


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError("the llama2.c file cannot be read", where=str(path), why=why, fix="download or export it again")
