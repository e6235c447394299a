"""What importing hornbook loads, seen by a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LOADED}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_hornbook_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "rich", "tyro", "regex", "jinja2", "safetensors"}
    assert not heavy & loaded_by("import hornbook; dir(hornbook)")


def test_the_command_line_parses_without_torch() -> None:
    code = "from hornbook.cli.main import run; run([]); run(['--help']); run(['--version']); run(['no-such-verb'])"
    assert not {"torch", "numpy"} & loaded_by(code)


def test_no_module_needs_the_libraries_that_it_is_compared_with() -> None:
    """Walks the whole package and imports all of it but the kernels, which nothing imports unless they are asked for.

    A subpackage becomes an attribute of its package then: it may not be called as a public function is.
    """
    walk = (
        "import importlib, pkgutil, hornbook\n"
        "names = [found.name for found in pkgutil.walk_packages(hornbook.__path__, 'hornbook.')]\n"
        "names = [name for name in names if not name.startswith('hornbook.kernels.')]\n"
        "assert len(names) > 40\n"
        "for name in names: importlib.import_module(name)\n"
        "import sys, types\n"
        "taken = [name for name in hornbook.__all__ if isinstance(getattr(hornbook, name), types.ModuleType)]\n"
        "assert not taken, taken\n"
        "assert not [name for name in sys.modules if name.startswith('hornbook.kernels.')]"
    )
    found = loaded_by(walk)
    assert "torch" in found and not {"transformers", "tokenizers", "tiktoken", "peft", "trl", "sentencepiece"} & found


def test_every_public_name_can_be_had() -> None:
    code = "import hornbook\nfor name in hornbook.__all__: assert getattr(hornbook, name) is not None"
    assert "torch" in loaded_by(code)
    wrong = subprocess.run([sys.executable, "-c", "import hornbook; hornbook.lode"], capture_output=True, text=True, timeout=60)
    assert "AttributeError: module 'hornbook' has no attribute 'lode'" in wrong.stderr
