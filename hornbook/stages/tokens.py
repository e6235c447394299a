"""Corpus -> tokenizer -> token shards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hornbook.data.documents import Document
from hornbook.data.shards import write_ids
from hornbook.files import written_folder
from hornbook.stages.corpus import saved_documents
from hornbook.stages.keep import kept, lineage
from hornbook.stages.voice import Voice
from hornbook.text.chat import BOS, END, SPECIALS
from hornbook.text.tokenizer import Tokenizer

TRAIN_BYTES = 8_000_000  # as much text as a vocabulary of some thousands needs
SMALLEST, BYTES_PER_ROW = 320, 64  # a vocabulary row wants some text to be learned from
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
    documents = saved_documents(corpus, "train")
    if at_most:
        vocab = max(SMALLEST, min(vocab, sum(document.size for document in documents) // BYTES_PER_ROW))
    texts = (document.text for document in _up_to(documents, TRAIN_BYTES))
    tokenizer = Tokenizer.train(
        texts, vocab=vocab, split=split, at_most=at_most, specials=specials,
        progress=lambda done, total: voice.progress(done, total, {"merges": done}),
    )  # fmt: skip
    with written_folder(folder, {"inputs": inputs}) as target:
        tokenizer.save(target)
    rows = tokenizer.vocab_size
    voice.end(f"{rows:,} rows" + (": the text allows no more merges" if rows < vocab else ""))
    return tokenizer


def make_shards(corpus: Path, tokenizer: Tokenizer, folder: Path, voice: Voice) -> None:
    """Write the ids of every training document, begun and ended by its tokens, as one stream."""
    inputs = {"corpus": lineage(corpus), "tokenizer": tokenizer.fingerprint}
    voice.begin("shards", "texts to token ids")
    if kept(folder, inputs):
        voice.end("kept from before")
        return
    documents = saved_documents(corpus, "train")
    with written_folder(folder, {"inputs": inputs}) as target:
        count = write_ids(target / "train.bin", _encoded(tokenizer, documents, voice), tokenizer.vocab_size)
    size = sum(document.size for document in documents)
    voice.end(f"{count:,} tokens, {size / max(1, count - 2 * len(documents)):.2f} bytes per token")


def lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text per id: none for specials."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)], np.int64)


def _encoded(tokenizer: Tokenizer, documents: list[Document], voice: Voice) -> Iterator[NDArray[np.uint32]]:
    begin, end = (np.array([tokenizer.special(name)], np.uint32) for name in (BOS, END))
    for start in range(0, len(documents), TOGETHER):
        voice.progress(start, len(documents), {})
        ids, offsets = tokenizer.encode_batch([document.text for document in documents[start : start + TOGETHER]])
        for a, b in pairwise(offsets.tolist()):
            yield np.concatenate((begin, ids[a:b], end))


@contextmanager
def compiling() -> Iterator[None]:
    """Where this machine has not compiled the tokenizer's code, let a process of its own do so beside what runs within."""
    process = subprocess.Popen([sys.executable, "-c", "import hornbook.text.compiled as c; c.warm()"])
    try:
        yield
    finally:
        process.wait()


def _up_to(documents: list[Document], size: int) -> Iterator[Document]:
    for document in documents:
        yield document
        size -= document.size
        if size <= 0:
            return
