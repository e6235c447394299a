"""What a user can set: one frozen dataclass per verb. Nothing here imports torch, so that `--help` is quick."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hornbook.config import read_toml
from hornbook.optim.kinds import check_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.parallel.sizes import Parallel

SMALLEST_SHARE = 1 / 1024  # one sample in a block of a mixture
HELD_OUT_BYTES, HELD_OUT = 150_000, 40  # of text, and the documents that a look at it reads
LARGEST_SEED = 2**63 - 1  # that torch and numpy both take
MOST_WORKERS = 64
Optimizer = Literal["sgd", "adam", "adamw", "muon"]
Tracker = Literal["", "tensorboard", "trackio", "wandb"]
Decay = Literal["linear", "cosine", "wsd", "wsd_sqrt", "constant", "inverse_sqrt"]
# What may change while a run goes on: where, how often and for whom it works, and what moves no figure but by rounding.
FREE = (
    "out", "base", "folder", "parallel", "workers", "save_seconds", "keep_every", "keep_best", "track", "monitor",
    "looks", "held_out_documents",
    "device", "update", "recompute", "compile", "kernels", "attention",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a model learns, whatever it learns from.

    rows: samples per micro-batch; accumulate: micro-batches per step. ramp: the first so many, while steps grow from one to all.
    workers: threads that prepare batches while the model learns, for the same weights.
    learning_rate: of the tower's matrices; embedding_rate: of embeddings and vectors.
    momentum, nesterov: of sgd and muon; unset is the usual. decay_steps: the last so many fall; unset is all, for wsd a fifth.
    precision: auto, fp32, bf16, fp16 or fp8, products of blocks in 8 bits on a GPU that has them and bf16 for the rest.
    sigmas: how odd a step's loss or gradient may be before it is left out (0: not finite).
    recompute: what a block computes again in the backward pass, to save memory: none, blocks or selective.
    keep_every: steps per state that stays in `checkpoints` for good (0: none); keep_best: so does the best on held-out text.
    track: also write the rows of metrics.jsonl to tensorboard, trackio or wandb.
    looks: at held-out text, with samples, in a run. monitor: looks into the layers in a run of one process, written to layers.jsonl
    (0: none).
    attention_dropout: of weights, as published, or of keys, which keeps the fastest kernel: another dropout of the same mean.
    attention: sdpa, torch's kernel, or flex, its FlexAttention on a GPU: packed documents and windows cost what is seen of them.
    kernels: torch, or triton, hornbook's own in place of torch's operations, where this model has them, on a GPU.
    update: how torch's optimizers step: fused, one kernel; foreach, an operation at a time; plain, a parameter at a time.
    weights: fp32, or bf16, moved by float32 masters in the optimizer. tf32: products of a GPU with 10 bits of fraction.
    compile: the blocks, by torch.compile, before the first step.
    """

    seed: int = 0
    rows: int = 16
    accumulate: int = 1
    ramp: int = 0
    workers: int = 0
    steps: int = 500
    optimizer: Optimizer = "muon"
    learning_rate: float = 0.01
    embedding_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float | None = None
    nesterov: bool = False
    update: Literal["fused", "foreach", "plain"] = "fused"
    weight_decay: float = 0.0
    warmup: int = 20
    decay: Decay = "linear"
    decay_steps: int | None = None
    clip: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    recompute: Literal["none", "blocks", "selective"] = "none"
    attention_dropout: Literal["weights", "keys"] = "weights"
    attention: Literal["sdpa", "flex"] = "sdpa"
    kernels: Literal["torch", "triton"] = "torch"
    weights: Literal["fp32", "bf16"] = "fp32"
    tf32: bool = False
    compile: bool = False
    sigmas: float = 6.0
    save_seconds: float = 20.0
    keep_every: int = 0
    keep_best: bool = False
    track: Tracker = ""
    looks: int = 4
    monitor: int = 20
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("rows", "accumulate", "steps", "looks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("learning_rate", "embedding_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0: {getattr(self, name)}")
        for name in ("warmup", "monitor", "ramp", "save_seconds", "keep_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0: {getattr(self, name)}")
        for name in ("sigmas", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite: {getattr(self, name)}")
        for name, most in (("seed", LARGEST_SEED), ("workers", MOST_WORKERS)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 0 to {most}: {getattr(self, name)}")
        for name, known in (
            ("attention", ("sdpa", "flex")),
            ("kernels", ("torch", "triton")),
            ("update", ("fused", "foreach", "plain")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}: {getattr(self, name)!r}")
        if self.weights == "bf16" and self.precision == "fp16":
            raise ValueError("weights must be fp32 where precision is fp16: 'bf16'; use precision auto, or weights fp32")
        check_optimizer(self.optimizer, (self.beta1, self.beta2), self.momentum, self.nesterov)
        warmup_decay(self.steps, self.warmup, self.decay, self.decay_steps)


def learned(recipe: Learning) -> dict[str, Any]:
    """What decides the weights, by the recipe's keys; not its `model`, which the tokenizer completes."""
    return {key: value for key, value in vars(recipe).items() if key not in (*FREE, "model")}


def usual(recipe: Learning) -> dict[str, Any]:
    """What a key of the recipe is where it is not set, for a run that was begun when the key was not there yet."""
    each = [(key, found.default, found.default_factory) for key, found in type(recipe).__dataclass_fields__.items()]
    return {key: value if make is MISSING else make() for key, value, make in each if (value, make) != (MISSING, MISSING)}


@dataclass(frozen=True, kw_only=True)
class Recipe(Learning):
    """A pretraining run: corpus, tokenizer, model and training. `[model]` is a published config.json in TOML.

    objective: causal, for a decoder that says what follows; masked, for an encoder (bert, roberta) that says what is hidden.
    mask_words: hide whole words, where objective is masked; else tokens, each for itself.
    data: town, shakespeare, python, a path, or hf:OWNER/NAME[/CONFIG]. corpus_bytes: read at most so much text.
    mixture: instead of `data`, a table of several and their weights; a batch holds rows of each in that proportion.
    held_out_bytes: text of each source but the town that is not learned from, at most a twentieth. held_out_documents: of it,
    what a look at a causal model reads.
    tokenizer: a model, a run, a file, a known vocabulary or hf:OWNER/NAME whose tokenizer is taken as it is; unset: learn one.
    packing: stream, rows run across the ends of documents; best-fit, a row holds whole documents that do not see each other.
    z_loss: the weight of log(Z)^2 beside the loss, which holds the logits near zero (PaLM: 1e-4; 0: none).
    vocab_multiple: the model gets rows for no token, up to a multiple of so many, where products of such a size are faster.
    parallel: how the run is spread over the processes that torchrun starts; rows stay those of all of them together.
    """

    out: str
    model: dict[str, Any]
    objective: Literal["causal", "masked"] = "causal"
    mask_words: bool = False
    data: str = "town"
    mixture: dict[str, float] = field(default_factory=dict)
    language: str = "en"
    corpus_bytes: int = 10_000_000
    held_out_bytes: int = HELD_OUT_BYTES
    held_out_documents: int = HELD_OUT
    conversations: int = 2000
    tokenizer: str = ""
    vocab: int = 1024
    vocab_multiple: int = 1
    split: str = "cl100k"
    context: int = 256
    packing: Literal["stream", "best-fit"] = "stream"
    init_std: float = 0.02
    parallel: Parallel = field(default_factory=Parallel)
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        for name in ("corpus_bytes", "held_out_bytes", "held_out_documents", "vocab", "vocab_multiple", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        if not self.init_std > 0:
            raise ValueError(f"init_std must be above 0: {self.init_std}")
        if not self.z_loss >= 0:
            raise ValueError(f"z_loss must be at least 0: {self.z_loss}")
        if self.parallel.sequence and self.context % self.parallel.tensor:
            raise ValueError(f"context must be a multiple of parallel.tensor with parallel.sequence: {self.context}")
        if self.mixture and self.data != "town":
            raise ValueError(f"data must be left out where there is a mixture: {self.data!r}")
        for name, weight in self.mixture.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"mixture must give every source a weight above 0: {name} = {weight!r}")
        for name, weight in self.mixture.items():
            if weight / sum(self.mixture.values()) < SMALLEST_SHARE:
                raise ValueError(
                    f"mixture must give every source at least {SMALLEST_SHARE:.4f} of all weights: {name} = {weight!r}"
                )
        if self.mask_words and self.objective != "masked":
            raise ValueError(f"mask_words must be false where objective is {self.objective}: true")
        if self.objective == "masked" and self.packing != "stream":
            raise ValueError(f"packing must be stream where objective is masked: {self.packing!r}")
        super().__post_init__()

    @property
    def reads(self) -> str:
        """The names of what the run learns from."""
        return ", ".join(self.mixture) or self.data


@dataclass(frozen=True, kw_only=True)
class SftRecipe(Learning):
    """A fine-tuning run on the conversations of a run's corpus. base: the run that `pretrain` made.

    replay: documents of the corpus that are mixed in, as a share of the conversations, so that the model keeps its prose.
    """

    base: str
    steps: int = 200
    learning_rate: float = 0.005
    embedding_rate: float = 0.005
    warmup: int = 10
    replay: float = 0.3
    parallel: Parallel = field(default_factory=Parallel)


@dataclass(frozen=True, kw_only=True)
class SpeechRecipe(Learning):
    """A speech encoder that spells what it hears, learned by CTC. `[model]` is a speech_ctc config in TOML.

    folder: of LABEL_SPEAKER_*.wav, or a .tsv or .jsonl file of file, text, speaker. held_out: the speaker that is only measured.
    spelling: the text of a label. rate: samples per second that every recording is brought to.
    trim: the ends of a recording that are quieter than its loudest frame by more decibels are cut off; 0: nothing is.
    pace: frames (10 ms) that every recording is stretched to, for words that are said alone, fast or slow; 0: none is.
    deltas: a frame also holds how each band rises or falls there.
    speed, shift, noise, warp, tilt, masks, masked_mels, masked_frames: how far a recording may be varied each time, see
    `hornbook/data/audio.py`.
    """

    out: str
    model: dict[str, Any]
    folder: str = ""
    held_out: str = ""
    spelling: dict[str, str] = field(default_factory=dict)
    rate: int = 8000
    trim: float = 0.0
    pace: int = 0
    deltas: bool = False
    speed: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    warp: float = 0.0
    tilt: float = 0.0
    masks: int = 0
    masked_mels: int = 8
    masked_frames: int = 8
    rows: int = 32
    steps: int = 600
    embedding_rate: float = 0.003
    warmup: int = 30

    def __post_init__(self) -> None:
        if not 4000 <= self.rate <= 48_000:
            raise ValueError(f"rate must be from 4000 to 48000 samples per second: {self.rate}")
        limits = {"trim": 200, "speed": 0.9, "shift": 10, "noise": 10, "warp": 0.9, "tilt": 10, "masks": 100}
        limits |= {"masked_mels": 1000, "masked_frames": 1000, "pace": 100_000}
        if self.keep_best:
            raise ValueError("keep_best must be false: speech is measured on held-out recordings at the end alone")
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be from 0 to {limit}: {getattr(self, name)}")
        super().__post_init__()


@dataclass(frozen=True)
class Quickstart:
    """The whole life of a language model in one run. `minutes` is the one dial; everything else follows or can be set."""

    data: str = "town"
    language: str = "en"
    minutes: float = 5.0
    out: Path = field(default=Path("runs/quickstart"))
    seed: int = 0
    depth: int | None = None
    vocab: int | None = None
    steps: int | None = None
    recipe: Path | None = None
    device: str = "auto"

    def completed(self) -> Quickstart:
        """With the recipe's data, language and seed where no flag sets them."""
        own = {} if self.recipe is None else read_toml(self.recipe)
        unset = [name for name in ("data", "language", "seed") if getattr(self, name) == getattr(Quickstart, name)]
        return replace(self, **{name: own[name] for name in unset if name in own})
