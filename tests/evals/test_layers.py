"""The maps of a run's layers, read back by an XML parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from hornbook import page
from hornbook.evals.layers import TITLES, layer_maps
from hornbook.evals.report import render_report


def look(step: int, count: int, **changes: Any) -> dict[str, Any]:
    names = [f"tower.blocks.{i}" for i in range(count)]
    values = {key: [step + i for i in range(count)] for key in TITLES}
    return {"stage": "pretrain", "step": step, "layers": names, **values, **changes}


def drawn(rows: list[dict[str, Any]]) -> dict[str, ET.Element]:
    """Each map by its title."""
    root = ET.fromstring("<main>" + "".join(layer_maps(rows)) + "</main>")
    return {svg.findall("text")[0].text or "": svg for svg in root.iter("svg")}


def shades(svg: ET.Element) -> list[str]:
    """The opacities of the cells, column after column; the first five are the scale's."""
    return [rect.get("style", "none").removeprefix("opacity:") for rect in svg.findall("rect")][5:]


def words(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.findall("text")]


def test_a_map_per_figure_and_a_cell_per_layer_and_look() -> None:
    maps = drawn([look(1, 2), look(10, 2), look(100, 2)])
    assert list(maps) == list(TITLES.values())
    svg = maps["Gradient norm"]
    found = [float(shade) for shade in shades(svg)]
    assert len(found) == 6 and found == sorted(found) and found[0] == 0.08 and found[-1] == 1.0
    assert {"layer", "step", "0", "1", "10", "100", "101"} <= set(words(svg))
    assert "from 1 to 101" in (svg.get("aria-label") or "")


def test_what_has_no_value_is_an_empty_cell_or_no_map() -> None:
    maps = drawn([look(1, 2, dead=[None, None], update=[None, 0.0]), look(2, 2, dead=[None, None], update=[0.5, 0.25])])
    assert "Dead hidden units, share" not in maps
    assert shades(maps["Update / weight"]) == ["none", "0.08", "1.00", "0.08"]


def test_the_later_of_two_looks_at_a_step_counts_and_towers_are_named() -> None:
    rows = [look(2, 2), look(1, 2), look(2, 2, gradient=[7.0, 8.0], layers=["encoder.blocks.0", "decoder.blocks.0"])]
    svg = drawn(rows)["Gradient norm"]
    assert len(shades(svg)) == 4 and {"enc 0", "dec 0", "7", "8"} <= set(words(svg))


def test_many_layers_are_not_all_named() -> None:
    named = words(drawn([look(1, 48)])["Weight norm"])
    assert {"0", "3", "45"} <= set(named) and "1" not in named[-30:-3]


def test_the_report_shows_them_per_stage() -> None:
    text = render_report({"title": "x"}, [], [look(1, 2), look(1, 2, stage="sft")])
    assert "Layers, pretrain" in text and "Layers, sft" in text
    ET.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert "Layers" not in render_report({"title": "x"}, []) and page.page("x", layer_maps([])).count("<svg") == 0
