"""hornbook beside transformers: every case of tests/reference/published.py, as one Markdown table.

    python -m benchmarks.parity            # print it
    python -m benchmarks.parity --write    # and put it into docs/en/parity.md and docs/zh/parity.md

Takes about a minute on one core, and needs what `make test` installs.
"""

from __future__ import annotations

import argparse

import torch
import transformers

from benchmarks.pages import DOCS, LANGUAGES, table, write
from hornbook import __version__
from tests.reference.published import CASES, Case, answers, apart, gradients, round_trip, traced

HEADERS = {
    "en": ("case", "model_type", "outputs, float32", "outputs, float64", "gradients, float32", "weights out = in", "one graph"),
    "zh": ("情形", "model_type", "输出，float32", "输出，float64", "梯度，float32", "权重出入相等", "单张计算图"),
}
WORDS = {"en": {True: "yes", False: "**no**"}, "zh": {True: "是", False: "**否**"}}
VERSIONS = f"hornbook {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def outputs_apart(case: Case, dtype: torch.dtype) -> float:
    return float(apart(*answers(case, dtype)).max())


def gradients_apart(case: Case) -> float:
    """The largest difference in units of the model's largest gradient."""
    expected, found = gradients(case)
    largest = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[name] - value).abs().max()) for name, value in expected.items()) / largest


def weights_return(case: Case) -> bool:
    tensors, found = round_trip(case)
    return set(found) == set(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)


def one_graph(case: Case) -> bool:
    try:
        return torch.allclose(*traced(case), atol=1e-6)
    except torch._dynamo.exc.TorchDynamoException:
        return False


def measured(case: Case) -> tuple[list[float], list[bool]]:
    figures = [outputs_apart(case, torch.float32), outputs_apart(case, torch.float64), gradients_apart(case)]
    return figures, [weights_return(case), one_graph(case)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into the guides")
    write_pages = parser.parse_args().write
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = {case: measured(case) for case in CASES}
    for language in LANGUAGES:
        rows = []
        for case, (figures, held) in found.items():
            numbers = [f"{figure:.1e}" if figure else "0" for figure in figures]
            rows.append([case.name, f"`{case.model_type}`", *numbers, *(WORDS[language][true] for true in held)])
        block = f"{VERSIONS}\n\n{table(HEADERS[language], rows)}"
        if language == "en":
            print(block)
        if write_pages:
            write(DOCS / language / "parity.md", "parity", block)


if __name__ == "__main__":
    main()
