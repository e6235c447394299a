"""Published templates: transformers' text for honest ones, and an end within two seconds and 200 MB for all others."""

# ruff: noqa: E501

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hornbook.errors import UserError
from hornbook.text.template import rendered

TALK = [
    {"role": "system", "content": " Be kind <b>&amp;\n\n"},
    {"role": "user", "content": "Héllo, 你好 {{ x }}?"},
    {"role": "assistant", "content": '<think>\nhm\n</think>\n\nYes: it\'s "so".\n'},
    {"role": "user", "content": "a  b\tc"},
]
PLACES = "{% for m in messages %}", "{% endfor %}"

HONEST = {
    "operators": "{{ 'a' + 'b' ~ 3 ~ [1, 'x'] }} {{ '%s-%03d' % ('x', 7) }} {{ 2 ** 10 }} {{ 7 % 3 }} {{ '=' * 20 }} {{ [1] * 3 }}",
    "text": "{% for m in messages %}{{ m.content | trim | upper | replace('Y', 'zz') | indent(4) | title | e }}{% endfor %}",
    "methods": "{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\n').rstrip() }}{{ '|'.join(m.content.split()) }}"
    "{{ m.content.startswith('<') }}{{ '{:>5} {}'.format(m.role, loop.index) }}{% for k, v in m.items() %}{{ k }}{% endfor %}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': '<é>', 'a': [none, true, 1.5]} | tojson }}",
    "loops": "{% for m in messages[::-1] %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{{ loop.previtem.role if not loop.first }}"
    "{% if loop.first %}{% continue %}{% endif %}{% if m.role == 'system' %}{% break %}{% endif %}{% else %}none{% endfor %}"
    "{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}{% for i in range(3) if i is odd %}{{ i }}{% endfor %}{% for x in no %}{% endfor %}",
    "choices": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | join('; ') }}"
    "{{ messages | map(attribute='role') | unique | sort | reverse | list }}{{ (messages | first).role }}{{ (messages | last).role }}"
    "{{ [3, 1] | sum }}{{ [3, 1] | max }}{{ 'x' in ['x'] }}{{ tools is not none and tools }}{{ y | default('d') }}{{ 'abc' | reverse }}"
    "{% for role, group in messages | groupby('role') %}{{ role }}{{ group | length }}{% endfor %}{{ [1, 2, 3] | batch(2) | list }}",
    "names": "{% set ns = namespace(last=none, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m %}{% endfor %}"
    "{{ ns.n }}{{ ns.last.content }}{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f('a', y='b') }}"
    "{% set block %}  in {{ ns.n }} {% endset %}{{ block | trim }}{{ dict(a=1)['a'] }}{% filter upper %}low{% endfilter %}",
    "spoken": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endif %}\n{% endfor %}",
}  # fmt: skip

BIG = "{% set x = ('a' * 999) * 3900 %}"
FOLDED = "{% set ns = namespace(x=['a', 'a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
HOSTILE = {
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": BIG + "{% for i in x %}{% for j in x %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "block": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "caller": "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g(n) %}{% call f() %}{{ g(n) }}{% endcall %}{% endmacro %}{{ g(1) }}",
    "times": "{{ 'a' * 10 ** 9 }}", "times itself": "{{ ('a' * 9999) * 9999999 }}", "list times": "{{ [0] * 10 ** 9 }}",
    "list of lists": "{{ [[0] * 9999] * 999999 }}", "repeated": "{{ 10 ** 9 * 'a' }}",
    "doubling +": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling ~": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling block": "{% macro f(x, n) %}{% set y %}{{ x }}{{ x }}{% endset %}{{ f(y, n) }}{% endmacro %}{{ f('a' * 99, 1) }}",
    "many pieces ~": BIG + "{{ x ~ " + " ~ ".join(["x"] * 900) + " }}",
    "many slices": BIG + "".join(f"{{% set y{i} = x[1:] %}}" for i in range(900)),
    "many kept": BIG + "{% set ns = namespace(l=[]) %}{% for i in range(99) %}{% set ns.l = ns.l + [x ~ i] %}{% endfor %}",
    "folded list": FOLDED + "{{ ns.x }}", "folded list compared": FOLDED + FOLDED.replace("ns", "nt") + "{{ ns.x == nt.x }}",
    "folded dict": "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|string }}",
    "folded tuple as key": "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "folded arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}{% endmacro %}{{ f(50) }}",
    "folded dict()": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x|tojson }}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a.a ~ ns }}{{ 1 / 0 }}",
    "whole number": "{{ 10 ** (10 ** 10) }}", "power of power": "{{ ((9 ** 999) ** 999) ** 999 }}", "long number": "{{ ('9' * 99999) | int | string | first + 1 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "width": "{{ '%1000000000d' % 1 }}", "width given": "{{ '%*d' % (10 ** 9, 1) }}", "filter width": "{{ '%1000000000d' | format(1) }}",
    "named width": "{{ '%(a)1000000000d' % {'a': 1} }}", "precision": "{{ '%.1000000000f' % 1.5 }}",
    "method width": "{{ '{:1000000000}'.format(1) }}", "inner width": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "map width": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}", "date width": "{{ strftime_now('%1000000000d') }}",
    "format twice": BIG + "{{ ('%s' * 9999) % ((x,) * 9999) }}", "format by number": BIG + "{{ ('{0}' * 9999).format(x) }}",
    "center": "{{ 'a' | center(10 ** 9) }}", "center()": "{{ 'a'.center(10 ** 9) }}", "zfill": "{{ '1'.zfill(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}", "expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}", "to_bytes": "{{ (1).to_bytes(10 ** 9) }}",
    "indent": "{{ 'a\nb' | indent(10 ** 9) }}", "indented lines": "{{ (('\n' * 999) * 999) | indent(9999) }}",
    "json indent": "{{ [[1]] | tojson(indent=10 ** 9) }}", "json nested": FOLDED + "{{ ns.x | tojson }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", "replace()": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "join": "{{ range(99999) | join('a' * 99999) }}", "join()": "{{ ('a' * 99999).join('b' * 99999) }}",
    "join lazily": "{{ ('a' * 99999).join(range(99999) | map('string')) }}", "join text": BIG + "{{ x | join(x) }}",
    "translate": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}", "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}", "round": "{{ 1.5 | round(10 ** 9, 'ceil') }}", "lipsum": "{{ lipsum(10 ** 9) }}",
    "split": "{{ (('a ' * 999) * 2900).split() | length }}", "splitlines": "{{ (('\n' * 999) * 9000).splitlines() }}",
    "characters": "{{ (('é你' * 999) * 2900) | list | length }}", "pairs": BIG + "{{ x | map('upper') | map('lower') | list }}",
    "spread": BIG + "{% macro f() %}{% endmacro %}{{ f(*x) }}", "title": "{{ (('a ' * 999) * 2900) | title }}",
    "selected": BIG + "{{ x | select('in', x ~ 'b') | list }}", "rejected": BIG + "{{ x | reject('in', x) | first }}",
    "compared": BIG + "{% set y = x ~ 'b' %}{% for i in range(99999) %}" + "{% if y + 'c' in x %}{% endif %}" * 20 + "{% endfor %}",
    "sought": BIG + "{% set y = 'a' * 2000 ~ 'b' %}" + "{% if y in x or y in x or y in x or y in x %}{% endif %}" * 800,
    "fromkeys": "{{ dict.fromkeys(range(99999), 'a' * 99999) }}", "mro": "{{ ''.__class__.__mro__ }}", "attr": "{{ '' | attr('__class__') }}",
    "attr to format": "{{ ('{0.__class__}' | attr('format'))('') }}", "map to format": "{{ ['{0.__class__}'] | map('format', '') | list }}",
    "append": "{{ messages.append(1) }}",
    "read": "{% include '/etc/passwd' %}", "import": "{% import 'os' as os %}", "extend": "{% extends 'x' %}",
    "cycler": "{{ cycler('a', 'b').items }}", "namespace names": "{{ namespace.__init__.__globals__ }}",
    "said": "{{ raise_exception(('a' * 9999) * 900) }}", "many loops": "{% for a in [1] %}" * 99 + "{% endfor %}" * 99,
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "nots": "{{ " + "not " * 12000 + "1 }}", "sums": "{{ 1" + "+1" * 24000 + " }}",
    "dots": "{{ a" + ".a" * 24000 + " }}", "ifs": "{% if 1 %}" * 2300 + "{% endif %}" * 2300, "long": "a" * 200_000,
    "opened": "{{" * 24999, "comments": "{#" * 24999, "raw": "{% raw %}" * 5000, "dashes": "{%-" * 16000, "spaces": " " * 49990 + "{% x",
    "quotes": "{{ '" + "\\'" * 24900, "chained": "{{ 1" + " == 1" * 9000 + " == 1 / 0 }}", "filters": "{{ 1" + "|int" * 12000 + " }}",
    "numbers": "{{ " + "9" * 49000 + " }}", "unknown": "{{ 1 | nothing }}", "control": "{% for", "nothing": "{{ messages.x.y }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_templates_render_as_transformers_does(name: str) -> None:
    for prompt in (False, True):
        theirs: Any = render_jinja_template([TALK], chat_template=HONEST[name], add_generation_prompt=prompt)
        assert rendered(HONEST[name], {"messages": TALK, "tools": None, "add_generation_prompt": prompt}) == theirs[0][0]


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_published_templates_render_as_transformers_does(name: str, data_folder: Path) -> None:
    config = json.loads((data_folder / "tokenizers" / name / "tokenizer_config.json").read_text(encoding="utf-8"))
    template, names = config.get("chat_template"), {"bos_token": "<B>", "eos_token": "<E>"}
    if template is None:
        pytest.skip(f"{name} is published without a template")
    for talk in (TALK, TALK[1:2], TALK * 200):
        for prompt in (False, True):
            theirs: Any = render_jinja_template([talk], chat_template=template, add_generation_prompt=prompt, **names)
            assert rendered(template, {"messages": talk, "add_generation_prompt": prompt, **names}) == theirs[0][0]


@pytest.fixture(scope="module")
def ends() -> dict[str, tuple[str, float, int]]:
    """How each hostile template ended, in a process of their own: the error, its seconds, the highest memory so far in kB."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['render_hostile']()"
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=True)
    return {name: json.loads(line) for name, line in zip(["start", *HOSTILE], done.stdout.splitlines(), strict=True)}


def render_hostile() -> None:
    for template in ("x", *HOSTILE.values()):
        begin, said = time.thread_time(), ""
        try:
            rendered(template, {"messages": TALK})
        except UserError as error:
            said = str(error)
        print(json.dumps([said, time.thread_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_an_error(name: str, ends: dict[str, tuple[str, float, int]]) -> None:
    said, seconds, peak = ends[name]
    assert "Where: chat_template" in said and len(said) < 1000
    assert seconds < 2 and peak - ends["start"][2] < 200 << 10


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format('') }}", "{{ [''] | map(attribute='__class__') | join }}",
     "{{ namespace.__init__ }}", "{{ messages.__class__ }}", "{{ cycler }}{{ lipsum }}{{ self.__init__ }}"],
)  # fmt: skip
def test_what_is_private_shows_as_nothing(template: str) -> None:
    assert rendered(template, {"messages": TALK}) == ""


def test_room_grows_with_the_messages() -> None:
    """A conversation of several megabytes is no attack."""
    talk = [{"role": "user", "content": "word " * 200_000}] * 6
    template = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] | trim + '<end>' }}{% endfor %}"
    assert rendered(template, {"messages": talk}) == ("<user>" + ("word " * 200_000).strip() + "<end>") * 6
