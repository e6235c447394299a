"""Phi-3: Llama's shape, published with q, k and v in one tensor and gate and up in another (Abdin et al. 2024)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, windows
from hornbook.families.weights import Table, rule
from hornbook.model import Transformer

ARCHITECTURES = ("Phi3ForCausalLM",)


def weights(config: Config) -> Table:
    theirs, ours = llama.THEIRS, llama.OURS
    return (
        *llama.OUTSIDE,
        *llama.PRE_NORMS,
        rule(theirs + "self_attn.qkv_proj.weight", *(ours + f"attn.op.{x}.weight" for x in "qkv")),
        rule(theirs + "self_attn.o_proj.weight", ours + "attn.op.o.weight"),
        rule(theirs + "mlp.gate_up_proj.weight", ours + "ffn.op.gate.weight", ours + "ffn.op.up.weight"),
        rule(theirs + "mlp.down_proj.weight", ours + "ffn.op.down.weight"),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    return llama.llama_like(config, windows=windows(config, everywhere=True))
