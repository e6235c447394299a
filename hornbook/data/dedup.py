"""Documents in, the first of each text out.

The one idea: two documents are the same if their texts are, after Unicode normalization (NFC) and with every run of white space
as one space. What is remembered of each text is a 16-byte digest, so memory grows with the number of documents and not with
their size; two different texts share a digest with a probability of about n**2 / 2**129 among n.
"""

from __future__ import annotations

import hashlib
import unicodedata

from hornbook.data.documents import Document


def digest(text: str) -> bytes:
    """16 bytes that are the same for texts which differ in white space or Unicode composition only."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class FirstSeen:
    """A filter with a memory: drops a document whose text it has met."""

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def __call__(self, document: Document) -> Document | None:
        key = digest(document.text)
        if key in self.digests:
            return None
        self.digests.add(key)
        return document
