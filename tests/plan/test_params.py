"""Counts against what was published, against transformers' own models, and against real tensors and optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import transformers
from torch import nn

from hornbook.families import FAMILIES, build
from hornbook.generation.cache import DenseCache
from hornbook.model import Context
from hornbook.plan import memory
from hornbook.plan.params import GROUPS, Parameters, count
from tests.reference.models import DECODERS, small_model
from tests.reference.published_configs import PUBLISHED

# Words in transformers' parameter names, in the order in which they are asked; what has none of them is a norm.
WORDS = {
    "embedding": ("wte", "wpe", "embed"), "head": ("lm_head",), "experts": ("experts",), "feed_forward": ("mlp",),
    "attention": ("_proj", "attn.c_"),
}  # fmt: skip


def ours(name: str) -> Parameters:
    config = PUBLISHED[name].config
    if config["model_type"] not in FAMILIES:
        pytest.skip(f"{config['model_type']} is not a known family yet")
    with torch.device("meta"):
        return count(build(config))


@cache
def theirs(name: str) -> nn.Module:
    config = PUBLISHED[name].config
    rest = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.for_model(config["model_type"], **rest))
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_count_is_that_of_transformers(name: str) -> None:
    assert sum(parameter.numel() for parameter in theirs(name).parameters()) == PUBLISHED[name].count


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_the_published_one(name: str) -> None:
    assert ours(name).total == PUBLISHED[name].count


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "llama-3-8b", "qwen3-8b", "mixtral-8x7b"])
def test_each_group_is_that_of_the_names_in_transformers(name: str) -> None:
    expected = dict.fromkeys(GROUPS, 0)
    for key, parameter in theirs(name).named_parameters():
        found = [group for group, words in WORDS.items() if any(word in key for word in words)]
        expected[found[0] if found else "norms_and_other"] += parameter.numel()
    assert ours(name).groups == expected


def test_mixtral_uses_the_published_share() -> None:
    assert round(ours("mixtral-8x7b").active / 1e9, 1) == 12.9


@pytest.mark.parametrize("family", DECODERS)
def test_what_a_token_leaves_in_the_cache(family: str) -> None:
    model, cache = small_model(family), DenseCache(5)
    tokens = torch.zeros(1, 5, dtype=torch.long)
    model(tokens, Context(positions_bt=torch.arange(5)[None], cache=cache))
    kept = sum(slot.k_bsgk.numel() + slot.v_bsgk.numel() for slot in cache.slots.values())
    assert count(model).cache_values * 5 == kept > 0


def test_a_tied_parameter_is_counted_once() -> None:
    tied, loose = (count(small_model("qwen3", tie_word_embeddings=tie)) for tie in (True, False))
    embedding = loose.groups["embedding"]
    assert (tied.shared, loose.shared) == (embedding, 0) and tied.total == loose.total - embedding
    assert tied.groups["head"] == 0 and loose.groups["head"] == embedding
    assert tied.active == tied.total == sum(parameter.numel() for parameter in small_model("qwen3").parameters())


class Experts(nn.Module):
    """Four experts side by side, of which a token uses one; a router, and one expert that every token uses."""

    active_share = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 3, 5))
        self.router, self.shared = nn.Linear(3, 4, bias=False), nn.Linear(3, 3)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_stem = nn.ModuleDict({"tokens": nn.Embedding(7, 3), "types": nn.Embedding(2, 3), "norm": nn.LayerNorm(3)})
        self.tower = nn.ModuleList([nn.Sequential(nn.RMSNorm(3), Experts()) for _ in range(2)])
        self.head = nn.Linear(3, 7)
        self.head.weight = self.token_stem["tokens"].weight


def test_experts_are_counted_by_the_share_that_a_token_uses() -> None:
    found = count(Toy())
    expected = {"embedding": 27, "attention": 0, "feed_forward": 2 * (12 + 12), "experts": 2 * 60, "norms_and_other": 12, "head": 7}
    assert found.groups == expected
    assert (found.total, found.active, found.shared) == (214, 214 - 90, 21)


# --- memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8", torch.float8_e4m3fn),
        ("int8", torch.int8),
    ],
)
def test_weights_take_the_bytes_of_a_real_tensor(name: str, dtype: torch.dtype) -> None:
    assert memory.weights(1001)[name]["bytes"] == torch.empty(1001, dtype=dtype).nbytes


def test_seven_billion_weights() -> None:
    found = memory.weights(7 * 10**9)
    assert {name: found[name]["GB"] for name in ("fp32", "bf16", "int8", "int4")} == {
        "fp32": 28, "bf16": 14, "int8": 7, "int4": 3.5,
    }  # fmt: skip
    assert found["fp32"]["GiB"] * 1024**3 == 28 * 1000**3
    assert memory.weights(3)["int4"]["bytes"] == 2  # half a byte still takes one


def held(tensors: Iterator[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(("recipe", "dtype"), [(memory.PLAIN, torch.float32), (memory.MIXED, torch.bfloat16)])
def test_training_takes_the_bytes_of_a_real_step(recipe: str, dtype: torch.dtype) -> None:
    model = nn.Linear(30, 20, bias=False, dtype=dtype)
    model(torch.ones(1, 30, dtype=dtype)).sum().backward()
    weight = model.weight
    master = weight if dtype == torch.float32 else nn.Parameter(weight.detach().float())
    gradient, master.grad = weight.grad, weight.grad.to(master.dtype)
    optimizer = torch.optim.AdamW([master])
    optimizer.step()
    copies = [] if master is weight else [master]
    moments = [optimizer.state[master][name] for name in ("exp_avg", "exp_avg_sq")]
    assert memory.training(600)[recipe]["total"]["bytes"] == held(iter([weight, gradient, *copies, *moments]))
    items = memory.training(600)[recipe]
    assert sum(item["bytes"] for name, item in items.items() if name != "total") == items["total"]["bytes"]
