"""The two training stages: shards -> a pretrained model, and its conversations -> a model that answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hornbook import families
from hornbook.batch import Batch
from hornbook.checkpoint.pretrained import load_model, write_model
from hornbook.config import to_toml
from hornbook.data.batches import Rows, StreamRows, moved
from hornbook.data.documents import Document
from hornbook.data.masking import MaskedRows
from hornbook.data.mixture import Mixture
from hornbook.data.packing import pack, pack_stream
from hornbook.data.shards import read_ids
from hornbook.errors import UserError
from hornbook.evals.task import bits_per_byte
from hornbook.files import append_line, read_lines, write_text, written_folder
from hornbook.generation.decode import generate
from hornbook.generation.sampling import Sampling
from hornbook.model import MLMHead, TransformerModel, Undrawn, initialize, shapes_only
from hornbook.parallel.team import Team
from hornbook.ranks import from_first
from hornbook.stages.corpus import each_document, last_documents, saved_documents, saved_rows
from hornbook.stages.keep import METRICS, begun, kept, lineage, sources, states
from hornbook.stages.settings import HELD_OUT, Recipe, SftRecipe, learned, usual
from hornbook.stages.tokens import lengths, masking
from hornbook.stages.track import check_tracker
from hornbook.stages.train import Stage, check, keep_model, train
from hornbook.stages.voice import Voice
from hornbook.text.chat import document as document_ids
from hornbook.text.chat import edges
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.loop import Hook, Objective
from hornbook.train.objective import causal, causal_lm, masked_lm
from hornbook.tune.sft import continuations, examples

SHORTEST_PASSAGE = 8  # characters
HELD_OUT_ROWS = 128  # of a masked look, which asks for a share of the tokens only
SHOWN: tuple[str, ...] = ("loss", "bits_per_byte", "tokens_per_second", "held_out_bits_per_byte", "held_out_loss")
SAMPLING = Sampling(max_tokens=80, temperature=0.7, top_p=0.95)


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """The recipe's `[model]`, completed by what the tokenizer and the recipe decide."""
    architecture = families.family(recipe.model, "[model]").ARCHITECTURES[0]
    begin, end = edges(tokenizer)
    ends = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    config = {"architectures": [architecture], "vocab_size": tokenizer.vocab_size, **recipe.model, **ends}
    config["vocab_size"] += -config["vocab_size"] % recipe.vocab_multiple
    if config["vocab_size"] < tokenizer.vocab_size:
        raise UserError(
            f"vocab_size must hold the tokenizer: {config['vocab_size']} < {tokenizer.vocab_size}", where="[model]: vocab_size",
            fix="leave it out of [model]",
        )  # fmt: skip
    return config


def check_model(recipe: Recipe) -> TransformerModel:
    """The recipe's model, of shapes only. Refuse, before any work is done, a `[model]` that cannot be built or is too short for the
    rows, or an absent tracker.
    """
    check_tracker(recipe.track)
    # A ready vocabulary's size is not known yet: here it is one that can be cut.
    multiple = math.lcm(recipe.vocab_multiple, recipe.parallel.tensor if recipe.tokenizer else 1)
    vocab = recipe.model.get("vocab_size", recipe.vocab)
    with shapes_only():
        whole = vocab + -vocab % multiple if isinstance(vocab, int) else vocab
        model = families.build({**recipe.model, "vocab_size": whole}, "[model]")
    if recipe.objective == "causal":
        families.decoder(model, "[model]")
    elif not isinstance(model.spec.head, MLMHead):
        raise UserError(
            "a masked objective needs a model that says hidden tokens", where="[model]", why="the head of this one does not",
            fix='use an encoder, such as bert, or objective = "causal"',
        )  # fmt: skip
    limit = families.context_length(model)
    if limit is None or limit < recipe.context:
        raise UserError(
            f"the model must read a row of {recipe.context} tokens", where="[model]",
            why="it does not say how many it reads" if limit is None else f"it reads at most {limit}",
            fix=f"set max_position_embeddings (GPT-2: n_positions) to {recipe.context} or more, or lower context",
        )  # fmt: skip
    return model


def pretrain(
    recipe: Recipe, tokenizer: Tokenizer, corpus: Path, shards: Path, run: Path, team: Team, voice: Voice, resume: str
) -> Path:
    """Train a model from nothing on the shards; returns the folder of the finished model. Continues where it was stopped."""
    config, folder = model_config(recipe, tokenizer), run / "pretrained"
    inputs = {"shards": lineage(shards), **learned(recipe), "model": config}
    with Undrawn():
        model = families.build(config, "[model]")
    size = sum(parameter.numel() for parameter in model.parameters())
    most = "up to " if recipe.ramp else ""
    tokens = recipe.rows * recipe.accumulate * recipe.context
    voice.begin("pretrain", f"{size:,} parameters, {recipe.steps} steps of {most}{tokens} tokens")
    if from_first(lambda: kept(folder, inputs, usual(recipe))):
        voice.end("kept from before")
        return folder
    inputs = from_first(lambda: begun(run, "pretrain", inputs, usual(recipe))) or inputs
    from_first(lambda: write_text(run / "recipe.toml", to_toml(asdict(recipe))))
    model.to(team.device)
    rows = training_rows(recipe, tokenizer, shards, voice)
    objective: Objective = causal_lm
    look = held_out(tokenizer, corpus, recipe.context, [*recipe.mixture], recipe.held_out_documents)
    hooks = [look, _sampler(tokenizer, _prompts(tokenizer, corpus))]
    if recipe.objective == "masked":
        objective, hooks = masked_lm, [_held_out_masked(tokenizer, corpus, recipe.context, recipe.mask_words)]
    if recipe.z_loss:  # either is one formula
        objective = causal(recipe.z_loss)
    log = _logger(run, "pretrain", recipe.steps, voice)
    stage = Stage("pretrain", inputs, run, team, voice, resume, log, _texts(tokenizer))
    train(model, rows, recipe, objective, stage, hooks, lambda: initialize(model, recipe.seed, recipe.init_std))
    keep_model(model, stage, lambda whole: _save(whole, tokenizer, folder, inputs))
    voice.end(_outcome(run, "pretrain") if team.first else "")
    return folder


def training_rows(recipe: Recipe, tokenizer: Tokenizer, shards: Path, voice: Voice) -> Rows:
    """The shards' tokens in rows of the recipe's context; those of a mixture's sources by weight."""
    parts = [_rows(recipe, tokenizer, part, voice) for part in sources(shards)]
    return Mixture(parts, [*recipe.mixture.values()], recipe.seed) if recipe.mixture else parts[0]


def _rows(recipe: Recipe, tokenizer: Tokenizer, shards: Path, voice: Voice) -> Rows:
    ids = read_ids(shards / "train.bin", tokenizer.vocab_size)
    rows: Rows = StreamRows(ids, recipe.context, lengths(tokenizer), recipe.seed)
    if recipe.packing == "best-fit":
        begin, end = edges(tokenizer)
        rows = pack_stream(ids, begin, recipe.context, end, lengths(tokenizer))
        voice.say(f"{len(rows):,} rows, of which {rows.padding:.2%} is padding")
    if not len(rows):
        raise UserError(
            "there is too little text for one row", where=str(shards), why=f"{len(ids)} tokens, rows of {recipe.context}",
            fix="give more text, or a smaller context",
        )  # fmt: skip
    if recipe.objective == "masked":
        rows = MaskedRows(rows, masking(tokenizer, recipe.mask_words, recipe.seed))
    return rows


def sft(
    recipe: SftRecipe, tokenizer: Tokenizer, corpus: Path, base: Path, run: Path, team: Team, voice: Voice, resume: str
) -> Path:
    """Fine-tune the model of `base` on the corpus's conversations; returns the folder of the finished model."""
    folder = run / "tuned"
    inputs = {"base": lineage(base), "corpus": lineage(corpus), **learned(recipe)}
    voice.begin("sft", f"{recipe.steps} steps")
    if from_first(lambda: kept(folder, inputs, usual(recipe))):
        voice.end("kept from before")
        return folder
    inputs = from_first(lambda: begun(run, "sft", inputs, usual(recipe))) or inputs
    model = families.decoder(load_model(base), str(base)).to(team.device)
    check(model, recipe, team, states(run, "sft"))
    context = int(model.config.get("max_position_embeddings") or model.config["n_positions"])
    conversations = saved_documents(corpus, "conversations")
    # Of the text no more than is wanted: it may be larger than memory.
    documents = [] if conversations else list(islice(each_document(corpus, "train"), 20 * recipe.steps))
    size = _passage(tokenizer, documents, context)
    while not conversations and size >= SHORTEST_PASSAGE:  # short documents give short passages
        conversations, size = list(continuations(_two_lined(documents, size), size)), size // 2
    replayed = last_documents(corpus, "train", max(1, int(recipe.replay * len(conversations)))) if recipe.replay else []
    rows, too_long = pack(_examples(tokenizer, conversations, replayed, context), context, tokenizer.end_ids[0], lengths(tokenizer))
    if too_long == len(conversations):
        raise UserError(
            "no conversation fits the model's context", where=str(corpus),
            why=f"all {too_long} are longer than {context} tokens" if too_long else "no document is long enough to be cut in two",
            fix="use shorter conversations, or a model with more context",
        )  # fmt: skip
    if too_long:
        voice.say(f"{too_long} of {len(conversations)} conversations are longer than {context} tokens and are left out")
    hooks = [held_out(tokenizer, corpus, context), _sampler(tokenizer, _chat_prompts(tokenizer, corpus, conversations, context))]
    log = _logger(run, "sft", recipe.steps, voice)
    stage = Stage("sft", inputs, run, team, voice, resume, log, _texts(tokenizer))
    train(model, rows, recipe, causal_lm, stage, hooks)
    keep_model(model, stage, lambda whole: _save(whole, tokenizer, folder, inputs))
    voice.end(_outcome(run, "sft") if team.first else "")
    return folder


def _passage(tokenizer: Tokenizer, documents: list[Document], context: int) -> int:
    """How many characters a passage may have, so that two of them and the marks of their turns fit the context."""
    sample = "\n".join(document.text[:2000] for document in documents[:20])
    return max(SHORTEST_PASSAGE, context * len(sample) // (4 * max(1, len(tokenizer.encode(sample)))))


def _two_lined(documents: list[Document], size: int) -> Iterator[Document]:
    """Documents whose lines are ordinary as they are; one with a paragraph per line as pairs of lines that a passage can hold."""
    for document in documents:
        lines = document.text.splitlines()
        if max(map(len, lines), default=0) <= 2 * size:
            yield document
            continue
        parts = [part for line in lines for part in _cut(line, size)]
        for number in range(0, len(parts) - 1, 2):
            yield replace(document, text="\n".join(parts[number : number + 2]), source=f"{document.source}#{number}")


def _cut(line: str, size: int) -> Iterator[str]:
    """A line in parts of `size` characters and the rest of a word, where it has words."""
    while len(line) > size:
        end = line.find(" ", size, 2 * size) + 1 or size
        yield line[:end]
        line = line[end:]
    yield line


def _examples(tokenizer: Tokenizer, conversations: list[Document], replayed: list[Document], context: int) -> Any:
    yield from examples(tokenizer, conversations)
    for document in replayed:
        ids = document_ids(tokenizer, document.text)[: context + 1]
        yield ids, [1] * len(ids)


def _outcome(run: Path, stage: str) -> str:
    last = [row for row in read_lines(run / METRICS) if row["stage"] == stage and "loss" in row][-1]
    return f"loss {last['loss']:.3f}, {last['bits_per_byte']:.3f} bits per byte of training text"


def _texts(tokenizer: Tokenizer) -> Callable[[Batch], list[str]]:
    return lambda batch: [tokenizer.decode(row) for row in batch.tokens_bt.tolist()]


def _logger(run: Path, stage: str, steps: int, voice: Voice) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def log(row: dict[str, Any]) -> dict[str, Any]:
        append_line(run / METRICS, row)
        figures = {key: float(row[key]) for key in SHOWN if key in row}
        if "held_out_bits_per_byte" in figures:
            figures.pop("held_out_loss", None)  # the same in another unit
        voice.progress(row["step"], steps, figures)
        return row

    return log


def _save(model: TransformerModel, tokenizer: Tokenizer, folder: Path, inputs: dict[str, Any]) -> None:
    with written_folder(folder, {"inputs": inputs}) as target:
        write_model(model, target)
        tokenizer.save(target)


def held_out(tokenizer: Tokenizer, corpus: Path, context: int, names: Sequence[str] = (), documents: int = HELD_OUT) -> Hook:
    """A hook that scores the first held-out documents: all as one, and those of each source of a mixture under its name."""
    parts = sources(corpus)
    texts = [[one.text for one in islice(each_document(part, "held_out"), max(1, documents // len(parts)))] for part in parts]

    def measure(step: int, model: TransformerModel) -> dict[str, Any]:
        found = bits_per_byte(model, tokenizer, [*chain(*texts)], context)
        figures = {"held_out_bits_per_byte": found.value, "held_out_loss": found.nats_per_token}
        for name, some in zip(names, texts, strict=False):
            figures[f"held_out_bits_per_byte {name}"] = bits_per_byte(model, tokenizer, some, context).value
        return figures

    return measure


def _held_out_masked(tokenizer: Tokenizer, corpus: Path, context: int, words: bool) -> Hook:
    """Nats per hidden token of held-out documents in rows of `context`; the same tokens are hidden at every look, in every run."""
    documents = saved_documents(corpus, "held_out")
    ids = np.array([token for document in documents for token in document_ids(tokenizer, document.text)], np.int64)
    rows_bt = ids[: len(ids) - len(ids) % context].reshape(-1, context) if len(ids) >= context else ids[None]
    rows_bt = rows_bt[:: -(-len(rows_bt) // HELD_OUT_ROWS)]  # of all sources
    hidden = masking(tokenizer, words)
    batches = [hidden.batch(row_t[None], 0, np.array([number])) for number, row_t in enumerate(rows_bt)]

    @torch.inference_mode()
    def measure(step: int, model: TransformerModel) -> dict[str, Any]:
        device = next(model.parameters()).device
        losses = [masked_lm(model, moved(batch, device)) for batch in batches]
        return {"held_out_loss": sum(float(loss.total) for loss in losses) / max(1, sum(int(loss.count) for loss in losses))}

    return measure


def _sampler(tokenizer: Tokenizer, prompts: list[tuple[str, Any]]) -> Hook:
    def sample(step: int, model: TransformerModel) -> dict[str, Any]:
        found = generate(model, tokenizer, [ids for _, ids in prompts], SAMPLING)
        return {"samples": [{"prompt": shown, "text": text.text} for (shown, _), text in zip(prompts, found, strict=True)]}

    return sample


def _prompts(tokenizer: Tokenizer, corpus: Path) -> list[tuple[str, Any]]:
    """Beginnings for samples while pretraining: a story's title where there are stories, else the start of a document."""
    stories = [row["prompt"] for row in saved_rows(corpus, "story_prompts")[:1]]
    return [(prompt, [edges(tokenizer)[0], *tokenizer.encode(prompt)]) for prompt in [*stories, ""]]


def _chat_prompts(tokenizer: Tokenizer, corpus: Path, conversations: list[Document], context: int) -> list[tuple[str, Any]]:
    """Two held-out questions where there are any, else the beginning of a conversation, none longer than the model reads."""
    asked = [row["question"] for row in saved_rows(corpus, "questions")]
    opened = [talk.messages[0]["content"] for talk in conversations]
    for some, count in ((asked, 2), (opened, 1)):
        prompts = ((text, tokenizer.render([{"role": "user", "content": text}], prompt=True)[0]) for text in some)
        if shown := list(islice((prompt for prompt in prompts if len(prompt[1]) <= context), count)):
            return shown
    return []
