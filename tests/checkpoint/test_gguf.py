"""GGUF in: the same weights, logits and ids as ggml's own reader and transformers give, and damage is named."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

import hornbook
from hornbook.checkpoint.gguf import TYPES, read_gguf
from hornbook.checkpoint.pretrained import load
from hornbook.errors import DamagedError, UserError
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from hornbook.model.rope import halved, paired
from hornbook.text.gguf_vocabulary import PRE, gguf_tokenizer
from tests.reference.gguf_files import NAMES, differences, permuted, write
from tests.reference.models import TEXTS, tokenized_model

every = pytest.mark.parametrize("family", sorted(NAMES))


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def entry(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def by_hand(path: Path, keys: list[bytes], tensors: list[bytes], data: bytes = b"", header: Any = None) -> Path:
    counts = {"version": 3, "tensors": len(tensors), "keys": len(keys)} | (header or {})
    head = b"GGUF" + struct.pack("<IQQ", counts["version"], counts["tensors"], counts["keys"])
    body = head + b"".join(keys) + b"".join(tensors)
    path.write_bytes(body + (bytes(-len(body) % 32) + data if data else b""))
    return path


# --- what ggml and transformers read --------------------------------------------------------------------------------------


@every
def test_a_file_by_ggmls_writer_is_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    model, tokenizer = tokenized_model(family, tie_word_embeddings=family == "qwen3")
    back, same = hornbook.load(write(tmp_path / "model.gguf", model, tokenizer))
    assert differences(model, back) == 0
    assert all(back.get_parameter(name) is back.get_parameter(owner) for name, owner in back.ties)
    assert [same.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (same.end_ids, dict(same.specials)) == (tokenizer.end_ids, dict(tokenizer.specials))
    sampling = Sampling(max_tokens=12)
    assert generate(back, same, ["The baker"], sampling) == generate(model, tokenizer, ["The baker"], sampling)


@every
def test_transformers_reads_the_same_logits(family: str, tmp_path: Path) -> None:
    # Of what GGUF can say, transformers' reader knows no biases of a Llama, and one head width and context.
    changes = {"llama": {"attention_bias": False}, "qwen3": {"head_dim": 128}, "gpt2": {"n_positions": 1024}}
    model, tokenizer = tokenized_model(family, **changes[family])
    path = write(tmp_path / "model.gguf", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=path.name).eval()
    ids = torch.randint(tokenizer.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    ours = load(path)[0](ids)
    assert ours.std() > 1 and (ours - theirs(ids).logits).abs().max() < 2e-5


@pytest.mark.parametrize("kind", sorted(name for name, _, _ in TYPES.values()))
def test_every_type_is_what_ggml_dequantizes(kind: str, tmp_path: Path) -> None:
    """Random blocks, for the Python package cannot quantize them all; scales kept finite."""
    number, (_, weights, size) = next((n, row) for n, row in TYPES.items() if row[0] == kind)
    blocks = np.random.default_rng(0).integers(0, 60, (6, 2 * size), dtype=np.uint8)
    shape = [2 * weights, 3, 2]
    path = by_hand(tmp_path / "a.gguf", [], [entry("x", [8]), entry("w", shape, number, 32)], bytes(32) + blocks.tobytes())
    (theirs,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "w"]
    expected = gguf.dequantize(theirs.data, gguf.GGMLQuantizationType[kind]).reshape(2, 3, 2 * weights)
    found = read_gguf(path).tensor("w")
    assert found.dtype == torch.float32 and np.isfinite(expected).all() and expected.std() > 0
    assert np.array_equal(found.numpy(), expected)


def test_metadata_is_what_ggml_reads(data_folder: Path) -> None:
    path = data_folder / "tokenizers" / "gguf_vocab" / "ggml-vocab-bert-bge.gguf"
    fields = {name: field for name, field in gguf.GGUFReader(path).fields.items() if not name.startswith("GGUF.")}
    found = read_gguf(path).metadata
    assert found.keys() == fields.keys()
    for name, field in fields.items():
        value, expected = found[name], field.contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected, name


@every
def test_quantized_files_load_near_to_what_was_written(family: str, tmp_path: Path) -> None:
    changes = {"n_embd": 64} if family == "gpt2" else {"intermediate_size": 64}
    model, tokenizer = tokenized_model(family, **changes)
    for kind, bound in (("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 2e-2)):
        back, _ = load(write(tmp_path / f"{kind}.gguf", model, tokenizer, kind))
        assert 0 < differences(model, back) < bound, kind


def test_rows_are_reordered_as_llama_cpp_does_and_back() -> None:
    rows = torch.randn(24, 5)
    for heads in (1, 2, 3, 6):
        expected = torch.from_numpy(permuted(rows.numpy(), heads))
        assert torch.equal(paired(rows, heads), expected) and torch.equal(halved(expected, heads), rows)


# --- tokenizers -----------------------------------------------------------------------------------------------------------


def test_the_vocabulary_of_gpt2_is_openais(data_folder: Path) -> None:
    ours = gguf_tokenizer(read_gguf(data_folder / "tokenizers" / "gguf_vocab" / "ggml-vocab-gpt-2.gguf"))
    folder = data_folder / "tokenizers" / "gpt2"
    theirs = transformers.GPT2TokenizerFast(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    assert ours.vocab_size == 50257 and ours.end_ids == (50256,)
    for text in [*TEXTS, "don't  \n\n STOP 12345 ½ naïve\t🙂👩‍🚀 ", (data_folder / "README.md").read_text(encoding="utf-8")]:
        assert ours.encode(text) == theirs(text).input_ids


def test_a_saved_vocabulary_opens_in_transformers_with_the_same_ids(tmp_path: Path) -> None:
    model, tokenizer = tokenized_model("llama")
    for pre in PRE:
        _, ours = load(write(tmp_path / "model.gguf", model, tokenizer, pre=pre))
        ours.save(tmp_path / pre)
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / pre))
        for text in [*TEXTS, "1234 e\u0301 \u1112\u1161\u11ab don't  \n\n x"]:
            assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text), pre


@pytest.mark.parametrize("name", ["ggml-vocab-bert-bge.gguf", "ggml-vocab-gpt-2.gguf"])
def test_a_file_without_weights_is_refused(name: str, data_folder: Path) -> None:
    with pytest.raises(UserError, match=r"not known|no weights|tensors"):
        load(data_folder / "tokenizers" / "gguf_vocab" / name)


# --- damage ---------------------------------------------------------------------------------------------------------------

HUGE = 2**63


@pytest.mark.parametrize(
    ("keys", "tensors", "header", "says"),
    [
        ([], [], {"version": 1}, "version 1"), ([], [], {"version": 3 << 24}, "big-endian"),
        ([], [], {"keys": HUGE}, "key '' stands there twice"), ([], [], {"tensors": HUGE}, "tensor '' has 0 dimensions"),
        ([key("a", 4, bytes(4))], [], {"keys": HUGE, "tensors": HUGE}, "key '' stands"),
        ([struct.pack("<Q", HUGE)], [], {}, "ends inside the name of key 1"),
        ([key("a", 4, bytes(4))] * 2, [], {}, "'a' stands there twice"),
        ([key("a", 8, struct.pack("<Q", 1 << 40))], [], {}, "ends inside key 'a'"),
        ([key("a", 9, struct.pack("<IQ", 8, HUGE))], [], {}, "ends inside key 'a'"),
        ([key("a", 9, struct.pack("<IQ", 12, HUGE))], [], {}, "ends inside key 'a'"),
        ([key("a", 9, struct.pack("<IQ", 9, 1))], [], {}, "key 'a' has a value of type 9"),
        ([key("a", 99, b"")], [], {}, "key 'a' has a value of type 99"),
        ([key("a", 8, string(b"\xff"))], [], {}, "key 'a' is not UTF-8"),
        ([key("general.alignment", 4, struct.pack("<I", 0))], [], {}, "general.alignment is 0"),
        ([key("general.alignment", 8, string("x"))], [], {}, "general.alignment is 'x'"),
        ([], [entry("w", [2, 2])] * 2, {}, "'w' stands there twice"), ([], [entry("w", [])], {}, "0 dimensions"),
        ([], [entry("w", [1] * 5)], {}, "5 dimensions"), ([], [entry("w", [0, 4])], {}, "shape [4, 0]"),
        ([], [entry("w", [HUGE] * 4)], {}, "tensor 'w' needs"), ([], [entry("w", [31], 8)], {}, "multiple of 32"),
        ([], [entry("w", [4], 77)], {}, "the type 77"), ([], [entry("w", [4], offset=4)], {}, "no multiple of 32"),
        ([], [entry("w", [4], offset=1 << 62)], {}, "tensor 'w' needs"), ([], [entry("w", [1000])], {}, "tensor 'w' needs"),
        ([], [entry("v", [16]), entry("w", [4], offset=32)], {}, "'v' and 'w' overlap"),
    ],
)  # fmt: skip
def test_each_lie_is_named_and_costs_no_memory(
    keys: list[bytes], tensors: list[bytes], header: dict[str, int], says: str, tmp_path: Path
) -> None:
    path = by_hand(tmp_path / "a.gguf", keys, tensors, bytes(64), header)
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_gguf(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert says in str(caught.value) and str(path) in str(caught.value) and "Fix:" in str(caught.value)
    assert most < 1 << 18


def test_the_file_that_each_lie_is_made_of_is_read(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "a.gguf", [key("a", 4, bytes(4))], [entry("w", [4])], struct.pack("<4f", 1, 2, 3, 4))
    assert read_gguf(path).metadata == {"a": 0} and read_gguf(path).tensor("w").tolist() == [1, 2, 3, 4]


def test_every_length_and_any_flipped_byte_loads_or_is_an_error_of_ours(tmp_path: Path) -> None:
    """Cut at every place of the header, and hit where the counts, types and offsets lie."""
    model, tokenizer = tokenized_model("llama", num_hidden_layers=1, head_dim=4)
    raw, path = write(tmp_path / "whole.gguf", model, tokenizer).read_bytes(), tmp_path / "hurt.gguf"
    table, dice, loaded = raw.index(b"token_embd.weight"), random.Random(0), 0
    spots = [range(24), range(900), range(table, table + 1200), range(len(raw))]
    cut = [raw[:size] for size in [*range(0, 1200, 7), *range(1200, len(raw), 601)]]
    for data in cut:
        path.write_bytes(data)
        with pytest.raises((DamagedError, UserError), match="hurt.gguf"):
            load(path)
    for n in range(300):
        hurt = bytearray(raw)
        hurt[dice.choice(spots[n % 4])] ^= 1 << dice.randrange(8)
        path.write_bytes(hurt)
        try:
            load(path)
            loaded += 1
        except UserError as error:
            assert "hurt.gguf" in str(error) and "Fix:" in str(error)
    assert 0 < loaded < 300


def changed(path: Path, name: str, value: bytes) -> Path:
    raw = path.read_bytes()
    at = raw.index(string(name)) + len(string(name)) + 4
    path.write_bytes(raw[:at] + value + raw[at + len(value) :])
    return path


def test_what_the_model_cannot_be_is_named(tmp_path: Path) -> None:
    def hurt(name: str, number: int) -> None:
        path = write(tmp_path / "model.gguf", *tokenized_model("llama"))
        with pytest.raises(UserError, match=rf"{name}(.|\n)*model.gguf(.|\n)*Fix:"):
            load(changed(path, name, struct.pack("<I", number)))

    hurt("llama.block_count", 1 << 30)
    hurt("llama.attention.head_count", 7)
    hurt("llama.rope.dimension_count", 4)
    hurt("tokenizer.ggml.eos_token_id", 1 << 20)


def test_without_the_gguf_package_the_fix_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", *tokenized_model("llama"))
    monkeypatch.setitem(__import__("sys").modules, "gguf.quants", None)
    with pytest.raises(UserError, match=r"Fix: +pip install 'hornbook\[gguf\]'"):
        load(path)
