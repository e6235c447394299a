"""The laboratory's records -> self-contained HTML pages. Nothing here measures: every figure is in the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hornbook import page
from hornbook.page import Bar, Html, figure, percent

Record = Mapping[str, Any]


def compare_page(record: Record) -> str:
    """The page of `hornbook tokenizer compare`."""
    texts, probes = record.get("texts") or {}, record.get("probes") or {}
    sections = [
        page.section(
            "Vocabularies", page.facts([(name, rows, "rows") for name, rows in (record.get("vocab") or {}).items()], True)
        ),
        *(page.section(title, _text_bars(found), note=_about(found)) for title, found in texts.items()),
        page.section("Cut by cut", *(_cuts(probe, found) for probe, found in probes.items())),
        page.section("Kinds of tokenizers", page.table(*kinds_table(record.get("kinds") or [])), note=record.get("corpus")),
    ]
    return page.page("Tokenizers compared", sections, "bars: tokens, fewer is better")


def kinds_table(kinds: Sequence[Record]) -> tuple[list[str], list[list[Any]]]:
    """The header and rows of the comparison of kinds."""
    header = ["kind", "rows", "tokens", "unknown", "bytes per token"]
    return header, [[k["name"], k["vocab"], k["tokens"], percent(k["unknown"]), round(k["bytes_per_token"], 2)] for k in kinds]


def _about(found: Record) -> str:
    one = next(iter(found.values()))
    return (
        f"{one['characters']:,} characters, {one['bytes']:,} bytes, {one['words']:,} words (characters, where no space parts words)"
    )


def _text_bars(found: Record) -> Html:
    def told(m: Record) -> str:
        return f"{m['tokens']:,} · {figure(m['bytes_per_token'])} bytes per token · {figure(m['fertility'])} per word"

    return page.bars([Bar(name, m["tokens"], told(m), color=i) for i, (name, m) in enumerate(found.items())])


def _cuts(probe: str, found: Record) -> Html:
    rows = [[name, len(pieces), page.tokens(pieces)] for name, pieces in found.items()]
    return page.caption(probe, page.table(["tokenizer", "tokens", "cuts"], rows))


def inspect_page(record: Record) -> str:
    """The page of `hornbook tokenizer inspect`."""
    tokens, size = record["tokens"], record["size"]
    ids = [t["id"] for t in tokens]
    steps = [
        page.details(f"{word}: {len(history) - 1} merges", *(page.tokens(step) for step in history))
        for word, history in record["merges"].items()
    ]
    sections = [
        page.section("Text", page.facts([*size.items()], True), page.tokens([t["piece"] for t in tokens], ids)),
        page.section("As it is spelled", page.tokens([t["spelled"] for t in tokens], ids),
                     note="As the vocabulary writes them: Ġ or ▁ is a space, Ċ the end of a line, ## goes on in a word."),
        page.section("Tokens", page.table(["id", "piece", "bytes", "spelled"],
                                          [[str(t["id"]), t["piece"].replace(" ", "·"), t["bytes"], t["spelled"]]
                                           for t in tokens])),
        page.section("Characters", page.table(["character", "code point", "ord", "name", "UTF-8"],
                                              [[c["character"], c["code"], str(c["ord"]), c["name"], c["bytes"]]
                                               for c in record["characters"]])),
        page.section("Merges", *steps, note="Each word from its bytes on, one merge a line, in the order in which they happen."),
    ]  # fmt: skip
    return page.page("A text, token by token", sections, record.get("tokenizer", ""))


def vocab_page(record: Record) -> str:
    """The page of `hornbook tokenizer vocab`."""
    lost, rows = record["unreachable"], record["rows"]
    tiles = [
        ("Rows", rows), ("Special", len(record["specials"])), ("Out of reach", len(lost)),
        ("Duplicates", len(record["duplicates"])), ("Variants", record["variants"], "the same but for case or a space"),
    ]  # fmt: skip
    bars = [Bar(name, many, f"{many:,} · {percent(many / rows)}") for name, many in record["scripts"].items()]
    sections = [
        page.section("Summary", page.facts(tiles, True)),
        page.section("Rows by script", page.bars(bars)),
        page.section("Longest tokens", page.table(["id", "piece", "bytes"], _cells(record["longest"], "id", "piece", "bytes"))),
        page.section("Out of reach", page.table(["id", "piece", "why"], _cells(lost[:200], "id", "piece", "why")),
                     note="No text of their own gives these tokens."),
        page.section("Duplicates", page.table(["piece", "ids"], [[d["piece"], str(d["ids"])] for d in record["duplicates"]])),
    ]  # fmt: skip
    return page.page("A vocabulary", sections, record.get("tokenizer", ""))


def glitch_page(record: Record) -> str:
    """The page of `hornbook tokenizer glitch`."""
    columns = ["id", "piece", "uses", "distance", "norm", "similarity", "repeats"]
    used = [name for name in columns if any(row.get(name) is not None for row in record["suspects"])]
    cells = [[_shown(row.get(name)) if name != "id" else str(row["id"]) for name in used] for row in record["suspects"][:500]]
    tiles = [(name.replace("_", " "), record[name]) for name in ("rows", "tokens", "out_of_reach", "unused", "suspected")
             if record.get(name) is not None]  # fmt: skip
    sections = [
        page.section("Summary", page.facts(tiles, True), page.paragraph(record["explained"]) if record.get("explained") else ""),
        page.section("Suspects", page.table(used, cells), note=record["note"]),
    ]
    return page.page("Glitch tokens", sections, record.get("tokenizer", ""))


def _shown(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _cells(rows: Sequence[Record], *names: str) -> list[list[Any]]:
    return [[str(row[name]) if name == "id" else row[name] for name in names] for row in rows]
