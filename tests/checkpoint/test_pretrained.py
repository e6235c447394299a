"""Published folders: what we write opens in transformers, what transformers writes opens here, and damage is named."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import hornbook
from hornbook.checkpoint.pretrained import load, load_model, model_folder, save
from hornbook.errors import DamagedError, UserError
from hornbook.families import FAMILIES, build, context_length
from hornbook.files import verified
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from tests.reference.models import DECODERS, TEXTS, small_config, tokenized_model

PICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
families = pytest.mark.parametrize("family", DECODERS)
# Fields without which another one means something else.
PAIRED = {
    **dict.fromkeys(("dots1", "gemma2", "gemma3_text", "gpt_oss", "qwen2"), ("layer_types", "sliding_window")),
    "gpt_neox": ("rope_parameters",),
}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who met the miller? 你好\n"}]


def saved(family: str, folder: Path, **changes: Any) -> Path:
    save(*tokenized_model(family, **changes), folder / "model")
    return folder / "model"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# --- ours in transformers -------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("tied", [True, False])
def test_what_we_write_opens_in_transformers(family: str, tied: bool, tmp_path: Path) -> None:
    model, tokenizer = tokenized_model(family, tie_word_embeddings=tied)
    hornbook.save(model, tokenizer, tmp_path / "model")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "model"), trust_remote_code=False, output_loading_info=True
    )
    assert not any(report.values())  # no weight missing, unexpected or of another shape
    assert type(theirs).__name__ == FAMILIES[family].ARCHITECTURES[0]
    ids = torch.randint(tokenizer.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    ours, others = model(ids).detach(), theirs(ids).logits.detach()
    assert ours.std() > 1  # so that the bound below is small beside the logits
    assert (ours - others).abs().max() < 2e-5


@families
def test_the_same_words_come_out_of_both(family: str, tmp_path: Path) -> None:
    """From a text and from a conversation: the same ids go in, and the same greedy text comes out."""
    model, tokenizer = tokenized_model(family)
    hornbook.save(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    # For model type qwen2 transformers' AutoTokenizer puts Qwen2's own pre-tokenizer in the place of the file's.
    kind = transformers.PreTrainedTokenizerFast if family == "qwen2" else transformers.AutoTokenizer
    their_tokenizer = kind.from_pretrained(str(tmp_path / "model"))
    assert theirs.generation_config.eos_token_id == tokenizer.special("<|end|>") == their_tokenizer.eos_token_id
    for text in TEXTS:
        assert their_tokenizer(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    rendered = their_tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert rendered == tokenizer.render(MESSAGES, prompt=True)[0]
    plain = their_tokenizer("<|bos|>The baker met").input_ids
    for ids, prompt in ((rendered[:40], rendered[:40]), (plain, "The baker met")):
        whole = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
        expected = their_tokenizer.decode(whole, skip_special_tokens=False).removesuffix("<|end|>")
        assert generate(model, tokenizer, [prompt], Sampling(max_tokens=16))[0].text == expected != ""


# --- transformers' here ---------------------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_transformers_writes_opens_here(family: str, shard: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{**small_config(family, 301), "bos_token_id": 1, "eos_token_id": 2})
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    ours = load_model(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    ids = torch.randint(301, (2, 14), generator=torch.Generator().manual_seed(0))
    if dtype == torch.bfloat16:  # rounding hides in bfloat16: the same weights are compared in float32
        theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32), ours.float()
    assert (ours(ids) - theirs(ids).logits).abs().max() < 2e-5
    assert not ours.training and all(parameter.requires_grad for parameter in ours.parameters())


@families
def test_a_loaded_model_learns_in_place(family: str, tmp_path: Path) -> None:
    """Weights that a file fuses or ties are ordinary parameters after loading: a step moves each, and ties stay ties."""
    model = load_model(saved(family, tmp_path, tie_word_embeddings=True))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(20)[None]).logsumexp(-1).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.1 * parameter.grad
        assert torch.equal(parameter, expected) or (parameter - expected).abs().max() < 1e-6, name
    assert all(model.get_parameter(name) is model.get_parameter(owner) for name, owner in model.ties)


# --- there and back -------------------------------------------------------------------------------------------------------


@families
def test_saving_twice_writes_the_same_bytes(family: str, tmp_path: Path) -> None:
    first = saved(family, tmp_path)
    model, tokenizer = hornbook.load(first)
    save(model, tokenizer, tmp_path / "again")
    assert digests(first) == digests(tmp_path / "again")
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids), tokenized_model(family)[0](ids))
    assert all(model.get_parameter(name) is model.get_parameter(owner) for name, owner in model.ties)
    assert verified(first) == {}  # the manifest holds


def test_any_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model, tokenizer = tokenized_model("llama")
        save(model.to(dtype), tokenizer, tmp_path / "model")
        back = load_model(tmp_path / "model").state_dict()
        assert all(value.dtype == dtype and torch.equal(value, back[name]) for name, value in model.state_dict().items())


def test_a_card_and_what_it_is_about_are_kept(tmp_path: Path) -> None:
    model, tokenizer = tokenized_model("llama")
    save(model, tokenizer, tmp_path / "model", about={"inputs": {"seed": 1}}, card="# A model\n")
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"
    assert verified(tmp_path / "model") == {"inputs": {"seed": 1}}
    save(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model" / "README.md").exists()  # replaced whole, not mixed


def test_nothing_but_a_model_is_ever_replaced(tmp_path: Path) -> None:
    model, tokenizer = tokenized_model("llama")
    for name in ("folder/thesis.txt", "file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("years of work")
        target = tmp_path / name.split("/")[0]
        with pytest.raises(UserError, match="something else stands there") as caught:
            save(model, tokenizer, target)
        assert str(target) in str(caught.value) and (tmp_path / name).read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save(model, tokenizer, tmp_path / "empty")
    load(tmp_path / "empty")


def test_a_run_folder_is_its_model(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    assert model_folder(tmp_path) == model_folder(folder) == folder
    ids = torch.arange(9)[None]
    assert torch.equal(load(tmp_path)[0](ids), load(folder)[0](ids))


def test_the_context_is_what_the_config_says() -> None:
    assert {context_length(tokenized_model(family)[0]) for family in DECODERS} == {64}
    model, _ = tokenized_model("llama")
    del model.config["max_position_embeddings"]
    assert context_length(model) is None


# --- misfits --------------------------------------------------------------------------------------------------------------


def refused(folder: Path, *says: str, kind: type[UserError] = UserError) -> None:
    with pytest.raises(kind) as caught:
        load(folder)
    assert all(part in str(caught.value) for part in [*says, str(folder), "Fix:"]), str(caught.value)


def rewrite(folder: Path, change: Any) -> None:
    """Change the published tensors, as a careless converter would."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit(folder: Path, change: Any, name: str = "config.json") -> None:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


@families
def test_a_missing_weight_and_a_wrong_shape_are_named(family: str, tmp_path: Path) -> None:
    """Each kind of both, in memory, is in tests/families/test_weights.py."""
    folder = saved(family, tmp_path)
    name, value = sorted(load_file(folder / "model.safetensors").items())[-1]
    rewrite(folder, lambda tensors: tensors.update({name: value[:-1].contiguous()}))
    refused(folder, name, str(list(value[:-1].shape)))
    rewrite(folder, lambda tensors: tensors.pop(name))
    refused(folder, "missing", name)


@families
def test_an_extra_weight_is_named(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path)
    rewrite(folder, lambda tensors: tensors.update({"model.adapter.weight": torch.zeros(2)}))
    refused(folder, "no rule names", "'model.adapter.weight'")
    last = max(name for name in load_file(folder / "model.safetensors") if ".2." in name)
    beyond = last.replace(".2.", ".3.")
    rewrite(folder, lambda tensors: tensors.update({beyond: tensors.pop("model.adapter.weight")}))
    refused(folder, "no place", beyond)  # a fourth layer for a model of three


def test_an_unknown_family_names_the_near_one(tmp_path: Path) -> None:
    folder = saved("qwen3", tmp_path)
    edit(folder, lambda config: config.update(model_type="qwen"))
    refused(folder, "'qwen'", "did you mean 'qwen3'?", "config.json")
    edit(folder, lambda config: config.pop("model_type"))
    refused(folder, "model_type", "config.json")


@families
def test_each_missing_field_is_named_or_has_its_published_default(family: str, tmp_path: Path) -> None:
    """What a config leaves out is asked for by name, or means what it means to transformers."""
    config, needed = small_config(family), set()
    for name in config.keys() - {"model_type", "rope_theta", "num_key_value_heads", *PAIRED.get(family, ())}:
        rest = {key: value for key, value in config.items() if key != name}
        try:
            ours = build(rest).spec
        except UserError as error:
            assert repr(name) in str(error) and "config.json" in str(error) and "Fix:" in str(error)
            needed.add(name)
            continue
        assert ours == build(transformers.AutoConfig.for_model(**rest).to_dict()).spec, name
    assert "vocab_size" in needed and len(needed) >= 4


@families
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("value", ["many", -1, 0, None, [], 2.5])
def test_impossible_values_are_refused(family: str, value: Any, tmp_path: Path) -> None:
    folder = saved(family, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    width, heads = "n_embd" if family == "gpt2" else "hidden_size", "n_head" if "n_head" in config else "num_attention_heads"
    for name in ("vocab_size", width, heads):
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        refused(folder)


def test_an_unknown_activation_is_named(tmp_path: Path) -> None:
    for family, field in (("gpt2", "activation_function"), ("llama", "hidden_act")):
        folder = saved(family, tmp_path / family)
        edit(folder, lambda config, field=field: config.update({field: "sulu"}))
        refused(folder, "'sulu'", "'silu'", "config.json")


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gpt2", "scale_attn_weights", False), ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("bloom", "apply_residual_connection_post_layernorm", True), ("gemma2", "use_bidirectional_attention", True),
        ("llama", "rope_scaling", {"rope_type": "magic", "factor": 8.0}),
    ],
)  # fmt: skip
def test_an_option_that_we_lack_is_refused_not_ignored(family: str, field: str, value: Any, tmp_path: Path) -> None:
    folder = saved(family, tmp_path)
    edit(folder, lambda config: config.update({field: value}))
    place = "config.json: rope_scaling" if "rope" in field else f"config.json: {field}"
    with pytest.raises(UserError, match=f"not known(.|\n)*{place}(.|\n)*Fix:"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_a_cut_weights_file_is_damage(keep: float, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refused(folder, "model.safetensors", kind=DamagedError)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\udcff"])
def test_a_damaged_description_is_named(name: str, content: str, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    (folder / name).write_bytes(content.encode("utf-8", errors="surrogateescape"))
    refused(folder, name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        folder = saved("llama", tmp_path)
        (folder / name).unlink()
        refused(folder, name)
    (folder / "config.json").unlink()
    refused(folder, "there is no config.json")
    shutil.rmtree(folder)
    refused(folder, "there is nothing at that path")


def test_a_missing_shard_and_a_damaged_index_are_named(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    names = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: value for name, value in tensors.items() if names[name] == shard}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    ids = torch.arange(9)[None]
    assert torch.equal(load_model(folder)(ids), tokenized_model("llama")[0](ids))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors")
    for damaged in ({}, {"weight_map": []}, {"weight_map": {"x": 3}}):
        index.write_text(json.dumps(damaged))
        refused(folder, "model.safetensors.index.json")


# --- no pickle ------------------------------------------------------------------------------------------------------------


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")


def test_no_module_can_unpickle_or_run_a_strangers_code() -> None:
    """Over the source: no import of a pickling module, no torch.load or torch.save, no allow_pickle, no trust_remote_code."""
    for path in sorted(Path(hornbook.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in modules} & PICKLING, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, path
            if isinstance(node, ast.keyword):
                assert node.arg not in ("allow_pickle", "trust_remote_code"), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), path
