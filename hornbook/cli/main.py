"""`hornbook VERB ...`: find the verb, run it, and turn what goes wrong into one screen and an exit code.

Exit codes: 0 done, 2 something the user gave cannot be used, 130 stopped and saved. `-v` shows the traceback. Nothing here imports
torch, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
import traceback

import hornbook
from hornbook.cli.allocator import keep_memory
from hornbook.errors import Interrupted, Lost, UserError
from hornbook.ranks import Said, speaks

VERBS = {
    "quickstart": "raw text to a model that talks, in minutes",
    "tokenizer": "train a tokenizer, see a text as tokens, compare and examine vocabularies",
    "prepare": "read and clean a corpus, learn its vocabulary, write token shards",
    "pretrain": "train a model from nothing, as a recipe says",
    "try": "find rates, compare optimizers or seek stability, on a recipe's own text",
    "watch": "show a run's figures in the browser while it trains, and after",
    "sft": "teach a pretrained model to answer, as a recipe says",
    "replay": "take a step again that training left out",
    "speech": "teach a model to spell what it hears, as a recipe says, and measure it on a speaker it never heard",
    "eval": "score a model on a task or on held-out text",
    "generate": "continue a text",
    "chat": "talk to a model",
    "plan": "count a model's parameters and bytes before there is one",
    "plot": "draw activations, masks, rope, number formats, or a model's attention",
    "export": "write a model as a folder that transformers opens, or as GGUF",
    "bench": "measure what this machine can do",
    "verify": "prove the invariants on this machine",
}
ALONE = 10.0  # seconds after the others within which ranks refuse alike: as long as they may take to start, less than `Team` waits


def usage() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    return (
        f"hornbook {hornbook.__version__}: everything it takes to teach a machine to write\n\n"
        f"usage: hornbook VERB [OPTION ...]\n\n{rows}\n\n"
        "hornbook VERB --help lists a verb's options. -v shows the traceback of an error.\n"
        "Begin with: hornbook quickstart"
    )


def main() -> None:
    keep_memory(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `hornbook ARGUMENTS`."""
    complaints = sys.stderr
    if not speaks():  # of several processes the first one talks; the others say what goes wrong with them alone
        sys.stdout = sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    verbose = "-v" in arguments
    arguments = [word for word in arguments if word != "-v"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(hornbook.__version__)
        return 0
    try:
        if arguments[0] not in VERBS:
            found = difflib.get_close_matches(arguments[0], VERBS, n=1)
            raise UserError(
                f"no such verb: {arguments[0]!r}", fix=f"did you mean {found[0]!r}?" if found else "hornbook --help lists the verbs"
            )
        module = "try_out" if arguments[0] == "try" else arguments[0]  # `try` is a word of Python's own
        return int(importlib.import_module(f"hornbook.cli.{module}").main(arguments[1:]) or 0)
    except UserError as error:
        if verbose:
            traceback.print_exc()
        if not speaks() and not isinstance(error, Lost):
            time.sleep(ALONE)  # what all met the first rank tells, and torchrun then ends the others: still here, this one is alone
        if not isinstance(error, Said):
            print(error.render() if speaks() else f"Rank {os.environ['RANK']}: {error.render()}", file=complaints)
        return 2
    except Interrupted as stopped:
        from hornbook.cli.console import again

        print(f"\nStopped and saved. Continue with: {again(stopped.resume)}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; the same command continues.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
