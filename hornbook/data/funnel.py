"""Documents in, curated documents out, and a `Funnel` that says what became of every one of them.

The one idea: the record is kept while the stream flows, by the same lines that decide, so it cannot disagree with the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hornbook.data.dedup import FirstSeen
from hornbook.data.documents import EXAMPLES, Document, Intake
from hornbook.data.filters import CONVERSATION_FILTERS, FILTERS, Filter
from hornbook.errors import UserError

EXCERPT = 80  # characters of a dropped document that its example shows


@dataclass
class Count:
    """Documents, and the bytes of their texts in UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, document: Document) -> None:
        self.documents += 1
        self.bytes += document.size

    def record(self) -> dict[str, Any]:
        return {"documents": self.documents, "bytes": self.bytes}


@dataclass
class Dropped(Count):
    """What one reason dropped, with the source and the beginning of the first documents."""

    examples: list[str] = field(default_factory=list)

    def add(self, document: Document) -> None:
        super().add(document)
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{document.source}: {document.text[:EXCERPT]!r}")

    def record(self) -> dict[str, Any]:
        return {**super().record(), "examples": self.examples}


@dataclass
class Funnel:
    """What came in, what each reason dropped, what tidying took off the rest, and what went out.

    Always: documents in = out + dropped, and bytes in = out + dropped + tidied. `intake` counts what never became a document.
    """

    intake: Intake = field(default_factory=Intake)
    entered: Count = field(default_factory=Count)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    tidied: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)

    def record(self) -> dict[str, Any]:
        """The funnel as plain values for a JSON file."""
        intake = self.intake
        return {
            "in": self.entered.record(),
            "rejected": {
                reason: {"documents": count, "examples": intake.examples[reason]} for reason, count in intake.rejected.items()
            },
            "dropped": {reason: dropped.record() for reason, dropped in self.dropped.items()},
            "tidied": self.tidied.record(),
            "out": self.kept.record(),
        }


def curate(documents: Iterable[Document], funnel: Funnel, filters: Mapping[str, Filter] = FILTERS) -> Iterator[Document]:
    """The documents that every filter keeps, without duplicates, in their order; `funnel` is filled on the way.

    The first filter that drops a document gives the reason; "duplicate" is asked last. A conversation is only checked by
    `CONVERSATION_FILTERS`. Raises `UserError` at the end if documents came and none was kept.
    """
    for_text: dict[str, Filter] = {**filters, "duplicate": FirstSeen()}
    for document in documents:
        funnel.entered.add(document)
        reason, kept = judge(document, CONVERSATION_FILTERS if document.messages else for_text)
        if kept is None:
            funnel.dropped.setdefault(reason, Dropped()).add(document)
            continue
        funnel.kept.add(kept)
        if kept is not document:
            funnel.tidied.documents += 1
            funnel.tidied.bytes += document.size - kept.size
        yield kept
    if funnel.entered.documents and not funnel.kept.documents:
        dropped = max(funnel.dropped.values(), key=lambda count: count.documents)
        raise UserError(
            f"cleaning left none of the {funnel.entered.documents:,} documents",
            where=dropped.examples[0],
            why=", ".join(f"{name}: {count.documents:,}" for name, count in funnel.dropped.items()),
            fix="give a corpus of running text; what each filter refuses stands in hornbook/data/filters.py",
        )


def judge(document: Document, filters: Mapping[str, Filter]) -> tuple[str, Document | None]:
    """The document as the filters leave it, or None and the name of the first one that drops it."""
    for reason, keep in filters.items():
        kept = keep(document)
        if kept is None:
            return reason, None
        document = kept
    return "", document
