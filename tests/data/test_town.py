"""The town, judged by its text alone: what training says, what it does not, and what the checker makes of spoilt stories."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache

import pytest

from hornbook.data.documents import Document
from hornbook.data.town import LANGUAGES, Town
from hornbook.errors import UserError

SIZE = 3_000_000
languages = pytest.mark.parametrize("language", sorted(LANGUAGES))

DIGEST = """
import hashlib, sys
from hornbook.data.town import Town
town = Town(int(sys.argv[1]), sys.argv[2])
total = hashlib.sha256()
total.update(repr(list(town.documents(150_000))).encode())
total.update(repr(list(town.conversations(300))).encode())
total.update(repr((town.questions(40), town.held_out_documents(16), town.story_prompts(9))).encode())
print(total.hexdigest())
"""


@cache
def town(language: str) -> Town:
    return Town(0, language)


@cache
def prose(language: str) -> tuple[Document, ...]:
    return tuple(town(language).documents(SIZE))


@cache
def talks(language: str) -> tuple[Document, ...]:
    return tuple(town(language).conversations(5000))


@cache
def training_text(language: str) -> str:
    spoken = (message["content"] for talk in talks(language) for message in talk.messages)
    return "\n".join(itertools.chain((document.text for document in prose(language)), spoken))


def kind(document: Document) -> str:
    return document.source.split(":")[1].split("/")[0]


def stories(language: str, documents: tuple[Document, ...]) -> list[str]:
    return [document.text for document in documents if kind(document) == "story"]


@languages
def test_same_seed_same_bytes_in_any_process(language: str) -> None:
    def digest(seed: int, hash_seed: str) -> str:
        command = [sys.executable, "-c", DIGEST, str(seed), language]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert digest(0, "1") == digest(0, "2")
    assert digest(0, "1") != digest(1, "1")


@languages
def test_another_seed_is_another_world(language: str) -> None:
    one, two = town(language).world, Town(1, language).world
    assert sum(one.of[name] != two.of[name] for name in one.of) > len(one.of) // 2
    assert one.kept != two.kept
    assert town(language).held_out != Town(1, language).held_out


@languages
def test_the_world_is_closed(language: str) -> None:
    world = town(language).world
    assert all(world.of[of["friend"]]["friend"] == name != of["friend"] for name, of in world.of.items())
    assert Counter(of["pet"] for of in world.of.values() if "pet" in of) == Counter(list(world.words.animals))
    vocabulary = [*world.words.people, *world.words.places, *world.words.animals, *world.words.colours, *world.words.things]
    assert len(set(vocabulary)) == len(vocabulary)
    words = [word for pair in world.words.opposites for word in pair]
    assert len(set(words)) == len(words)
    for relation in world.words.relations:
        assert len(set(relation.asks)) == len(relation.asks) >= 8 and len(set(relation.tells)) == len(relation.tells)
        assert len(relation.tells) >= 8 or relation.name in ("keeper", "store")  # these two reverse another relation


@languages
@pytest.mark.parametrize("use", ["asks", "tells"])
def test_held_out_pairs_are_those_that_the_text_lacks(language: str, use: str) -> None:
    """Every sentence that the tables allow is looked for in the text; about one in ten must be missing: the held-out ones."""
    world, text = town(language).world, training_text(language)
    slots = defaultdict(list)
    for fact in world.facts:
        slots[fact.relation].append(fact.slots)
    missing, pairs = set(), 0
    for relation in world.words.relations:
        if not (wordings := getattr(relation, use)):
            continue
        found = [[wording.format_map(row) in text for wording in wordings] for row in slots[relation.name]]
        assert all(sum(row) * 2 > len(wordings) for row in found), relation.name  # every fact, in most wordings
        assert all(sum(column) * 2 > len(found) for column in zip(*found, strict=True)), relation.name
        pairs += sum(map(len, found))
        missing |= {wordings[n].format_map(row) for row, line in zip(slots[relation.name], found, strict=True)
                    for n, there in enumerate(line) if not there}  # fmt: skip
    held = {sentence for fact in world.facts for sentence in getattr(fact, f"held_{use}")}
    assert held <= missing and all(town(language).is_held_out(sentence) for sentence in held)
    assert 0.07 < len(held) / pairs < 0.11
    assert len(missing - held) < 0.01 * pairs  # the dice may leave out a few more


@languages
def test_held_out_questions_are_not_in_the_text(language: str) -> None:
    text, questions = training_text(language), town(language).questions(150)
    counts = Counter(question.kind for question in questions)
    assert counts["sums"] == counts["stories"] == 150 and counts["facts"] > 100 and counts["opposites"] > 40
    assert [question.prompt for question in questions if question.prompt in text] == []
    assert len({question.prompt for question in questions}) == len(questions)


@languages
def test_a_fifth_of_the_sum_wordings_is_unseen(language: str) -> None:
    words, text = town(language).world.words, training_text(language)
    seen = {}
    for frame, expression in itertools.product(words.frames, words.expressions):
        shape = re.escape(frame.format(e=expression)).replace(r"\{a\}", r"\d+").replace(r"\{b\}", r"\d+")
        seen[frame, expression] = len(re.findall(shape, text))
    unseen = [pair for pair, count in seen.items() if not count]
    assert len(seen) / 6 < len(unseen) < len(seen) / 4
    assert all(count > 20 for count in seen.values() if count)
    assert {frame for (frame, _), count in seen.items() if count} == set(words.frames)
    assert {expression for (_, expression), count in seen.items() if count} == set(words.expressions)
    asked = {re.sub(r"\d+", "#", question.prompt) for question in town(language).questions(150) if question.kind == "sums"}
    assert asked == {re.sub(r"\{[ab]\}", "#", frame.format(e=expression)) for frame, expression in unseen}


@languages
def test_every_question_has_one_answer(language: str) -> None:
    """Over all conversations and held-out questions: one answer per question, sums and counts that add up."""
    words, answers, sums = town(language).world.words, defaultdict(set), 0
    chatter = {reply for _, replies in words.small_talk for reply in replies} | set(words.refusals)
    for talk in talks(language):
        for ask, answer in zip(talk.messages[::2], talk.messages[1::2], strict=True):
            assert (ask["role"], answer["role"]) == ("user", "assistant")
            if answer["content"] not in chatter and "\n" not in answer["content"]:
                answers[ask["content"]].add(answer["content"])
    for question in town(language).questions(200):
        answers[question.prompt].add(question.answer)
    for prompt, replies in answers.items():
        assert len(replies) == 1, (prompt, replies)
        (reply,) = replies
        told = [int(number) for number in re.findall(r"\d+", reply)]
        asked = [int(number) for number in re.findall(r"\d+", prompt)]
        if len(told) == 3 and told[:2] == asked and words.count_join not in reply:
            assert sum(asked) == told[2]
            sums += 1
        elif asked:
            assert told == list(range(asked[0], asked[1] + 1))
    assert sums > 500


@languages
def test_a_scene_holds_two_answers_and_one_is_right(language: str) -> None:
    """The sentence of the scene that holds what the question names also holds what the answer adds."""
    words = town(language).world.words
    tables = (words.people, words.places, tuple(words.things), tuple(words.animals))

    names = re.compile("|".join(rf"\b{name}\b" if words.space else name for table in tables for name in table))
    for question in (question for question in town(language).questions(300) if question.kind == "stories"):
        *scene, ask = re.findall(r"[^.?。？]+[.?。？]", question.prompt)
        asked, told = set(names.findall(ask)), names.findall(question.answer)
        actions = [found for sentence in scene if (found := names.findall(sentence))]
        assert len(actions) == 2
        people = [[name for name in found if name in words.people] for found in (*actions, told)]
        if len(people[0]) == 2:  # a thing is given: the order tells who gave
            (right,) = [n for n, found in enumerate(actions) if set(found) & (asked | set(told)) & set(words.things)]
            assert people[2] == people[right][-len(people[2]) :] and set(told) <= set(actions[right])
            asked -= set(words.people)
        else:
            (right,) = [n for n, found in enumerate(actions) if asked <= set(found)]
            assert set(told) <= set(actions[right])
        table = next(table for table in tables if set(table) & (set(told) - asked))
        assert len({name for found in actions for name in found} & set(table)) == 2


@languages
def test_scenes_name_everything_in_every_combination(language: str) -> None:
    """No pair of a name and a thing is left out: a model would learn the gap."""
    words = town(language).world.words
    scenes = [document.text.split("\n")[0] for document in prose(language) if kind(document) == "scene"]
    scenes += [message["content"] for talk in talks(language) for message in talk.messages if message["role"] == "user"]
    found = [(set(filter(text.__contains__, words.people)), filter(text.__contains__, words.things)) for text in scenes]
    pairs = {pair for people, things in found for pair in itertools.product(people, things)}
    assert len(pairs) == len(words.people) * len(words.things)


@languages
def test_the_checker_accepts_every_story(language: str) -> None:
    fresh = town(language).held_out_documents(400)
    told = stories(language, tuple(fresh)) + stories(language, prose(language))[:500]
    assert len(told) >= 500
    assert [found for story in told if (found := town(language).check_story(story))] == []
    lengths = [len(re.findall(r"[.!?。！？]", story.split("\n")[1])) for story in told]
    assert 5 <= min(lengths) and max(lengths) <= 10 and len(set(told)) == len(told)


@languages
def test_a_story_prompt_begins_a_story(language: str) -> None:
    titles = {story.partition("\n")[0] for story in stories(language, prose(language))}
    prompts = town(language).story_prompts(100)
    assert all(prompt.count("\n") == 1 and prompt.endswith("\n") for prompt in prompts)
    assert sum(prompt.strip() in titles for prompt in prompts) > 30  # titles are not held out, stories are
    assert {fault for prompt in prompts for fault in town(language).check_story(prompt)} == {"grammar: no story after the title"}


def after(names: tuple[str, ...], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]


def spoil(how: str, story: str, town: Town) -> str:
    """The story with one thing wrong in it, or the story itself where it has no place for that."""
    words, (title, body) = town.world.words, story.split("\n")
    people = [name for name in words.people if name in title]
    if how == "pronoun":
        she, he = words.pronouns
        swapped = {she[0]: he[0], he[0]: she[0], she[1]: he[1], he[1]: she[1]}
        shape = "|".join(rf"\b{token}\b" if words.space else token for token in swapped)
        body = re.sub(shape, lambda match: swapped[match[0]], body, count=1)
    elif how == "stranger":
        body = body.replace(people[0], "Zorro" if words.space else "佐罗")
    elif how == "townsman":  # known in the town, but not in the title
        body = body.replace(people[0], next(name for name in words.people if name not in story))
    elif how == "home":
        before = "home to the |back in the |I live in the " if words.space else "家在|自己住的|我住在"
        shape = f"({before})({'|'.join(words.places)})"
        body = re.sub(shape, lambda match: match[1] + after(words.places, match[2]), body, count=1)
    elif how == "colour":
        body = re.sub("|".join(words.colours), lambda match: after(words.colours, match[0]), body, count=1)
    elif how == "cut":
        body = body[: len(body) * 2 // 3].rstrip(' .!?。！？"”')
    elif how == "word":
        body = body.replace("went" if words.space else "去了", "flew" if words.space else "飞进")
    elif how == "twice":
        body = body + words.space + body
    elif how == "title":
        title = "Once upon a time." if words.space else "从前有座山。"
    elif how == "empty":
        body = ""
    return f"{title}\n{body}"


@languages
@pytest.mark.parametrize("how", ["pronoun", "stranger", "townsman", "home", "colour", "cut", "word", "twice", "title", "empty"])
def test_the_checker_refuses_a_spoilt_story(language: str, how: str) -> None:
    told = stories(language, prose(language))[:150]
    spoilt = [text for story in told if (text := spoil(how, story, town(language))) != story]
    assert len(spoilt) > 30
    missed = [text for text in spoilt if not town(language).check_story(text)]
    assert not missed, missed[0]


@languages
def test_planted_documents_are_found_by_reading(language: str) -> None:
    found, seen = Counter[str](), set[str]()
    for document in prose(language):
        text = document.text
        letters = {name: len(re.findall(shape, text)) for name, shape in (
            ("strange", "[\x00-\x08\x0b-\x1f\x7f-\xff\ufffd]"), ("mark", r"[^\w\s]"))}  # fmt: skip
        lines = text.split("\n")
        if len(text.strip()) < 2:
            found["empty"] += 1
        elif letters["strange"] * 20 > len(text):
            found["noise"] += 1
        elif letters["mark"] * 2 > len(text):
            found["symbols"] += 1
        elif len(lines) > 20 and len(set(lines)) == 1:
            found["repeated"] += 1
        elif " ".join(text.split()) in seen:
            found["duplicate"] += 1
        seen.add(" ".join(text.split()))
    assert dict(found) == town(language).planted(SIZE)
    assert min(found.values()) > 50


@languages
def test_a_larger_corpus_begins_with_the_smaller(language: str) -> None:
    small = list(town(language).documents(300_000))
    assert small == list(itertools.islice(prose(language), len(small)))
    assert 300_000 <= sum(len(document.text.encode()) for document in small) < 310_000
    assert talks(language)[:100] == tuple(town(language).conversations(100))


@languages
def test_held_out_prose_is_fresh_and_of_every_kind(language: str) -> None:
    fresh = town(language).held_out_documents(80)
    assert not {document.text for document in fresh} & {document.text for document in prose(language)}
    kinds = {kind(document) for document in prose(language)} - set(town(language).planted(0))
    assert {kind(document) for document in fresh} == kinds


@languages
def test_a_pronoun_tells_only_what_training_may_say_of_that_person(language: str) -> None:
    world = town(language).world
    allowed = defaultdict(set)
    for fact in world.facts:
        if person := fact.slots.get("person"):
            for sentence in (*fact.tells, fact.answer):
                if sentence.startswith(person):
                    allowed[world.pronoun[person][0] + sentence[len(person) :]].add(person)
    starts = tuple(start + world.words.space for start, _ in world.words.pronouns)
    told = 0
    for document in prose(language):
        if kind(document) == "biography":
            people = {name for name in world.words.people if name in document.text}
            sentences = [sentence.strip() for sentence in re.findall(r"[^.。]+[.。]", document.text)]
            shortened = [sentence for sentence in sentences if sentence.startswith(starts)]
            assert 1 <= len(people) <= 2 and all(allowed[sentence] & people for sentence in shortened), document.text
            told += len(shortened)
    assert told > 1000


def test_an_unknown_language_names_the_near_one() -> None:
    with pytest.raises(UserError, match=r"Fix:.*'en'"):
        Town(0, "enn")
