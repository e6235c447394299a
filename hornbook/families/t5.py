"""T5: an encoder and a decoder with pre-norm RMSNorm, no scale, and a learned bias per distance (Raffel et al. 2020)."""

from __future__ import annotations

from hornbook.families.fields import Config, architecture
from hornbook.families.weights import Alias, Table, rule
from hornbook.model import (
    MLP,
    Attention,
    Block,
    BucketBias,
    GatedMLP,
    LMHead,
    Residual,
    RMSNorm,
    Seq2Seq,
    Spec,
    TokenStem,
    Tower,
)  # fmt: skip

ARCHITECTURES = ("T5ForConditionalGeneration",)
PLAIN, GATED = (("wi", "up"), ("wo", "down")), (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))


def weights(config: Config) -> Table:
    feed_forward = GATED if config.get("feed_forward_proj", "relu").startswith("gated-") else PLAIN
    rules = [rule("shared.weight", "encoder_stem.tokens.weight"), rule("lm_head.weight", "head.out.weight")]
    for side, last in (("encoder", 1), ("decoder", 2)):
        theirs, ours = f"{side}.block.{{i}}.layer.", f"{side}.blocks.{{i}}."
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules += [
            rule(f"{side}.final_layer_norm.weight", f"{side}.norm.weight"),
            rule(first, f"{side}.blocks.0.attn.op.bias.table.weight"),
        ]
        parts = [("0.SelfAttention", "attn"), ("1.EncDecAttention", "cross")][:last]
        rules += [rule(f"{theirs}{part}.{x}.weight", f"{ours}{slot}.op.{x}.weight") for part, slot in parts for x in "qkvo"]
        rules += [
            rule(f"{theirs}{last}.DenseReluDense.{one}.weight", f"{ours}ffn.op.{other}.weight") for one, other in feed_forward
        ]
        slots = ["attn", "cross"][:last] + ["ffn"]
        rules += [rule(f"{theirs}{n}.layer_norm.weight", f"{ours}{slot}.pre.weight") for n, slot in enumerate(slots)]
    # A bias of the decoder's cross-attention stands in old files and was never used.
    unused = rule("decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias.weight")
    return (Alias(r"^(encoder|decoder)\.embed_tokens\.", "shared."), unused, *rules)


def spec(config: Config) -> Seq2Seq:
    architecture(config, ARCHITECTURES)
    norm, dim, dropout = RMSNorm(config["layer_norm_epsilon"]), config["d_model"], config.get("dropout_rate", 0.1)
    kind, layers = config.get("feed_forward_proj", "relu"), config["num_layers"]
    below_layers = config.get("num_decoder_layers") or layers
    name = {"gated-gelu": "gelu_tanh"}.get(kind, kind.removeprefix("gated-"))
    hidden = config["d_ff"]
    op: Spec = GatedMLP(hidden, name, dropout=dropout) if kind.startswith("gated-") else MLP(hidden, name, False, dropout)
    ffn = Residual(op, pre=norm, dropout=dropout)

    def attention(causal: bool, cross: bool = False) -> Residual:
        bias = BucketBias(
            buckets=config["relative_attention_num_buckets"], max_distance=config.get("relative_attention_max_distance", 128),
            causal=causal,
        )  # fmt: skip
        op = Attention(
            heads=config["num_heads"], head_dim=config["d_kv"], causal=causal, cross=cross, bias=None if cross else bias, scale=1.0,
            dropout=dropout,
        )  # fmt: skip
        return Residual(op, pre=norm, dropout=dropout)

    stem, shared, is_tied = TokenStem(vocab=config["vocab_size"], dropout=dropout), "encoder_stem.tokens.weight", config.get(
        "tie_word_embeddings", True
    )  # fmt: skip
    scale = dim**-0.5 if config.get("scale_decoder_outputs", is_tied) else 1.0
    table = "{}.blocks.{}.attn.op.bias.table.weight"
    depths = (("encoder", layers), ("decoder", below_layers))
    return Seq2Seq(
        encoder_stem=stem, encoder=Tower(dim, (Block(attention(False), ffn),) * layers, norm, dropout),
        decoder_stem=stem, decoder=Tower(dim, (Block(attention(True), ffn, attention(False, True)),) * below_layers, norm, dropout),
        head=LMHead(vocab=config["vocab_size"], scale=scale),
        ties=(
            ("decoder_stem.tokens.weight", shared),
            *((("head.out.weight", shared),) if is_tied else ()),
            *((table.format(side, layer), table.format(side, 0)) for side, depth in depths for layer in range(1, depth)),
        ),
    )  # fmt: skip
