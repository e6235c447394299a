"""What the town's texts are made of: the tables of a language, the facts drawn from them, and sentences that read both ways.

In flow `Words` (the tables of `town_en` and `town_zh`) and a seed, out flow a `World` of `Fact`s, each with the sentences that
training may say and those held out, and a `Grammar` that checks stories. The one idea: writer and checker share one table, a
`Template` turns slots into a sentence and the sentence back into its slots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")
Slots = dict[str, str]

SLOT = re.compile(r"\{(\w+)\}")
SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？][\"”]?")
SHARE = 10  # one (fact, wording) pair in so many is held out
FRESH = 16  # one text in so many is held out
LARGEST = 10  # of the numbers that are added
MASK = 2**64 - 1

# A story's plan by kind: a beat, whose it is (a or b, the people of the title), and "?" where it may be left out.
PLANS: dict[str, tuple[str, ...]] = {
    "story": ("opening?", "wake a?", "fetch a", "carry a", "go b", "meet b", "tell a?", "home a", "home b?", "close"),
    "walk": ("opening?", "wear a?", "go a", "go b", "meet a", "tell a", "tell b?", "rest", "home a", "home b?"),
    "gift": ("opening?", "fetch a", "meet a", "greet a?", "give a", "thank b", "tell b?", "home a", "home b?", "close?"),
    "visit": ("opening?", "wake a?", "wear a?", "visit a", "greet b", "pet b", "tell b", "rest?", "home a", "close?"),
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is told, how it is asked, and the one canonical answer.

    `you_ask` and `i_tell` are the same in a talk between townspeople. A relation without `tells` reverses another one.
    """

    name: str
    answer: str
    asks: tuple[str, ...]
    tells: tuple[str, ...] = ()
    you_ask: tuple[str, ...] = ()
    i_tell: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """Something that a person of a short scene does, and what can be asked about it: (question wordings, answer)."""

    tells: tuple[str, ...]
    asks: tuple[tuple[tuple[str, ...], str], ...]


@dataclass(frozen=True)
class Words:
    """Everything the town says in one language; dicts map a noun to its form with an article or a measure word."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    pronouns: tuple[tuple[str, str], tuple[str, str]]  # women's and men's: at the start of a sentence, and inside
    places: tuple[str, ...]
    animals: Mapping[str, str]
    colours: tuple[str, ...]
    things: Mapping[str, str]
    opposites: tuple[tuple[str, str], ...]
    relations: tuple[Relation, ...]
    frames: tuple[str, ...]
    expressions: tuple[str, ...]
    sum_answer: str
    count_asks: tuple[str, ...]
    count_join: str
    count_end: str
    titles: Mapping[str, str]
    beats: Mapping[str, tuple[str, ...]]
    fillers: Mapping[str, tuple[str, ...]]
    events: Mapping[str, Event]
    story_asks: tuple[str, ...]
    small_talk: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    outside_asks: tuple[str, ...]
    outside_topics: Mapping[str, tuple[str, ...]]
    refusals: tuple[str, ...]
    echo_asks: tuple[str, ...]  # asks to say {t} again
    echo_lines: tuple[str, str]  # the same in a lesson: said, and said again
    question_line: str
    answer_line: str
    asks_line: str
    says_line: str
    place_title: str
    space: str  # between two sentences
    subject_start: str  # how a statement begins whose subject a pronoun may replace

    @property
    def people(self) -> tuple[str, ...]:
        return self.women + self.men


def digest(*parts: object) -> int:
    """A 64-bit number that depends on nothing but the parts: the same on every platform, process and version."""
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


class Dice:
    """Splitmix64 (Steele, Lea and Flood 2014): the same draws on every platform and Python version."""

    def __init__(self, *stream: object):
        self.state = digest(*stream)

    def below(self, count: int) -> int:
        self.state = mixed = (self.state + 0x9E3779B97F4A7C15) & MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        return ((mixed ^ (mixed >> 31)) * count) >> 64

    def pick(self, choices: Sequence[Item]) -> Item:
        return choices[self.below(len(choices))]

    def some(self, items: Sequence[Item], count: int | None = None) -> list[Item]:
        """`count` different items (all by default) in random order."""
        rest, wanted = list(items), len(items) if count is None else count
        return [rest.pop(self.below(len(rest))) for _ in range(wanted)]


@dataclass(frozen=True)
class Fact:
    """One fact with all its sentences: those that training may say, those that are held out, and those of a talk."""

    relation: str
    slots: Slots
    answer: str
    asks: tuple[str, ...]
    held_asks: tuple[str, ...]
    tells: tuple[str, ...]
    held_tells: tuple[str, ...]
    you_ask: tuple[str, ...]
    i_tell: tuple[str, ...]


def held_pairs(rows: int, columns: int, share: int, *name: object) -> set[tuple[int, int]]:
    """One pair in `share`, the same for the same name, and never more than a third of a row or of a column."""
    held: set[tuple[int, int]] = set()
    in_row, in_column = [0] * rows, [0] * columns
    for row, column in sorted(((r, c) for r in range(rows) for c in range(columns)), key=lambda pair: digest(*name, *pair)):
        if len(held) < rows * columns // share and in_row[row] < columns // 3 and in_column[column] < rows // 3:
            held.add((row, column))
            in_row[row] += 1
            in_column[column] += 1
    return held


class World:
    """The facts of a town, drawn once from a seed, and what training never says about them."""

    def __init__(self, seed: int, words: Words):
        self.seed, self.words = seed, words
        self._settle()
        self.facts = [fact for relation in words.relations for fact in self._facts(relation)]
        held = held_pairs(len(words.frames), len(words.expressions), 5, seed, "sums")
        self.sums: list[str] = []  # templates that training uses
        self.held_sums: list[str] = []
        for row, frame in enumerate(words.frames):
            for column, expression in enumerate(words.expressions):
                (self.held_sums if (row, column) in held else self.sums).append(frame.format(e=expression))

    def _settle(self) -> None:
        """Draw the facts: `of` each person the home, colour, friend and, of some, the pet; and where each thing is kept."""
        words, dice = self.words, Dice(self.seed, "world")
        homes = dict(zip(words.people, dice.some(words.places * 2), strict=True))
        pets = dict(zip(dice.some(words.people, len(words.animals)), words.animals, strict=True))
        pairs = dice.some(words.people)
        friends = dict(zip(pairs[::2] + pairs[1::2], pairs[1::2] + pairs[::2], strict=True))
        self.pronoun = dict.fromkeys(words.women, words.pronouns[0]) | dict.fromkeys(words.men, words.pronouns[1])
        self.of: dict[str, Slots] = {}
        for name in words.people:
            self.of[name] = {"home": homes[name], "likes": dice.pick(words.colours), "friend": friends[name]}
            self.of[name].update({"pet": pets[name]} if name in pets else {})
        self.kept = dict(zip(words.things, (dice.some(words.places) * 2)[: len(words.things)], strict=True))

    def _facts(self, relation: Relation) -> Iterator[Fact]:
        """Every fact of a relation, its wordings parted into those for training and those held out."""
        rows = list(self._slots(relation.name))
        parts = [
            (wordings, held_pairs(len(rows), len(wordings), SHARE, self.seed, relation.name, use))
            for use, wordings in (("ask", relation.asks), ("tell", relation.tells))
        ]
        for row, slots in enumerate(rows):
            sentences = [
                tuple(wording.format_map(slots) for column, wording in enumerate(wordings) if ((row, column) in held) == fresh)
                for wordings, held in parts for fresh in (False, True)
            ]  # fmt: skip
            talk = (tuple(wording.format_map(slots) for wording in table) for table in (relation.you_ask, relation.i_tell))
            yield Fact(relation.name, slots, relation.answer.format_map(slots), *sentences, *talk)

    def _slots(self, relation: str) -> Iterator[Slots]:
        words, places = self.words, list(self.kept.values())
        if relation == "opposite":
            yield from ({"word": one, "other": two} for pair in words.opposites for one, two in (pair, pair[::-1]))
        elif relation in ("kept", "store"):  # what a place holds has one answer only where one thing is kept
            for thing, place in self.kept.items():
                if relation == "kept" or places.count(place) == 1:
                    yield {"thing": thing, "a_thing": words.things[thing], "place": place}
        else:
            for person, of in self.of.items():
                own = {"lives": {"place": of["home"]}, "likes": {"colour": of["likes"]}, "friend": {"friend": of["friend"]}}
                if "pet" in of:
                    own["keeps"] = own["keeper"] = {"animal": of["pet"], "an_animal": words.animals[of["pet"]]}
                else:
                    own["petless"] = {}
                if relation in own:
                    yield {"person": person, **own[relation]}

    def sum_of(self, template: str, a: int, b: int) -> tuple[str, str]:
        """The question and the answer of one sum."""
        return template.format(a=a, b=b), self.words.sum_answer.format(a=a, b=b, c=a + b)

    def is_fresh(self, text: str) -> bool:
        """Whether a whole story or document belongs to the part that training never sees."""
        return digest(self.seed, text) % FRESH == 0


class Template:
    """A sentence with slots that turns back into its slots; `values` are the words of the town that a slot may take."""

    def __init__(self, text: str, values: Mapping[str, Sequence[str]]):
        self.text, self.values = text, values
        self.strict = self._pattern(lambda slot: "|".join(map(re.escape, values[slot])))
        self.loose = self._pattern(lambda slot: r"\w+?")

    def _pattern(self, inside: Callable[[str], str]) -> re.Pattern[str]:
        parts = SLOT.split(self.text)
        pairs = zip(parts[::2], [*parts[1::2], ""], strict=True)
        return re.compile("".join(re.escape(plain) + (f"(?P<{slot}>{inside(slot)})" if slot else "") for plain, slot in pairs))

    def read(self, sentence: str) -> Slots | None:
        """The slots of a sentence of this shape in words of the town; None for any other sentence."""
        match = self.strict.fullmatch(sentence)
        return match.groupdict() if match else None

    def strangers(self, sentence: str) -> list[str]:
        """The words that keep a sentence of this shape from being one of the town."""
        match = self.loose.fullmatch(sentence)
        return [word for slot, word in match.groupdict().items() if word not in self.values[slot]] if match else []


class Grammar:
    """Reads a story with the tables that wrote it, and compares it with the facts."""

    def __init__(self, world: World):
        self.world, words = world, world.words
        people, places = words.people, words.places
        named = {"a": people, "b": people}
        values = {
            "A": (*people, *(start for start, _ in words.pronouns)), "a": (*people, *(inside for _, inside in words.pronouns)),
            "b": people, "friend": people, "place": places, "home": places, "kept": places, "bhome": places,
            "thing": tuple(words.things), "pet": tuple(words.animals), "likes": words.colours, **words.fillers,
        }  # fmt: skip
        self.titles = [Template(text, named) for text in words.titles.values()]
        self.templates = [Template(text, values) for texts in words.beats.values() for text in texts]

    def violations(self, text: str) -> list[str]:
        """What in a text is not a story of the town: a title line, then sentences. Each begins with the rule that is broken.

        "grammar": a sentence that the town does not say. "facts": against a fact. "people": a wrong pronoun, or somebody whom the
        title does not name. "twice": a sentence said twice.
        """
        title, _, body = text.strip().partition("\n")
        people = _read(self.titles, title)
        if people is None:
            return [_why_not(self.titles, title)]
        sentences = [sentence.strip(" ") for sentence in SENTENCE.findall(body)]
        found = [] if sentences else ["grammar: no story after the title"]
        found += ["people: one person twice in the title"] * (people["a"] == people["b"])
        if self.world.words.space.join(sentences) != body:
            found.append(f"grammar: cut off, or not set as sentences: {SENTENCE.sub('', body).strip()!r}")
        subject, said = None, set[tuple[str | None, str]]()
        for sentence in sentences:
            slots = _read(self.templates, sentence)
            if slots is None:
                found.append(_why_not(self.templates, sentence))
                continue
            token = slots.get("A") or slots.get("a")
            if token in self.world.of:
                subject = token
            elif token and token not in self.world.pronoun.get(subject or "", ()):
                found.append(f"people: wrong pronoun {token!r}: {sentence}")
            if (subject, sentence) in said:  # two people may both be told of as "he"
                found.append(f"twice: {sentence}")
            said.add((subject, sentence))
            if token and subject:
                found += [f"{fault}: {sentence}" for fault in self._faults(slots, subject, set(people.values()))]
        return found

    def _faults(self, slots: Slots, subject: str, people: set[str]) -> Iterator[str]:
        """What the facts and the title say against one sentence about its subject."""
        other = slots.get("b", "")
        true = {**self.world.of[subject], "kept": self.world.kept.get(slots.get("thing", "")),
                "bhome": self.world.of.get(other, {}).get("home")}  # fmt: skip
        for slot, value in slots.items():
            if slot in ("home", "likes", "friend", "pet", "kept", "bhome") and true.get(slot) != value:
                yield f"facts: {value!r} is wrong"
        for person in (subject, other):
            if person and person not in people:
                yield f"people: {person!r} is not in the title"
        if other == subject:
            yield f"people: both sides are {subject!r}"


def _read(templates: Sequence[Template], sentence: str) -> Slots | None:
    return next((slots for template in templates if (slots := template.read(sentence)) is not None), None)


def _why_not(templates: Sequence[Template], sentence: str) -> str:
    unknown = sorted((found for template in templates if (found := template.strangers(sentence))), key=len)
    if not unknown:
        return f"grammar: no such sentence: {sentence!r}"
    return f"grammar: unknown {', '.join(map(repr, unknown[0]))}: {sentence}"
