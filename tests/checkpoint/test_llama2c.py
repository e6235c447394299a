"""llama2.c's files: the weights as numpy and transformers see them, the story that llama2.c itself tells, damage named."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import hornbook
from hornbook.checkpoint.pretrained import load
from hornbook.errors import DamagedError, UserError
from hornbook.generation.decode import generate, stream
from hornbook.generation.sampling import Sampling

# What run.c says at temperature 0 after 200 steps: github.com/karpathy/llama2.c, test_all.py, expected_stdout.
STORY = """Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a \
big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, \
but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she"""


@pytest.fixture
def stories(data_folder: Path, tmp_path: Path) -> Path:
    for file in (data_folder / "weights" / "stories260K").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path / "stories260K.bin"


def theirs(path: Path) -> Any:
    """transformers' Llama, filled by hand: kinds in the order of llama2.c's export.py, even rows before odd ones."""
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", path.read_bytes()[:28])
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    values, kv = np.fromfile(path, "<f4", offset=28), dim // heads * kv_heads
    order = [("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv, dim))]
    order += [("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,))]
    order += [("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)), ("mlp.up_proj", (hidden, dim))]
    state, at = {"model.embed_tokens.weight": values[: vocab * dim].reshape(vocab, dim)}, vocab * dim
    for name, shape in order:
        for layer in range(layers):
            rows = values[at : at + int(np.prod(shape))].reshape(shape)
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                rows = np.concatenate(
                    [np.concatenate((head[0::2], head[1::2])) for head in np.split(rows, len(rows) * heads // dim)]
                )
            state[f"model.layers.{layer}.{name}.weight"] = rows
            at += int(np.prod(shape))
    state["model.norm.weight"] = values[at : at + dim]
    missing, unexpected = model.load_state_dict({name: torch.from_numpy(rows.copy()) for name, rows in state.items()}, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


def test_it_tells_the_story_that_llama2c_tells(stories: Path) -> None:
    model, tokenizer = hornbook.load(stories)
    (found,) = generate(model, tokenizer, [""], Sampling(max_tokens=199))
    assert (" " + STORY).startswith(found.text) and len(found.text) > len(STORY) - 6
    assert "".join(stream(model, tokenizer, "", Sampling(max_tokens=199))) == found.text


def test_transformers_goes_on_token_for_token_the_same(stories: Path) -> None:
    (model, tokenizer), other = load(stories), theirs(stories)
    for prompt in ("", "The dog and the cat"):
        ids = torch.tensor([[*tokenizer.begin_ids, *tokenizer.encode(prompt)]])
        with torch.inference_mode():
            assert (model(ids) - other(ids).logits).abs().max() < 1e-4
        expected = other.generate(ids, max_new_tokens=150, do_sample=False, eos_token_id=[1, 2], pad_token_id=0)
        found = generate(model, tokenizer, [prompt], Sampling(max_tokens=150))[0].tokens
        assert found == expected[0, ids.shape[1] :].tolist()[: len(found)] and len(found) > 100


def test_a_head_of_its_own_and_another_tokenizer_name_are_read(stories: Path) -> None:
    raw = stories.read_bytes()
    vocab, dim = 512, 64
    head = torch.randn(vocab, dim)
    stories.write_bytes(raw[:20] + struct.pack("<i", -vocab) + raw[24:] + head.numpy().tobytes())
    (stories.parent / "tok512.bin").rename(stories.parent / "tokenizer.bin")
    model, _ = load(stories)
    assert torch.equal(model.get_parameter("head.out.weight"), head) and not model.ties


def test_any_length_and_any_flipped_byte_loads_or_is_an_error_of_ours(stories: Path) -> None:
    raw, dice = stories.read_bytes(), random.Random(0)
    for size in [*range(40), *(dice.randrange(len(raw)) for _ in range(40)), len(raw) - 1]:
        stories.write_bytes(raw[:size])
        with pytest.raises(DamagedError, match=stories.name):
            load(stories)
    for n in range(120):
        hurt = bytearray(raw)
        hurt[dice.randrange(28) if n % 4 else dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        stories.write_bytes(hurt)
        try:
            load(stories)
        except UserError as error:
            assert stories.name in str(error) and "Fix:" in str(error)


def test_a_damaged_tokenizer_is_named(stories: Path) -> None:
    file, dice = stories.parent / "tok512.bin", random.Random(0)
    raw = file.read_bytes()
    for size in [*range(0, 60, 3), *(dice.randrange(len(raw)) for _ in range(20))]:
        file.write_bytes(raw[:size])
        with pytest.raises(DamagedError, match=r"tok512\.bin"):
            load(stories)
    for _ in range(60):
        hurt = bytearray(raw)
        hurt[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        file.write_bytes(hurt)
        try:
            load(stories)
        except UserError as error:
            assert "tok512.bin" in str(error)
    file.write_bytes(raw + b"x")
    with pytest.raises(DamagedError, match="1 bytes follow"):
        load(stories)
    file.unlink()
    with pytest.raises(UserError, match=r"no tokenizer beside the model(.|\n)*tok512\.bin"):
        load(stories)


def test_a_newer_version_and_an_impossible_shape_are_refused(stories: Path) -> None:
    raw = stories.read_bytes()
    for header, says in (
        ((0x616B3432, 1, 0, 0, 0, 0, 0), "version"), ((2**31 - 1,) * 7, "header"),
        ((2, 2**31 - 1, 2**31 - 1, 1, 1, 1, 1), "asks for"),
        ((64, 172, 5, 8, 3, 512, 512), "no Llama"), ((64, 172, -5, 8, 4, 512, 512), "no Llama"),
    ):  # fmt: skip
        stories.write_bytes(struct.pack("<7i", *header) + raw[28:])
        with pytest.raises(UserError, match=says):
            load(stories)
