"""Pipelines against one process: loss, every gradient by name, weights after AdamW's steps; and what each schedule keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from hornbook.adapt.recompute import recompute
from hornbook.batch import IGNORE, Batch, Loss
from hornbook.errors import UserError
from hornbook.families import build, build_any
from hornbook.model import Attention, MoE, TransformerModel
from hornbook.model.bias import BucketBias
from hornbook.model.block import BlockLayer
from hornbook.model.mlp import GatedMLP
from hornbook.model.moe import Hash
from hornbook.optim.build import build_optimizer
from hornbook.parallel.pipeline import Pipeline, cut, starts
from hornbook.train.objective import causal, causal_lm, classification, masked_lm
from tests.parallel.pool import ranks
from tests.reference.tiny import GPT2, LLAMA, TIED, VOCAB, random_batch, tiny_model

LAYERS = 5
ENCODER = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "model_type": "bert",
    "attention_probs_dropout_prob": 0.0, "pad_token_id": 0, "id2label": {"0": "a", "1": "b", "2": "c"},
}  # fmt: skip
DEEP = {**LLAMA, "num_hidden_layers": LAYERS}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": DEEP,
    "gpt2": {**GPT2, "n_layer": LAYERS},
    "bert": {**ENCODER, "architectures": ["BertForMaskedLM"]},
    "classes": {**ENCODER, "architectures": ["BertForSequenceClassification"]},
    "gemma2": {**DEEP, "model_type": "gemma2", "query_pre_attn_scalar": 4, "head_dim": 4, "sliding_window": 3,
               "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "mixtral": {**DEEP, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1,
                "sliding_window": None},
    "bloom": {"model_type": "bloom", "vocab_size": VOCAB, "hidden_size": 16, "n_layer": LAYERS, "n_head": 4,
              "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 64},
}  # fmt: skip
DROPPING = {**GPT2, "n_layer": LAYERS, "resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
# From outside the families: one table of distances for all layers (T5), and experts that are chosen by id.
CHANGED = ("one table", "by id")
OBJECTIVES: dict[str, Callable[[Any, Batch], Loss]] = {
    "bert": masked_lm, "classes": classification(0.1), "gpt2": causal(1e-2)
}  # fmt: skip
STEPS = [4, 5, 1, 2, 3]  # micro-batches: other numbers than before, one, fewer than stages
Gradients = dict[str, torch.Tensor]


def changed(kind: str) -> TransformerModel:
    spec = build(DEEP).spec
    block, ties = spec.tower.blocks[0], spec.ties
    if kind == "one table":
        attention = block.attn.op
        assert isinstance(attention, Attention)
        bias = BucketBias(buckets=8, max_distance=6)
        block = replace(block, attn=replace(block.attn, op=replace(attention, rope=None, bias=bias)))
        name = "tower.blocks.{}.attn.op.bias.table.weight"
        ties = (*ties, *((name.format(layer), name.format(0)) for layer in range(1, LAYERS)))
    else:
        assert block.ffn is not None and isinstance(block.ffn.op, GatedMLP)
        block = replace(block, ffn=replace(block.ffn, op=MoE(expert=block.ffn.op, experts=3, router=Hash(vocab=VOCAB))))
    model = replace(spec, tower=replace(spec.tower, blocks=(block,) * LAYERS), ties=ties).build().double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model


def model_of(name: str) -> TransformerModel:
    return (changed(name) if name in CHANGED else tiny_model(CONFIGS[name])).train()


def batches_of(name: str, step: int) -> list[Batch]:
    """Ragged in length, in rows and in what is asked, longer from step to step; packed, padded or with one class per row."""
    found = []
    for number in range(STEPS[step]):
        batch = random_batch(1 + number % 3, 5 + step + (number * 5) % 4, 10 * step + number, 0.6)
        length = batch.tokens_bt.shape[1]
        places_bt = torch.arange(length)[None].expand_as(batch.tokens_bt)
        if name == "classes":
            batch = replace(batch, targets_bt=torch.tensor([number % 3, IGNORE, 1])[: len(batch.tokens_bt)])
        if name in ("bert", "classes"):
            batch = replace(batch, padding_bs=places_bt < length - number % 2)
        elif step % 2:
            batch = replace(batch, documents_bt=(places_bt > 3).long(), positions_bt=places_bt - 4 * (places_bt > 3))
        found.append(batch)
    found[-1].targets_bt[:] = IGNORE if len(found) == 5 else found[-1].targets_bt  # a micro-batch that asks nothing
    return found


def pipeline_mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("pipeline",))


def one_process(model: TransformerModel, batches: list[Batch], objective: Callable[[Any, Batch], Loss]) -> tuple[float, int]:
    losses = [objective(model, batch) for batch in batches]
    for loss in losses:
        loss.total.backward()
    return sum(float(loss.total.detach()) for loss in losses), sum(int(loss.count) for loss in losses)


def summed(*numbers: Any) -> list[float]:
    """Over the ranks."""
    found = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    dist.all_reduce(found)
    return found.tolist()


def gap(pipeline: Pipeline, whole: TransformerModel, what: str) -> float:
    """The largest difference between the stage's values or gradients and the whole model's of the same name."""
    theirs, far = dict(whole.named_parameters()), 0.0
    for name, parameter in pipeline.model.named_parameters():
        ours, other = getattr(parameter, what).detach(), getattr(theirs[pipeline.share.names[name]], what).detach()
        far = max(far, float(((ours.full_tensor() if isinstance(ours, DTensor) else ours) - other).abs().max()))
    return far


def against_one_process(rank: int, name: str, schedule: str) -> dict[str, float]:
    whole, pipeline = model_of(name), Pipeline(model_of(name), pipeline_mesh(), schedule)
    objective, far = OBJECTIVES.get(name, causal_lm), dict.fromkeys(("loss", "count", "gradients", "norm", "weights"), 0.0)
    optimizers = [build_optimizer(model, "adamw", 0.01) for model in (whole, pipeline.model)]
    for step in range(len(STEPS)):
        batches = batches_of(name, step)
        loss, count = one_process(whole, batches, objective)
        total, asked = pipeline.gradients(batches, objective)
        assert pipeline.last or not (total or asked)
        norm = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters() if p.grad is not None])
        ours = [
            p.grad.square().sum()
            for each, p in pipeline.model.named_parameters()
            if each in pipeline.share.owned and p.grad is not None
        ]
        total, asked, square = summed(total, asked, sum(ours))
        seen = {
            "loss": abs(total - loss), "count": abs(asked - count), "norm": abs(square**0.5 - float(norm)),
            "gradients": gap(pipeline, whole, "grad"),
        }  # fmt: skip
        for optimizer, model in zip(optimizers, (whole, pipeline.model), strict=True):
            torch._foreach_div_([p.grad for p in model.parameters()], count)
            optimizer.step()
            optimizer.zero_grad()
        far = {each: max(old, seen.get(each, 0.0)) for each, old in far.items()}
    return {**far, "weights": gap(pipeline, whole, "data")}


@pytest.mark.parametrize(
    "world, schedule, name",
    [
        *((2, "1f1b", name) for name in (*CONFIGS, *CHANGED)),
        (4, "1f1b", "gpt2"), (4, "1f1b", "mixtral"), (2, "gpipe", "gpt2"), (4, "gpipe", "one table"),
    ],
)  # fmt: skip
def test_a_pipeline_learns_what_one_process_does(world: int, schedule: str, name: str) -> None:
    for far in ranks(world).run(against_one_process, name, schedule):
        assert max(far.values()) < 1e-10, far


def gradients_of(model: TransformerModel, schedule: str, batches: list[Batch], seed: int, **how: Any) -> tuple[float, Gradients]:
    pipeline = Pipeline(model.train(), pipeline_mesh(), schedule)
    torch.manual_seed(seed)
    (total,) = summed(pipeline.gradients(batches, causal_lm, **how)[0])
    return total, {pipeline.share.names[name]: p.grad.clone() for name, p in pipeline.model.named_parameters()}


def furthest(a: Gradients, b: Gradients) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def dropping(rank: int) -> dict[str, float]:
    """Each stage draws from a generator of its own: the whole model is made to by a change of state between its layers."""
    world, batches = dist.get_world_size(), [random_batch(2, 8, n) for n in range(6)]
    total, found = gradients_of(tiny_model(DROPPING), "1f1b", batches, rank)
    _, other = gradients_of(tiny_model(DROPPING), "gpipe", batches, rank)
    whole, states, now = tiny_model(DROPPING).train(), [torch.Generator().manual_seed(s).get_state() for s in range(world)], [0]

    def at(stage: int, *_: Any) -> None:
        states[now[0]], now[0] = torch.get_rng_state(), stage
        torch.set_rng_state(states[stage])

    torch.manual_seed(0)
    whole.stem.register_forward_pre_hook(partial(at, 0))
    for stage, layer in enumerate(starts(LAYERS, world)[:-1]):
        whole.tower.blocks[layer].register_forward_pre_hook(partial(at, stage))
    loss = 0.0
    for batch in batches:
        one = causal_lm(whole, batch).total
        one.backward()
        loss += float(one.detach())
    expected = {name: p.grad for name, p in whole.named_parameters()}
    recomputed = {}
    for kind in ("blocks", "selective"):
        model = tiny_model(DROPPING)
        recompute(model, kind)
        recomputed[kind] = furthest(gradients_of(model, "1f1b", batches, rank)[1], found)
    still, _ = gradients_of(tiny_model(CONFIGS["gpt2"]), "1f1b", batches, rank)
    assert abs(total - still) > 1e-3
    return {"loss": abs(total - loss), "whole": furthest(found, expected), "gpipe": furthest(found, other), **recomputed}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_dropout_falls_as_each_stage_draws_it_and_recomputed_as_before(world: int) -> None:
    for far in ranks(world).run(dropping):
        assert max(far.values()) < 1e-10, far
        assert far["gpipe"] == far["blocks"] == far["selective"] == 0


def in_bf16(rank: int) -> tuple[float, float, float]:
    """The size of the gradients of a scaled loss under autocast, and how far one process's and the unshortened ones are."""
    config, batches = CONFIGS["gpt2"], [random_batch(2, 8, n) for n in range(4)]
    short = partial(torch.autocast, "cpu", torch.bfloat16)
    _, found = gradients_of(tiny_model(config, dtype=torch.float32), "1f1b", batches, 0, autocast=short, scale=4.0)
    far = []
    for autocast in (short, nullcontext):
        whole = tiny_model(config, dtype=torch.float32)
        for batch in batches:
            with autocast():
                total = causal_lm(whole, batch).total
            total.backward()
        far.append(furthest(found, {name: 4 * p.grad for name, p in whole.named_parameters()}))
    return max(float(grad.abs().max()) for grad in found.values()), far[0], far[1]


def test_autocast_and_a_scaled_loss() -> None:
    for size, far, unshortened in ranks(2).run(in_bf16):
        assert far < 1e-5 * size < 1e-3 * size < unshortened


def in_flight(rank: int, schedule: str, count: int) -> int:
    """The most micro-batches whose way back has not reached this stage's first layer."""
    pipeline, now, most = Pipeline(tiny_model(DEEP), pipeline_mesh(), schedule), [0], [0]

    def back(_: torch.Tensor) -> None:
        now[0] -= 1

    def there(_: Any, __: Any, x: torch.Tensor) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        x.register_hook(back)

    pipeline.model.tower.blocks[starts(LAYERS, pipeline.stages)[rank]].register_forward_hook(there)
    pipeline.gradients([random_batch(1, 4, n) for n in range(count)], causal_lm)
    assert now == [0]
    return most[0]


@pytest.mark.parametrize("world", [2, 4])
def test_1f1b_keeps_as_many_micro_batches_as_stages_follow_and_gpipe_all(world: int) -> None:
    assert ranks(world).run(in_flight, "1f1b", 9) == [world - stage for stage in range(world)]
    assert ranks(world).run(in_flight, "gpipe", 9) == [9] * world


def looked(rank: int) -> Any:
    whole, pipeline = tiny_model(CONFIGS["gpt2"]).eval(), Pipeline(tiny_model(CONFIGS["gpt2"]).eval(), pipeline_mesh())
    batches = [random_batch(1 + n % 2, 4 + n % 7, n) for n in range(19)]
    pipeline.gradients(batches[:3], causal_lm)
    found = pipeline.forward_only(batches, lambda model, batch: model(batch.tokens_bt))
    with pytest.raises(ValueError, match="start from None"):
        pipeline.gradients(batches[:3], causal_lm)
    pipeline.model.zero_grad()
    pipeline.gradients(batches[:3], causal_lm)
    pairs = zip(found, [whole(batch.tokens_bt) for batch in batches[: len(found)]], strict=True)
    return pipeline.last, len(found), max((float((ours - theirs).abs().max()) for ours, theirs in pairs), default=0.0)


def test_looks_at_other_batches_between_steps() -> None:
    first, last = ranks(2).run(looked)
    assert first == (False, 0, 0.0)
    assert last[:2] == (True, 19) and last[2] < 1e-10


def alone(rank: int) -> tuple[float, str]:
    """A pipeline of one stage."""
    mesh, batches = (
        init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data", "pipeline")),
        [random_batch(2, 5, 0)],
    )
    whole, pipeline = model_of("gpt2"), Pipeline(model_of("gpt2"), mesh["pipeline"])
    one_process(whole, batches, causal_lm)
    pipeline.gradients(batches, causal_lm)
    with pytest.raises(ValueError) as refused:
        pipeline.forward_only(batches, lambda model, batch: model(batch.tokens_bt[:, 1:]))
    return gap(pipeline, whole, "grad"), str(refused.value)


def test_one_stage_and_other_tokens_than_the_batch_has() -> None:
    for far, refused in ranks(2).run(alone):
        assert far < 1e-10 and "the batch's own tokens_bt alone" in refused


def data_too(rank: int, kind: str) -> dict[str, float]:
    """Two pipelines of two stages, each with half of the micro-batches; what the data axis does is torch's."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data"))
    whole, pipeline = model_of("gpt2"), Pipeline(model_of("gpt2"), mesh["pipeline"])
    batches, data = [random_batch(2, 6 + n % 3, n, 0.7) for n in range(6)], mesh["data"]
    if kind != "plain":
        spread = fully_shard if kind == "shards" else replicate
        for module in (*(block for block in pipeline.model.tower.blocks if isinstance(block, BlockLayer)), pipeline.model):
            spread(module, mesh=data).set_gradient_divide_factor(1.0)
        register_fsdp_forward_method(pipeline.model, "hidden")
    loss, _ = one_process(whole, batches, causal_lm)
    total, _ = pipeline.gradients(batches[data.get_local_rank() :: 2], causal_lm)
    for parameter in pipeline.model.parameters():
        if kind == "plain":
            dist.all_reduce(parameter.grad, group=data.get_group())
    return {"loss": abs(summed(total)[0] - loss), "gradients": gap(pipeline, whole, "grad")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "copies", "shards"])
def test_with_parts_of_the_batch_beside_it(kind: str) -> None:
    for far in ranks(4).run(data_too, kind):
        assert max(far.values()) < 1e-10, far


# --- the cut itself -----------------------------------------------------------------------------------------------------


def test_layers_are_spread_evenly_and_the_last_stage_never_has_more() -> None:
    assert [starts(5, stages) for stages in (1, 2, 4)] == [[0, 5], [0, 3, 5], [0, 1, 3, 4, 5]]
    for layers in range(1, 12):
        for stages in range(1, layers + 1):
            begin = starts(layers, stages)
            sizes = [after - before for before, after in zip(begin, begin[1:], strict=False)]
            assert sum(sizes) == layers and len(sizes) == stages and max(sizes) - min(sizes) <= 1 and sizes[-1] == min(sizes)


@pytest.mark.parametrize("name", [*CONFIGS, *CHANGED])
def test_every_parameter_has_one_owner_and_keeps_its_name(name: str) -> None:
    whole = dict(model_of(name).named_parameters())
    owned: list[str] = []
    for stage in range(4):
        model = model_of(name)
        share = cut(model, stage, 4)
        here = dict(model.named_parameters())
        assert here.keys() == share.names.keys() >= share.owned | share.shared.keys()
        assert all(torch.equal(parameter, whole[share.names[each]]) for each, parameter in here.items())
        model.tie()
        assert dict(model.named_parameters()).keys() == here.keys()
        owned += [share.names[each] for each in share.owned]
    assert sorted(owned) == sorted(whole)


def test_a_model_is_cut_before_it_has_memory() -> None:
    with torch.device("meta"):
        models = [build(TIED) for _ in range(2)]
    shares = [cut(model, stage, 2) for stage, model in enumerate(models)]
    assert shares[0].shared == {"stem.tokens.weight": (0, 1)} and shares[1].shared == {"head.out.weight": (0, 1)}
    assert shares[1].names["head.out.weight"] == "stem.tokens.weight" and "head.out.weight" not in shares[1].owned


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="(?s)3 stages, 2 layers.*Fix: .*pipeline to 2 or less"):
        cut(tiny_model(LLAMA), 0, 3)
    t5 = {
        "model_type": "t5", "vocab_size": VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "decoder_start_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    with pytest.raises(UserError, match="(?s)this is a Seq2SeqModel with encoder_stem.*Fix: .*pipeline to 1"):
        cut(build_any(t5), 0, 2)  # type: ignore[arg-type]
