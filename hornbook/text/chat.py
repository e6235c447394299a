"""Conversations and documents: messages in; ids and the loss mask out.

One idea: control tokens are written by the template alone. Content goes through `tok.encode`, which knows no special strings,
so nothing that a user types can open or close a turn. A template is a function from messages to segments of ids, each marked
as the assistant's own words or not; `JINJA` is the same template in the form that tokenizer_config.json carries.
A published template is rendered with marks around every content, so that what it wrote and what it was given stay apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hornbook.errors import UserError, near

if TYPE_CHECKING:
    from hornbook.text.tokenizer import Tokenizer

BOS, END = "<|bos|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIALS = (BOS, *ROLES.values(), END)
MASK = "<|mask|>"  # of a tokenizer for a masked model

# Names under which published vocabularies end a text or a turn.
PUBLISHED_ENDS = (END, "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "</s>")

JINJA = (
    "{{ '<|bos|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Segment:
    """A stretch of ids; `learn` marks what the assistant itself has to say."""

    ids: list[int]
    learn: bool


def document(tok: Tokenizer, text: str) -> list[int]:
    """One text as the model reads it in pretraining: `<|bos|>` text `<|end|>`, or between the `edges` of a published vocabulary."""
    begin, end = edges(tok)
    return [begin, *tok.encode(text), end]


def edges(tok: Tokenizer) -> tuple[int, int]:
    """The ids that open and close a document: one id where a vocabulary has no other, as GPT-2's `<|endoftext|>`."""
    if not tok.end_ids:
        raise UserError(
            "this tokenizer has no token that ends a document", where="tokenizer",
            why=f"it has none of {', '.join(PUBLISHED_ENDS)}", fix="take another, or train one",
        )  # fmt: skip
    known = [name for name in (BOS, tok.configured("bos_token")) if name in tok.specials]
    return tok.specials[known[0]] if known else tok.end_ids[0], tok.end_ids[0]


def render(tok: Tokenizer, messages: Sequence[Mapping[str, str]], prompt: bool = False) -> tuple[list[int], list[int]]:
    """Turn a conversation into (ids, mask); the mask is 1 on the assistant's content and its `<|end|>`, 0 elsewhere.

    With `prompt` the ids stop after an opened assistant turn, where the model is to continue.
    """
    ids: list[int] = []
    mask: list[int] = []
    for segment in turns(tok, messages, prompt):
        ids += segment.ids
        mask += [int(segment.learn)] * len(segment.ids)
    return ids, mask


def turns(tok: Tokenizer, messages: Sequence[Mapping[str, str]], prompt: bool) -> Iterator[Segment]:
    """The template: `<|bos|>`, then for each message `<|role|>` content `<|end|>`."""
    _check_specials(tok)
    _check_messages(messages)
    yield Segment([tok.special(BOS)], learn=False)
    for message in messages:
        yield Segment([tok.special(ROLES[message["role"]])], learn=False)
        yield Segment([*tok.encode(message["content"]), tok.special(END)], learn=message["role"] == "assistant")
    if prompt:
        yield Segment([tok.special(ROLES["assistant"])], learn=False)


def render_published(
    tok: Tokenizer, template: str, names: Mapping[str, str], messages: Sequence[Mapping[str, str]], prompt: bool
) -> tuple[list[int], list[int]]:
    """`render` by a published Jinja template; `names` are its bos_token and eos_token.

    The ids are those of transformers, but that special strings inside a content stay text, and that no token reaches across the
    beginning of an answer, where generation begins. The mask is 1 on the assistant's content and the end token right after it.
    """
    from hornbook.text.template import rendered  # here, since importing Jinja takes a while

    _check_messages(messages)
    given, said, close = _marks([message["content"] for message in messages])

    def marked(lead: bool) -> str:
        """With a mark on each side of every content, inside of its spaces, which a template may trim."""
        turns = []
        for message in messages:
            content, mark = message["content"], said if message["role"] == "assistant" else given
            core = content.strip()
            start = content.index(core) if core else len(content)
            before = content[:start] if lead or mark == given else ""
            text = f"{before}{mark}{core}{close}{content[start + len(core) :]}"
            turns.append({"role": message["role"], "content": text})  # and no other field, which would come in unmarked
        return rendered(template, {"messages": turns, "add_generation_prompt": prompt, **names})

    pieces, without = marked(lead=True).split(said), marked(lead=False).split(said)
    parts = []
    for piece, less in zip(pieces[:-1], without, strict=False):  # the spaces that begin an answer are part of it
        kept = min(len(piece), len(less))
        parts += [piece[:kept], said, piece[kept:]]
    text = "".join([*parts, pieces[-1]])
    shape = re.sub(f"[^{given}{said}{close}]", "", text)
    if len(pieces) != len(without) or re.fullmatch(f"(?:[{given}{said}]{close})*", shape) is None:
        raise UserError(
            "this tokenizer's chat template takes a message apart", where="chat_template",
            why="what it wrote and what it was given cannot be told apart",
            fix="leave marks such as <think> out of the messages",
        )  # fmt: skip
    ids: list[int] = []
    mask: list[int] = []
    for segment in _segments(tok, text, given, said, close):
        ids += segment.ids
        mask += [int(segment.learn)] * len(segment.ids)
    return ids, mask


def _marks(contents: Sequence[str]) -> list[str]:
    """Three characters that stand in no content, out of those that Unicode keeps free of meaning for ever."""
    free = [mark for mark in map(chr, range(0xFDD0, 0xFDF0)) if not any(mark in content for content in contents)]
    if len(free) < 3:
        raise UserError("the messages hold all the noncharacters of Unicode", where="messages", fix="remove U+FDD0 to U+FDEF")
    return free[:3]


def _segments(tok: Tokenizer, text: str, given: str, said: str, close: str) -> Iterator[Segment]:
    """Plain text is encoded in the longest stretches that hold no special of the template's and no edge of an answer."""
    specials = "|".join(map(re.escape, sorted(filter(None, tok.specials), key=len, reverse=True))) or "(?!)"
    plain, learned = "", False
    for part in re.split(f"({said}[^{close}]*{close}\\s*|{given}[^{close}]*{close}|{specials})", text):
        special = part in tok.specials
        if special or part.startswith(said):
            yield Segment(tok.encode(plain), learn=False)
            plain = ""
        if special:
            yield Segment([tok.specials[part]], learn=learned and tok.specials[part] in tok.end_ids)
        elif part.startswith(said):
            yield Segment(tok.encode(part[1:].replace(close, "")), learn=True)
        else:
            plain += part.strip(given + close)
        learned = part.startswith(said) or (learned and not part)
    yield Segment(tok.encode(plain), learn=False)


def _check_specials(tok: Tokenizer) -> None:
    missing = [name for name in SPECIALS if name not in tok.specials]
    if missing:
        raise UserError(
            "this tokenizer has no turns and documents of hornbook's",
            why=f"it has no {', '.join(missing)}",
            fix="train one with the default special tokens",
        )


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Refuse what is not a conversation, naming message number, field, rule and value."""
    shape = "messages are a list such as [{'role': 'user', 'content': 'Hello'}]"
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise UserError(f"messages is {_shown(messages)}", why=shape, fix="give a list of messages")
    if not messages:
        raise UserError("messages is empty", why="a conversation has at least one message", fix="add a message")
    for number, message in enumerate(messages, start=1):
        where = f"message {number} of {len(messages)}"
        if not isinstance(message, Mapping):
            raise UserError(f"the message is {_shown(message)}", where=where, why=shape, fix="give role and content")
        for field in ("role", "content"):
            if field not in message:
                why = f"a message has role and content; this one has {', '.join(map(repr, message)) or 'nothing'}"
                raise UserError(f"{field!r} is missing", where=where, why=why, fix=f"add {field!r}")
            value = message[field]
            if not isinstance(value, str):
                raise UserError(f"{field!r} is {_shown(value)}", where=where, why=f"{field!r} is a string", fix="give a string")
        role = message["role"]
        if role not in ROLES:
            why = f"'role' is one of {', '.join(ROLES)}"
            raise UserError(f"'role' is {role!r}", where=where, why=why, fix=near(role, ROLES))


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
