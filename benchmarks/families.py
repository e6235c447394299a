"""What tells the families apart: a table made of their specs, and what Qwen3's file changes in Qwen2's.

    python -m benchmarks.families            # print both
    python -m benchmarks.families --write    # and put them into docs/*/ids-to-logits.md and docs/*/add-a-family.md

Each family's config is the default one of transformers' own config class. What that leaves open (dots1's numbers of experts) is
taken from the family's case in tests/reference/published.py.
"""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path

import transformers

import hornbook.families
from benchmarks.pages import DOCS, LANGUAGES, table, write
from hornbook.families import FAMILIES
from hornbook.model import (
    MLP,
    ALiBi,
    Attention,
    BucketBias,
    GatedMLP,
    MoE,
    Parallel,
    PerHead,
    Residual,
    Seq2Seq,
    Tower,
    Transformer,
    Whole,
)  # fmt: skip
from tests.reference.published import CASES

HEADERS = {
    "en": ("model_type", "stem, positions", "norm, its slots", "attention", "feed-forward", "head"),
    "zh": ("model_type", "入口与位置", "归一化及其位置", "注意力", "前馈", "输出头"),
}
CHINESE = {  # patterns of what the cells say; what is not here is a name of the code
    "learned positions": "学习的位置", "sinusoids": "正弦位置", "types": "句段",
    "part of the channels": "只转部分通道", "two ropes": "两套 rope",
    "causal": "因果", "both ways": "双向", "encoder both ways, decoder causal and cross": "编码器双向，解码器因果并交叉",
    r"window (.*) in (.*) of (.*) layers": r"\3 层中 \2 层带窗口 \1", "biases": "带偏置", "biases on q, k, v": "q、k、v 带偏置",
    "norm per head": "逐头归一化", "norm over all heads": "各头一起归一化", "score cap": "分数封顶",
    "sinks": "汇点（sinks）", "parallel": "并行",
    r"MoE of (.*)": r"MoE，专家为 \1", r"(.*) experts": r"\1 个专家", r"top (.*)": r"选 \1 个", "shared": "另有共享专家",
    r"(.*) dense layers first": r"前 \1 层稠密", "tied": "与嵌入共用权重", "cap": "logits 封顶",
}  # fmt: skip


def say(factor: str, language: str) -> str:
    found = [(pattern, said) for pattern, said in CHINESE.items() if language == "zh" and re.fullmatch(pattern, factor)]
    return re.sub(*found[0], factor) if found else factor


def default_spec(model_type: str) -> Transformer | Seq2Seq:
    """The spec of the family's default config; speech is Whisper's encoder, and has no class of its own."""
    known = "whisper" if model_type == "speech_ctc" else model_type
    config = transformers.AutoConfig.for_model(known).to_dict()
    case = next(case for case in CASES if case.model_type == model_type)
    config |= {name: value for name, value in case.settings.items() if model_type == "dots1" and config.get(name) is None}
    return FAMILIES[model_type].spec({**config, "model_type": model_type, "architectures": None})


def parts(block_attn: Residual, block_ffn: Residual | None) -> tuple[Attention, object, list[str]]:
    """A block's attention, its feed-forward, and the norms in their slots."""
    op = block_attn.op
    if isinstance(op, Parallel):
        return op.attn, op.ffn, [f"{type(op.attn_norm).__name__} pre", "parallel"]
    assert isinstance(op, Attention) and block_ffn is not None
    slots = [slot for slot in ("pre", "post", "outer") if getattr(block_attn, slot) is not None]
    return op, block_ffn.op, [f"{type(getattr(block_attn, slots[0])).__name__} {' + '.join(slots)}"]


def stem_of(stem: object, attentions: list[Attention]) -> list[str]:
    said = [type(stem).__name__]
    said += ["learned positions"] if getattr(stem, "positions", True) else []
    said += ["sinusoids"] if getattr(stem, "sinusoidal", False) else []
    said += ["types"] if getattr(stem, "types", 0) else []
    ropes = {attention.rope for attention in attentions if attention.rope}
    for rope in list(ropes)[:1]:
        said.append("two ropes" if len(ropes) == 2 else "rope")
        said += [type(rope.scaling).__name__] if rope.scaling else []
        said += ["part of the channels"] if rope.turned else []
    biases = {type(attention.bias).__name__ for attention in attentions if isinstance(attention.bias, ALiBi | BucketBias)}
    return said + sorted(biases)


def attention_of(attentions: list[Attention]) -> list[str]:
    first, windows = attentions[0], [attention.window for attention in attentions if attention.window]
    said = ["causal" if first.causal else "both ways", f"{first.heads}/{first.kv_heads or first.heads}"]
    said += [f"window {windows[0]:,} in {len(windows)} of {len(attentions)} layers"] if windows else []
    said += ["biases"] if first.qkv_bias and first.out_bias else ["biases on q, k, v"] if first.qkv_bias else []
    norms = {PerHead: "norm per head", Whole: "norm over all heads"}
    said += [norms[type(first.qk_norm)]] if first.qk_norm else []
    return said + (["score cap"] if first.softcap else []) + (["sinks"] if first.sinks else [])


def feed_forward_of(ops: list[object]) -> list[str]:
    last = ops[-1]
    if isinstance(last, MLP | GatedMLP):
        return [f"{type(last).__name__} {last.act}"]
    assert isinstance(last, MoE)
    said = [f"MoE of {type(last.expert).__name__} {last.expert.act}", f"{last.experts} experts", f"top {last.router.top_k}"]
    dense = sum(not isinstance(op, MoE) for op in ops)
    return said + (["shared"] if last.shared else []) + ([f"{dense} dense layers first"] if dense else [])


def factors(model_type: str) -> list[list[str]]:
    """The cells of the family's row, each a list of factors."""
    spec = default_spec(model_type)
    tower: Tower = spec.decoder if isinstance(spec, Seq2Seq) else spec.tower
    stem = spec.decoder_stem if isinstance(spec, Seq2Seq) else spec.stem
    found = [parts(block.attn, block.ffn) for block in tower.blocks]
    attentions = [attention for attention, _, _ in found]
    looks = attention_of(attentions)
    if isinstance(spec, Seq2Seq):
        looks[0] = "encoder both ways, decoder causal and cross"
    tied = any(name == "head.out.weight" for name, _ in spec.ties)
    head = [type(spec.head).__name__, *(["tied"] if tied else []), *(["cap"] if getattr(spec.head, "softcap", None) else [])]
    return [stem_of(stem, attentions), found[0][2], looks, feed_forward_of([ffn for _, ffn, _ in found]), head]


def families_table(language: str) -> str:
    rows = []
    for model_type in FAMILIES:
        cells = [[say(factor, language) for factor in cell] for cell in factors(model_type)]
        rows.append([f"`{model_type}`", *(("，" if language == "zh" else ", ").join(cell) for cell in cells)])
    return f"transformers {transformers.__version__}\n\n{table(HEADERS[language], rows)}"


def qwen_diff() -> str:
    """What hornbook/families/qwen3.py changes in qwen2.py, as `diff -u` prints it."""
    folder = Path(hornbook.families.__file__).parent
    old, new = ((folder / f"{name}.py").read_text(encoding="utf-8").splitlines() for name in ("qwen2", "qwen3"))
    lines = difflib.unified_diff(old, new, "hornbook/families/qwen2.py", "hornbook/families/qwen3.py", lineterm="")
    return "```diff\n" + "\n".join(lines) + "\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put both into the guides")
    write_pages = parser.parse_args().write
    print(families_table("en"), qwen_diff(), sep="\n\n")
    for language in LANGUAGES if write_pages else ():
        write(DOCS / language / "ids-to-logits.md", "families", families_table(language))
        write(DOCS / language / "add-a-family.md", "diff", qwen_diff())


if __name__ == "__main__":
    main()
