"""What pictures show, against the slow obvious versions; that each can be drawn, and is the same file twice."""

from __future__ import annotations

import math
import xml.dom.minidom
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import pytest
import torch

from hornbook.errors import UserError
from hornbook.model import Rope
from hornbook.model.mlp import ACTIVATIONS
from hornbook.plan.dtypes import FLOATS
from hornbook.stages import pictures
from hornbook.stages.pictures import MASKS, PICTURES, STYLE, Picture, draw
from tests.reference.models import tokenized_model

SEEN: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda query, key: key <= query,
    "padding (left) and causal": lambda query, key: 2 <= key <= query,
    "a window of three": lambda query, key: query - 3 < key <= query,
    "a prefix of three, then causal": lambda query, key: key <= query or key < 3,
    "padding alone": lambda query, key: key >= 2,
    "packed: two documents in a row": lambda query, key: key <= query and (query < 3) == (key < 3),
}


@pytest.mark.parametrize("title", MASKS)
def test_a_mask_is_what_its_title_says(title: str) -> None:
    names = MASKS[title][0].split()
    expected = [[SEEN[title](query, key) for key in range(len(names))] for query in range(len(names))]
    assert pictures.mask_of(title).tolist() == expected


def test_a_query_that_sees_nothing_gives_exact_zeros() -> None:
    seen, y = pictures.blind_row()
    assert seen.tolist() == [[key <= query for key in (1, 2, 3)] for query in range(5)]
    assert (y[0] == 0).all() and (y[1:].norm(dim=-1) > 0.1).all() and torch.isfinite(y).all()


def test_the_dot_product_is_a_mean_of_cosines_of_the_distance() -> None:
    rope, distances = Rope(16, 100.0), torch.arange(40)
    expected = [sum(math.cos(d * 100.0 ** (-2 * i / 16)) for i in range(8)) / 8 for d in range(40)]
    for start in (0, 1000):
        assert (pictures.dot_products(rope, start, distances) - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9


def words(picture: Picture) -> list[str]:
    picture.figure.draw_without_rendering()
    return [found.get_text() for found in picture.figure.findobj(matplotlib.text.Text) if found.get_text()]


def test_every_activation_has_its_panel_and_its_derivative() -> None:
    found = pictures.activations()
    assert [panel.get_title() for panel in found.figure.axes[: len(ACTIVATIONS)]] == list(ACTIVATIONS)
    for panel, act in zip(found.figure.axes, ACTIVATIONS.values(), strict=False):
        value, slope = (torch.tensor(line.get_ydata()) for line in panel.get_lines())
        x = torch.tensor(panel.get_lines()[0].get_xdata())
        assert torch.equal(act(x), value)
        between = (value[1:] - value[:-1]) / (x[1:] - x[:-1])
        middle = (slope[1:] + slope[:-1]) / 2
        smooth = ((x[1:, None] - torch.tensor([-3.0, 0.0, 3.0])).abs() > 0.03).all(-1)  # where some of them have a corner
        assert (between - middle)[smooth].abs().max() < 2e-3


def test_every_number_format_is_named_with_its_ends() -> None:
    found = words(pictures.dtypes())
    assert set(FLOATS) <= set(found) and {"448", "57344", "65504"} <= set(found)


@pytest.mark.parametrize("name", PICTURES)
def test_no_two_words_of_a_picture_overlap(name: str) -> None:
    with matplotlib.rc_context(STYLE):
        picture = PICTURES[name]()
    picture.figure.draw_without_rendering()
    boxes = [
        (found.get_text(), found.get_window_extent())
        for found in picture.figure.findobj(matplotlib.text.Text)
        if found.get_text().strip() and found.get_visible()
    ]
    ticks = set("⁻0123456789−.")  # a tick that lies outside its axis is not drawn, and has a place all the same
    shown = [(text, box) for text, box in boxes if not set(text) <= ticks and "mathdefault" not in text]
    assert [(a, b) for n, (a, x) in enumerate(shown) for b, y in shown[:n] if x.overlaps(y)] == []


def test_an_svg_is_the_same_file_twice_and_well_formed(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.html"):
        draw(tmp_path / name, pictures.masks)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    xml.dom.minidom.parse(str(tmp_path / "a.svg"))
    xml.dom.minidom.parse(str(tmp_path / "c.html"))
    assert "data:image/svg+xml;base64," in (tmp_path / "c.html").read_text()


def test_attention_has_a_panel_for_each_head_of_the_chosen_layers(tmp_path: Path) -> None:
    model, tokenizer = tokenized_model("qwen3")
    found = pictures.attention(model, tokenizer, "The baker $x$ 你", (2, 0))
    titles = [panel.get_title() for panel in found.figure.axes]
    assert [title for title in titles if title] == [f"layer {layer}, head {head}" for layer in (2, 0) for head in range(4)]
    first = torch.tensor(found.figure.axes[0].images[0].get_array())
    assert ((first.sum(-1) - 1).abs() < 1e-5).all() and (first.triu(1) == 0).all()
    names = [label.get_text() for label in found.figure.axes[0].get_yticklabels()]
    assert names[0] == "The" and any(name.startswith("·") for name in names) and any(r"\$" in name for name in names)
    draw(tmp_path / "a.png", partial(pictures.attention, model, tokenizer, "The baker", ()))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_or_a_layer_that_cannot_be_shown() -> None:
    model, tokenizer = tokenized_model("llama")
    for text, layers, expected in (
        ("fox " * 99, (), "cannot be read"),
        ("", (), "0 tokens"),
        ("fox", (3,), "the layers are 0 to 2"),
    ):
        with pytest.raises(UserError, match=expected):
            pictures.attention(model, tokenizer, text, layers)
