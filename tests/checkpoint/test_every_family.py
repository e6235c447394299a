"""Every family as a folder: transformers writes it, it opens here, is written again, and transformers opens that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hornbook
from hornbook.checkpoint.pretrained import load_model
from hornbook.cli.main import run
from hornbook.errors import UserError
from hornbook.generation.decode import generate, stream
from tests.reference.models import tokenized_model
from tests.reference.published import CASES, SEQ2SEQ, Case, answer_of, inputs_of, oracle

FIRST = {case.model_type: case for case in reversed(CASES) if case.model_type != "speech_ctc"}  # transformers has no such class
OTHERS = [case for case in CASES if FIRST.get(case.model_type) == case]
UNABLE = [case for case in CASES if case.auto != "AutoModelForCausalLM" and case.model_type != "speech_ctc"]


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def same(theirs: Any, ours: Any, case: Case) -> None:
    inputs = inputs_of(case)
    with torch.inference_mode():
        expected: Tensor = answer_of(theirs, case, inputs)
        found: Tensor = ours(*inputs)
    assert expected.shape == found.shape and float(expected.std()) > 0.1
    assert float((expected - found).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@named(OTHERS)
def test_there_and_back(case: Case, tmp_path: Path) -> None:
    theirs: Any = oracle(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    same(theirs, ours, case)
    hornbook.save(ours, None, tmp_path / "ours")
    kind = getattr(transformers, case.auto)
    again, report = kind.from_pretrained(str(tmp_path / "ours"), output_loading_info=True)
    assert not any(report.values()), report
    assert type(again) is type(theirs)
    same(again.eval(), ours, case)
    wrote = {path.name for path in (tmp_path / "ours").iterdir()}
    assert ("generation_config.json" in wrote) == (case.auto in ("AutoModelForCausalLM", SEQ2SEQ))


@named([case for case in OTHERS if case.auto == SEQ2SEQ])
def test_an_encoder_decoder_that_we_wrote_still_writes_in_transformers(case: Case, tmp_path: Path) -> None:
    # Their cache counts a T5's encoder layers, so here both have as many.
    theirs: Any = oracle(case, decoder_start_token_id=2, num_decoder_layers=2)
    theirs.save_pretrained(tmp_path / "theirs")
    hornbook.save(load_model(tmp_path / "theirs"), None, tmp_path / "ours")
    again = getattr(transformers, case.auto).from_pretrained(str(tmp_path / "ours"))
    (source, _) = inputs_of(case)
    expected = theirs.generate(source, max_new_tokens=8, do_sample=False, num_beams=1)
    assert again.generate(source, max_new_tokens=8, do_sample=False, num_beams=1).tolist() == expected.tolist()


@named(UNABLE)
def test_what_is_no_decoder_writes_no_text(case: Case, tmp_path: Path) -> None:
    oracle(case).save_pretrained(tmp_path)  # type: ignore[operator]
    model, tokenizer = load_model(tmp_path), tokenized_model("llama")[1]
    for call in (lambda: generate(model, tokenizer, ["a"]), lambda: list(stream(model, tokenizer, "a"))):
        with pytest.raises(UserError, match=rf"goes on with a text(.|\n)*{case.model_type} is an encoder(.|\n)*Fix:"):
            call()


@pytest.mark.parametrize("verb", ["generate --prompt a", "chat --ask a", "eval --text text.txt", "plot attention --text a --model"])
@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_each_verb_that_needs_a_decoder_says_so(
    verb: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    oracle(FIRST[kind]).save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    hornbook.save(load_model(tmp_path / "theirs"), tokenized_model("llama")[1], "encoder")
    words = verb.split()
    assert run([*words, "encoder"] if words[-1] == "--model" else [words[0], "encoder", *words[1:]]) == 2
    said = capsys.readouterr().err
    assert "goes on with a text" in said and f"{kind} is an encoder" in said and "Fix:" in said


def test_a_model_without_a_tokenizer_is_told_how_to_open(tmp_path: Path) -> None:
    case = FIRST["vit"]
    oracle(case).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"no tokenizer beside this model(.|\n)*tokenizer\.json(.|\n)*load_model"):
        hornbook.load(tmp_path)
