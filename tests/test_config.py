"""Settings from TOML and back: strict on the way in, whole on the way out, both against Python's own TOML reader."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from hornbook.config import from_dict, from_toml, read_toml, to_toml
from hornbook.errors import UserError
from hornbook.stages.settings import Recipe, SftRecipe

NASTY = 'quotes " \' """ \\ back, tab \t, end \n\r\n, bell \x07, DEL \x7f, 字 é 😀 \u2028, [table] # no comment = 1'
MODEL = {
    "model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "layer_types": ["full", "local"],
    "rope_parameters": {"rope_theta": 500000.0, "inner": {"deep": [1, 2], "empty": {}}}, "id2label": {"0": "no", "a b": NASTY},
    "pieces": [{"a": 1, "b c": [True, "x"]}, {}], "huge": float("inf"), "negative": -3,
}  # fmt: skip


@dataclass(frozen=True)
class Small:
    name: str
    size: int = 3
    share: float = 0.5
    deep: bool = False
    kind: Literal["linear", "cosine"] = "linear"
    limit: int | None = None
    parts: list[str] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1: {self.size}")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "it.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(out="runs/x", model={}),
        Recipe(out=NASTY, model=MODEL, learning_rate=1e-4, clip=2, language="zh", weight_decay=0.1),
        SftRecipe(base="runs/x"),
        SftRecipe(base=NASTY, steps=7, replay=0.0, learning_rate=3e-05, device="cpu"),
    ],
)
def test_recipes_come_back(tmp_path: Path, recipe: Recipe | SftRecipe) -> None:
    path = written(tmp_path, to_toml(recipe))
    assert tomllib.loads(path.read_text(encoding="utf-8")) == {
        key: value for key, value in asdict(recipe).items() if value is not None
    }
    assert from_toml(type(recipe), path) == recipe


def test_every_field_is_written_but_none_is_left_out(tmp_path: Path) -> None:
    text = to_toml(Small("x", limit=None))
    assert set(tomllib.loads(text)) == {field.name for field in fields(Small)} - {"limit", "parts"}
    assert from_toml(Small, written(tmp_path, text)) == Small("x")
    assert tomllib.loads(to_toml({"a": None, "table": {"b": None, "c": 1}})) == {"table": {"c": 1}}


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    assert from_toml(Small, written(tmp_path, 'name = "x"')) == Small("x")
    whole = 'name="x"\nsize=9\nshare=1\ndeep=true\nkind="cosine"\nlimit=4\nparts=["a"]'
    assert from_toml(Small, written(tmp_path, whole)) == Small("x", 9, 1, True, "cosine", 4, ["a"])


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('name = "x"\n# size\nsizze = 4\n', 3, ["unknown key 'sizze'", "did you mean 'size'?"]),
        ('name = "x"\nqqqq = 4\n', 2, ["unknown key 'qqqq'", "known:", "share"]),
        ('name = "x"\n\n[modle]\na = 1\n', 3, ["unknown key 'modle'"]),
        ('name = "x"\nsize = "four"\n', 2, ["size must be int", "'four'"]),
        ('name = "x"\nsize = 4.0\n', 2, ["size must be int", "4.0"]),
        ('name = "x"\nsize = true\n', 2, ["size must be int", "True"]),
        ('name = "x"\nshare = true\n', 2, ["share must be float"]),
        ('name = "x"\ndeep = 1\n', 2, ["deep must be bool"]),
        ("name = 3\n", 1, ["name must be str"]),
        ('name = "x"\nkind = "steep"\n', 2, ["kind must be", "cosine", "'steep'"]),
        ('name = "x"\nlimit = "4"\n', 2, ["limit must be int | None"]),
        ('name = "x"\n  parts = "a"\n', 2, ["parts must be"]),
        ('name = "x"\nsize = = 4\n', 2, ["not a TOML file"]),
        ('name = "x"\nname = "y"\n', 2, ["not a TOML file"]),
    ],
)
def test_what_does_not_fit_names_its_line(tmp_path: Path, text: str, line: int, says: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        from_toml(Small, path)
    assert error.value.where == f"{path}:{line}"
    assert error.value.fix
    for words in says:
        assert words in str(error.value)


def test_a_missing_key_and_an_impossible_value_name_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "size = 4")
    with pytest.raises(UserError, match="'name' is missing") as error:
        from_toml(Small, path)
    assert error.value.where == str(path) and "name =" in error.value.fix
    with pytest.raises(UserError, match="size must be at least 1: 0") as error:
        from_toml(Small, written(tmp_path, 'name = "x"\nsize = 0'))
    assert str(error.value.where).startswith(str(path))


def test_a_missing_file_offers_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path, 'name = "x"')
    with pytest.raises(UserError, match="no such recipe") as error:
        from_toml(Small, tmp_path / "itt.toml")
    assert "did you mean 'it.toml'?" in error.value.fix
    with pytest.raises(UserError, match="no such recipe"):
        read_toml(tmp_path / "nowhere" / "it.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b'name = "\xc3"'])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "it.toml").write_bytes(content)
    with pytest.raises(UserError, match="not a TOML file"):
        read_toml(tmp_path / "it.toml")
    with pytest.raises(UserError, match="directory"):
        read_toml(tmp_path)


def test_values_that_come_from_elsewhere_are_checked_too(tmp_path: Path) -> None:
    """As where a stored plan and a user's own fields are joined: there is no line to name, only the file."""
    values: dict[str, Any] = {"name": "x", "size": "4"}
    with pytest.raises(UserError, match="size must be int") as error:
        from_dict(Small, values, tmp_path / "gone.toml")
    assert error.value.where == str(tmp_path / "gone.toml")
