"""BART: an encoder and a decoder with post-norm LayerNorm, learned positions two rows on (Lewis et al. 2020)."""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture, fixed
from hornbook.families.weights import ONE_ROW, Alias, Table, both, rule
from hornbook.model import MLP, Attention, Block, LayerNorm, LMHead, Residual, Seq2Seq, TokenStem, Tower

ARCHITECTURES = ("BartForConditionalGeneration",)
PARTS = (("self_attn", "attn"), ("encoder_attn", "cross"))
PROJECTIONS = (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))


def weights(config: Config) -> Table:
    rules = [rule("model.shared.weight", "encoder_stem.tokens.weight"), rule("lm_head.weight", "head.out.weight")]
    rules.append(rule("final_logits_bias", "head.out.bias", form=ONE_ROW))
    for side in ("encoder", "decoder"):
        theirs, ours = f"model.{side}.layers.{{i}}.", f"{side}.blocks.{{i}}."
        rules.append(rule(f"model.{side}.embed_positions.weight", f"{side}_stem.positions.weight"))
        rules += both(f"model.{side}.layernorm_embedding", f"{side}_stem.norm")
        for part, slot in PARTS:
            rules += both(f"{theirs}{part}_layer_norm", f"{ours}{slot}.outer")
            for one, other in PROJECTIONS:
                rules += both(f"{theirs}{part}.{one}_proj", f"{ours}{slot}.op.{other}")
        rules += [*both(theirs + "fc1", ours + "ffn.op.up"), *both(theirs + "fc2", ours + "ffn.op.down")]
        rules += both(theirs + "final_layer_norm", ours + "ffn.outer")
    return (Alias(r"^model\.(encoder|decoder)\.embed_tokens\.", "model.shared."), *rules)


def spec(config: Config) -> Seq2Seq:
    fixed(config, normalize_before=False, add_final_layer_norm=False)
    architecture(config, ARCHITECTURES)
    norm, dim, dropout = LayerNorm(), config["d_model"], config.get("dropout", 0.1)

    def attention(side: str, causal: bool, cross: bool = False) -> Residual:
        heads = config[f"{side}_attention_heads"]
        op = Attention(
            heads=heads, head_dim=dim // heads, causal=causal, cross=cross, qkv_bias=True, out_bias=True,
            dropout=config.get("attention_dropout", 0.0),
        )  # fmt: skip
        return Residual(op, outer=norm, dropout=dropout)

    def ffn(side: str) -> Residual:
        op = MLP(config[f"{side}_ffn_dim"], act(config["activation_function"]), dropout=config.get("activation_dropout", 0.0))
        return Residual(op, outer=norm, dropout=dropout)

    stem = TokenStem(
        vocab=config["vocab_size"], positions=config["max_position_embeddings"], position_offset=2, norm=norm, dropout=dropout,
        scale=dim**0.5 if config.get("scale_embedding") else 1.0,
    )  # fmt: skip
    above = Block(attention("encoder", False), ffn("encoder"))
    below = Block(attention("decoder", True), ffn("decoder"), attention("decoder", False, cross=True))
    shared = "encoder_stem.tokens.weight"
    return Seq2Seq(
        encoder_stem=stem, encoder=Tower(dim, (above,) * config["encoder_layers"]),
        decoder_stem=stem, decoder=Tower(dim, (below,) * config["decoder_layers"]),
        head=LMHead(vocab=config["vocab_size"], bias=True),
        ties=(("decoder_stem.tokens.weight", shared), ("head.out.weight", shared)),
    )  # fmt: skip
