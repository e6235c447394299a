"""The tokenizer laboratory wired: names of tokenizers, corpora and models in; records out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.data.documents import Intake
from hornbook.data.sources import open_corpus
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.plan.vocabulary import vocabulary as rows_explained
from hornbook.text import lab, lab_glitch, lab_vocab
from hornbook.text.lab_samples import domains, halves
from hornbook.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from hornbook.families import Model

HOME = {"home-zh": ("zh",), "home-en": ("en",), "home-zh-en": ("zh", "en")}
HOME_ROWS, HOME_BYTES = 4096, 300_000
HELD_OUT = 10  # every tenth document is measured on, not learned from


def home_texts(name: str) -> list[str]:
    """The generated town and the first half of the manual, in the languages of the name."""
    languages = HOME[name]
    town = [document.text for language in languages for document in Town(0, language).documents(HOME_BYTES // len(languages))]
    return [*town, *(halves(language)[0] for language in languages)]


@cache
def home(name: str) -> Tokenizer:
    """A tokenizer learned at once from `home_texts`."""
    return Tokenizer.train(home_texts(name), vocab=HOME_ROWS, at_most=True)


def open_tokenizer(name: str) -> Tokenizer:
    """home-zh, home-en or home-zh-en, else what `Tokenizer.load` opens: a run folder or model folder too."""
    if name in HOME:
        return home(name)
    folder = Path(name)
    inner = [folder / part for part in ("model", "tokenizer") if (folder / part / "tokenizer.json").exists()]
    return Tokenizer.load(inner[0] if inner and not (folder / "tokenizer.json").exists() else name)


def corpus_texts(data: str, language: str, size: int) -> Iterator[str]:
    """The documents of a corpus, about `size` bytes of them at most."""
    found = Town(0, language).documents(size) if data == "town" else open_corpus(data, Intake())
    for document in found:
        if document.text:
            yield document.text
            size -= document.size
        if size <= 0:
            return


def compared(names: Sequence[str], text: Path | None) -> dict[str, Any]:
    """Tokenizers side by side on the laboratory's texts, or on a file."""
    texts = domains() if text is None else {text.name: read_text(text)}
    return lab.compare({name: open_tokenizer(name) for name in names}, texts)


def kinds_compared(data: str, language: str, size: int) -> dict[str, Any]:
    """Bytes, characters, words and BPE on one corpus: what is held out is the manual's other half, or every tenth document.

    A corpus of fewer documents is cut into its lines.
    """
    if data in HOME:
        learned, held = home_texts(data), [halves(language)[1] for language in HOME[data]]
    else:
        texts = list(corpus_texts(data, language, size))
        if len(texts) < HELD_OUT:
            texts = [line for text in texts for line in text.splitlines(keepends=True)]
        held = texts[HELD_OUT - 1 :: HELD_OUT]
        learned = [text for i, text in enumerate(texts) if i % HELD_OUT != HELD_OUT - 1]
    of = f"{data}, {language}" if data == "town" else data
    return {
        "corpus": f"{of}: learned from {_size(learned):,} bytes, measured on {_size(held):,} bytes of other text",
        "kinds": [asdict(kind) for kind in lab.kinds(learned, held)],
    }


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the text cannot be read", where=str(path), why=str(error), fix="name a file of UTF-8 text") from error


def inspected(name: str, text: str) -> dict[str, Any]:
    return {"tokenizer": name} | lab_vocab.inspect(open_tokenizer(name), text)


def surveyed(name: str) -> dict[str, Any]:
    return {"tokenizer": name} | lab_vocab.vocabulary(open_tokenizer(name))


def matrices(model: Model) -> list[Any]:
    """A model's input embedding, and its output matrix where it is another."""
    ours = dict(model.named_parameters())
    found = [ours[name] for name in ("stem.tokens.weight", "head.out.weight") if name in ours]
    return [weight.detach().cpu().float().numpy() for weight in {id(weight): weight for weight in found}.values()]


def glitches(
    name: str, tokenizer: Tokenizer, texts: Iterator[str] | None, model: Model | None, probe: int = 0, fix: Path | None = None
) -> dict[str, Any]:
    """The suspects of a vocabulary by a corpus, by a model's rows, or by both; the first `probe` of them are asked to be repeated.

    With `fix`, the model is written there with the suspects' rows set to the mean of the used rows, and noise.
    """
    weights = matrices(model) if model is not None else []
    counts = None if texts is None else lab_glitch.usage(tokenizer, texts)
    if not weights and counts is None:
        raise UserError("glitch needs a corpus or a model", fix="add --data town, or --model FOLDER")
    none = [] if counts is None else lab_glitch.unused(tokenizer, counts)
    found = lab_glitch.suspects(tokenizer, weights, counts) if weights else none
    rows = len(weights[0]) if weights else tokenizer.vocab_size
    known = lab_glitch.never_produced(tokenizer, rows)
    record: dict[str, Any] = {
        "tokenizer": name, "tokens": tokenizer.vocab_size, "rows": rows, "out_of_reach": int(known.sum()),
        "unused": None if counts is None else len(none), "suspected": len(found), "note": _note(bool(weights)),
        "explained": rows_explained(rows, tokenizer.document, {}, name).explained(), "suspects": [asdict(one) for one in found],
    }  # fmt: skip
    if model is not None and probe:
        _probe(record, model, tokenizer, probe)
    if model is not None and fix is not None:
        _mended(model, tokenizer, [one.id for one in found], known, counts, fix)
    return record


def _note(by_rows: bool) -> str:
    if by_rows:
        return f"Distance to the rows known to be untrained, where 1 is their own; up to {lab_glitch.NEAR} is suspected."
    return "What the corpus never produced; whether a model was taught it, only its rows can tell."


def _probe(record: dict[str, Any], model: Model, tokenizer: Tokenizer, count: int) -> None:
    """Ask for the first suspects and, as a control, for as many ordinary words."""
    from hornbook.generation.decode import generate
    from hornbook.generation.sampling import Sampling

    def continued(ids: Sequence[int], many: int) -> list[int]:
        return generate(model, tokenizer, [ids], Sampling(max_tokens=many))[0].tokens

    for row in islice(record["suspects"], count):
        row["repeats"] = lab_glitch.repeats(tokenizer, row["id"], continued)
    ordinary = lab_glitch.ordinary_words(tokenizer, [row["id"] for row in record["suspects"]], count)
    record["ordinary_repeated"] = sum(lab_glitch.repeats(tokenizer, token, continued) for token in ordinary)
    record["ordinary_asked"] = len(ordinary)


def _mended(model: Model, tokenizer: Tokenizer, ids: list[int], known: Any, counts: Any, folder: Path) -> None:
    import torch

    from hornbook.checkpoint.pretrained import save

    used = ~known
    used[ids] = False
    if counts is not None:
        used[: len(counts)] &= counts > 0
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for weight in {id(ours[key]): ours[key] for key in ("stem.tokens.weight", "head.out.weight") if key in ours}.values():
            weight.copy_(torch.from_numpy(lab_glitch.reinitialized(weight.detach().cpu().float().numpy(), ids, used)))
    save(model, tokenizer, folder)
