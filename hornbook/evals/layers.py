"""The rows of `layers.jsonl` -> maps, one per figure: a layer per line, a look per column, the darker the larger.

Shades are logarithmic between the least and the largest value that a map names, but for shares, which are shares. What has no
value (no such part, or not finite) is an empty cell with a stroke. Beside each line stands its last value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hornbook import page
from hornbook.page import Html, element, figure

Record = Mapping[str, Any]
TITLES = {
    "activation": "Residual stream, root mean square", "attention_logit": "Largest attention logit",
    "gradient": "Gradient norm", "weight": "Weight norm", "update": "Update / weight", "dead": "Dead hidden units, share",
}  # fmt: skip
WIDTH, LEFT, RIGHT, TOP, LINE = 480, 58, 62, 46, 18  # pixels
FEWEST = 0.08  # opacity of the least value
NAMED = 16  # layers of which each is named; of more, every second, third, ...


def layer_maps(rows: Sequence[Record]) -> Iterator[Html]:
    """A section per stage that was looked into."""
    for stage in dict.fromkeys(row["stage"] for row in rows):
        looks = {row["step"]: row for row in rows if row["stage"] == stage}  # of a step that was run twice, the later
        last = [looks[step] for step in sorted(looks)]
        maps = [_map(title, key, last) for key, title in TITLES.items()]
        note = "A line per layer, a column per look; the darker, the larger. The number on the right is the last look's."
        yield page.section(f"Layers, {stage}", page.row(*maps[:2]), page.row(*maps[2:4]), page.row(*maps[4:]), note=note)


def _map(title: str, key: str, looks: Sequence[Record]) -> Html:
    names = looks[-1]["layers"]
    values = [value for look in looks for value in look[key] if value is not None and value > 0]
    if not any(value is not None for look in looks for value in look[key]):
        return Html()
    low, high = (0.0, max(values, default=1.0)) if key == "dead" else (min(values, default=1.0), max(values, default=1.0))
    wide, down = (WIDTH - LEFT - RIGHT) / len(looks), TOP + LINE * len(names)
    drawn = [element("text", title, x=2, y=15, class_="title"), *_scale(low, high)]
    for column, look in enumerate(looks):
        for line, value in enumerate(look[key]):
            at = {"x": f"{LEFT + column * wide:.1f}", "y": TOP + line * LINE, "width": f"{wide - 1:.1f}", "height": LINE - 1}
            if value is None:
                drawn.append(element("rect", **at, fill="none", class_="grid"))
            else:
                drawn.append(element("rect", **at, class_="bar c0", style=f"opacity:{_shade(value, low, high, key == 'dead'):.2f}"))
    every = math.ceil(len(names) / NAMED)
    for line, name in enumerate(names):
        if line % every == 0:
            y = TOP + line * LINE + LINE / 2
            drawn.append(element("text", _short(name), x=LEFT - 6, y=y, dy="0.35em", text_anchor="end"))
            drawn.append(element("text", figure(_three(looks[-1][key][line])), x=WIDTH - RIGHT + 6, y=y, dy="0.35em"))
    steps = [(column, looks[column]["step"]) for column in sorted({0, len(looks) // 2, len(looks) - 1})]
    for column, step in steps:
        drawn.append(element("text", f"{step:,}", x=f"{LEFT + (column + 0.5) * wide:.1f}", y=down + 14, text_anchor="middle"))
    drawn.append(element("text", "layer", x=LEFT - 6, y=TOP - 8, text_anchor="end"))
    drawn.append(element("text", "step", x=WIDTH - RIGHT + 6, y=down + 14))
    said = f"{title} by layer and step: from {figure(low)} to {figure(high)}"
    return element(
        "svg", element("title", said), *drawn, viewBox=f"0 0 {WIDTH} {down + 22}", role="img", aria_label=said, class_="wide"
    )


def _scale(low: float, high: float) -> list[Html]:
    """The shades from the least to the largest value, with both in figures, above the map."""
    x = WIDTH - RIGHT - 172
    swatches = [
        element("rect", x=x + 56 + 12 * i, y=TOP - 17, width=11, height=10, class_="bar c0", style=f"opacity:{FEWEST + share:.2f}")
        for i, share in enumerate((0.0, 0.23, 0.46, 0.69, 0.92))
    ]  # fmt: skip
    ends = [(figure(_three(low)), x + 50, "end"), (figure(_three(high)), x + 122, "start")]
    return [*swatches, *(element("text", word, x=place, y=TOP - 8, text_anchor=anchor) for word, place, anchor in ends)]


def _shade(value: float, low: float, high: float, linear: bool) -> float:
    if high <= low:
        share = 1.0
    elif linear:
        share = value / high
    else:
        share = math.log(max(value, low) / low) / math.log(high / low)
    return FEWEST + (1 - FEWEST) * min(1.0, share)


def _three(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _short(name: str) -> str:
    """`tower.blocks.3` is 3; an encoder's and a decoder's keep their first letters."""
    tower, _, number = name.rpartition(".blocks.")
    return number if tower in ("tower", "") else f"{tower[:3]} {number}"
