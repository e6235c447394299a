"""GGUF out: read back equal, the same file as ggml's own writer makes, and transformers opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers

import hornbook
from hornbook.checkpoint.gguf import read_gguf
from hornbook.checkpoint.gguf_write import write_vocabulary
from hornbook.checkpoint.pretrained import load, save, save_gguf
from hornbook.cli.main import run
from hornbook.errors import UserError
from hornbook.files import verified
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer
from tests.reference.gguf_files import NAMES, differences, write
from tests.reference.models import TEXTS, tokenized_model
from tests.reference.scripts import strings

every = pytest.mark.parametrize("family", sorted(NAMES))


@every
@pytest.mark.parametrize("tied", [True, False])
def test_float32_comes_back_as_it_was(family: str, tied: bool, tmp_path: Path) -> None:
    model, tokenizer = tokenized_model(family, tie_word_embeddings=tied)
    save_gguf(model, tokenizer, tmp_path / "out")
    back, same = hornbook.load(tmp_path / "out")
    assert differences(model, back) == 0 and verified(tmp_path / "out") == {}
    assert same.fingerprint == tokenizer.fingerprint and same.end_ids == tokenizer.end_ids and same.begin_ids == tokenizer.begin_ids
    talk = [{"role": "user", "content": "Who? <|end|>"}, {"role": "assistant", "content": " The baker."}]
    assert same.render(talk) == tokenizer.render(talk)
    assert {key: value for key, value in back.config.items() if key in model.config} == {
        key: value for key, value in model.config.items() if key in back.config
    }


@every
@pytest.mark.parametrize("tied", [True, False])
def test_rows_without_a_token_are_left_out(family: str, tied: bool, tmp_path: Path) -> None:
    """llama.cpp refuses a table that has not one row per token."""
    tokenizer = tokenized_model(family)[1]
    model, _ = tokenized_model(family, tie_word_embeddings=tied, vocab_size=tokenizer.vocab_size + 20)
    save_gguf(model, tokenizer, tmp_path / "out")
    back, _ = hornbook.load(tmp_path / "out")
    assert back.config["vocab_size"] == len(back.stem.tokens.weight) == tokenizer.vocab_size
    ids = torch.arange(12)[None]
    torch.testing.assert_close(back(ids), model(ids)[..., : tokenizer.vocab_size], rtol=0, atol=1e-6)


@every
def test_ggml_writes_the_same_tensors_and_metadata(family: str, tmp_path: Path) -> None:
    model, tokenizer = tokenized_model(family)
    save_gguf(model, tokenizer, tmp_path / "out", "f16")
    ours = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    theirs = gguf.GGUFReader(write(tmp_path / "theirs.gguf", model, tokenizer, "F16", pre="smaug-bpe"))

    def tensors(reader: Any) -> dict[str, Any]:
        return {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in reader.tensors}

    assert tensors(ours) == tensors(theirs)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.fields[name].contents() == field.contents(), name


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_a_rounded_weight_is_within_its_formats_bound(dtype: str, bound: float, tmp_path: Path) -> None:
    """f16 and bf16: half a unit in the last place; q8_0: half a step of 1/127 of the block's largest, its scale in float16."""
    model, tokenizer = tokenized_model("llama", intermediate_size=64)
    save_gguf(model, tokenizer, tmp_path / "out", dtype)
    back = load(tmp_path / "out")[0].state_dict()
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            assert torch.equal(value, back[name])
        else:
            size = value.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) if dtype == "q8_0" else value.abs()[..., None]
            error = (value - back[name]).abs().reshape(size.shape[:-1] + (-1,))
            assert (error <= size * bound * (0.55 if dtype == "q8_0" else 1) + 1e-7).all() and error.max() > 0, name


def test_rows_that_no_block_fits_are_kept_in_float16(tmp_path: Path) -> None:
    save_gguf(*tokenized_model("llama"), tmp_path / "out", "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


def test_transformers_opens_it_with_the_same_logits(tmp_path: Path) -> None:
    model, tokenizer = tokenized_model("llama", attention_bias=False)
    save_gguf(model, tokenizer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), gguf_file="model.gguf").eval()
    ids = torch.randint(tokenizer.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    assert (model(ids) - theirs(ids).logits).abs().max() < 2e-5


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "qwen2", "digits"])
def test_each_split_that_llama_cpp_knows_comes_back(split: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, vocab=300, split=split)
    save_gguf(tokenized_model("llama")[0], tokenizer, tmp_path / "out")
    assert load(tmp_path / "out")[1].fingerprint == tokenizer.fingerprint


def test_the_verb_writes_either_and_reads_back_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tokenized_model("qwen3")
    save(model, tokenizer, tmp_path / "model")
    assert run(["export", str(tmp_path / "model"), "--out", str(tmp_path / "g"), "--to", "gguf"]) == 0
    assert run(["export", str(tmp_path / "g" / "model.gguf"), "--out", str(tmp_path / "h"), "--dtype", "bf16"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "h"))
    assert theirs.dtype == torch.bfloat16 and theirs.config.rms_norm_eps == model.config["rms_norm_eps"]
    assert run(["export", str(tmp_path / "model"), "--out", str(tmp_path / "no"), "--dtype", "q8_0"]) == 2
    assert "Fix:   use --to gguf" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_model_of_llama2c_is_written_with_its_tokenizer(data_folder: Path, tmp_path: Path) -> None:
    model, scored = load(data_folder / "weights" / "stories260K" / "stories260K.bin")
    for write_out in (save, save_gguf):
        write_out(model, scored, tmp_path / write_out.__name__)
        back, same = load(tmp_path / write_out.__name__)
        assert differences(model, back) == 0 and (same.begin_ids, same.end_ids) == (scored.begin_ids, scored.end_ids)
        for text in strings(seed=1, count=500):
            assert same.encode(text) == scored.encode(text)


VOCABULARIES = {
    "llama2": "llama2/tokenizer.model", "t5": "t5/t5_tokenizer_base.model", "gpt2": "gpt2", "qwen3": "qwen3",
    "r50k": "tiktoken/r50k_base.tiktoken", "bert": "wordpiece/vocab.txt",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("qwen3", "r50k") else name for name in sorted(VOCABULARIES)]
)
def test_every_kind_of_vocabulary_comes_back(name: str, data_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(data_folder / "tokenizers" / VOCABULARIES[name])
    write_vocabulary(tokenizer, tmp_path / "vocabulary.gguf")
    same = Tokenizer.load(tmp_path / "vocabulary.gguf")
    for text in strings(seed=2, count=500):
        assert same.encode(text) == tokenizer.encode(text)
    assert same.vocab_size == tokenizer.vocab_size and same.specials.keys() <= tokenizer.specials.keys()


@pytest.mark.parametrize(("ours", "theirs"), [("llama2", "llama-spm"), ("gpt2", "gpt-2"), ("bert", "bert-bge")])
def test_llama_cpps_own_files_hold_the_same_tokens(ours: str, theirs: str, data_folder: Path, tmp_path: Path) -> None:
    write_vocabulary(Tokenizer.load(data_folder / "tokenizers" / VOCABULARIES[ours]), tmp_path / "vocabulary.gguf")
    found = read_gguf(tmp_path / "vocabulary.gguf").metadata
    expected = read_gguf(data_folder / "tokenizers" / "gguf_vocab" / f"ggml-vocab-{theirs}.gguf").metadata
    for key in {"gpt2": ("model", "pre", "tokens", "merges", "token_type"), "llama2": ("model", "tokens", "token_type")}.get(
        ours, ("model", "tokens")
    ):
        assert list(found[f"tokenizer.ggml.{key}"]) == list(expected[f"tokenizer.ggml.{key}"]), key


def test_what_gguf_cannot_say_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model, _ = tokenized_model("llama")
    for tokenizer, says in (
        (Tokenizer.train(TEXTS, vocab=300, pattern=r"\w+|\W+"), "llama.cpp has no name"),
        (Tokenizer.train(TEXTS, vocab=300, pattern=r"\p{N}|" + PATTERNS["o200k"]), "llama.cpp has no name"),
    ):
        with pytest.raises(UserError, match=says):
            save_gguf(model, tokenizer, tmp_path / "out")
    model.config["model_type"] = "unheard"
    with pytest.raises(UserError, match="unheard"):
        save_gguf(model, tokenizer, tmp_path / "out")
    assert not list(tmp_path.iterdir())
