"""Forward and backward of the core beside its peers, pair by pair in one run.

    python benchmarks/core.py --nanogpt CLONE        (a clone of karpathy/nanoGPT; without it that row is left out)

GPT-2's 124M shape on one row of 512 tokens, against nanoGPT's model and transformers' (scaled_dot_product_attention). A mixture of
eight experts, two per token, on 2,048 tokens of width 512 and hidden 1,792, against transformers' grouped and eager experts. All
in float32 with the same weights and the same input; medians over interleaved rounds. Peers: see requirements.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from hornbook.families import build, family
from hornbook.families.weights import from_published
from hornbook.model import Context, GatedMLP, MoE, TopK
from hornbook.train.cross_entropy import cross_entropy

TOKENS, VOCAB = 512, 50257
DIM, HIDDEN, EXPERTS, TOP_K, MOE_TOKENS = 512, 1792, 8, 2, 2048
Step = Callable[[], float]


def trained(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """One forward and backward; returns the loss, so that peers can be seen to compute the same."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return float(value.detach())

    return step


def gpt2_steps(nanogpt: Path | None) -> dict[str, Step]:
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    theirs = transformers.GPT2LMHeadModel(config).train()
    as_dict = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    ours = build(as_dict)
    published = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    tied = [name for name, _ in ours.ties]
    ours.load_state_dict(from_published(family(as_dict).weights(as_dict), published, shapes, tied, "memory"), strict=False)
    ours.tie()
    ids = torch.randint(VOCAB, (1, TOKENS + 1))
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    steps = {
        "hornbook": trained(ours, lambda: cross_entropy(ours.head, ours.hidden(inputs), targets) / TOKENS),
        "transformers": trained(theirs, lambda: F.cross_entropy(theirs(inputs).logits.flatten(0, 1), targets)),
    }
    if nanogpt is not None:
        other = nano(nanogpt, theirs)
        steps["nanoGPT"] = trained(other, lambda: other(inputs, ids[:, 1:])[1])
    return steps


def nano(clone: Path, theirs: nn.Module) -> Any:
    """nanoGPT's model with the same weights, by its own rule: Conv1D weights are transposed."""
    found = importlib.util.spec_from_file_location("nanogpt_model", clone / "model.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["nanogpt_model"] = module
    found.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(vocab_size=VOCAB, block_size=1024, dropout=0.0, bias=True)).train()
    state, transposed = model.state_dict(), ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if name in state:
                state[name].copy_(value.t() if name.endswith(transposed) else value)
    return model


def moe_steps() -> dict[str, Step]:
    layer = MoE(expert=GatedMLP(HIDDEN), experts=EXPERTS, router=TopK(top_k=TOP_K)).build(DIM)
    with torch.no_grad():
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
    x = torch.randn(1, MOE_TOKENS, DIM, requires_grad=True)
    steps = {"hornbook": trained(layer, lambda: layer(x, Context()).square().mean())}
    for kind in ("grouped_mm", "eager"):
        config = transformers.MixtralConfig(
            hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
        )
        config._experts_implementation = kind
        block = MixtralSparseMoeBlock(config)
        with torch.no_grad():
            block.gate.weight.copy_(layer.router.out.weight)
            block.experts.gate_up_proj.copy_(torch.cat((layer.gate, layer.up), 1))
            block.experts.down_proj.copy_(layer.down)

        def loss(block: nn.Module = block) -> Tensor:
            y = block(x)
            return (y[0] if isinstance(y, tuple) else y).square().mean()

        steps[f"transformers, {kind}"] = trained(block, loss)
    return steps


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, Any]:
    """Median seconds of each; the order turns from round to round. Every peer must compute hornbook's loss."""
    values = {name: step() for name, step in steps.items()}  # warms up, too
    for name, value in values.items():
        assert abs(value - values["hornbook"]) < 1e-4 * max(1.0, abs(value)), f"{name} computes {value}, not {values['hornbook']}"
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["hornbook"], each, strict=True)) for name, each in seconds.items()
    }
    return {"seconds": medians, "times_as_fast": ratios, "rounds": rounds, "loss": values["hornbook"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    record: dict[str, Any] = {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__
    }  # fmt: skip
    for title, steps in (("gpt2-124m, 1 x 512", gpt2_steps(given.nanogpt)), ("8 experts, top 2, 2048 tokens", moe_steps())):
        record[title] = found = interleaved(steps, given.rounds)
        print(f"\n{title}: forward and backward, median of {given.rounds} rounds")
        for name, each in found["seconds"].items():
            print(f"  {name:28} {1000 * each:8.1f} ms   hornbook is {found['times_as_fast'][name]:.3f} times as fast")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
