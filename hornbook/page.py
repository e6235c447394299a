"""A record -> one self-contained HTML page, with charts as inline SVG.

Plain values flow in, `Html` flows out, and `page` joins it into one file that asks for nothing else: no script, no font, no
address outside itself, and a content policy that says so. The one idea: `Html` is the only string that is not escaped, and
everything is built by `element`, which escapes the rest; so what a corpus or a model wrote stays text. What has nothing to
show is the empty `Html`, and a section of such parts is no section. A page is well-formed XML too.
"""

from __future__ import annotations

import html
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_COLORS = 4  # the series colors c0..c3 of the palette; a fifth series takes the first color again, dashed
_TINTS = 5
_MARKED = 40  # a series of at most this many points shows each of them as a dot

# Name: (light, dark). Blue, vermilion, green and purple in Okabe and Ito's hues, which stay apart for color-blind readers,
# shifted until each is readable as text on `paper` and `raised` (WCAG AA).
PALETTE = {
    "paper": ("#ffffff", "#14171b"), "raised": ("#f4f5f7", "#1e2329"), "ink": ("#1b1f24", "#e8eaed"),
    "quiet": ("#57606a", "#a4adb8"), "edge": ("#d5dae1", "#3a424c"),
    "c0": ("#0067a6", "#6db8f0"), "c1": ("#a84300", "#f2a263"), "c2": ("#00725a", "#4fcba5"), "c3": ("#8c3a70", "#e3a0cc"),
    "t0": ("#d7e9f7", "#1d3f5c"), "t1": ("#fbe3d0", "#573417"), "t2": ("#d0efe4", "#14493a"), "t3": ("#f3dcec", "#552a48"),
    "t4": ("#ece7c4", "#454016"),
}  # fmt: skip

_STYLE = """
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;background:var(--paper)}
body{margin:0 auto;max-width:1080px;padding:32px 24px 64px;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:2rem;line-height:1.2;margin:0;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 12px;letter-spacing:-.01em}p,ul{margin:8px 0;max-width:75ch}
dl,dd,pre,figure{margin:0}header p{max-width:none}a{color:var(--c0)}.quiet,figcaption{color:var(--quiet);font-size:.9rem}
nav{margin-top:14px;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.9rem}section>p.note{margin:-8px 0 0!important}
section{margin-top:36px;padding-top:24px;border-top:1px solid var(--edge)}section>*+*{margin-top:16px}
dl{display:grid;gap:8px 24px;grid-template-columns:repeat(auto-fill,minmax(min(100%,160px),1fr))}
dt{color:var(--quiet);font-size:.85rem}
dl.tiles{gap:12px;grid-template-columns:repeat(auto-fill,minmax(min(100%,200px),1fr))}
dl.tiles>div{background:var(--raised);border-radius:8px;padding:12px 14px}
dl.tiles dd.value{font-size:1.5rem;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
dl.tiles dd.note{color:var(--quiet);font-size:.85rem;line-height:1.4}
.notices{list-style:none;padding:0;margin:16px 0}.notices li{padding-left:28px;position:relative;margin:6px 0}
.notices .mark{position:absolute;left:0;width:20px;text-align:center;font-weight:700}
.well{color:var(--c2)}.look{color:var(--c1)}.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:6px 16px 6px 0;border-bottom:1px solid var(--edge)}th{font-weight:600}
thead th{color:var(--quiet)}.scroll td,.scroll th{min-width:5em;max-width:34em;overflow-wrap:break-word}
td.wrap{white-space:pre-wrap}.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{padding:12px 14px;background:var(--raised);border-radius:8px;white-space:pre-wrap;overflow-wrap:anywhere;
font:.875rem/1.6 ui-monospace,"Cascadia Mono",Menlo,Consolas,"Liberation Mono",monospace}pre.tokens{line-height:2}
.tokens span{border-radius:3px;padding:2px 1px;margin-right:2px;-webkit-box-decoration-break:clone;box-decoration-break:clone}
details{border:1px solid var(--edge);border-radius:8px;padding:8px 14px}details+details{margin-top:8px}
summary{cursor:pointer;font-weight:500}details>summary~*{margin-top:10px}
.row{display:grid;gap:20px 24px;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}.row>*{min-width:0}
figcaption{margin-bottom:6px}svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--quiet);font-family:inherit;font-variant-numeric:tabular-nums}
svg .name{fill:var(--c);font-weight:600}svg .title{fill:var(--ink);font-weight:600}
svg .grid{stroke:var(--edge)}svg polyline{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}
svg circle{fill:var(--c)}svg .dash{stroke-dasharray:5 3}
table.bars td,table.bars th{padding:5px 12px 5px 0;border:0;vertical-align:middle}table.bars th{width:26%;font-weight:400}
table.bars td.number{width:1%;padding-right:0}table.bars svg{height:18px;min-width:60px}svg .track{fill:var(--raised)}
svg .bar{fill:var(--c);opacity:.75}svg .whisker{stroke:var(--ink);stroke-width:2}
svg .goal{stroke:var(--ink);stroke-width:2;stroke-dasharray:3 2}
@media(max-width:600px){body{padding:20px 16px 48px}h1{font-size:1.6rem}svg.wide text{font-size:14px}
dl.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}dl.tiles dd.value{font-size:1.3rem}
.bars,.bars tbody{display:block}.bars tr{display:grid;grid-template-columns:minmax(5em,1fr) auto;margin-bottom:8px}
.bars tr>*{width:auto!important;padding:1px 0!important}.bars td+td{white-space:normal}.bars th+td{grid-area:2/1/3/3}}
"""


class Html(str):
    """Markup whose text is already escaped; every other string is text."""


def text(value: object) -> Html:
    """A value as escaped text; `Html` passes through."""
    if isinstance(value, Html):
        return value
    # Control characters become their pictures; what neither XML nor UTF-8 can hold becomes the replacement character.
    shown = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda found: chr(0x2400 + ord(found[0])), str(value))
    return Html(html.escape(re.sub(r"[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", shown)))


def join(*parts: object) -> Html:
    """The parts one after the other, as one piece of markup."""
    return Html("".join(text(part) for part in parts))


def element(tag: str, *parts: object, **attributes: object) -> Html:
    """`<tag attributes>parts</tag>`, all escaped: `class_` names `class`, `_` inside a name is `-`, None leaves one out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(str(value))}"' for name, value in attributes.items() if value is not None
    )
    return Html(f"<{tag}{named}>{join(*parts)}</{tag}>")


def figure(value: float | None) -> str:
    """A number for a reader: thousands apart, four significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞" if value > 0 else "-∞"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def byte_size(value: float) -> str:
    """Bytes in decimal units: `34.1 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:  # which three digits still show
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def duration(seconds: float) -> str:
    """Seconds in words: `0.4 s`, `5 min 12 s`, `2 h 03 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def percent(value: float) -> str:
    """A share of one in percent: `81.3 %`."""
    return f"{100 * value:.1f} %"


def exact(value: float, shown: str) -> Html:
    """A number as `shown`, with its exact value kept in the page: `<data value="0.8125">81.3 %</data>`."""
    return element("data", shown, value=value)


def _value(value: object) -> Html:
    if isinstance(value, bool) or value is None:
        return text({True: "yes", False: "no", None: "–"}[value])
    return exact(value, figure(value)) if isinstance(value, (int, float)) else text(value)


def page(title: str, sections: Iterable[Html], subtitle: object = "", policy: str = POLICY) -> str:
    """One whole HTML document, its sections listed under the title; `policy` is what a browser may load and run for it."""
    kept = list(filter(None, sections))
    # Text cannot imitate this: its angle brackets are escaped.
    titles = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join(kept))
    links = [element("a", Html(name), href=f"#{anchor}") for anchor, name in titles]
    header = element("header", element("h1", title), element("p", subtitle, class_="quiet") if subtitle else "",
                     element("nav", *links, aria_label="Sections") if len(links) > 1 else "")  # fmt: skip
    light, dark = (";".join(f"--{name}:{pair[scheme]}" for name, pair in PALETTE.items()) for scheme in (0, 1))
    colors = "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(_COLORS))
    tints = "".join(f".t{i}{{background:var(--t{i})}}" for i in range(_TINTS))
    style = f":root{{color-scheme:light dark;{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_STYLE}"
    head = (
        f'<meta charset="utf-8"/><meta http-equiv="Content-Security-Policy" content="{text(policy)}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/><meta name="color-scheme" content="light dark"/>'
        f'<link rel="icon" href="data:,"/>{element("title", title)}<style>{style}{colors}{tints}</style>'
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{header}\n{element("main", *kept)}</body></html>\n'


def section(title: str, *parts: object, note: object = None) -> Html:
    """A headed part of the page, empty if all its parts are; the note is one quiet line under the heading."""
    if not any(parts):
        return Html()
    anchor = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    quiet = element("p", note, class_="note quiet") if note else ""
    return join("\n", element("section", element("h2", title), quiet, *filter(None, parts), id=anchor))


def paragraph(*parts: object) -> Html:
    """A paragraph of text."""
    return element("p", *parts)


def caption(title: object, *parts: object) -> Html:
    """The parts under one quiet line that names them."""
    return element("figure", element("figcaption", title), *parts) if any(parts) else Html()


def row(*parts: object) -> Html:
    """Parts side by side where the screen is wide enough, else one under the other."""
    return element("div", *filter(None, parts), class_="row") if any(parts) else Html()


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], language: str | None = None) -> Html:
    """A table that scrolls inside its own box; numbers are set right, and keep their exact value."""
    cells = [list(line) for line in rows]
    kinds = ["number" if any(isinstance(line[i], (int, float)) for line in cells) else "wrap" for i in range(len(headers))]

    def drawn(line: Sequence[object]) -> Html:
        inside = zip(line, kinds, strict=True)
        return element("tr", *(element("td", _value(cell), class_=kind, lang=language, dir="auto") for cell, kind in inside))

    head = [element("th", name, scope="col", class_=kind) for name, kind in zip(headers, kinds, strict=True)]
    inside = element("table", element("thead", element("tr", *head)), element("tbody", *map(drawn, cells)))
    said = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": ", ".join(headers)}
    return element("div", inside, **said) if cells else Html()


def facts(pairs: Iterable[tuple[object, ...]], tiles: bool = False) -> Html:
    """A grid of (label, value) or (label, value, note); tiles are the few large figures at the top of a page."""
    cells = []
    for label, value, *notes in pairs:
        below = [element("dd", note, class_="note") for note in notes]
        cells.append(element("div", element("dt", label), element("dd", _value(value), class_="value"), *below))
    return element("dl", *cells, class_="tiles" if tiles else None) if cells else Html()


def notices(rows: Iterable[tuple[bool, object]]) -> Html:
    """A list of findings: each went well, or deserves a look; a sign says which, not color alone."""
    marks = {True: ("well", "✓", "good"), False: ("look", "!", "look")}
    found = []
    for well, finding in rows:
        tone, sign, spoken = marks[well]
        found.append(element("li", element("span", sign, class_=f"mark {tone}", role="img", aria_label=spoken), finding))
    return element("ul", *found, class_="notices") if found else Html()


def code(words: object, language: str | None = None) -> Html:
    """Text as it is, its line breaks kept and long lines wrapped; `language` (a tag such as `zh`) chooses its glyphs."""
    return element("pre", words, lang=language, dir="auto")


def tokens(pieces: Sequence[str], ids: Sequence[int] = (), language: str | None = None) -> Html:
    """A strip of tokens in alternating colors, white space made visible; pointing at one shows its id."""
    visible = str.maketrans({" ": "·", "\n": "↵\n", "\t": "⇥", "\r": "␍"})
    titles: list[str | None] = [f"token {number}" for number in ids] or [None] * len(pieces)
    spans = [
        element("span", piece.translate(visible) or "∅", class_=f"t{i % _TINTS}", title=title)
        for i, (piece, title) in enumerate(zip(pieces, titles, strict=True))
    ]
    return element("pre", *spans, class_="tokens", lang=language, dir="auto") if spans else Html()


def details(summary: object, *parts: object) -> Html:
    """Parts that a reader opens."""
    return element("details", element("summary", summary), *parts) if any(parts) else Html()


@dataclass(frozen=True)
class Bar:
    """One row of `bars`: a value, in words too, and perhaps its interval and a mark (chance, a goal) on the same scale."""

    label: object
    value: float
    shown: object
    interval: tuple[float, float] | None = None
    mark: float | None = None
    color: int = 0


def bars(rows: Sequence[Bar], full: float | None = None) -> Html:
    """Horizontal bars from 0 to `full` (by default the largest value): a whisker is the interval, a dashed line the mark."""
    reach = full or max((max(bar.value, *(bar.interval or ()), bar.mark or 0) for bar in rows), default=0) or 1.0
    return element("table", element("tbody", *(_bar_row(bar, reach) for bar in rows)), class_="bars") if rows else Html()


def _bar_row(bar: Bar, full: float) -> Html:
    def at(value: float) -> str:
        return f"{100 * min(max(value / full, 0.0), 1.0):.2f}%"

    spoken = figure(bar.value)
    drawn = [element("rect", class_=name, width=w, height=18, rx=3) for name, w in (("track", "100%"), ("bar", at(bar.value)))]
    if bar.interval:
        low, high = (at(end) for end in bar.interval)
        spoken += f", interval {figure(bar.interval[0])} to {figure(bar.interval[1])}"
        drawn += [element("line", class_="whisker", x1=low, x2=high, y1=9, y2=9)]
        drawn += [element("line", class_="whisker", x1=end, x2=end, y1=5, y2=13) for end in (low, high)]
    if bar.mark is not None:
        spoken += f", mark {figure(bar.mark)}"
        drawn += [element("line", class_="goal", x1=at(bar.mark), x2=at(bar.mark), y1=0, y2=18)]
    color = f"c{bar.color % _COLORS}"
    drawing = element("svg", element("title", spoken), *drawn, role="img", aria_label=spoken, class_=color, height=18)
    shown = element("td", bar.shown, class_="number")
    return element("tr", element("th", bar.label, scope="row"), element("td", drawing), shown)


@dataclass(frozen=True)
class _Axis:
    """One direction of a chart: values from `low` to `high` lie on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @staticmethod
    def over(values: Sequence[float], start: float, end: float, margin: float, log: bool = False) -> _Axis:
        """The axis that holds all values, with a share of its length free at both ends."""
        low, high = (math.log10(edge) if log else edge for edge in (min(values), max(values)))
        room = (high - low) * margin if high > low else 0.3 if log else abs(low) / 2 or 1.0
        if log:
            return _Axis(10 ** (low - room), 10 ** (high + room), start, end, log)
        return _Axis(0.0 if 0 <= low < room else low - room, high + room, start, end)

    def place(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values on the axis: 1, 2 and 5 times a power of ten, or on a long log axis powers of ten alone."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors, stride in (((1, 2, 5), 1), ((1,), 1), ((1,), 3), ((1,), 9)):
                round_ones = [m * 10.0**p for p in powers if p % stride == 0 for m in factors]
                found = [value for value in round_ones if self.low <= value <= self.high]
                if len(found) <= 6:
                    break
            if len(found) > 2:
                return found
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _tick_label(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.6g}{unit}"
    return f"{value:,.6g}"


def _thinned(points: Iterable[Point], across: _Axis) -> list[Point]:
    """At most four points for each pixel column (first, lowest, highest, last), which draw the same picture."""
    kept: list[Point] = []
    for _, column in itertools.groupby(points, lambda point: int(across.place(point[0]))):
        inside = list(enumerate(column))
        ends = {inside[0], inside[-1], min(inside, key=lambda p: p[1][1]), max(inside, key=lambda p: p[1][1])}
        kept += [point for _, point in sorted(ends)]
    return kept


def lines(
    series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, log_y: bool = False, width: int = 480, log_x: bool = False
) -> Html:
    """A line chart of named series of (x, y), each in the order of its x and named where its line ends.

    A y that is not finite (or not above zero, on a log axis) is a gap. At `width` pixels its letters have the page's small size.
    """

    def drawable(point: Point) -> bool:
        return math.isfinite(point[0]) and math.isfinite(point[1]) and (point[1] > 0 or not log_y)

    finite = {name: [point for point in points if drawable(point)] for name, points in series.items()}
    everything = [point for points in finite.values() for point in points]
    if not everything:
        return element("p", f"{y_label}: there is no finite value to draw.", class_="quiet")
    columns = max(sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name) for name in series)
    across = _Axis.over([x for x, _ in everything], 58, width - (14 + 9 * columns if len(series) > 1 else 16), 0, log_x)
    down = _Axis.over([y for _, y in everything], 216, 32, 0.04, log_y)
    drawn = [element("text", y_label, x=2, y=15, class_="title"), *_grid(across, down, x_label)]
    for i, points in enumerate(series.values()):
        style = f"c{i % _COLORS}" + (" dash" if i >= _COLORS else "")
        for solid, group in itertools.groupby(points, drawable):
            if solid:
                drawn += _stroke(_thinned(group, across), across, down, style, len(points) <= _MARKED)
    if len(series) > 1:
        ends = {name: down.place(points[-1][1]) for name, points in finite.items() if points}
        drawn += _names(ends, list(series), across.end + 6)
    told = "; ".join(f"{name} from {figure(p[0][1])} to {figure(p[-1][1])}" for name, p in finite.items() if p)
    said = {"role": "img", "aria_label": f"{y_label} by {x_label}: {told}", "class_": "wide" if width > 400 else None}
    axes = {f"data_{name}": " ".join(map(str, map(float, vars(axis).values()))) for name, axis in (("x", across), ("y", down))}
    return element("svg", element("title", said["aria_label"]), *drawn, viewBox=f"0 0 {width} 260", **said, **axes)


def _grid(across: _Axis, down: _Axis, x_label: str) -> list[Html]:
    drawn = []
    for value in down.ticks():
        y = f"{down.place(value):.1f}"
        drawn.append(element("line", class_="grid", x1=across.start, x2=across.end, y1=y, y2=y))
        drawn.append(element("text", _tick_label(value), x=across.start - 6, y=y, dy="0.35em", text_anchor="end"))
    for value in across.ticks():
        drawn.append(element("text", _tick_label(value), x=f"{across.place(value):.1f}", y=234, text_anchor="middle"))
    return [*drawn, element("text", x_label, x=across.end, y=253, text_anchor="end")]


def _stroke(points: Sequence[Point], across: _Axis, down: _Axis, style: str, marked: bool) -> list[Html]:
    places = [(f"{across.place(x):.1f}", f"{down.place(y):.1f}") for x, y in points]
    dots = [element("circle", class_=style, cx=x, cy=y, r=2.6) for x, y in places] if marked or len(places) == 1 else []
    joined = " ".join(f"{x},{y}" for x, y in places)
    return [element("polyline", class_=style, points=joined), *dots] if len(places) > 1 else dots


def _names(ends: Mapping[str, float], order: Sequence[str], x: float) -> list[Html]:
    """The name of each series beside the end of its line, moved up or down as far as two would touch."""
    low = 222.0
    placed: dict[str, float] = {}
    for name, y in sorted(ends.items(), key=lambda end: -end[1]):
        placed[name] = low = min(y, low - 17 if placed else low)
    colors = {name: f"name c{i % _COLORS}" for i, name in enumerate(order)}
    return [element("text", name, x=x, y=f"{y:.1f}", dy="0.35em", class_=colors[name]) for name, y in placed.items()]
