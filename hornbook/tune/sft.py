"""Supervised fine-tuning: conversations -> ids and a mask that covers exactly the assistant's words and its end token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hornbook.data.documents import Document
from hornbook.text.tokenizer import Tokenizer


def examples(tokenizer: Tokenizer, conversations: Iterable[Document]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """(ids, mask) of each conversation, as the packer takes them."""
    for conversation in conversations:
        yield tokenizer.render(list(conversation.messages))


def continuations(documents: Iterable[Document], size: int = 200) -> Iterator[Document]:
    """Conversations out of plain text: the user gives a passage of about `size` characters, the assistant goes on with the next.

    For a corpus that holds no conversations of its own, so that its model learns turns and when to stop.
    """
    for document in documents:
        pieces = list(passages(document.text, size))
        for number in range(0, len(pieces) - 1, 2):
            turns = ({"role": "user", "content": pieces[number]}, {"role": "assistant", "content": pieces[number + 1]})
            yield Document("", f"{document.source}#{number}", turns)


def passages(text: str, size: int) -> Iterator[str]:
    """Pieces of whole lines, each of at least `size` characters but the last; blank ends removed, inner layout kept."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= size and piece.strip():
            yield piece.strip("\n")
            piece = ""
    if piece.strip():
        yield piece.strip("\n")
