"""Generation against transformers' `generate`, against full forwards, and against itself in other company."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hornbook.checkpoint.pretrained import save
from hornbook.errors import UserError
from hornbook.families import context_length
from hornbook.generation.decode import generate, prompt_ids, steps, stream
from hornbook.generation.sampling import Sampling
from hornbook.model import TransformerModel
from hornbook.text.tokenizer import Tokenizer
from tests.reference.models import DECODERS, reciting_model, small_tokenizer, tokenized_model

families = pytest.mark.parametrize("family", DECODERS)
PROMPTS = ["The baker met", "A fox", "", "Zoë paid 12 coins. 你好", "The miller had a sack of flour, and the", "x", "\n", "12"]
WARM = Sampling(max_tokens=12, temperature=1.0, seed=3)


@families
def test_greedy_ids_equal_transformers(family: str, tmp_path: Path) -> None:
    """Ours in one batch padded on the left, theirs one by one, from the folder that we wrote."""
    model, tokenizer = tokenized_model(family)
    save(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    found = generate(model, tokenizer, PROMPTS, Sampling(max_tokens=24))
    different = set()
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = prompt_ids(tokenizer, prompt)
        expected = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert completion.tokens == [token for token in expected if token not in tokenizer.end_ids]
        different |= set(completion.tokens)
    assert len(different) >= 10  # the models say many things, so equality means something


@families
def test_it_stops_where_transformers_stops(family: str, tmp_path: Path) -> None:
    """Each row's sixth greedy id, declared an end, ends that row: in transformers, and in our batch of all of them."""
    model, tokenizer = tokenized_model(family, seed=2)
    save(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    ids = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    ends = [row.tokens[5] for row in generate(model, tokenizer, ids, Sampling(max_tokens=8)) if len(row.tokens) == 8][:2]
    found: dict[int, list[int]] = {row: [] for row in range(len(ids))}
    finishes = dict.fromkeys(found, "")
    for step in steps(model, ids, Sampling(max_tokens=16), ends, range(len(ids))):
        for row, token, _, finish in step:
            assert finishes[row] == ""  # a row that has ended says nothing more
            found[row].append(token)
            finishes[row] = finish
    for row, prompt in enumerate(ids):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=ends, pad_token_id=0)
        assert found[row] == expected[0, len(prompt) :].tolist()
        assert finishes[row] == ("stop" if found[row][-1] in ends else "length")
    assert set(finishes.values()) == {"stop", "length"}


@families
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=10), WARM, Sampling(max_tokens=10, temperature=3.0, top_k=4, top_p=0.9)])
def test_logprobs_equal_a_full_forward(family: str, sampling: Sampling) -> None:
    """Of the model's own distribution, whatever the sampling."""
    model, tokenizer = tokenized_model(family)
    for prompt, completion in zip(PROMPTS, generate(model, tokenizer, PROMPTS, sampling), strict=True):
        ids = prompt_ids(tokenizer, prompt)
        logprobs = model(torch.tensor([ids + completion.tokens])).double().log_softmax(-1)[0, len(ids) - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(completion.tokens)[:, None])[:, 0]
        assert len(completion.logprobs) == len(completion.tokens) > 0
        assert (expected - torch.tensor(completion.logprobs)).abs().max() < 1e-4


@families
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), WARM])
def test_a_rows_text_does_not_depend_on_its_company(family: str, sampling: Sampling) -> None:
    model, tokenizer = tokenized_model(family)
    whole = generate(model, tokenizer, PROMPTS, sampling)
    for batch in (1, 3, 5):
        again = generate(model, tokenizer, PROMPTS, sampling, batch=batch)
        assert [(row.tokens, row.finish) for row in again] == [(row.tokens, row.finish) for row in whole]
    others = ["something else entirely, and longer than before: 1234567890", *PROMPTS[1:4], *["y"] * 9]
    assert [row.tokens for row in generate(model, tokenizer, others, sampling)[1:4]] == [row.tokens for row in whole[1:4]]
    assert whole[0].text != generate(model, tokenizer, others, sampling)[0].text


def test_near_the_end_of_the_context_company_does_not_matter_either() -> None:
    """A long neighbour has little room left; a short one keeps all of its own."""
    model, tokenizer = tokenized_model("llama", max_position_embeddings=40)
    long, short = [5] * 38, [6] * 3
    alone = [generate(model, tokenizer, [prompt], Sampling(max_tokens=20))[0] for prompt in (long, short)]
    together = generate(model, tokenizer, [long, short], Sampling(max_tokens=20))
    assert [row.tokens for row in together] == [row.tokens for row in alone]
    assert [len(row.tokens) for row in together] == [3, 20]
    assert [row.finish for row in together] == ["length", "length"]
    found: list[list[int]] = [[], []]
    finishes: list[list[str]] = [[], []]
    for step in steps(model, [long, short], Sampling(max_tokens=20), (), (0, 1)):  # the long one leaves, and it is not the last
        for row, token, _, finish in step:
            found[row].append(token)
            finishes[row].append(finish)
    assert found == [row.tokens for row in alone]
    assert finishes == [[""] * 2 + ["length"], [""] * 19 + ["length"]]


@families
def test_the_context_limit(family: str) -> None:
    """The last token that fits is read from the last position; a prompt that fills it all still gets one word."""
    model, tokenizer = tokenized_model(family)
    limit = context_length(model)
    assert limit == 64
    for length, words in ((60, 5), (63, 2), (64, 1)):
        (found,) = generate(model, tokenizer, [list(range(length))], Sampling(max_tokens=30))
        assert len(found.tokens) == words and found.finish == "length"
        ids = torch.tensor([[*range(length), *found.tokens[:-1]]])
        assert ids.shape[1] == limit and int(model(ids)[0, -1].argmax()) == found.tokens[-1]
    with pytest.raises(UserError, match="the prompt has 65 tokens and the model reads at most 64(.|\n)*Fix:"):
        generate(model, tokenizer, ["ok", list(range(65))])


def test_a_prompt_without_tokens_is_refused() -> None:
    model, tokenizer = tokenized_model("llama")
    for call in (lambda: generate(model, tokenizer, ["a", []]), lambda: list(stream(model, tokenizer, []))):
        with pytest.raises(UserError, match="at least one token(.|\n)*Fix:"):
            call()
    assert generate(model, tokenizer, []) == []


def test_a_text_begins_a_document_and_its_specials_stay_text() -> None:
    _, tokenizer = tokenized_model("llama")
    assert prompt_ids(tokenizer, "a <|end|>") == [tokenizer.special("<|bos|>"), *tokenizer.encode("a <|end|>")]
    assert prompt_ids(tokenizer, (3, 4)) == [3, 4]
    bare = Tokenizer.train(["abc"], vocab=257, specials=("<|end|>",))
    assert prompt_ids(bare, "abc") == bare.encode("abc")


@families
def test_max_tokens_and_finish(family: str) -> None:
    model, tokenizer = tokenized_model(family)
    for words in (1, 2, 7):
        for row in generate(model, tokenizer, PROMPTS, Sampling(max_tokens=words)):
            assert len(row.tokens) == words and row.finish == "length" or row.finish == "stop"


def recital(text: str, prompt: str = "") -> tuple[TransformerModel, Tokenizer, str]:
    tokenizer = small_tokenizer()
    return reciting_model(tokenizer, [*prompt_ids(tokenizer, prompt), *tokenizer.encode(text)]), tokenizer, prompt


def test_an_end_token_ends_a_text_and_is_not_part_of_it() -> None:
    model, tokenizer, prompt = recital(" met the miller.", prompt="The baker")
    (found,) = generate(model, tokenizer, [prompt], Sampling(max_tokens=40))
    assert (found.text, found.finish) == (" met the miller.", "stop")
    assert found.tokens == tokenizer.encode(" met the miller.")
    assert max(map(abs, found.logprobs)) < 1e-6
    (exact,) = generate(model, tokenizer, [prompt], Sampling(max_tokens=len(found.tokens)))
    assert (exact.tokens, exact.finish) == (found.tokens, "length")  # the end token itself had no room
    (one_more,) = generate(model, tokenizer, [prompt], Sampling(max_tokens=len(found.tokens) + 1))
    assert (one_more.tokens, one_more.finish) == (found.tokens, "stop")


@pytest.mark.parametrize("text", ["你好，世界。🙂 é", "👩‍🚀👩‍🚀", "plain", "नि한ﬁ"])
def test_streamed_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    model, tokenizer, _ = recital(text)
    pieces = list(stream(model, tokenizer, "", Sampling(max_tokens=60)))
    assert "".join(pieces) == text == generate(model, tokenizer, [""], Sampling(max_tokens=60))[0].text
    assert all(piece and "\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert len(pieces) > 1


@families
def test_a_stream_is_the_text_of_generate_also_where_it_is_broken(family: str) -> None:
    """A random model stops inside characters and writes bytes that are no text; both ways show the same."""
    model, tokenizer = tokenized_model(family)
    for prompt in PROMPTS[:4]:
        for sampling in (Sampling(max_tokens=20), Sampling(max_tokens=5, temperature=1.0, seed=1)):
            (expected,) = generate(model, tokenizer, [prompt], sampling)
            assert "".join(stream(model, tokenizer, prompt, sampling)) == expected.text == tokenizer.decode(expected.tokens)


def test_seeds_decide_the_draws() -> None:
    model, tokenizer = tokenized_model("llama")

    def texts(**changes: Any) -> list[list[int]]:
        return [row.tokens for row in generate(model, tokenizer, ["The"] * 4, Sampling(temperature=1.0, max_tokens=8, **changes))]

    first = texts()
    assert first == texts(seed=0)
    assert len(set(map(tuple, first))) == 4  # rows of one call draw apart
    seeds = [texts(seed=seed) for seed in (1, 2, 2**31, 2**32, 2**40, -1)]
    assert len({json.dumps(found) for found in [first, *seeds]}) == 7


def test_the_first_draw_of_many_rows_follows_the_models_distribution() -> None:
    """Chi-square over rows that each have their own seed: neighbouring seeds must not draw alike."""
    model, tokenizer = tokenized_model("qwen3")
    ids, rows = prompt_ids(tokenizer, "The"), 4000
    found = generate(model, tokenizer, [ids] * rows, Sampling(max_tokens=1, temperature=1.0), batch=1000)
    probabilities = model(torch.tensor([ids]))[0, -1].detach().double().softmax(-1)
    counts = torch.zeros(len(probabilities), dtype=torch.float64)
    for row in found:
        counts[row.tokens[0] if row.tokens else tokenizer.end_ids[0]] += 1
    common = probabilities * rows >= 5
    counts, expected = (torch.cat((part[common], part[~common].sum()[None])) for part in (counts, probabilities * rows))
    statistic, freedom = float(((counts - expected).square() / expected).sum()), len(counts) - 1
    assert freedom > 10
    assert freedom - 5 * math.sqrt(2 * freedom) < statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_generation_leaves_no_gradients_and_no_mode_changed() -> None:
    model, tokenizer = tokenized_model("gpt2")
    model.train()
    generate(model, tokenizer, ["The"], Sampling(max_tokens=2))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("token", [-1, 300, 10**9])
def test_a_token_outside_the_vocabulary_is_named(token: int) -> None:
    model, tokenizer = tokenized_model("llama")
    with pytest.raises(UserError, match=f"token {token} is outside(.|\n)*rows 0 to 299(.|\n)*Fix:"):
        generate(model, tokenizer, [[1, token, 2]])


@families
@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), Sampling(max_tokens=12, temperature=5.0, top_k=40), WARM])
def test_rows_without_a_token_are_never_sampled(family: str, sampling: Sampling) -> None:
    """Rows past the tokenizer's, made by far the likeliest: the same ids and probabilities as of a model without these rows."""
    (model, tokenizer), rows = tokenized_model(family, tie_word_embeddings=False), small_tokenizer().vocab_size
    padded, _ = tokenized_model(family, tie_word_embeddings=False, vocab_size=rows + 20)
    state = dict(model.state_dict())
    for name in ("stem.tokens.weight", "head.out.weight"):
        state[name] = torch.cat((state[name], state[name][:20] * 50))
    padded.load_state_dict(state)
    ids = prompt_ids(tokenizer, PROMPTS[0])
    assert int(padded(torch.tensor([ids]))[0, -1].argmax()) >= rows
    expected, found = (generate(each, tokenizer, PROMPTS, sampling) for each in (model, padded))
    assert [(row.tokens, row.text, row.finish) for row in found] == [(row.tokens, row.text, row.finish) for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert "".join(stream(padded, tokenizer, PROMPTS[0], sampling)) == expected[0].text
