"""ViT: an encoder over the patches of an image, pre-norm LayerNorm (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture, labels
from hornbook.families.weights import Table, both, rule
from hornbook.model import MLP, Attention, Block, ClassHead, LayerNorm, PatchStem, Residual, Tower, Transformer

ARCHITECTURES = ("ViTForImageClassification", "ViTModel")
OURS = "tower.blocks.{i}."


def weights(config: Config) -> Table:
    bare = architecture(config, ARCHITECTURES) == "ViTModel"
    prefix = "" if bare else "vit."
    layer = prefix + "encoder.layer.{i}."
    return (
        rule(prefix + "embeddings.cls_token", "stem.first"),
        rule(prefix + "embeddings.position_embeddings", "stem.positions"),
        *both(prefix + "embeddings.patch_embeddings.projection", "stem.patches"),
        *(row for x in ("query", "key", "value") for row in both(f"{layer}attention.attention.{x}", OURS + f"attn.op.{x[0]}")),
        *both(layer + "attention.output.dense", OURS + "attn.op.o"),
        *both(layer + "intermediate.dense", OURS + "ffn.op.up"),
        *both(layer + "output.dense", OURS + "ffn.op.down"),
        *both(layer + "layernorm_before", OURS + "attn.pre"),
        *both(layer + "layernorm_after", OURS + "ffn.pre"),
        *both(prefix + "layernorm", "tower.norm"),
        *(both("pooler.dense", "head.dense") if bare else both("classifier", "head.out")),
    )


def pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def spec(config: Config) -> Transformer:
    bare = architecture(config, ARCHITECTURES) == "ViTModel"
    dim, heads, norm = config["hidden_size"], config["num_attention_heads"], LayerNorm(config["layer_norm_eps"])
    dropout = config.get("hidden_dropout_prob", 0.0)
    attention = Attention(
        heads=heads, head_dim=dim // heads, causal=False, qkv_bias=config.get("qkv_bias", True), out_bias=True,
        dropout=config.get("attention_probs_dropout_prob", 0.0),
    )  # fmt: skip
    ffn = MLP(config["intermediate_size"], act(config["hidden_act"]))
    block = Block(attn=Residual(attention, pre=norm, dropout=dropout), ffn=Residual(ffn, pre=norm, dropout=dropout))
    stem = PatchStem(
        image=pair(config["image_size"]), patch=pair(config["patch_size"]), channels=config["num_channels"], dropout=dropout
    )
    pooled = ClassHead(classes=None, act=act(config.get("pooler_act", "tanh")))
    return Transformer(
        stem=stem,
        tower=Tower(dim, (block,) * config["num_hidden_layers"], norm),
        head=pooled if bare else ClassHead(classes=labels(config)),
    )
