"""A published chat template: its Jinja source and the messages in, text out, whoever wrote either.

One idea: a template is a program that came with a download. Jinja's sandbox keeps it away from Python; here a meter bounds what
is left. Every loop step, call, filter, test, comparison and value that a template makes passes it, and it stops what runs too
long or makes too much. What multiplies two sizes (`replace`, `join`, `*`, ...) is asked before it runs, all else after, and
filters and methods are a list of those whose cost is known. Otherwise as transformers renders: trimmed blocks, `raise_exception`,
`strftime_now`, `{% generation %}` (https://huggingface.co/docs/transformers/chat_templating_writing).
"""

from __future__ import annotations

import functools
import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from sys import getsizeof
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from hornbook.errors import UserError

SOURCE = 50_000  # characters of a template; published ones have a few thousand
SECONDS = 1.5  # of this thread's own processor time
ROOM = 1 << 24  # bytes that one rendering may make in all, and 16 times the bytes of the messages
STEP = 64  # bytes, about, of one more object
DIGITS = 10_000  # bits of a whole number

FILTERS = """abs batch capitalize center count d default dictsort e escape first float format groupby indent int items join last
length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string sum title tojson
trim unique upper urlencode""".split()
METHODS = """capitalize casefold center copy count endswith find format get index isalnum isalpha isascii isdecimal isdigit islower
isnumeric isspace istitle isupper items join keys ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust
rpartition rsplit rstrip split splitlines startswith strip swapcase title upper values zfill""".split()
PRODUCTS = {"batch", "center", "format", "indent", "join", "ljust", "replace", "rjust", "round", "slice", "tojson", "zfill"}
SEQUENCES = {"batch", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr"}
SEQUENCES |= {"slice", "sort", "sum", "unique"}
CUTS = {"indent", "rsplit", "split", "splitlines", "title"}
CUT_AT = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000-({[<" + "".join(map(chr, range(0x2000, 0x200B)))


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The text that a template makes of these values; a `UserError` for what it refuses, and for what it may not do."""
    token = _METER.set(_Meter(values))
    try:
        return str(_compiled(template).render(**values))
    except (
        TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError, SyntaxError, MemoryError
    ) as error:  # fmt: skip
        raise UserError(
            "this tokenizer's chat template refuses these messages", where="chat_template", why=str(error)[:500],
            fix="change the order or the roles of the messages, or use another template",
        ) from error  # fmt: skip
    finally:
        _METER.reset(token)


class _Meter:
    """What one rendering may still use."""

    def __init__(self, values: Mapping[str, Any]):
        self._end = time.thread_time() + SECONDS
        self._room = 1 << 40
        self._room = ROOM + 16 * self.size(values)

    def tick(self) -> None:
        if time.thread_time() > self._end:
            raise OverflowError(f"the template runs for more than {SECONDS} seconds")

    def charge(self, size: int) -> None:
        self.tick()
        self._room -= size
        self.fits(0)

    def fits(self, size: int) -> None:
        if size > self._room:
            raise OverflowError(f"the template makes more than {ROOM >> 20} MB and 16 times the messages")

    def size(self, value: Any) -> int:
        """Bytes of a value and of all within it, as often as `str` would write it: lists can hold one list many times."""
        total, stack = 0, [value]
        while stack:
            part = stack.pop()
            total += getsizeof(part)
            self.fits(total)
            if isinstance(part, dict):
                stack += [*part, *part.values()]
            elif isinstance(part, (list, tuple, set, frozenset)):
                stack += part
        return total

    def product(self, values: Iterable[Any]) -> None:
        """Refuse an operation whose result can have the size of one value times another; a whole number counts as itself."""
        sizes = [abs(value) if isinstance(value, int) else self.size(value) for value in values]
        *_, second, first = sorted([1, 1, *sizes])
        self.fits(first * second)


_METER: ContextVar[_Meter] = ContextVar("_METER")


def _weighed(value: Any) -> Any:
    meter = _METER.get()
    meter.charge(meter.size(value))
    return value


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    meter = _METER.get()
    for value in values:
        meter.charge(STEP)
        yield value


def _timed(value: Any) -> Any:
    _METER.get().tick()
    return value


@pass_context  # and so never at compile time
def _written(_: Any, value: Any) -> Any:
    return _weighed(value)


def _concat(pieces: Iterable[str]) -> str:
    return "".join(map(_weighed, pieces))


def _before(name: str, given: list[Any]) -> None:
    """Ask for the room of a filter or method by name; `given` begins with the value that it works on."""
    meter, value = _METER.get(), given[0] if given else ""
    if name == "format" and isinstance(value, str):
        _check_widths(value)
    if name in PRODUCTS:
        meter.product(given)
    if name in CUTS and isinstance(value, str):
        at = [given[1]] if name in ("split", "rsplit") and len(given) > 1 and isinstance(given[1], str) and given[1] else CUT_AT
        meter.charge(2 * STEP * sum(map(value.count, at)))


def _check_widths(form: str) -> None:
    if re.search(r"\d{4}|%[^a-zA-Z]*\*|\{[^}]*\{", form):
        raise SecurityError("a format with a width of thousands, or one out of a value, is not allowed")


def _metered(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that asks before and pays after."""
    passed = int(hasattr(of, "jinja_pass_arg"))

    @functools.wraps(of)
    def run(*args: Any, **options: Any) -> Any:
        lead, given = args[:passed], list(args[passed:])
        if name in SEQUENCES and given and not (name == "reverse" and isinstance(given[0], str)):
            given[0] = list(_counted(given[0]))
        _before(name, [*given, *options.values()])
        return _weighed(of(*lead, *given, **options))

    return run


def _ticked(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> Any:
        return _timed(test(*args, **options))

    return run


class _Hooks(NodeTransformer):
    """Puts the meter into a parsed template, and refuses what it cannot measure."""

    def _through(self, name: str, node: Any) -> Any:
        return None if node is None else nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> Any:
        if node.recursive:
            raise SecurityError("a recursive loop is not allowed")
        self.generic_visit(node)
        node.iter = self._through(" counted", node.iter)
        return node

    def visit_Name(self, node: nodes.Name) -> Any:
        if node.name in ("varargs", "kwargs"):
            raise SecurityError(f"{node.name} is not allowed")
        return node

    def visit_Compare(self, node: nodes.Compare) -> Any:
        self.generic_visit(node)
        node.expr = self._through(" timed", node.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        node.nodes = [self._through(" weighed", part) for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        self.generic_visit(node)
        return self._through(" weighed", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._through(" weighed", node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Call(self, node: Any) -> Any:
        self.generic_visit(node)
        node.dyn_args = self._through(" counted", node.dyn_args)
        return node

    visit_Filter = visit_Test = visit_Call


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; here the contents themselves do."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Names(Namespace):
    def __repr__(self) -> str:
        return "<Namespace>"


class _Room(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the meter at every door."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_written, extensions=extensions)
        self.filters["tojson"] = _json
        own = {" counted": _counted, " weighed": _weighed, " timed": _timed}
        self.filters = {name: _metered(name, self.filters[name]) for name in FILTERS} | own
        self.tests = {name: _ticked(test) for name, test in self.tests.items()}  # type: ignore[arg-type]
        self.globals = {name: self.globals[name] for name in ("range", "dict")}
        self.globals |= {"namespace": _Names, "raise_exception": _raise, "strftime_now": _now}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > DIGITS:
                raise OverflowError(f"a whole number of more than {DIGITS} bits is not allowed")
        elif operator == "*":
            meter.product([left, right])
        elif operator == "%" and isinstance(left, str):
            _before("format", [left, right])
        return _weighed(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __called: Any, *args: Any, **options: Any) -> Any:  # noqa: B902, N805
        method = getattr(__called, "__wrapped__", __called)  # Jinja wraps str.format
        owner, given = getattr(method, "__self__", None), list(args)
        if isinstance(method, types.BuiltinMethodType) or isinstance(owner, str):
            name = method.__name__
            if name not in METHODS:
                raise SecurityError(f"the method {name} is not allowed")
            if name == "join" and given:
                given[0] = list(_counted(given[0]))
            _before(name, [owner, *given, *options.values()])
        return _weighed(super().call(__context, __called, *given, **options))


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    if len(template) > SOURCE:
        raise OverflowError(f"the template has {len(template)} characters; at most {SOURCE} are read")
    room = _Room()
    return room.from_string(_Hooks().visit(room.parse(template)).set_environment(room))


def _raise(message: str) -> None:
    raise ValueError(message)


def _now(form: str) -> str:
    _check_widths(form)
    return datetime.now().strftime(form)


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Not Jinja's own, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
