"""The report and the model card read back: by an XML parser, a Markdown parser, the hub's own card reader, and a browser."""

from __future__ import annotations

import ast
import copy
import json
import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from hornbook.evals import report
from hornbook.evals.rows import STAGES

HOSTILE = "</style><script>alert(1)</script><img src=http://outside.example/x onerror='x'>```\n| & \"'"
STORY = "小明住在一个安静的小镇。每天早上，他都去市场买两个苹果和一块面包。The baker says 你好 to him."


def sample_evaluation() -> dict[str, Any]:
    """One kind of questions well learned, one half, and one no better than chance."""

    def score(correct: int, total: int, low: float, high: float, chance: float, *asked: tuple[str, str, str]) -> dict[str, Any]:
        shown = [{"prompt": p, "expected": e, "answer": a, "correct": e == a} for p, e, a in asked]
        counted = {"correct": correct, "total": total, "accuracy": correct / total}
        return {**counted, "interval": [low, high], "chance": chance, "examples": shown}

    return {
        "bits_per_byte": {"pretrained": 0.8123, "final": 0.8431, "documents": 378, "bytes": 325_744,
                          "interval": [0.8279, 0.8583]},
        "questions": {
            "arithmetic": score(171, 200, 0.7995, 0.8973, 0.05, ("2 + 3 = ?", "5", "5"),
                                ("七加八等于几？", "十五", "十六")),
            "who_lives_where": score(58, 120, 0.3959, 0.5718, 0.25, ("小明住在哪里？", "小镇", "小镇")),
            "copy": score(4, 40, 0.0396, 0.2305, 0.125, ("Say: apple bread", "apple bread", "apple apple")),
        },
        "stories": {"correct": 87, "total": 100, "accuracy": 0.87, "interval": [0.7902, 0.9224],
                    "violations": {"wrong_name": 9, "too_long": 4}},
    }  # fmt: skip


def sample_record() -> dict[str, Any]:
    """A record with every part, such as a run on the small Chinese and English town would write."""
    hashes = {name: f"{i}3b5d7f9" * 8 for i, name in enumerate(("corpus", "tokenizer", "shards", "pretrained", "final"))}
    pieces = re.findall(r"小明|住在|小镇| ?\w+|[^\w]", "小明住在小镇。The baker says  你好\nto him.")
    return {
        "title": "A model of the town", "command": "hornbook quickstart --data town --language zh --minutes 5",
        "version": "0.1.0", "created": "2026-03-01T12:34:56+00:00", "outcome": "finished",
        "identity": {"python": "3.11.7", "torch": "2.13.0", "platform": "Linux-6.1-x86_64", "processor": "x86_64",
                     "threads": 2, "device": "cpu"},
        "data": {"name": "town", "language": "zh"},
        "timings": {"corpus": 3.21, "clean": 7.5, "tokenizer": 12.4, "shards": 4.04, "pretrain": 214.7, "sft": 41.9,
                    "evaluate": 19.3, "export": 1.1, "report": 0.35},
        "total_seconds": 304.5, "peak_memory_bytes": 1_403_222_016,
        "funnel": {
            "in": {"documents": 20_480, "bytes": 17_301_504},
            "rejected": {"not_utf8": {"documents": 12, "examples": ["data/raw.txt:311"]}},
            "dropped": {
                "too_short": {"documents": 341, "bytes": 9_822, "examples": ["你好。", "ok"]},
                "duplicate": {"documents": 1_207, "bytes": 1_004_511, "examples": [STORY]},
            },
            "out": {"documents": 18_920, "bytes": 16_287_171},
        },
        "split": {"train": {"documents": 18_542, "bytes": 15_961_427, "tokens": 4_021_377},
                  "held_out": {"documents": 378, "bytes": 325_744, "tokens": 82_051}},
        "tokenizer": {
            "vocab": 4096, "split": "cl100k", "bytes_per_token": 3.9694, "fingerprint": "9f86d081884c7d65",
            "examples": [{"text": "".join(pieces), "pieces": pieces, "ids": list(range(300, 300 + len(pieces)))}],
            "longest": [" breakfast", "每天早上", " yesterday"], "first_merges": ["th", " a", "的", "\ufffd", "he"],
        },
        "plan": {
            "rule": ["5 minutes at 24,310 tokens per second leave room for 5.2 million tokens in pretraining.",
                     "A model of 1.9 million parameters is the largest that sees at least 2 tokens for each."],
            "minutes": 5, "tokens_per_second": 24_310.4, "batch_tokens": 8192, "steps": 600, "learning_rate": 0.0031,
            "context": 256, "model": {"parameters": 1_902_848, "layers": 6, "dim": 160, "heads": 5, "vocab": 4096},
        },
        "evaluation": sample_evaluation(),
        "samples": [{"stage": stage, "step": step, "prompt": "小明", "text": f"住在{step}号。" + STORY[12 : 12 + step // 8]}
                    for stage, steps in (("pretrain", range(0, 601, 60)), ("sft", (80, 160))) for step in steps],
        "config": {"data": {"name": "town"}, "train": {"steps": 600, "learning_rate": 0.0031, "betas": [0.9, 0.95]}},
        "lineage": hashes, "model_folder": "runs/quickstart/model", "talk": "hornbook chat runs/quickstart",
    }  # fmt: skip


def sample_metrics() -> list[dict[str, Any]]:
    """Curves of the shape that such a run has."""
    draw = random.Random(5)
    rows: list[dict[str, Any]] = []
    for stage, steps, start, end in (("pretrain", 600, 8.3, 2.2), ("sft", 160, 2.6, 0.4)):
        for step in range(1, steps + 1):
            loss = end + (start - end) * math.exp(-step / steps * 7) + draw.gauss(0, 0.06)
            rate = 0.0031 * min(step / 40, 1) * (1 - 0.9 * step / steps)
            rows.append({"stage": stage, "step": step, "tokens": step * 8192, "loss": loss,
                "bits_per_byte": loss / math.log(2) / 3.97,
                         "learning_rate": rate, "grad_norm": 0.4 + 3 * math.exp(-step / 25) + abs(draw.gauss(0, 0.1)),
                         "tokens_per_second": 24_000 + draw.gauss(0, 700), "seconds": step * 0.34})  # fmt: skip
            if step % (steps // 8) == 0:
                held = end + 0.05 + (start - end) * math.exp(-step / steps * 7)
                rows.append(
                    {"stage": stage, "step": step, "held_out_loss": held, "held_out_bits_per_byte": held / math.log(2) / 3.97}
                )
    return rows


def tree(made: str) -> ET.Element:
    return ET.fromstring(made)


def headings(made: str) -> set[str]:
    return {node.text or "" for node in tree(made).iter("h2")}


def leaves(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return [leaf for value in part.values() for leaf in leaves(value)]
    return [leaf for value in part for leaf in leaves(value)] if isinstance(part, list) else [part]


def with_every_string(part: Any, words: str) -> Any:
    """The same record with other words in every place that holds words, keys of open tables included."""
    if isinstance(part, dict):
        return {key: with_every_string(value, words) for key, value in part.items()}
    if isinstance(part, list):
        return [with_every_string(value, words) for value in part]
    return words if isinstance(part, str) else part


SECTIONS = {
    "funnel": "Corpus", "tokenizer": "Tokenizer", "plan": "Plan", "samples": "Samples during training",
        "evaluation": "Evaluation",
    "timings": "Time per stage", "config": "Configuration", "lineage": "Lineage", "identity": "Machine",
}  # fmt: skip


def test_an_empty_record_is_a_page_without_sections() -> None:
    assert headings(report.render_report({}, [])) == set()
    assert report.model_card({}).startswith("---\n")


@pytest.mark.parametrize("part", SECTIONS)
def test_a_section_stands_exactly_where_its_part_does(part: str) -> None:
    record = sample_record()
    alone = {part: record[part]}
    assert SECTIONS[part] in headings(report.render_report(alone, []))
    assert headings(report.render_report(alone, [])) <= {SECTIONS[part], "Result"}
    del record[part]
    for sharer in ("split", "data") if part == "funnel" else ():
        del record[sharer]
    full = set(SECTIONS.values()) | {"Result", "Pretraining", "Fine-tuning"}
    assert headings(report.render_report(record, sample_metrics())) == full - {SECTIONS[part]}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_stage_has_its_curves_exactly_where_it_has_metrics(stage: str) -> None:
    rows = [line for line in sample_metrics() if line["stage"] == stage]
    made = report.render_report({}, rows)
    assert headings(made) == {"Result", STAGES[stage]}
    titles = [node.text for node in tree(made).iter("text") if node.attrib.get("class") == "title"]
    assert titles == ["Loss, nats per token", "Bits per byte", "Learning rate", "Tokens per second", "Gradient norm"]
    only_loss = [{"stage": stage, "step": 1, "loss": 2.0}, {"stage": stage, "step": 2, "loss": None}]
    assert len([n for n in tree(report.render_report({}, only_loss)).iter("svg")]) == 1


def test_parts_of_parts_may_be_absent() -> None:
    """Every single key of the record that holds a table, or a list, or a figure of a tile, may be missing."""
    record = sample_record()
    for part in record:
        if isinstance(record[part], dict):
            for inner in record[part]:
                poorer = copy.deepcopy(record)
                del poorer[part][inner]
                tree(report.render_report(poorer, []))
                assert report.model_card(poorer)


@pytest.mark.parametrize("interval", [None, [None, None], [math.nan, math.nan]])
def test_a_score_without_an_interval_shows_none(interval: list[float] | None) -> None:
    record = {"evaluation": sample_evaluation()}
    for score in (
        record["evaluation"]["bits_per_byte"],
        record["evaluation"]["stories"],
        *record["evaluation"]["questions"].values(),
    ):
        score["interval"] = interval
    made = tree(report.render_report(record, []))
    assert [node for node in made.iter("line") if node.attrib["class"] == "whisker"] == []
    assert "nan" not in "".join(made.itertext()) and "nan" not in report.model_card(record)


def test_the_numbers_on_the_page_are_the_record_s() -> None:
    record = sample_record()
    kept = {float(node.attrib["value"]) for node in tree(report.render_report(record, sample_metrics())).iter("data")}
    bits = {key: value for key, value in record["evaluation"]["bits_per_byte"].items() if key != "interval"}
    scores = [score["accuracy"] for score in [*record["evaluation"]["questions"].values(), record["evaluation"]["stories"]]]
    parts = [record["funnel"], record["split"], record["timings"], record["total_seconds"], record["peak_memory_bytes"],
    record["plan"],
             bits, scores, record["evaluation"]["stories"]["violations"], record["tokenizer"]["bytes_per_token"]]  # fmt: skip
    expected = {float(leaf) for part in parts for leaf in leaves(part) if isinstance(leaf, (int, float))}
    assert len(expected) > 40 and expected <= kept
    words = "".join(tree(report.render_report(record, [])).itertext())
    for text in [leaf for part in ("identity", "lineage", "config") for leaf in leaves(record[part]) if isinstance(leaf, str)]:
        assert text in words


def test_all_questions_together_carry_wilson_s_interval() -> None:
    """The ends of Wilson's interval are where the score lies exactly z standard errors away."""
    record = sample_record()
    made = tree(report.render_report(record, []))
    questions = record["evaluation"]["questions"].values()
    right, total = sum(kind["correct"] for kind in questions), sum(kind["total"] for kind in questions)
    tile = next(div for div in made.iter("div") if div.findtext("dt") == "Questions right")
    note = tile.findall("dd")[1].text or ""
    assert note.startswith(f"{right} of {total}; ")
    for shown in re.findall(r"([\d.]+) %", note):
        end = float(shown) / 100
        away = abs(right / total - end) / math.sqrt(end * (1 - end) / total)
        assert away == pytest.approx(NormalDist().inv_cdf(0.975), abs=0.04)


def test_findings_tell_a_good_run_from_a_bad_one() -> None:
    record, metrics = sample_record(), sample_metrics()
    found = report.findings(record, metrics)
    assert [well for well, _ in found] == [True, True, True, True, True, False]  # the last kind is no better than chance
    bad = [
        *metrics,
        {"stage": "pretrain", "step": 601, "loss": math.nan},
        {"stage": "pretrain", "step": 600, "held_out_bits_per_byte": 1.9},
    ]
    record["outcome"] = "stopped"
    sentences = [sentence for well, sentence in report.findings(record, bad) if not well]
    assert any("stopped" in s for s in sentences) and any("step 601" in s for s in sentences) and any("1.9" in s for s in sentences)


def test_a_resumed_run_draws_its_steps_once() -> None:
    metrics = sample_metrics()
    twice = metrics[:400] + metrics[300:]
    assert report.render_report({}, twice) == report.render_report({}, metrics)


def test_hostile_words_stay_words_in_the_report() -> None:
    record = with_every_string(sample_record(), HOSTILE)
    record["funnel"]["dropped"][HOSTILE] = record["funnel"]["dropped"].pop("too_short")
    record["evaluation"]["questions"][HOSTILE] = record["evaluation"]["questions"].pop("copy")
    record["evaluation"]["stories"]["violations"][HOSTILE] = 3
    record["timings"][HOSTILE] = 1.0
    metrics = [{"stage": HOSTILE, "step": step, "loss": 1.0 + step} for step in range(3)]
    root = tree(report.render_report(record, metrics))
    assert {node.tag for node in root.iter()}.isdisjoint({"script", "img", "iframe", "object", "form"})
    assert len(list(root.iter("style"))) == 1 and not any(name.startswith("on") for node in root.iter() for name in node.attrib)
    assert "".join(root.itertext()).count("alert(1)") > 60


def test_the_page_stays_small() -> None:
    rows = [{**line, "step": line["step"] * 100 + i} for line in sample_metrics() for i in range(50)]
    assert len(rows) > 30_000
    assert len(report.render_report(sample_record(), rows)) < 600_000


# --- the model card -------------------------------------------------------------------------------------------------------


def test_the_hub_reads_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(report.model_card({**sample_record(), "license": "cc0-1.0"}), ignore_metadata_errors=False)
    found = card.data.to_dict()
    assert found == {
        "language": "zh",
        "license": "cc0-1.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hornbook"],
    }
    bare = hub.ModelCard(report.model_card({"data": {"language": "no"}}), ignore_metadata_errors=False).data.to_dict()
    assert bare["language"] == "no" and "license" not in bare
    code = hub.ModelCard(report.model_card({"data": {"language": "Python 3"}}), ignore_metadata_errors=False).data.to_dict()
    assert "language" not in code


@pytest.mark.parametrize("words", [None, HOSTILE])
def test_the_card_is_markdown_that_shows_the_record(words: str | None) -> None:
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    record = with_every_string(sample_record(), words) if words else sample_record()
    body = report.model_card(record).split("---\n", 2)[2]
    parsed = markdown.parse(body)
    assert [node.type for node in parsed if "html" in node.type] == []
    inner = [child for node in parsed for child in node.children or []]
    assert {child.type for child in inner} <= {"text", "text_special", "code_inline"}
    titles = [parsed[i + 1].content for i, node in enumerate(parsed) if node.type == "heading_open" and node.tag == "h2"]
    assert titles == ["Model and training", "Training data", "Evaluation", "Use", "Limits", "Lineage"]
    cells = ["".join(child.content for child in parsed[i + 1].children) for i, node in enumerate(parsed) if node.type == "td_open"]
    if words is None:
        for shown in (
            "85.5 % (171 of 200)",
            "80.0 % to 89.7 %",
            "1,902,848",
            "0.8431",
            record["lineage"]["final"],
            "4,021,377",
        ):
            assert shown in cells
    programs = [node.content for node in parsed if node.type == "fence" and node.info == "python"]
    assert len(programs) == 1
    lines = [node for node in ast.parse(programs[0]).body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    assigned = {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in lines}
    assert assigned == {
        "folder": record["model_folder"],
        "prompt": record["evaluation"]["questions"]["arithmetic"]["examples"][0]["prompt"],
    }


def test_the_card_says_nothing_the_record_does_not() -> None:
    """Each number in the card's text is a number of its record, or its share in percent."""
    record = sample_record()
    body = re.sub(r"```.*?```", "", report.model_card(record), flags=re.DOTALL)
    numbers = {n.rstrip(".,").replace(",", "") for n in re.findall(r"(?<![\w.])\d[\d,.]*(?!\w)", body)}
    known = [float(n.rstrip(".")) for n in re.findall(r"\d[\d.]*", json.dumps(record)) if n.count(".") < 2]
    scores = [*record["evaluation"]["questions"].values(), record["evaluation"]["stories"]]
    values = [*known, *(float(score["total"] - score["correct"]) for score in scores)]
    for number in numbers:
        if number.count(".") < 2:
            near = [v for v in values if math.isclose(v, float(number), rel_tol=6e-4) or abs(100 * v - float(number)) <= 0.0501]
            assert near, number


def test_a_model_that_does_not_chat_is_not_shown_chatting() -> None:
    record = sample_record()
    del record["talk"]
    card = report.model_card(record)
    assert "apply_chat_template" not in card and "hornbook chat" not in card and "generate(**inputs" in card


# --- the browser ----------------------------------------------------------------------------------------------------------


def test_a_browser_shows_it_without_errors_requests_or_overflow(tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH")
    sync = pytest.importorskip("playwright.sync_api")
    file = tmp_path / "report.html"
    file.write_text(report.render_report(sample_record(), sample_metrics()), encoding="utf-8")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        grounds = set()
        for scheme in ("light", "dark"):
            for width in (390, 1280):
                view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                said: list[str] = []
                asked: list[str] = []
                view.on("console", lambda message, said=said: said.append(message.text))
                view.on("pageerror", lambda error, said=said: said.append(str(error)))
                view.on("request", lambda request, asked=asked: asked.append(request.url))
                view.goto(file.as_uri())
                view.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert said == [] and [url for url in asked if url not in (file.as_uri(), "data:,")] == []
                assert view.evaluate("document.documentElement.scrollWidth") <= width
                small = view.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
                assert min(small) >= 10
                outside = view.evaluate("""[...document.querySelectorAll('svg text')].filter(t => {
                    const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
                    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
                }).map(t => t.textContent)""")
                assert outside == []
                grounds.add(view.evaluate("getComputedStyle(document.body).backgroundColor"))
                view.close()
        browser.close()
    assert len(grounds) == 2
