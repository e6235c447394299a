"""The page read back by parsers that know nothing of how it was made: an XML parser, and arithmetic on the drawn pixels."""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from hornbook import page

HOSTILE = "</style></title><script>alert(1)</script><img src=http://outside.example/x onerror='x'>\"'&amp;]]>\x00\x1b\ud800\ufffe"
HOSTILE_SHOWN = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\ud800", "\ufffd").replace("\ufffe", "\ufffd")


def tree(markup: str) -> ET.Element:
    return ET.fromstring(markup)


def everything(words: str) -> str:
    """A page that shows the given words in every place that takes words."""
    parts = [
        page.paragraph(words), page.caption(words, page.code(words, words)), page.details(words, words), page.row(words, words),
        page.table([words, "n"], [[words, 1]], language=words), page.facts([(words, words, words)]),
        page.notices([(True, words)]),
        page.tokens([words, words], [1, 2], words), page.bars([page.Bar(words, 1.0, words, (0.5, 1.5), 0.2)]),
        page.lines({words: [(0, 1.0), (1, 2.0)], "other": [(0, 1.0)]}, words, words),
    ]  # fmt: skip
    return page.page(words, [page.section(words, *parts, note=words)], words)


def test_hostile_words_stay_words_everywhere() -> None:
    made = everything(HOSTILE)
    made.encode("utf-8")  # a lone surrogate would fail here
    hostile, harmless = tree(made), tree(everything("harmless"))
    assert [node.tag for node in hostile.iter()] == [node.tag for node in harmless.iter()]
    assert [sorted(node.attrib) for node in hostile.iter()] == [sorted(node.attrib) for node in harmless.iter()]
    for ours, theirs in zip(harmless.iter(), hostile.iter(), strict=True):
        if "harmless" in (ours.text or "") and ours.attrib.get("class") not in (
            "t0",
            "t1",
        ):  # token strips show white space as signs
            assert HOSTILE_SHOWN in (theirs.text or "")


def test_a_page_asks_for_nothing_outside_itself() -> None:
    made = everything("words")
    assert "script" not in made and "://" not in made and "@import" not in made and "url(" not in made
    root = tree(made)
    addresses = [value for node in root.iter() for name, value in node.attrib.items() if name in ("href", "src", "action", "data")]
    assert addresses and all(value.startswith("#") or value == "data:," for value in addresses)
    policy = next(node for node in root.iter("meta") if node.attrib.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in policy.attrib["content"].split("; "))
    assert rules["default-src"] == "'none'" and rules["style-src"] == "'unsafe-inline'" and rules["img-src"] == "data:"
    assert "script-src" not in rules


def test_links_lead_to_sections_and_empty_sections_are_left_out() -> None:
    sections = [
        page.section("One & <b>", "x"),
        page.section("Empty", page.facts([]), page.table(["a"], []), ""),
        page.section("Two", "y"),
    ]
    root = tree(page.page("Title", sections))
    assert [node.text for node in root.iter("h2")] == ["One & <b>", "Two"]
    links = [(node.text, node.attrib["href"][1:]) for node in root.iter("a")]
    assert links == [(node.find("h2").text, node.attrib["id"]) for node in root.iter("section")]  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [0, 7, 1234567, 0.5, 0.123456, 999.96, 123456.7, 1e-7, -3.25, 12.0])
def test_a_figure_reads_back_to_four_digits_and_the_page_keeps_it_exactly(value: float) -> None:
    assert float(page.figure(value).replace(",", "")) == pytest.approx(value, rel=5.1e-4)
    cell = tree(page.facts([("x", value)])).find(".//data")
    assert cell is not None and float(cell.attrib["value"]) == value


@pytest.mark.parametrize(("value", "shown"), [(None, "–"), (math.nan, "–"), (math.inf, "∞")])
def test_what_is_no_number_is_shown_as_such(value: float | None, shown: str) -> None:
    assert page.figure(value) == shown


@pytest.mark.parametrize("seconds", [0.04, 12.34, 59.9, 60, 61, 3599.4, 3600, 7384, 123456])
def test_a_duration_reads_back(seconds: float) -> None:
    size = {"s": 1, "min": 60, "h": 3600}
    words = page.duration(seconds).replace(",", "").split()
    read = sum(float(number) * size[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert read == pytest.approx(seconds, abs=0.05 if seconds < 60 else 1 if seconds < 3600 else 60)


@pytest.mark.parametrize("count", [0, 999, 1000, 999_600, 34_100_000, 5 * 10**9, 3 * 10**12])
def test_a_byte_size_reads_back(count: int) -> None:
    number, unit = page.byte_size(count).split()
    assert float(number) * {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit] == pytest.approx(count, rel=6e-3)


# --- charts: the ticks say what a pixel means, so the drawn points must read back as the data ----------------------------


def drawn_points(chart: ET.Element) -> list[list[tuple[float, float]]]:
    polylines = [node.attrib["points"].split() for node in chart.iter("polyline")]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line)] for line in polylines]


def tick_value(label: str) -> float:
    return float(label.rstrip("kMG").replace(",", "")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(label[-1], 1.0)


def reader(ticks: list[tuple[float, str]], log: bool = False):  # type: ignore[no-untyped-def]
    """From the first and the last tick, a function from a pixel to a value."""
    (p0, label0), (p1, label1) = ticks[0], ticks[-1]
    v0, v1 = (math.log10(tick_value(v)) if log else tick_value(v) for v in (label0, label1))

    def read(pixel: float) -> float:
        value = v0 + (pixel - p0) * (v1 - v0) / (p1 - p0)
        return 10**value if log else value

    return read


def axes(chart: ET.Element) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    labels = [node for node in chart.iter("text") if re.fullmatch(r"-?[\d.,]+(e-?\d+)?[kMG]?", node.text or "")]
    across = [(float(node.attrib["x"]), node.text or "") for node in labels if node.attrib["text-anchor"] == "middle"]
    return across, [(float(node.attrib["y"]), node.text or "") for node in labels if node.attrib["text-anchor"] == "end"]


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("scale", [(100.0, 3.0), (20_000.0, 250_000.0), (40.0, 2e-4), (1e6, 1.0)])
def test_a_chart_reads_back_as_its_data(log_y: bool, scale: tuple[float, float]) -> None:
    points = [(i / 50 * scale[0], scale[1] * (0.2 + (50 - i) ** 2 / 400)) for i in range(51)]
    chart = tree(page.lines({"one": points}, "step", "value", log_y))
    across, down = axes(chart)
    assert 2 <= len(across) <= 7 and 2 <= len(down) <= 7
    read_x, read_y = reader(across), reader(down, log_y)
    span = max(y for _, y in points) - min(y for _, y in points)
    (line,) = drawn_points(chart)
    for (x, y), (px, py) in zip(points, line, strict=True):
        assert read_x(px) == pytest.approx(x, abs=scale[0] / 400)
        assert read_y(py) == (pytest.approx(y, rel=0.01) if log_y else pytest.approx(y, abs=span / 150))


def test_gaps_lone_points_and_points_off_a_log_axis() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0, 0.0, -1.0]
    chart = page.lines({"a": list(enumerate(values))}, "x", "y", log_y=True)
    assert [len(line) for line in drawn_points(tree(chart))] == [2, 2]
    assert len(list(tree(chart).iter("circle"))) == 5  # few points are dots as well, the lone one among them
    long = [(float(i), math.nan if i in (50, 52) else 1.0 + i) for i in range(100)]
    assert len(list(tree(page.lines({"a": long}, "x", "y")).iter("circle"))) == 1
    assert "no finite value" in page.lines({"a": [(0, math.nan)]}, "x", "y")


@pytest.mark.parametrize("points", [[(0, 0.0)], [(5, 5.0)], [(0, 1.0), (1, 1.0)], [(0, -2.0), (9, 3.0)], [(3, 1e-30), (4, 1e30)]])
@pytest.mark.parametrize("log_y", [False, True])
def test_odd_ranges_draw_inside_the_chart(points: list[page.Point], log_y: bool) -> None:
    chart = tree(page.lines({"a": points}, "x", "y", log_y))
    for node in chart.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(node.attrib.get(name, 0)) <= 480
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(node.attrib.get(name, 0)) <= 260


def test_a_long_noisy_series_stays_small_and_keeps_its_extremes() -> None:
    noisy = [(float(i), 5 + math.sin(i * 12.9898) * 43758.5453 % 1) for i in range(100_000)]
    noisy[31_234] = (31_234.0, 9.5)
    noisy[77_777] = (77_777.0, 0.5)
    chart = page.lines({"a": noisy}, "step", "loss")
    assert len(chart) < 40_000
    root = tree(chart)
    across, down = axes(root)
    read_x, read_y = reader(across), reader(down)
    (line,) = drawn_points(root)
    top, bottom = min(line, key=lambda p: p[1]), max(line, key=lambda p: p[1])
    assert (read_x(top[0]), read_y(top[1])) == (pytest.approx(31_234, abs=300), pytest.approx(9.5, abs=0.1))
    assert (read_x(bottom[0]), read_y(bottom[1])) == (pytest.approx(77_777, abs=300), pytest.approx(0.5, abs=0.1))


def test_names_at_the_ends_of_lines_do_not_touch() -> None:
    series = {f"series {i}": [(0, 1.0), (1, 2.0 + i / 1000)] for i in range(4)}
    heights = sorted(
        float(node.attrib["y"])
        for node in tree(page.lines(series, "x", "y")).iter("text")
        if "name" in node.attrib.get("class", "")
    )
    assert len(heights) == 4 and all(after - before >= 15 for before, after in zip(heights, heights[1:], strict=False))


def test_charts_and_bars_speak_to_who_cannot_see_them() -> None:
    for svg in (
        page.lines({"loss": [(0, 3.5), (9, 1.25)]}, "step", "Loss"),
        page.bars([page.Bar("a", 0.25, "25 %", (0.125, 0.5), 0.1)]),
    ):
        drawing = next(tree(svg).iter("svg"))
        assert drawing.attrib["role"] == "img"
        assert drawing.attrib["aria-label"] == (drawing.findtext("title"))
    assert "3.5 to 1.25" in page.lines({"loss": [(0, 3.5), (9, 1.25)]}, "step", "Loss")


def test_bars_are_as_long_as_their_values() -> None:
    rows = [page.Bar("a", 30, "30"), page.Bar("b", 60, "60", (45, 90), 15), page.Bar("none", 0, "0")]
    drawings = list(tree(page.bars(rows, full=120)).iter("svg"))
    share = {"a": "25.00%", "b": "50.00%", "none": "0.00%"}
    widths = [next(n.attrib["width"] for n in d.iter("rect") if n.attrib["class"] == "bar") for d in drawings]
    assert widths == list(share.values())
    whisker = [n.attrib for n in drawings[1].iter("line") if n.attrib["class"] == "whisker"][0]
    assert (whisker["x1"], whisker["x2"]) == ("37.50%", "75.00%")
    assert [n.attrib["x1"] for n in drawings[1].iter("line") if n.attrib["class"] == "goal"] == ["12.50%"]
    assert page.bars([page.Bar("zero", 0, "0")])


def test_colors_are_readable_in_both_schemes() -> None:
    """WCAG 2: the contrast of text and its ground is at least 4.5."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = tree(page.page("t", [])).findtext(".//style") or ""
    light, dark = (dict(re.findall(r"--(\w+):(#\w{6})", half)) for half in style.split("prefers-color-scheme:dark", 1))
    assert light.keys() == dark.keys() and light["paper"] != dark["paper"]
    for colors in (light, dark):
        pairs = [(front, back) for front in ("ink", "quiet", "c0", "c1", "c2", "c3") for back in ("paper", "raised")]
        for front, back in pairs + [("ink", name) for name in colors if name.startswith("t")]:
            high, low = sorted((luminance(colors[front]), luminance(colors[back])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_page_stands_on_the_standard_library_alone() -> None:
    body = ast.parse(Path(page.__file__).read_text(encoding="utf-8")).body
    modules = {node.module for node in body if isinstance(node, ast.ImportFrom)} | {
        a.name for n in body if isinstance(n, ast.Import) for a in n.names
    }
    assert {str(name).split(".")[0] for name in modules} <= sys.stdlib_module_names
    loaded = subprocess.run(
        [sys.executable, "-c", "import hornbook.page, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_a_log_axis_gives_each_decade_the_same_room() -> None:
    points = [(10.0**power, float(power)) for power in range(-5, 2)]
    chart = tree(page.lines({"a": points}, "rate", "loss", log_x=True))
    places = [float(node.attrib["cx"]) for node in chart.iter("circle")]
    gaps = [right - left for left, right in zip(places, places[1:], strict=False)]
    assert len(gaps) == 6 and max(gaps) - min(gaps) <= 0.2 and min(gaps) > 50
