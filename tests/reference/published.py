"""transformers' own models as oracles: every family and switch, tiny, every parameter perturbed, saved as published files.

What is compared stands here too, because the tests bound it and benchmarks/parity.py prints it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hornbook.families import Model, build_any, family
from hornbook.families.weights import from_published, to_published

VOCAB = 99
LLAMA = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
        "embd_pdrop": 0.0}  # fmt: skip
BERT = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
DISTIL = {"vocab_size": VOCAB, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "max_position_embeddings": 64,
          "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
BART = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
        "dropout": 0.0}  # fmt: skip
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
      "dropout_rate": 0.0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}  # fmt: skip
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
       "patch_size": 4}  # fmt: skip
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DOTS = {**LLAMA, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1}  # fmt: skip
WHISPER = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
           "max_source_positions": 20, "pad_token_id": 0}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


def roped(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


@dataclass(frozen=True)
class Case:
    """A family, what is switched on in its config, and transformers' class for it."""

    name: str
    model_type: str
    settings: dict[str, Any] = field(hash=False)
    auto: str = "AutoModelForCausalLM"


MLM, BARE, TAGS = "AutoModelForMaskedLM", "AutoModel", "AutoModelForTokenClassification"
CLASSES, SPANS = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"
SEQ2SEQ, IMAGES = "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"
CASES = [
    Case("gpt2", "gpt2", GPT2),
    Case("gpt2 wide, exact gelu", "gpt2", {**GPT2, "n_inner": 40, "activation_function": "gelu"}),
    Case("llama grouped", "llama", LLAMA),
    Case("llama one kv head, tied, biases", "llama",
         {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    Case("llama all kv heads, wide heads", "llama", {**LLAMA, "num_key_value_heads": 4, "head_dim": 16, **roped("default")}),
    Case("llama linear rope", "llama", {**LLAMA, **roped("linear", factor=4.0)}),
    Case("llama dynamic rope", "llama", {**LLAMA, "max_position_embeddings": 8, **roped("dynamic", factor=2.0)}),
    Case("llama yarn rope", "llama", {**LLAMA, **roped("yarn", factor=4.0, original_max_position_embeddings=16)}),
    Case("llama 3 rope", "llama", {**LLAMA, **roped("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                    original_max_position_embeddings=32)}),
    Case("mistral window", "mistral", {**LLAMA, "sliding_window": 5}),
    Case("mistral no window", "mistral", {**LLAMA, "sliding_window": None}),
    Case("qwen2", "qwen2", LLAMA),
    Case("qwen2 windows", "qwen2", {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "layer_types": SLIDING}),
    Case("qwen3", "qwen3", {**LLAMA, "head_dim": 16}),
    Case("qwen3 tied, biases", "qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    Case("gemma2", "gemma2", {**LLAMA, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5, "layer_types": SLIDING,
                              "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case("gemma3", "gemma3_text", {**LLAMA, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 5,
                                   "layer_types": SLIDING,
                                   "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    Case("phi3", "phi3", {**LLAMA, "pad_token_id": 0}),
    *(Case(f"phi3 window, long rope past {context}", "phi3",
           {**LLAMA, "pad_token_id": 0, "sliding_window": 6, "original_max_position_embeddings": context,
            **roped("longrope", short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[2.0, 3.0, 5.0, 7.0])}) for context in (8, 16)),
    Case("olmo2", "olmo2", {**LLAMA, "pad_token_id": 0}),
    Case("gpt-neox", "gpt_neox", {**BERT, **roped("default", partial_rotary_factor=0.5)}),
    Case("gpt-neox in sequence", "gpt_neox",
         {**BERT, "use_parallel_residual": False, **roped("default", partial_rotary_factor=0.25)}),
    Case("bloom", "bloom", {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 3, "n_head": 6}),
    Case("gpt-oss", "gpt_oss", {**LLAMA, "head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 5,
                                "layer_types": SLIDING, **roped("yarn", factor=4.0, original_max_position_embeddings=16,
                                                                truncate=False)}),
    Case("mixtral", "mixtral", {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    Case("qwen2-moe", "qwen2_moe", {**LLAMA, **MOE, "shared_expert_intermediate_size": 24}),
    Case("qwen2-moe some dense", "qwen2_moe", {**LLAMA, **MOE, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0],
                                               "norm_topk_prob": True}),
    Case("qwen3-moe", "qwen3_moe", {**LLAMA, **MOE, "norm_topk_prob": True}),
    Case("dots1", "dots1", DOTS),
    Case("dots1 groups, scaled", "dots1", {**DOTS, "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
                                           "routed_scaling_factor": 2.5}),
    Case("bert masked", "bert", BERT, MLM),
    Case("bert pooler", "bert", BERT, BARE),
    Case("bert classes", "bert", {**BERT, "num_labels": 3}, CLASSES),
    Case("bert tags", "bert", {**BERT, "num_labels": 5, "hidden_act": "relu"}, TAGS),
    Case("bert spans", "bert", BERT, SPANS),
    Case("roberta masked", "roberta", {**BERT, "type_vocab_size": 1}, MLM),
    Case("roberta classes", "roberta", {**BERT, "num_labels": 3}, CLASSES),
    Case("roberta tags", "roberta", BERT, TAGS),
    Case("distilbert masked", "distilbert", DISTIL, MLM),
    Case("distilbert classes", "distilbert", {**DISTIL, "num_labels": 3}, CLASSES),
    Case("distilbert spans", "distilbert", DISTIL, SPANS),
    Case("bart", "bart", BART, SEQ2SEQ),
    Case("bart scaled, relu", "bart", {**BART, "scale_embedding": True, "activation_function": "relu"}, SEQ2SEQ),
    Case("t5", "t5", T5, SEQ2SEQ),
    Case("t5 gated, untied", "t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, SEQ2SEQ),
    Case("vit classes", "vit", {**VIT, "num_labels": 7}, IMAGES),
    Case("vit pooler, oblong", "vit", {**VIT, "image_size": [8, 16], "patch_size": [4, 8], "qkv_bias": False}, BARE),
    Case("speech", "speech_ctc", WHISPER),
]  # fmt: skip


class SpeechEncoder(nn.Module):
    """Whisper's encoder with a linear layer on top: transformers has no such class of its own."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.encoder = transformers.WhisperModel(config).encoder
        self.ctc_head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, frames: Tensor) -> Any:
        return transformers.utils.ModelOutput(logits=self.ctc_head(self.encoder(frames).last_hidden_state))


def oracle(case: Case, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """transformers' model with random weights, so perturbed that every bias and norm matters."""
    torch.manual_seed(0)
    settings = {**case.settings, **changes}
    if case.model_type == "speech_ctc":
        theirs: Any = SpeechEncoder(transformers.WhisperConfig(**settings)).to(dtype)
    else:
        config = transformers.AutoConfig.for_model(case.model_type, **settings)
        config._experts_implementation = "eager"  # their grouped kernel knows no float64
        theirs = getattr(transformers, case.auto).from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in theirs.named_buffers():
            if "bias" in name:  # of BART's logits, of a router's choice
                buffer.add_(torch.randn_like(buffer) * 0.1)
    return theirs.eval()


def published(theirs: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the weights as transformers writes them into a folder."""
    if isinstance(theirs, SpeechEncoder):
        config = {**theirs.config.to_dict(), "model_type": "speech_ctc", "architectures": ["SpeechEncoderForCTC"]}
        return config, {name: value.contiguous() for name, value in theirs.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        return config, {name: value.clone() for name, value in load_file(Path(folder) / "model.safetensors").items()}


def loaded(config: dict[str, Any], tensors: dict[str, Tensor]) -> Model:
    """Our model of the published config and weights."""
    ours = build_any(config)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    tied = [name for name, _ in ours.ties]
    state = from_published(family(config).weights(config), tensors, shapes, tied, "memory")
    ours.load_state_dict(state, strict=False, assign=True)
    ours.tie()
    return ours.eval()


def inputs_of(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random inputs: ids, a source and a target, images or frames."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (2, 14), generator=generator)
    if case.auto == SEQ2SEQ:
        return ids, torch.randint(3, VOCAB, (2, 9), generator=generator)
    if case.model_type == "vit":
        size = case.settings["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return (torch.randn((2, 3, height, width), generator=generator).to(dtype),)
    if case.model_type == "speech_ctc":
        return (torch.randn((2, 8, 40), generator=generator).to(dtype),)
    return (ids,)


def answer_of(theirs: Any, case: Case, inputs: tuple[Tensor, ...]) -> Tensor:
    """The one tensor to compare: logits of whatever kind, or what the pooler gives."""
    out = theirs(inputs[0], decoder_input_ids=inputs[1]) if case.auto == SEQ2SEQ else theirs(inputs[0])
    if case.auto == SPANS:
        return torch.stack((out.start_logits, out.end_logits), -1)
    return out.pooler_output if case.auto == BARE else out.logits


# --- what is compared -----------------------------------------------------------------------------------------------------


@cache
def pair(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, Model]:
    """transformers' model, and ours of its published files."""
    theirs = oracle(case, dtype)
    return theirs, loaded(*published(theirs))


def back(ours: Model, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of our names in published names."""
    tied = {name for name, _ in ours.ties}
    return to_published(family(ours.config).weights(ours.config), {key: value for key, value in tensors.items() if key not in tied})


@torch.no_grad()
def answers(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Their output and ours."""
    theirs, ours = pair(case, dtype)
    inputs = inputs_of(case, dtype)
    return answer_of(theirs, case, inputs), ours(*inputs)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Differences in units of the largest value, where that is above one."""
    return (a - b).abs() / a.abs().max().clamp(min=1)


def gradients(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Their gradients and ours, in published names, in float32: of every weight that both train."""
    theirs, ours = pair(case)
    inputs = inputs_of(case)
    for model, answer in ((theirs, answer_of(theirs, case, inputs)), (ours, ours(*inputs))):
        model.zero_grad()
        answer.float().logsumexp(-1).square().sum().backward()
    with torch.no_grad():  # their gradients in the place of their weights: published, they have our rules' names
        as_weights = oracle(case)
        for weight, parameter in zip(as_weights.parameters(), theirs.parameters(), strict=True):
            none = 0.0 if parameter.requires_grad else torch.nan
            weight.copy_(torch.full_like(weight, none) if parameter.grad is None else parameter.grad)
    _, expected = published(as_weights)
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in ours.named_parameters()}
    names = set(found) | {name for name, _ in ours.ties}
    rest = {name: value for name, value in ours.state_dict().items() if name not in names}  # buffers have none
    trained = back(ours, {**{name: torch.ones_like(value) for name, value in found.items()},
                          **{name: torch.zeros_like(value) for name, value in rest.items()}})  # fmt: skip
    both = [name for name, value in expected.items() if bool(trained[name].all()) and not bool(value.isnan().any())]
    both = [name for name in both if name != "final_logits_bias"]  # BART's is a buffer there
    ours_published = back(ours, {**found, **rest})
    return {name: expected[name] for name in both}, {name: ours_published[name] for name in both}


def round_trip(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published weights, and ours published again."""
    theirs, ours = pair(case)
    return published(theirs)[1], back(ours, ours.state_dict())


@torch.no_grad()
def traced(case: Case) -> tuple[Tensor, Tensor]:
    """Our output, and that of torch.compile's one graph; a break of the graph is torch's error."""
    _, ours = pair(case)
    inputs = inputs_of(case)
    torch._dynamo.reset()
    return ours(*inputs), torch.compile(ours, fullgraph=True, backend="eager")(*inputs)


DROPOUTS = {
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
    "hidden_dropout", "dropout", "attention_dropout", "activation_dropout", "seq_classif_dropout", "qa_dropout", "dropout_rate",
}  # fmt: skip


def dropouts(case: Case) -> set[str]:
    """The config fields of a case that are shares of dropped values."""
    return DROPOUTS & set(oracle(case).config.to_dict())


def dropped(case: Case, share: float) -> tuple[Tensor, Tensor]:
    """Their output and ours in training, from one seed: equal only where both drop the same values in the same order."""
    theirs = oracle(case, **dict.fromkeys(dropouts(case), share))
    ours = loaded(*published(theirs))
    outputs = []
    for model, answer in ((theirs, lambda: answer_of(theirs, case, inputs_of(case))), (ours, lambda: ours(*inputs_of(case)))):
        model.train()
        torch.manual_seed(2)
        outputs.append(answer().detach())
    return outputs[0], outputs[1]
