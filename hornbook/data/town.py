"""The town: a seeded closed world in two languages, and an endless corpus about it with a known answer to every question.

In flows a seed, out flow `Document`s (prose and conversations), held-out `Question`s and a checker of stories. The one idea:
what is held out is decided before anything is written, by digests: pairs of a fact and a wording, wordings of sums, and one
text in `FRESH`; so training text of any size lacks it, and a right answer to it was not learnt by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hornbook.data.documents import Document
from hornbook.data.town_en import ENGLISH
from hornbook.data.town_words import LARGEST, PLANS, SENTENCE, Dice, Event, Fact, Grammar, Item, Slots, Words, World, digest
from hornbook.data.town_zh import CHINESE
from hornbook.errors import UserError, near

LANGUAGES: dict[str, Words] = {"en": ENGLISH, "zh": CHINESE}
JUNK_STEP = 8192  # bytes from one planted document to the next, on average
JUNK = ("symbols", "duplicate", "empty", "noise", "repeated")
EMPTY = ("", " ", "\n", "\n \n", "\t", ".", "-", "…")
SYMBOLS = "#$%^&*~|<>{}[]\\/=+_@"
CONTROLS = "\x01\x02\x03\x05\x06\x07\x0e\x10\x16\x1b\x7f\ufffd"

# How often each kind is drawn: prose, the questions of a lesson, the exchanges of a conversation.
PROSE = {"biography": 18, "place": 6, "things": 6, "opposites": 5, "dialogue": 11, "lesson": 26, "story": 18, "scene": 16,
         "dictation": 8}  # fmt: skip
LESSON = {"facts": 9, "opposite": 3, "sums": 3, "counting": 1}
CHAT = {"facts": 55, "opposite": 12, "sums": 14, "counting": 3, "scene": 16, "dictation": 4, "small talk": 5,
        "outside": 3, "tale": 2}  # fmt: skip

KINDS = tuple(PLANS)
NUMBERS = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]


def spread(weights: dict[str, int]) -> tuple[str, ...]:
    """Each kind as often as it weighs, to draw from."""
    return tuple(kind for kind, weight in weights.items() for _ in range(weight))


@dataclass(frozen=True)
class Question:
    """A question that is not in the training text; `kind` is facts, opposites, sums or stories."""

    kind: str
    prompt: str
    answer: str


class Town:
    """A closed world: fixed facts about people, places, animals, colours and things, and everything said about them."""

    def __init__(self, seed: int = 0, language: str = "en"):
        if language not in LANGUAGES:
            raise UserError(f"the town does not speak {language!r}", where="language", fix=near(language, LANGUAGES))
        self.seed, self.world = seed, World(seed, LANGUAGES[language])
        self.grammar = Grammar(self.world)
        sums = [self.world.sum_of(wording, a, b)[0] for wording in self.world.held_sums for a, b in NUMBERS]
        self.held_out = frozenset(sums).union(*((*fact.held_asks, *fact.held_tells) for fact in self.world.facts))

    def is_held_out(self, sentence: str) -> bool:
        """Whether training text never says this sentence: a held-out question, statement or wording of a sum."""
        return sentence in self.held_out

    def check_story(self, text: str) -> list[str]:
        """What in a story (a title line, then sentences) is not from the town, by rule: empty for every story it tells."""
        return self.grammar.violations(text)

    def documents(self, size: int) -> Iterator[Document]:
        """About `size` bytes of training prose, junk and duplicates planted in; a larger size begins with the same text."""
        writer, planter = Writer(self.world, "documents"), Dice(self.seed, "junk")
        recent: list[str] = []
        seen: set[int] = set()
        written = number = junk = 0
        while written < size or self._junk_due(junk) < size:
            if self._junk_due(junk) <= written:
                kind = JUNK[junk % len(JUNK)]
                text = planted_text(kind, planter, recent)
                junk += 1
            else:
                kind, text = writer.prose()
                mark = digest(self.seed, text)
                if mark in seen or self.world.is_fresh(text):  # no duplicate but the planted ones
                    continue
                seen.add(mark)
                recent = [*recent[-99:], text]
            written += len(text.encode())
            yield Document(text, f"town:{kind}/{number}")
            number += 1

    def _junk_due(self, junk: int) -> int:
        """After how many bytes a planted document comes."""
        return junk * JUNK_STEP + JUNK_STEP // 2 + digest(self.seed, "due", junk) % (JUNK_STEP // 2)

    def planted(self, size: int) -> dict[str, int]:
        """How many documents of each junk kind `documents(size)` holds."""
        counts = dict.fromkeys(sorted(JUNK), 0)
        for junk in range(size // JUNK_STEP + 1):
            counts[JUNK[junk % len(JUNK)]] += self._junk_due(junk) < size
        return counts

    def held_out_documents(self, count: int) -> list[Document]:
        """Fresh prose of every kind in turn, never equal to a training document; it may say held-out statements."""
        writer, kinds, found = Writer(self.world, "held out", held=True), tuple(PROSE), dict[str, str]()
        while len(found) < count:
            kind = kinds[len(found) % len(kinds)]
            text = writer.prose(kind)[1]
            if self.world.is_fresh(text):
                found.setdefault(text, kind)
        return [Document(text, f"town:{kind}/held-{number}") for number, (text, kind) in enumerate(found.items())]

    def conversations(self, count: int) -> Iterator[Document]:
        """Conversations with the townspeople's model, mostly of one question, facts the most; nothing held out is in them."""
        writer = Writer(self.world, "conversations")
        for number in range(count):
            turns = 1 if writer.dice.below(6) else 2 + writer.dice.below(2)
            exchanges = [writer.exchange(writer.dice.pick(writer.chat)) for _ in range(turns)]
            messages = tuple(
                {"role": role, "content": text}
                for exchange in exchanges
                for role, text in zip(("user", "assistant"), exchange, strict=True)
            )
            yield Document("", f"town:chat/{number}", messages)

    def questions(self, count_per_kind: int) -> list[Question]:
        """Held-out questions, balanced over relations and wordings; fewer of a kind where no more are held out."""
        dice, writer = Dice(self.seed, "questions"), Writer(self.world, "questions", held=True)
        facts: dict[str, list[Question]] = {}
        for fact in self.world.facts:
            kind = "opposites" if fact.relation == "opposite" else "facts"
            facts.setdefault(fact.relation, []).extend(Question(kind, ask, fact.answer) for ask in fact.held_asks)
        opposites = facts.pop("opposite")
        sums = [[Question("sums", *self.world.sum_of(wording, a, b)) for a, b in NUMBERS] for wording in self.world.held_sums]
        stories = dict[str, Question]()
        while len(stories) < count_per_kind:
            prompt, answer = writer.scene_exchange(people=2)
            stories.setdefault(prompt, Question("stories", prompt, answer))
        kinds = (in_turn(list(facts.values()), dice), in_turn([opposites], dice), in_turn(sums, dice), list(stories.values()))
        return [question for kind in kinds for question in kind[:count_per_kind]]

    def story_prompts(self, count: int) -> list[str]:
        """Title lines, each with its line end, for a model to continue."""
        writer = Writer(self.world, "titles", held=True)
        return [writer.story().partition("\n")[0] + "\n" for _ in range(count)]


def in_turn(groups: list[list[Item]], dice: Dice) -> list[Item]:
    """One of each group in turn, each group shuffled, until all are used up."""
    shuffled = [dice.some(group) for group in groups]
    return [group[n] for n in range(max(map(len, groups))) for group in shuffled if n < len(group)]


def planted_text(kind: str, dice: Dice, recent: list[str]) -> str:
    """A document that a filter should refuse, made of good ones where it is a damaged one."""
    text = dice.pick(recent)
    if kind == "duplicate":
        return dice.pick((text, f"  {text}\n", text.replace(" ", "  ") + " \n", text.replace("\n", "\n\n") + "\n"))
    if kind == "empty":
        return dice.pick(EMPTY)
    if kind == "symbols":
        return " ".join("".join(dice.pick(SYMBOLS) for _ in range(1 + dice.below(9))) for _ in range(20 + dice.below(40)))
    if kind == "repeated":
        return "\n".join([SENTENCE.findall(text)[0].strip()] * (24 + dice.below(40)))
    if dice.below(2):  # UTF-8 that was read as Latin-1; accents, so that an English text suffers too
        return text.translate(str.maketrans("aeio", "áéíó")).encode().decode("latin-1")
    return "".join(letter + dice.pick(CONTROLS) * (dice.below(4) == 0) for letter in text)


class Writer:
    """Draws every kind of text from one stream of dice; `held` writes what training must not: held-out pairs, fresh stories."""

    def __init__(self, world: World, stream: str, held: bool = False):
        self.world, self.words, self.held = world, world.words, held
        self.dice = Dice(world.seed, stream)
        self.kinds, self.topics, self.chat = spread(PROSE), spread(LESSON), spread(CHAT)
        self.sums = world.sums + world.held_sums * held
        self.events = tuple(self.words.events.values())
        self.things, self.animals = tuple(self.words.things), tuple(self.words.animals)
        self.write: dict[str, Callable[[], str]] = {
            "biography": self.biography, "place": self.place, "things": lambda: self.joined(self.statements("kept", 4)),
            "opposites": lambda: self.joined(self.statements("opposite", 4)), "dialogue": self.dialogue, "lesson": self.lesson,
            "story": self.story, "scene": self.scene_lesson, "dictation": self.dictation,
        }  # fmt: skip
        self.asked: dict[str, list[tuple[tuple[str, ...], str]]] = {"facts": [], "opposite": []}
        self.told: dict[str, list[tuple[str, ...]]] = {}  # wordings by relation, by person and by place
        self.talk: dict[str, list[Fact]] = {name: [] for name in self.words.people}
        for fact in world.facts:
            asks, tells = fact.asks + fact.held_asks * held, (*fact.tells, *fact.held_tells * held, fact.answer)
            self.asked["opposite" if fact.relation == "opposite" else "facts"].append((asks, fact.answer))
            for name in (fact.relation, fact.slots.get("person"), fact.slots.get("place")):
                if name and fact.tells:
                    self.told.setdefault(name, []).append(tells)
            if fact.you_ask:
                self.talk[fact.slots["person"]].append(fact)

    def prose(self, kind: str | None = None) -> tuple[str, str]:
        """A kind of text, drawn by the weights of PROSE unless it is given, and one text of it."""
        kind = kind or self.dice.pick(self.kinds)
        return kind, self.write[kind]()

    def statements(self, name: str, fewest: int, person: str = "") -> list[str]:
        """Facts of a relation or about a name, in random order and wordings; a pronoun may stand for the `person`."""
        dice, subject = self.dice, self.words.subject_start.format(person=person)
        sentences, told = list[str](), set[str]()
        for tells in dice.some(self.told[name] * 2, fewest + dice.below(4)):
            sentence = dice.pick(tells)
            if sentence in told:
                continue
            told.add(sentence)
            if person and sentences and sentence.startswith(subject) and dice.below(2):
                sentence = self.world.pronoun[person][0] + sentence[len(person) :]
            sentences.append(sentence)
        return sentences

    def joined(self, sentences: list[str]) -> str:
        return self.words.space.join(sentences)

    def biography(self) -> str:
        person = self.dice.pick(self.words.people)
        return self.joined(self.statements(person, 5, person))

    def place(self) -> str:
        place = self.dice.pick(self.words.places)
        return self.words.place_title.format(place=place) + "\n" + self.joined(self.statements(place, 3))

    def dialogue(self) -> str:
        """Two people ask each other, mostly about themselves."""
        dice, words = self.dice, self.words
        one, two = dice.some(words.people, 2)
        lines = []
        for _ in range(3 + dice.below(3)):
            if dice.below(4):
                fact = dice.pick(self.talk[two])
                ask, tell = dice.pick(fact.you_ask), dice.pick(fact.i_tell)
            else:
                ask, tell = self.exchange("facts")
            lines += [words.asks_line.format(p=one, q=ask), words.says_line.format(p=two, t=tell)]
            if dice.below(2):
                one, two = two, one
        return "\n".join(lines)

    def lines(self, exchanges: list[tuple[str, str]]) -> str:
        return "\n".join(
            line for q, t in exchanges for line in (self.words.question_line.format(q=q), self.words.answer_line.format(t=t))
        )

    def lesson(self) -> str:
        """Questions with answers, of one topic or mixed."""
        topic = self.dice.pick(self.topics) if self.dice.below(5) else None
        return self.lines([self.exchange(topic or self.dice.pick(self.topics)) for _ in range(4 + self.dice.below(5))])

    def exchange(self, kind: str) -> tuple[str, str]:
        """A question and its answer, of a kind of LESSON or CHAT."""
        dice, words = self.dice, self.words
        if kind in self.asked:
            asks, answer = dice.pick(self.asked[kind])
            return dice.pick(asks), answer
        if kind == "sums":
            return self.world.sum_of(dice.pick(self.sums), dice.below(LARGEST + 1), dice.below(LARGEST + 1))
        if kind == "counting":
            first = dice.below(LARGEST)
            last = first + 1 + dice.below(LARGEST)
            numbers = words.count_join.join(map(str, range(first, last + 1)))
            return dice.pick(words.count_asks).format(a=first, b=last), numbers + words.count_end
        if kind == "scene":
            return self.scene_exchange()
        if kind == "dictation":
            text = self.dictated()
            return dice.pick(words.echo_asks).format(t=text), text
        if kind == "tale":
            one, two = dice.some(words.people, 2)
            return dice.pick(words.story_asks).format(a=one, b=two), self.story("story", one, two)
        if kind == "outside":
            topic = {name: dice.pick(choices) for name, choices in words.outside_topics.items()}
            return dice.pick(words.outside_asks).format_map(topic), dice.pick(words.refusals)
        prompts, replies = dice.pick(words.small_talk)
        return dice.pick(prompts), dice.pick(replies)

    def dictated(self) -> str:
        """What is to be said again: a short scene, or some words of the town in any order."""
        dice, words = self.dice, self.words
        if dice.below(2):
            return self.scene(2)[0]
        nouns = (*words.people, *words.places, *self.things, *self.animals, *words.colours)
        return words.count_join.join(dice.some(nouns, 3 + dice.below(5))) + words.count_end

    def dictation(self) -> str:
        """Texts that are said twice: nothing can foretell the second time but a look back at the first."""
        texts = [self.dictated() for _ in range(2 + self.dice.below(2))]
        return "\n".join(line.format(t=text) for text in texts for line in self.words.echo_lines)

    def scene(self, people: int) -> tuple[str, Event, list[Slots]]:
        """A short text in which one or two people do the same kind of thing, the event, and who did what."""
        dice, words = self.dice, self.words
        while True:
            names = dice.some(words.people, 2)
            event = dice.pick(self.events)
            things, places, animals = (dice.some(items, 2) for items in (self.things, words.places, self.animals))
            actors = [{"p": names[k], "q": names[1 - k], "thing": things[k], "place": places[k], "animal": animals[k]}
                      for k in range(people)]  # fmt: skip
            sentences = [dice.pick(event.tells).format_map(actor) for actor in actors]
            if not dice.below(4):
                sentences.insert(0, dice.pick(words.beats["opening"]).format_map(self.scenery()))
            text = self.joined(sentences)
            if self.world.is_fresh(text) == self.held:
                return text, event, actors

    def scene_exchange(self, people: int = 0) -> tuple[str, str]:
        """A short scene with a question, and the answer; with two people there are two possible answers in the scene."""
        text, event, actors = self.scene(people or 2 - (self.dice.below(4) == 0))
        question, answer = self.about(event, actors)
        return f"{text}{self.words.space}{question}", answer

    def about(self, event: Event, actors: list[Slots]) -> tuple[str, str]:
        (asks, answer), slots = self.dice.pick(event.asks), self.dice.pick(actors)
        return self.dice.pick(asks).format_map(slots), answer.format_map(slots)

    def scene_lesson(self) -> str:
        """A short scene, then some questions with answers."""
        text, event, actors = self.scene(2 - (self.dice.below(4) == 0))
        exchanges = dict(self.about(event, actors) for _ in range(2 + self.dice.below(3)))
        return text + "\n" + self.lines(list(exchanges.items()))

    def scenery(self) -> Slots:
        return {name: self.dice.pick(choices) for name, choices in self.words.fillers.items()}

    def story(self, kind: str = "", one: str = "", two: str = "") -> str:
        """A title line and a story by its plan, of a kind and about people that are drawn unless given."""
        dice, words = self.dice, self.words
        while True:
            a, b = (one, two) if one else dice.some(words.people, 2)
            name = kind or dice.pick(KINDS)
            thing = dice.pick(self.things)
            kept = self.world.kept[thing]
            place = self.world.of[b]["home"] if name == "visit" else dice.pick([at for at in words.places if at != kept])
            shared = {**self.scenery(), "place": place, "thing": thing, "kept": kept}
            text = words.titles[name].format(a=a, b=b) + "\n" + self.joined(self.beats(PLANS[name], a, b, shared))
            if self.world.is_fresh(text) == self.held:
                return text

    def beats(self, plan: tuple[str, ...], a: str, b: str, shared: Slots) -> list[str]:
        """The sentences of a plan; a pronoun may stand for the person that the sentence before was about."""
        dice, of, sentences, before = self.dice, self.world.of, list[str](), ""
        roles = {
            who: {**shared, **of[person], "b": other, "bhome": of[other]["home"]}
            for who, person, other in (("a", a, b), ("b", b, a))
        }
        for step in plan:
            if step[-1] == "?" and dice.below(2):
                continue
            beat, _, who = step.rstrip("?").partition(" ")
            person = {"a": a, "b": b}.get(who, "")
            slots = roles.get(who, shared)
            start = inside = person
            if person and person == before and dice.below(5) < 3:
                start, inside = self.world.pronoun[person]
            if beat == "pet" and "pet" not in slots:
                beat = "wear"
            sentences.append(dice.pick(self.words.beats[beat]).format_map({**slots, "A": start, "a": inside}))
            before = person
        return sentences
