"""The whole life of a language model, stage by stage: each is a function that the single verbs call too.

    corpus -> tokenizer -> shards -> pretrain -> sft -> evaluate -> export -> report

A finished stage is kept, a training stage goes on at its last state, so the same command continues a run that was stopped.
"""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hornbook
from hornbook.checkpoint.pretrained import load_model, save
from hornbook.config import from_dict, read_toml, to_toml
from hornbook.data.town import Town
from hornbook.errors import UserError
from hornbook.evals.report import model_card
from hornbook.files import sha256, verified, write_json, write_text
from hornbook.parallel.team import Team
from hornbook.plan.budget import BATCH, DIM_PER_LAYER, OTHER_BATCH, Size, model_config, settle
from hornbook.ranks import choose_device, identity
from hornbook.stages.corpus import make_corpus
from hornbook.stages.evaluate import evaluate
from hornbook.stages.keep import TIMINGS, kept, lineage, run_folder, states, timed
from hornbook.stages.learn import check_model, pretrain, sft
from hornbook.stages.measure import tokens_per_second
from hornbook.stages.report import record_of, write_report
from hornbook.stages.settings import Quickstart, Recipe, SftRecipe
from hornbook.stages.tokens import compiling, make_shards, train_tokenizer
from hornbook.stages.train import check
from hornbook.stages.voice import Voice
from hornbook.text.tokenizer import Tokenizer

LEARNING_RATE, EMBEDDING_RATE, SFT_LEARNING_RATE, SFT_EMBEDDING_RATE = 0.01, 0.01, 0.004, 0.004
SETTINGS = ("data", "language", "minutes", "seed", "depth", "vocab", "steps")
PLAN = ("version", "asked", "command", "identity", "tokens_per_second", "rule", "recipe", "sft")  # what plan.json holds


def quickstart(settings: Quickstart, voice: Voice, command: str) -> dict[str, Any]:
    """Run every stage that is not done yet; returns the record of report.json."""
    device, out = choose_device(settings.device), settings.out
    voice.say(f"device: {device}")
    with run_folder(out):
        with timed(out, "plan"):
            plan = settled(settings, device, voice, command)
        recipe, tuning = from_dict(Recipe, plan["recipe"], out / "plan.json"), from_dict(SftRecipe, plan["sft"], out / "plan.json")
        town = Town(recipe.seed, recipe.language) if recipe.data == "town" else None
        with timed(out, "corpus"), nullcontext() if (out / "shards").exists() else compiling():
            make_corpus(
                recipe.data, recipe.language, recipe.seed, recipe.corpus_bytes, recipe.conversations, out / "corpus", voice
            )  # fmt: skip
        with timed(out, "tokenizer"):
            tokenizer = train_tokenizer(
                out / "corpus", recipe.vocab, recipe.split, out / "tokenizer", voice, at_most=settings.vocab is None
            )  # fmt: skip
        with timed(out, "shards"):
            make_shards(out / "corpus", tokenizer, out / "shards", voice)
        with timed(out, "pretrain"):
            base = pretrain(recipe, tokenizer, out / "corpus", out / "shards", out, Team(device=device), voice, command)
        with timed(out, "sft"):
            tuned = sft(tuning, tokenizer, out / "corpus", base, out, Team(device=device), voice, command)
        with timed(out, "evaluate"):
            evaluation = evaluate(base, tuned, tokenizer, out / "corpus", town, out / "evaluation", device, voice)
        with timed(out, "export"):
            export(tuned, out / "model", voice, model_card(record_of(out, plan, evaluation, tokenizer, command)))
        with timed(out, "report"):
            voice.begin("report", str(out / "report.html"))
            record = record_of(out, plan, evaluation, tokenizer, command)
            record["lineage"]["final"] = sha256(out / "model" / "model.safetensors")
        write_report(out, record)
        voice.end(str(out / "report.html"))
    return record


def export(tuned: Path, folder: Path, voice: Voice, card: str) -> None:
    """The finished model as a published folder that transformers opens without remote code."""
    inputs = {"tuned": lineage(tuned)}
    voice.begin("export", str(folder))
    was_kept = kept(folder, inputs)
    if not was_kept:
        save(load_model(tuned), Tokenizer.load(tuned), folder, {"inputs": inputs}, card)
    verified(folder)
    outcome = "kept from before" if was_kept else "opens in transformers"
    voice.end(f"{folder}: {outcome}, sha256 {sha256(folder / 'model.safetensors')[:16]}")


def settled(settings: Quickstart, device: Any, voice: Voice, command: str) -> dict[str, Any]:
    """The plan in plan.json, made once. A folder of another run or version is refused; a changed machine is said."""
    path, own = settings.out / "plan.json", read_toml(settings.recipe) if settings.recipe else None
    for name, usual in (("objective", "causal"), ("mixture", {}), ("tokenizer", "")):
        if own and own.get(name, usual) != usual:
            raise UserError(
                "quickstart makes a model that answers, from one source and with a vocabulary of its own",
                where=f"{settings.recipe}: {name}", why=f"it is {own[name]!r}", fix=f"hornbook pretrain {settings.recipe}",
            )  # fmt: skip
    asked = {name: getattr(settings, name) for name in SETTINGS} | {"recipe": own}
    if path.exists() and ((settings.out / "corpus").exists() or _read_plan(path).get("asked") == asked):
        plan = _read_plan(path)
        _same_run(plan, asked, path)
        here = identity(device)
        changed = [key for key in ("threads", "processor", "torch", "device") if plan["identity"].get(key) != here[key]]
        if changed:
            voice.say(f"{', '.join(changed)} changed since this run began: it continues, but not to the very same weights")
        voice.say(f"continuing the run in {settings.out}")
        return plan
    # From here on a plan that nothing was made from yet, as after a mistyped --data, gives way to the new one.
    strangers = sorted({entry.name for entry in settings.out.iterdir()} - {".lock", TIMINGS, "plan.json", "recipe.toml"})
    if strangers:
        raise UserError(
            "the output folder belongs to another run", where=str(settings.out), why=f"it has {strangers[0]!r} and no plan.json",
            fix="choose another --out",
        )  # fmt: skip
    voice.begin("plan", "measure this machine and settle the sizes")

    def speed(depth: int, vocab: int) -> float:
        rows, context = BATCH.get(settings.data, OTHER_BATCH)
        return tokens_per_second(model_config(depth, DIM_PER_LAYER * depth, vocab, context), rows, context, "muon", device)

    size = settle(settings.minutes, settings.data, speed, settings.depth, settings.vocab, settings.steps)
    plan = _plan(settings, asked, size, device, command)
    recipe = from_dict(Recipe, plan["recipe"], path)
    check(check_model(recipe), recipe, Team(device=device), states(settings.out, "pretrain"))
    write_json(path, plan)
    write_text(settings.out / "recipe.toml", to_toml(plan["recipe"]))
    voice.end(f"{plan['recipe']['steps']} steps of pretraining, then {plan['sft']['steps']} of fine-tuning")
    return plan


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plan, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise UserError("plan.json cannot be read", where=str(path), why=str(error), fix="choose another --out") from error
    return plan


def _same_run(plan: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    if plan.get("version") != hornbook.__version__:
        raise UserError(
            "the output folder was made by another version of hornbook", where=str(path),
            why=f"{plan.get('version')} made it, this is {hornbook.__version__}",
            fix="choose another --out, or install that version",
        )  # fmt: skip
    missing = [part for part in PLAN if part not in plan]
    if missing:
        raise UserError("plan.json was cut", where=str(path), why=f"it has no {missing[0]!r}", fix="choose another --out")
    differing = [name for name in asked if plan["asked"].get(name) != asked[name]]
    if differing:
        name = differing[0]
        raise UserError(
            "the output folder belongs to another run", where=str(path),
            why=f"{name} was {plan['asked'].get(name)!r} and is now {asked[name]!r}",
            fix=f"choose another --out, or continue that run: {plan['command']}",
        )  # fmt: skip


def _plan(settings: Quickstart, asked: dict[str, Any], size: Size, device: Any, command: str) -> dict[str, Any]:
    """The stored plan: the size, and the two recipes that follow from it, the user's own fields on top."""
    config = model_config(size.depth, size.dim, size.vocab, size.context)
    del config["vocab_size"]  # the tokenizer decides
    recipe = Recipe(
        out=str(settings.out), model=config, data=settings.data, language=settings.language, seed=settings.seed,
        corpus_bytes=size.corpus_bytes, conversations=size.conversations, vocab=size.vocab, context=size.context, rows=size.rows,
        steps=size.steps, warmup=max(1, size.steps // 20), learning_rate=LEARNING_RATE, embedding_rate=EMBEDDING_RATE,
        device=settings.device,
    )  # fmt: skip
    tuning = SftRecipe(
        base=str(settings.out), steps=size.sft_steps, rows=size.rows, seed=settings.seed, warmup=max(1, size.sft_steps // 20),
        learning_rate=SFT_LEARNING_RATE, embedding_rate=SFT_EMBEDDING_RATE, device=settings.device,
    )  # fmt: skip
    if settings.recipe is not None:
        own = asked["recipe"]
        shape = own.get("model", {})  # with a model_type a whole one, else only what differs
        model = shape if "model_type" in shape else recipe.model | shape
        recipe = from_dict(Recipe, asdict(recipe) | own | {"model": model}, settings.recipe)
        recipe = replace(recipe, out=str(settings.out), data=settings.data, language=settings.language, seed=settings.seed)
        recipe = replace(recipe, vocab=settings.vocab or recipe.vocab, steps=settings.steps or recipe.steps)
    return {
        "version": hornbook.__version__, "asked": asked, "command": command, "identity": identity(device),
        "tokens_per_second": size.tokens_per_second, "rule": list(size.rule), "recipe": asdict(recipe), "sft": asdict(tuning),
    }  # fmt: skip


def command_of(settings: Quickstart) -> str:
    """The command line that makes and continues this run."""
    default, parts = Quickstart(), ["hornbook", "quickstart"]
    for name in (*SETTINGS, "out", "recipe", "device"):
        value = getattr(settings, name)
        if value != getattr(default, name):
            parts += [f"--{name}", str(value)]
    return shlex.join(parts)
