"""Single training runs, as recipes describe them: the same stages that quickstart calls, in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hornbook.errors import UserError
from hornbook.files import MANIFEST
from hornbook.parallel.team import Team, join
from hornbook.ranks import choose_device, from_first, patient_group
from hornbook.stages.corpus import make_corpus, make_mixture
from hornbook.stages.keep import begun, run_folder, sources, states
from hornbook.stages.learn import check_model, pretrain, sft
from hornbook.stages.settings import Recipe, SftRecipe, learned, usual
from hornbook.stages.tokens import make_shards, ready_tokenizer, train_tokenizer
from hornbook.stages.train import check
from hornbook.stages.voice import Voice
from hornbook.text.chat import MASK, SPECIALS
from hornbook.text.tokenizer import Tokenizer


def pretrain_run(recipe: Recipe, voice: Voice, command: str) -> Path:
    """Corpus, tokenizer, shards and model in `recipe.out`; returns the model's folder."""
    out, team = Path(recipe.out), _team(recipe, voice)
    shape = check_model(recipe)
    if not (out / "pretrained" / MANIFEST).exists():  # what is finished needs nothing
        check(shape, recipe, team, states(out, "pretrain"))
    with held_by_first(out):
        from_first(lambda: begun(out, "pretrain", learned(recipe), usual(recipe)))
        from_first(lambda: prepared(recipe, voice) and None, patient_group("waiting"))  # a tokenizer is no JSON value
        tokenizer = Tokenizer.load(out / "tokenizer")
        return pretrain(recipe, tokenizer, out / "corpus", out / "shards", out, team, voice, command)


def _team(recipe: Recipe | SftRecipe, voice: Voice) -> Team:
    """The processes of the run, which torchrun started, or this one alone."""
    device = choose_device(recipe.device)
    voice.say(f"device: {device}")
    return join(recipe.parallel, device)


@contextmanager
def held_by_first(out: Path) -> Iterator[None]:
    """Hold the run's folder for all processes of the run."""
    with ExitStack() as held:
        from_first(lambda: held.enter_context(run_folder(out)))
        yield


def prepared(recipe: Recipe, voice: Voice) -> Tokenizer:
    """Corpus, tokenizer and shards in `recipe.out`, which the caller holds."""
    out = Path(recipe.out)
    if recipe.tokenizer:  # first: a wrong name should not be found after hours of reading
        ready_tokenizer(recipe.tokenizer, out / "tokenizer", voice)
    given = (recipe.language, recipe.seed, recipe.corpus_bytes, recipe.conversations, out / "corpus", voice, recipe.held_out_bytes)
    make_mixture(recipe.mixture, *given) if recipe.mixture else make_corpus(recipe.data, *given)
    if recipe.tokenizer:
        tokenizer = Tokenizer.load(out / "tokenizer")
    else:
        specials = SPECIALS if recipe.objective == "causal" else (*SPECIALS, MASK)
        tokenizer = train_tokenizer(out / "corpus", recipe.vocab, recipe.split, out / "tokenizer", voice, specials=specials)
    for part in sources(out / "corpus"):
        make_shards(part, tokenizer, out / "shards" / part.relative_to(out / "corpus"), voice)
    return tokenizer


def sft_run(recipe: SftRecipe, voice: Voice, command: str) -> Path:
    """Fine-tune the model of the run at `recipe.base` on that run's conversations; returns the model's folder."""
    run, team = Path(recipe.base), _team(recipe, voice)
    for needed in ("corpus", "tokenizer", "pretrained"):
        if not (run / needed).is_dir():
            raise UserError(
                f"no finished pretraining run at {run}", where=str(run / needed), fix="name the folder that hornbook pretrain wrote"
            )
    with held_by_first(run):
        return sft(recipe, Tokenizer.load(run / "tokenizer"), run / "corpus", run / "pretrained", run, team, voice, command)
