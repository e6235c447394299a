"""The record of a run -> its report (one HTML page) and its model card (Markdown).

A record is what a run wrote down: plain dicts, lists, strings and numbers, as they stand in `report.json`; the metrics are the
rows of `metrics.jsonl`. The one idea: nothing here measures or guesses. A part that the record lacks has no section, and every
figure on the page is in the record or is a sum, a share or an interval of figures that are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hornbook import page
from hornbook.evals.layers import layer_maps
from hornbook.evals.rows import Record, curves, samples, series, stage_name, stages, words
from hornbook.evals.score import wilson
from hornbook.page import Bar, Html, byte_size, duration, exact, figure, percent


def render_report(record: dict[str, Any], metrics: list[dict[str, Any]], layers: Sequence[Record] = ()) -> str:
    """The report of a run as one self-contained HTML page."""
    made = [record.get("command"), f"hornbook {record['version']}" if record.get("version") else None, record.get("created")]
    sections = [
        _result(record, metrics), *(curves(stage, metrics) for stage in stages(metrics)), *layer_maps(layers), _corpus(record),
        _tokenizer(record), _plan(record), samples(record.get("samples") or [], _language(record)), _evaluation(record),
        *_origins(record),
    ]  # fmt: skip
    return page.page(record.get("title") or "A hornbook run", sections, " · ".join(str(part) for part in made if part))


def _part(record: Record, *path: str) -> Any:
    """The part of a record at a path, or None where any step of it is absent."""
    found: Any = record
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _language(record: Record) -> str | None:
    """The record's language where it is a language tag (`en`, `zh-Hant`), so not for a corpus of code."""
    named = _part(record, "data", "language")
    return named if isinstance(named, str) and re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", named) else None


def _ends(score: Record) -> tuple[float, float] | None:
    """The ends of a score's interval; a score of too little data has none, or one that is not finite."""
    low, high = score.get("interval") or (None, None)
    return (low, high) if low is not None and high is not None and math.isfinite(high - low) else None


def _interval(score: Record, show: Callable[[float], str] = percent) -> str:
    found = _ends(score)
    return f"{show(found[0])} to {show(found[1])}" if found else ""


# --- the result -----------------------------------------------------------------------------------------------------------


def _overall(questions: Mapping[str, Record]) -> dict[str, Any] | None:
    """All kinds of questions as one score, with Wilson's 95 % interval."""
    right, total = (sum(int(kind.get(name, 0)) for kind in questions.values()) for name in ("correct", "total"))
    if not total:
        return None
    return {"correct": right, "total": total, "accuracy": right / total, "interval": wilson(right, total)}


def _score_note(score: Record) -> str:
    found = _interval(score)
    return f"{score['correct']:,} of {score['total']:,}" + (f"; {found}" if found else "")


def _result(record: Record, metrics: Sequence[Record]) -> Html:
    tiles: list[tuple[object, ...]] = []
    bits = _part(record, "evaluation", "bits_per_byte") or {}
    final = bits.get("final", bits.get("pretrained"))
    if final is not None:
        inside = _interval(bits, figure)
        tiles.append(("Bits per byte, held out", final, f"lower is better{'; ' + inside if inside else ''}"))
    overall = _overall(_part(record, "evaluation", "questions") or {})
    stories = _part(record, "evaluation", "stories")
    for label, score in (("Questions right", overall), ("Stories in grammar", stories)):
        if score:
            tiles.append((label, exact(score["accuracy"], percent(score["accuracy"])), _score_note(score)))
    if (parameters := _part(record, "plan", "model", "parameters")) is not None:
        tiles.append(("Parameters", parameters))
    for stage in stages(metrics):
        if read := series(metrics, stage, "tokens"):
            tiles.append((f"Tokens, {stage_name(stage).lower()}", int(read[-1][1])))
    if (seconds := record.get("total_seconds")) is not None:
        tiles.append(("Time", exact(seconds, duration(seconds))))
    if (memory := record.get("peak_memory_bytes")) is not None:
        tiles.append(("Peak memory", exact(memory, byte_size(memory))))
    talk = page.caption("Talk to it", page.code(record["talk"])) if record.get("talk") else ""
    return page.section("Result", page.facts(tiles, tiles=True), page.notices(findings(record, metrics)), talk)


def findings(record: Record, metrics: Sequence[Record]) -> list[tuple[bool, str]]:
    """What a reader should know first, as (went well, sentence): the outcome, the curves, each score against chance."""
    found: list[tuple[bool, str]] = []
    if outcome := record.get("outcome"):
        found.append((outcome == "finished", f"The run {'finished' if outcome == 'finished' else 'ended: ' + str(outcome)}."))
    for stage in stages(metrics):
        name = stage_name(stage)
        lost = [step for step, loss in series(metrics, stage, "loss") if not math.isfinite(loss)]
        if lost:
            found.append((False, f"{name}: the loss was not finite at {len(lost):,} steps, first at step {lost[0]:,.0f}."))
        held = [point for point in series(metrics, stage, "held_out_bits_per_byte") if math.isfinite(point[1])]
        if len(held) > 1:
            best = min(held, key=lambda point: point[1])
            if held[-1][1] > 1.01 * best[1]:
                turn = f"best, {figure(best[1])}, was at step {best[0]:,.0f}, and it rose to {figure(held[-1][1])} after"
                found.append((False, f"{name}: the held-out bits per byte turned: the {turn}."))
            else:
                found.append((True, f"{name}: held-out bits per byte went from {figure(held[0][1])} to {figure(held[-1][1])}."))
    for kind, score in (_part(record, "evaluation", "questions") or {}).items():
        chance = score.get("chance")
        if chance is not None and (ends := _ends(score)):
            above = ends[0] > chance
            verdict = "above chance" if above else "not clearly above chance"
            found.append((above, f"{words(kind)}: {percent(score['accuracy'])} right, {verdict} ({percent(chance)})."))
    return found


# --- the data -------------------------------------------------------------------------------------------------------------


def _amount(counted: Record) -> Html:
    documents = exact(counted["documents"], f"{counted['documents']:,} documents") if "documents" in counted else ""
    size = exact(counted["bytes"], byte_size(counted["bytes"])) if "bytes" in counted else ""
    return page.join(documents, " · " if documents and size else "", size)


def _corpus(record: Record) -> Html:
    funnel = record.get("funnel") or {}
    language = _language(record)
    lost_ones = [(group, funnel.get(group) or {}) for group in ("rejected", "dropped")]
    left = [(f"{group}: {words(reason)}", lost) for group, reasons in lost_ones for reason, lost in reasons.items()]
    shown = [("in", funnel["in"], 0)] if "in" in funnel else []
    shown += [(label, lost, 1) for label, lost in left]
    shown += [("out", funnel["out"], 2)] if "out" in funnel else []
    drawn = [Bar(name, counted.get("documents", 0), _amount(counted), color=color) for name, counted, color in shown]
    about = ", ".join(f"{words(key)}: {value}" for key, value in (record.get("data") or {}).items() if value is not None)
    parts = [page.paragraph(about) if about else "", page.bars(drawn)]
    for label, lost in left:
        examples = (page.code(example, language) for example in lost.get("examples") or ())
        parts.append(page.details(f"What was {label}", *examples))
    if split := record.get("split"):
        named = [name for name in ("documents", "bytes", "tokens") if any(name in counted for counted in split.values())]
        counts = [[words(name), *(counted.get(unit) for unit in named)] for name, counted in split.items()]
        parts.append(page.table(["part", *named], counts))
    return page.section("Corpus", *parts)


def _tokenizer(record: Record) -> Html:
    made, language = record.get("tokenizer") or {}, _language(record)
    told = [(words(key), value) for key, value in made.items() if isinstance(value, (str, int, float))]
    parts = [page.facts(told)]
    parts += [page.tokens(one["pieces"], one.get("ids") or (), language) for one in made.get("examples") or ()]
    for key, title in (("longest", "Its longest tokens"), ("first_merges", "The first merges it learned")):
        parts.append(page.caption(title, page.tokens(made.get(key) or (), (), language)))
    return page.section("Tokenizer", *parts)


# --- the plan and the run -------------------------------------------------------------------------------------------------


def _plan(record: Record) -> Html:
    rule = [page.paragraph(sentence) for sentence in _part(record, "plan", "rule") or ()]
    return page.section("Plan", *rule, page.facts(_plan_figures(record)))


def _plan_figures(record: Record) -> list[tuple[str, object]]:
    plan = record.get("plan") or {}
    figures = {**(plan.get("model") or {}), **plan}
    return [(words(key), value) for key, value in figures.items() if isinstance(value, (str, int, float))]


def _evaluation(record: Record) -> Html:
    bits = _part(record, "evaluation", "bits_per_byte") or {}
    plain = {key: " to ".join(map(figure, value)) if isinstance(value, (list, tuple)) else value for key, value in bits.items()}
    told = [(words(key), value) for key, value in plain.items() if value is not None]
    scores = _scores(record)
    drawn = page.bars([_score_bar(kind, score) for kind, score in scores.items()], full=1.0)
    violations = _part(record, "evaluation", "stories", "violations") or {}
    return page.section(
        "Evaluation",
        page.caption("Held-out bits per byte", page.facts(told)),
        page.caption("Share right, from 0 to 100 %; whisker: interval, dashed line: chance", drawn),
        *(_examples(kind, score.get("examples") or (), _language(record)) for kind, score in scores.items()),
        page.table(["what was wrong in stories", "times"], [[words(reason), times] for reason, times in violations.items()]),
    )


def _scores(record: Record) -> dict[str, Any]:
    """Every kind of questions and the stories, by name."""
    evaluation = record.get("evaluation") or {}
    stories = evaluation.get("stories")
    sampled = {"sampled stories, grammar": stories, "sampled stories, coherent": (stories or {}).get("coherent")}
    return {**(evaluation.get("questions") or {}), **{name: score for name, score in sampled.items() if score}}


def _score_bar(kind: str, score: Record) -> Bar:
    shown = page.join(exact(score["accuracy"], percent(score["accuracy"])), f" ({_score_note(score)})")
    return Bar(words(kind), score["accuracy"], shown, _ends(score), score.get("chance"))


def _examples(kind: str, examples: Sequence[Record], language: str | None) -> Html:
    wrong = sum(not one["correct"] for one in examples)
    signs = ["✓\u00a0right" if one["correct"] else "✗\u00a0wrong" for one in examples]
    asked = [[sign, one["prompt"], one["expected"], one["answer"]] for sign, one in zip(signs, examples, strict=True)]
    title = f"{words(kind)}: examples, {len(examples) - wrong} right and {wrong} wrong"
    return page.details(title, page.table(["result", "prompt", "expected", "answer"], asked, language))


def _origins(record: Record) -> list[Html]:
    """The sections that say how the run came about: its time, its settings, its files, its machine."""
    timings, named = record.get("timings") or {}, record.get("lineage") or {}
    drawn = [Bar(words(stage), seconds, exact(seconds, duration(seconds))) for stage, seconds in timings.items()]
    settings = json.dumps(record.get("config"), indent=2, ensure_ascii=False, default=str)
    machine = [(words(key), value) for key, value in (record.get("identity") or {}).items()]
    return [
        page.section("Time per stage", page.bars(drawn)),
        page.section("Configuration", page.details("As resolved", page.code(settings)) if record.get("config") else ""),
        page.section("Lineage", page.table(["what", "fingerprint"], list(named.items()))),
        page.section("Machine", page.facts(machine)),
    ]


# --- the model card -------------------------------------------------------------------------------------------------------


def model_card(record: dict[str, Any]) -> str:
    """The model card (`README.md`) of the exported folder: Markdown after the YAML block that the Hugging Face hub reads."""
    title = record.get("title") or "A hornbook model"
    made = [f"with hornbook {_inline(record['version'])}" if record.get("version") else "with hornbook",
            f"on {_inline(record['created'])}" if record.get("created") else "",
            f"by `{_line(record['command'])}`" if record.get("command") else ""]  # fmt: skip
    parts = [
        _front_matter(record), f"# {_inline(title)}", f"Made {' '.join(part for part in made if part)}.",
        _rows("Model and training", ("what", "value"), _plan_figures(record)), _card_data(record), _card_scores(record),
        _card_use(record), _card_limits(record),
        _rows("Lineage", ("what", "fingerprint"), (record.get("lineage") or {}).items()),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(record: Record) -> str:
    """JSON strings are YAML strings, and quoted: the language `no` stays Norwegian."""
    kept = {"language": _language(record), "license": record.get("license"), "library_name": "transformers",
            "pipeline_tag": "text-generation"}  # fmt: skip
    named = [f"{key}: {json.dumps(value)}" for key, value in kept.items() if value]
    return "\n".join(["---", *named, "tags:", "- hornbook", "---"])


def _line(words: object) -> str:
    """Text as one line that fits between backticks."""
    return " ".join(str(words).replace("`", "'").split())


def _inline(words: object) -> str:
    """Text that Markdown shows as it is, in a line or in a cell of a table."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", " ".join(str(words).split()))


def _fence(words: str, kind: str = "") -> str:
    """A block of code whose fence is longer than any fence inside it."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", words)), default=0))
    return f"{ticks}{kind}\n{words}\n{ticks}"


def _rows(title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A headed Markdown table, or nothing where it would have no row."""
    body = [[figure(cell) if isinstance(cell, (int, float)) else _inline(cell) for cell in line] for line in rows]
    if not body:
        return ""
    drawn = [f"| {' | '.join(line)} |" for line in [list(headers), ["---"] * len(headers), *body]]
    return "\n".join([f"## {title}", "", *drawn])


def _card_data(record: Record) -> str:
    told = [(words(key), value) for key, value in (record.get("data") or {}).items() if value is not None]
    for name, counted in (record.get("split") or {}).items():
        told += [(f"{words(name)}, {unit}", count) for unit, count in counted.items()]
    for key in ("vocab", "split", "bytes_per_token"):
        if (value := _part(record, "tokenizer", key)) is not None:
            told.append((f"tokenizer, {words(key)}", value))
    return _rows("Training data", ("what", "value"), told)


def _card_scores(record: Record) -> str:
    bits = _part(record, "evaluation", "bits_per_byte") or {}
    told = []
    for name in ("pretrained", "final"):
        if bits.get(name) is not None:
            inside = _interval(bits, figure) if name == "final" else ""
            told.append((f"held-out bits per byte, {name} (lower is better)", figure(bits[name]), inside, ""))
    for kind, score in _scores(record).items():
        share = f"{percent(score['accuracy'])} ({score['correct']:,} of {score['total']:,})"
        chance = "" if score.get("chance") is None else percent(score["chance"])
        told.append((f"{words(kind)}, share right", share, _interval(score), chance))
    return _rows("Evaluation", ("measure", "score", "interval", "chance"), told)


def _card_use(record: Record) -> str:
    folder, talk = record.get("model_folder"), record.get("talk")
    parts = ["With hornbook:", _fence(str(talk), "sh")] if talk else []
    if folder:
        ask = [
            'inputs = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,',
            '                                       return_dict=True, return_tensors="pt")',
        ] if talk else ['inputs = tokenizer(prompt, return_tensors="pt")']  # fmt: skip
        program = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            f"folder = {json.dumps(str(folder), ensure_ascii=False)}  # where this card lies",
            f"prompt = {json.dumps(_prompt(record), ensure_ascii=False)}",
            "tokenizer = AutoTokenizer.from_pretrained(folder)", "model = AutoModelForCausalLM.from_pretrained(folder)", *ask,
            "output = model.generate(**inputs, max_new_tokens=64)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
        ]  # fmt: skip
        parts += ["With transformers:", _fence("\n".join(program), "python")]
    return "\n\n".join(["## Use", *parts]) if parts else ""


def _prompt(record: Record) -> str:
    """A prompt of the kind that the model knows: one that its record asked it."""
    asked = [one["prompt"] for score in _scores(record).values() for one in score.get("examples") or ()]
    asked += [one["prompt"] for one in record.get("samples") or () if one["prompt"]]
    return str(asked[0]) if asked else "Hello"


def _card_limits(record: Record) -> str:
    told = []
    if trained := _part(record, "split", "train"):
        amount = ", ".join(f"{count:,} {unit}" for unit, count in trained.items())
        name = _inline(_part(record, "data", "name") or "one corpus")
        told.append(f"It was trained on this and nothing else: {amount} of {name}.")
    if (context := _part(record, "plan", "context")) is not None:
        told.append(f"It was trained on stretches of {context:,} tokens.")
    for kind, score in _scores(record).items():
        if score["correct"] < score["total"]:
            told.append(f"{_inline(words(kind))}: {score['total'] - score['correct']:,} of {score['total']:,} went wrong.")
    if record.get("evaluation"):
        told.append("The evaluation above is all that was measured.")
    if not record.get("license"):
        told.append("The record of its run gives no license.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in told)]) if told else ""
