"""Pictures of what the code computes: activations, masks, rope, number formats, and a model's attention; as SVG, PNG or one page.

Every line and cell is asked of the code that runs: a derivative of autograd, a mask of `visible`, a range of `torch.finfo`.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from hornbook import page
from hornbook.adapt.probes import attention_maps
from hornbook.errors import UserError, near
from hornbook.files import write_bytes
from hornbook.model import Context, Rope, TransformerModel
from hornbook.model.attention import Scores, attend
from hornbook.model.mask import visible
from hornbook.model.mlp import ACTIVATIONS
from hornbook.model.rope import rotate
from hornbook.plan.dtypes import FLOATS, FloatType, float_type
from hornbook.text.tokenizer import Tokenizer

INK, QUIET, EDGE, TINT = (page.PALETTE[name][0] for name in ("ink", "quiet", "edge", "t0"))
COLORS = [page.PALETTE[f"c{i}"][0] for i in range(4)]  # apart for color-blind readers
CJK = ("Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei")
WIDTH = 12.8  # inches, of 100 pixels each
MOST_TOKENS, LETTERS = 40, 14  # on a map, and of each token, so that all can be read
KINDS = (".svg", ".png", ".html")
STYLE: dict[Any, Any] = {
    "font.size": 12, "figure.dpi": 100, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": EDGE,
    "axes.titlesize": 13, "axes.titleweight": "bold", "axes.titlelocation": "left", "grid.color": EDGE, "grid.linewidth": 0.6,
    "text.color": INK, "axes.labelcolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET, "lines.linewidth": 2,
    "svg.hashsalt": "hornbook",  # the same picture is the same file
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """The caption stands under the figure, whatever the file; the table (headers, rows) on the page alone."""

    title: str
    caption: str
    figure: Figure
    table: tuple[Sequence[str], Sequence[Sequence[object]]] = ((), ())


def _panels(count: int, columns: int, height: float, above: float = 0.6, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of `height` inches; `above` is for what stands beside them."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows + above), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def activations() -> Picture:
    figure, panels = _panels(len(ACTIVATIONS), 2 if len(ACTIVATIONS) <= 4 else 3, 3.2, 1.0, sharex=True, sharey=True)
    for panel, (name, act) in zip(panels, ACTIVATIONS.items(), strict=True):
        x = torch.linspace(-4, 4, 801, requires_grad=True)
        y = act(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        panel.plot(x.detach().numpy(), y.detach().numpy(), color=COLORS[0], label="value")
        panel.plot(x.detach().numpy(), slope.numpy(), color=COLORS[1], linestyle="--", label="derivative")
        panel.set(title=name, ylim=(-1.2, 4.1), xlim=(-4, 4))
        panel.grid(True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return Picture("Activations", "Each activation and its derivative, which autograd computed.", figure)


# --- masks ----------------------------------------------------------------------------------------------------------------

PADDING = torch.tensor([[False, False, True, True, True, True]])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1]])
# Title: the names of the positions, the context, and what else `visible` is told. A new kind of mask is one line.
MASKS: dict[str, tuple[str, Context, dict[str, Any]]] = {
    "causal": ("0 1 2 3 4 5", Context(), {"causal": True}),
    "padding (left) and causal": ("pad pad 0 1 2 3", Context(padding_bs=PADDING), {"causal": True}),
    "a window of three": ("0 1 2 3 4 5", Context(), {"causal": True, "window": 3}),
    "a prefix of three, then causal": ("p0 p1 p2 3 4 5", Context(prefix_b=torch.tensor([3])), {"causal": True}),
    "padding alone": ("pad pad 0 1 2 3", Context(padding_bs=PADDING), {"causal": False}),
    "packed: two documents in a row": ("a0 a1 a2 b0 b1 b2", Context(documents_bt=DOCUMENTS), {"causal": True}),
}


def mask_of(title: str) -> Tensor:
    """The grid (T, S) of a line of `MASKS`, True where a query may look."""
    names, ctx, told = MASKS[title]
    positions = torch.arange(len(names.split()))[None]
    seen = visible(ctx, positions_bt=positions, positions_bs=positions, **told)
    return torch.tensor(True) if seen is None else seen[0, 0].expand(positions.numel(), -1)


def blind_row() -> tuple[Tensor, Tensor]:
    """A mask (5, 3) whose first query comes before every key, and the attention's output (5, K) under it."""
    seen = visible(Context(), causal=True, positions_bt=torch.arange(5)[None], positions_bs=torch.arange(1, 4)[None])
    assert seen is not None
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, length, 1, 8, generator=draw) for length in (5, 3, 3))
    return seen[0, 0], attend(q, k, v, Scores(seen))[0, :, 0]


def masks() -> Picture:
    figure, (*panels, blind) = _panels(len(MASKS) + 1, 3, 4.1)
    for panel, (title, (names, _, _)) in zip(panels, MASKS.items(), strict=True):
        _cells(panel, title, mask_of(title), names.split(), names.split())
    seen, y = blind_row()
    _cells(blind, "five queries, three keys", seen, "01234", "123")
    for row, norm in enumerate(y.norm(dim=-1).tolist()):
        blind.text(2.7, row, "output: exactly 0" if norm == 0 else f"|output| = {norm:.2f}", va="center")
    blind.set_xlim(-0.5, 6.0)
    note = "Blue: the query of that row may look at the key of that column. A query that may see nothing gives exact zeros."
    return Picture("Masks", note, figure)


def _cells(panel: Axes, title: str, seen: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    panel.imshow(seen.float().numpy(), cmap=ListedColormap([TINT, COLORS[0]]), vmin=0, vmax=1)
    panel.set_xticks(range(len(keys)), keys)
    panel.set_yticks(range(len(queries)), queries)
    panel.set_xticks([i - 0.5 for i in range(len(keys) + 1)], minor=True)
    panel.set_yticks([i - 0.5 for i in range(len(queries) + 1)], minor=True)
    panel.grid(which="minor", color="white", linewidth=2)
    panel.tick_params(which="both", length=0)
    panel.spines[:].set_visible(False)
    panel.set(title=title, ylabel="query")
    panel.set_xlabel("key", loc="left")


# --- rope and number formats ----------------------------------------------------------------------------------------------


def ropes() -> Picture:
    rope, last, pairs = Rope(64), 4096, (0, 8, 16, 31)
    figure, (left, right) = _panels(2, 2, 4.8)
    cos, sin = rope.angles(torch.tensor([[1]]), torch.float64)
    per_position = torch.atan2(sin, cos).flatten().tolist()  # no pair turns by more than half a circle per position
    for color, pair in zip(COLORS, pairs, strict=True):
        left.loglog([1, last], [per_position[pair], last * per_position[pair]], color=color)
        left.text(last * 1.15, last * per_position[pair], f"pair {pair}", color=color, va="center", weight="bold")
    left.axhline(2 * math.pi, color=QUIET, linestyle=":", linewidth=1.4)
    left.text(last, 2 * math.pi / 1.3, "one whole turn", color=QUIET, ha="right", va="top")
    left.set(
        title=f"How far each pair of {rope.head_dim} channels has turned",
        xlabel="position",
        ylabel="angle, radians",
        xlim=(1, last),
    )
    distances = torch.arange(257)
    for color, style, start in zip(COLORS, ("-", "--", ":"), (0, 100, 10_000), strict=False):
        products = dot_products(rope, start, distances).numpy()
        right.plot(distances.numpy(), products, color=color, linestyle=style, label=f"query at {start + 256:,}")
    right.set(title="Dot product of two turned vectors of ones", xlabel="distance from query to key", ylabel="q · k / K")
    right.legend(frameon=False)
    for panel in (left, right):
        panel.grid(True)
    note = (
        f"Left: pair i turns by theta^(-2i/K) per position (theta {rope.theta:,.0f}, K {rope.head_dim}); fast pairs tell near "
        "positions apart and slow ones far. Right: wherever the query stands, the curve is the same: only the distance counts."
    )
    return Picture("Rope", note, figure)


def dot_products(rope: Rope, start: int, distances: Tensor) -> Tensor:
    """q · k / K of vectors of ones, the query at `start` plus the longest distance and a key at each distance before it."""
    ones = torch.ones(1, len(distances), 1, rope.head_dim, dtype=torch.float64)
    query = torch.full_like(distances, start + int(distances.max()))
    q, k = (rotate(ones, rope.angles(at[None], torch.float64)) for at in (query, query - distances))
    return (q * k).sum(-1)[0, :, 0] / rope.head_dim


def dtypes() -> Picture:
    types = [float_type(name) for name in FLOATS]
    figure, (panel,) = _panels(1, 1, len(types) + 1.2)
    for row, kind in enumerate(types):
        low, normal, high = (math.log10(value) for value in (kind.smallest_subnormal, kind.smallest_normal, kind.largest))
        panel.barh(row, normal - low, left=low, height=0.42, color=page.PALETTE["t1"][0], edgecolor=COLORS[1], hatch="///")
        panel.barh(row, high - normal, left=normal, height=0.42, color=COLORS[0])
        panel.text(low - 0.6, row, f"{kind.smallest_subnormal:.2g}", ha="right", va="center", fontsize=10, color=QUIET)
        panel.text(high + 0.6, row, f"{kind.largest:.5g}", ha="left", va="center", fontsize=10, color=QUIET)
        said = f"{kind.sign} sign, {kind.exponent} exponent, {kind.mantissa} mantissa bits; eps {kind.eps:.3g}"
        panel.text(0, row - 0.34, said, ha="center", fontsize=10, backgroundcolor="white")
    panel.axvline(0, color=INK, linewidth=1, zorder=0)
    panel.set_yticks(range(len(types)), [kind.name for kind in types], color=INK)
    panel.set_xticks(range(-40, 41, 10), [f"$10^{{{power}}}$" for power in range(-40, 41, 10)])
    panel.set(xlim=(-52, 48), ylim=(len(types) - 0.5, -0.75), xlabel="size of a number, on a log scale", axisbelow=True)
    panel.tick_params(axis="y", length=0)
    panel.grid(True, axis="x")
    note = "Blue: normal numbers. Hatched: subnormal numbers, which lose precision bit by bit. Both ends are written out."
    rows = [[f"{value:.6g}" if isinstance(value, float) else value for value in vars(kind).values()] for kind in types]
    return Picture("Number formats", note, figure, ([name.replace("_", " ") for name in FloatType.__annotations__], rows))


# --- attention ------------------------------------------------------------------------------------------------------------


def attention(model: TransformerModel, tokenizer: Tokenizer, text: str, layers: Sequence[int] = ()) -> Picture:
    """A map per head of the chosen layers (by default the first, the middle and the last) while the model reads `text`."""
    ids = tokenizer.encode(text)
    if not 1 <= len(ids) <= MOST_TOKENS:
        what, why = f"a map of {len(ids)} tokens cannot be read", f"it shows 1 to {MOST_TOKENS}"
        raise UserError(what, where="--text", why=why, fix="give a shorter text" if ids else "give some text")
    with attention_maps(model) as found, torch.no_grad():
        model(torch.tensor([ids], device=next(model.parameters()).device))
    maps, last = list(found.values()), len(found) - 1
    if wrong := [layer for layer in layers if not 0 <= layer <= last]:
        raise UserError(f"there is no layer {wrong[0]}", where="--layers", fix=f"the layers are 0 to {last}")
    chosen = list(layers) or sorted({0, len(maps) // 2, last})
    heads = {f"layer {i}, head {head}": weights for i in chosen for head, weights in enumerate(maps[i][0].float().cpu())}
    note = "Each row is a query and shares out one whole of attention among the keys that it may see: the darker, the more."
    return Picture("Attention", note, _maps(heads, [_shown(tokenizer, token) for token in ids]))


def _maps(heads: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    columns = max(1, min(4, len(heads), 88 // len(names)))  # so that a token has room for its letters
    figure, panels = _panels(len(heads), columns, (WIDTH - 2.2) / columns + 0.3, 1.4, sharex=True, sharey=True)
    small = min(11.0, 600 / columns / len(names))
    for panel, (title, weights) in zip(panels, heads.items(), strict=True):
        image = panel.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        panel.set_title(title)
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
        panel.set_yticks(range(len(names)), names, fontsize=small)
        panel.tick_params(length=0, labelbottom=panel in panels[-columns:])  # the lowest of each column
        panel.spines[:].set_visible(False)
    figure.colorbar(image, ax=panels, shrink=0.4, label="weight", aspect=30)
    return figure


def _fonts() -> list[str]:
    """The fonts of this machine that the letters of tokens may need."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK if name in known)]


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as its letters, spaces made visible, or as its number where a letter is cut or this machine has no font for it."""
    piece = tokenizer.token_bytes(token).decode("utf-8", errors="replace").translate(str.maketrans(" \n\t", "·↵⇥"))
    faces = [font_manager.get_font(font_manager.findfont(name)) for name in _fonts()]
    if not piece or "\ufffd" in piece or not all(any(face.get_char_index(ord(letter)) for face in faces) for letter in piece):
        return f"#{token}"
    short = piece if len(piece) <= LETTERS else f"{piece[: LETTERS - 1]}…"
    return short.replace("$", r"\$")  # two of them would begin a formula


# --- out ------------------------------------------------------------------------------------------------------------------

PICTURES: Mapping[str, Callable[[], Picture]] = {"activations": activations, "mask": masks, "rope": ropes, "dtypes": dtypes}


def draw(out: Path, picture: Callable[[], Picture]) -> None:
    """Draw the picture and write it as the suffix of `out` says."""
    if out.suffix not in KINDS:
        raise UserError("a picture needs a file of a known kind", where=f"--out {out}", fix=near(out.suffix, KINDS))
    with matplotlib.rc_context({**STYLE, "font.family": _fonts()}):
        drawn, content, kind = picture(), io.BytesIO(), "png" if out.suffix == ".png" else "svg"
        drawn.figure.supxlabel("\n".join(textwrap.wrap(drawn.caption, 150)), fontsize=12, color=QUIET, ha="left", x=0.012)
        drawn.figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(out, _page(drawn, content.getvalue()) if out.suffix == ".html" else content.getvalue())


def _page(picture: Picture, svg: bytes) -> bytes:
    """The picture and its table as one page that asks for nothing else."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    opened = page.element(
        "img", src=source, alt=picture.caption, style="width:100%;margin-top:20px;background:#fff;border-radius:8px"
    )
    image = page.Html(opened.replace("></img>", "/>"))
    return page.page(picture.title, [page.join(image, page.table(*picture.table))]).encode("utf-8")
