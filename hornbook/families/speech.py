"""A speech encoder with a CTC head: Whisper's encoder over log-mel frames, a letter or none for each.

Radford et al. 2023; Graves et al. 2006. The config is Whisper's; the weights are a Whisper encoder's, with `ctc_head` beside them.
"""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture
from hornbook.families.weights import Alias, Table, both, rule
from hornbook.model import MLP, Attention, Block, FrameStem, LayerNorm, LMHead, Residual, Tower, Transformer

ARCHITECTURES = ("SpeechEncoderForCTC",)
THEIRS, OURS = "encoder.layers.{i}.", "tower.blocks.{i}."


def weights(config: Config) -> Table:
    return (
        Alias(r"^model\.encoder\.", "encoder."),
        *both("encoder.conv1", "stem.first"),
        *both("encoder.conv2", "stem.second"),
        rule("encoder.embed_positions.weight", "stem.positions.weight"),
        *(row for x in "qkv" for row in both(THEIRS + f"self_attn.{x}_proj", OURS + f"attn.op.{x}")),
        *both(THEIRS + "self_attn.out_proj", OURS + "attn.op.o"),
        *both(THEIRS + "self_attn_layer_norm", OURS + "attn.pre"),
        *both(THEIRS + "fc1", OURS + "ffn.op.up"),
        *both(THEIRS + "fc2", OURS + "ffn.op.down"),
        *both(THEIRS + "final_layer_norm", OURS + "ffn.pre"),
        *both("encoder.layer_norm", "tower.norm"),
        *both("ctc_head", "head.out"),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    dim, heads, norm, dropout = config["d_model"], config["encoder_attention_heads"], LayerNorm(), config.get("dropout", 0.0)
    mels = config["num_mel_bins"] * (2 if config.get("deltas") else 1)
    attention = Attention(
        heads=heads, head_dim=dim // heads, causal=False, qkv_bias=True, k_bias=False, out_bias=True,
        dropout=config.get("attention_dropout", 0.0),
    )  # fmt: skip
    ffn = MLP(config["encoder_ffn_dim"], act(config["activation_function"]), dropout=config.get("activation_dropout", 0.0))
    block = Block(attn=Residual(attention, pre=norm, dropout=dropout), ffn=Residual(ffn, pre=norm, dropout=dropout))
    return Transformer(
        stem=FrameStem(mels=mels, positions=config["max_source_positions"], dropout=dropout),
        tower=Tower(dim, (block,) * config["encoder_layers"], norm),
        head=LMHead(vocab=config["vocab_size"], bias=True),
    )
