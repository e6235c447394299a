"""Corpus -> tokenizer -> token shards. Documents flow through; none but those that are encoded together are held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hornbook.checkpoint import hub
from hornbook.data.documents import Document
from hornbook.data.masking import Masking
from hornbook.data.shards import write_ids
from hornbook.files import written_folder
from hornbook.stages.corpus import each_document, train_size
from hornbook.stages.keep import kept, lineage, sources
from hornbook.stages.voice import Voice
from hornbook.text.chat import MASK, SPECIALS, edges
from hornbook.text.tokenizer import Tokenizer

TRAIN_BYTES = 8_000_000  # as much text as a vocabulary of some thousands needs
SMALLEST, BYTES_PER_ROW = 320, 64  # a vocabulary row wants some text to be learned from
SPACELESS = frozenset(bytes([first]) for first in range(0xE3, 0xEA))  # begins UTF-8 from U+3000 to U+9FFF
TOGETHER = 4096  # documents that are encoded in one go


def train_tokenizer(
    corpus: Path, vocab: int, split: str, folder: Path, voice: Voice, at_most: bool = False, specials: Sequence[str] = SPECIALS
) -> Tokenizer:  # fmt: skip
    """Learn a vocabulary from the corpus's training documents. With `at_most`, a small corpus gets fewer rows than `vocab`."""
    inputs = {"corpus": lineage(corpus), "vocab": vocab, "split": split, "at_most": at_most, "specials": list(specials)}
    voice.begin("tokenizer", f"byte-level BPE, {vocab:,} rows at most" if at_most else f"byte-level BPE, {vocab:,} rows")
    if kept(folder, inputs):
        voice.end("kept from before")
        return Tokenizer.load(folder)
    if at_most:
        vocab = max(SMALLEST, min(vocab, train_size(corpus).bytes // BYTES_PER_ROW))
    parts = sources(corpus)  # of a mixture each as much, so that none is spelled out in bytes
    texts = (document.text for part in parts for document in _up_to(each_document(part, "train"), TRAIN_BYTES // len(parts)))
    tokenizer = Tokenizer.train(
        texts, vocab=vocab, split=split, at_most=at_most, specials=specials,
        progress=lambda done, total: voice.progress(done, total, {"merges": done}),
    )  # fmt: skip
    with written_folder(folder, {"inputs": inputs}) as target:
        tokenizer.save(target)
    rows = tokenizer.vocab_size
    voice.end(f"{rows:,} rows" + (": the text allows no more merges" if rows < vocab else ""))
    return tokenizer


def ready_tokenizer(name: str, folder: Path, voice: Voice) -> None:
    """Keep the tokenizer of a model, a run, a file, a known vocabulary or hf:OWNER/NAME as it is."""
    inputs = {"tokenizer": name}
    voice.begin("tokenizer", f"that of {name}")
    if kept(folder, inputs):
        voice.end("kept from before")
        return
    path = hub.download(name, voice.say, weights=False) if name.startswith("hf:") else Path(name)
    tokenizer = Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)
    edges(tokenizer)
    with written_folder(folder, {"inputs": inputs}) as target:
        tokenizer.save(target)
    voice.end(f"{tokenizer.vocab_size:,} rows")


def make_shards(corpus: Path, tokenizer: Tokenizer, folder: Path, voice: Voice) -> None:
    """Write the ids of every training document, begun and ended by its tokens, as one stream.

    Where one token does both, it stands once between two documents.
    """
    inputs = {"corpus": lineage(corpus), "tokenizer": tokenizer.fingerprint}
    voice.begin("shards", "texts to token ids")
    if kept(folder, inputs):
        voice.end("kept from before")
        return
    size, marks = train_size(corpus), _marks(tokenizer)
    with written_folder(folder, {"inputs": inputs}) as target:
        encoded = _encoded(tokenizer, each_document(corpus, "train"), size.documents, voice)
        count = write_ids(target / "train.bin", encoded, tokenizer.vocab_size)
    of_text = count - sum(map(len, marks)) * size.documents
    voice.end(f"{count:,} tokens, {size.bytes / max(1, of_text):.2f} bytes per token")


def lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text per id: none for specials."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], np.int64)


def masking(tokenizer: Tokenizer, words: bool, seed: int = 0) -> Masking:
    """How the tokenizer's ids are hidden, alone or by whole words.

    A word is what stands between white space, with its punctuation (as in fairseq's RoBERTa). Chinese and Japanese have none: there
    a token is a word, but for one that begins inside a character.
    """
    mask, lengths_v = tokenizer.special(MASK), lengths(tokenizer)
    if not words:
        return Masking(mask, lengths_v, seed)
    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    begins = [piece[:1].isspace() or piece[:1] in SPACELESS for piece in pieces]
    closes = [piece[-1:].isspace() for piece in pieces]
    return Masking(mask, lengths_v, seed, continues_v=~np.array(begins), closes_v=np.array(closes))


def _encoded(
    tokenizer: Tokenizer, documents: Iterator[Document], total: int, voice: Voice
) -> Iterator[NDArray[np.uint32]]:  # fmt: skip
    (begin, end), done = _marks(tokenizer), 0
    while texts := [document.text for document in islice(documents, TOGETHER)]:
        voice.progress(done, total, {})
        done += len(texts)
        ids, offsets = tokenizer.encode_batch(texts)
        for a, b in pairwise(offsets.tolist()):
            yield np.concatenate((begin, ids[a:b], end))


def _marks(tokenizer: Tokenizer) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What a shard holds before and behind each document."""
    begin, end = edges(tokenizer)
    return np.array([begin], np.uint32), np.array([end] if end != begin else [], np.uint32)


@contextmanager
def compiling() -> Iterator[None]:
    """Where this machine has not compiled the tokenizer's code, let a process of its own do so beside what runs within."""
    process = subprocess.Popen([sys.executable, "-c", "import hornbook.text.compiled as c; c.warm()"])
    try:
        yield
    finally:
        process.wait()


def _up_to(documents: Iterator[Document], size: int) -> Iterator[Document]:
    for document in documents:
        yield document
        size -= document.size
        if size <= 0:
            return
