"""The default corpus: a small grammar of simple English sentences, and the judge of generated ones.

    The baby is sleeping.        My sisters had been reading a book for two hours.

A sentence is a subject, a verb phrase in one of twelve tenses, a complement that fits the verb, and perhaps an
adverbial that fits the tense. The tables in `grammar.toml` say what fits.

Some (subject, verb, tense) combinations are held out: they occur at the end of the corpus alone, where the
validation split lies. A model that gets them right has learnt how English conjugates.
"""

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from contract.errors import ConfigError, UserError

SEED = 12
SEEN_LINES, HELD_OUT_LINES = 23_750, 1_250
VALIDATION_SHARE = 10  # one line in ten: the last ones
HELD_OUT_SHARE = 20  # one combination in twenty
VOWELS = "aeiou"


def third_person(base: str) -> str:
    """The form after "he": plays, studies, watches."""
    if base.endswith("y") and base[-2] not in VOWELS:
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def past_form(base: str) -> str:
    """The regular past, also the regular past participle: played, studied, baked, chopped."""
    if base.endswith("y") and base[-2] not in VOWELS:
        return base[:-1] + "ied"
    return base + "d" if base.endswith("e") else _doubled(base) + "ed"


def ing_form(base: str) -> str:
    """The present participle: playing, lying, baking, chopping."""
    if base.endswith("ie"):
        return base[:-2] + "ying"
    return base[:-1] + "ing" if base.endswith("e") else _doubled(base) + "ing"


def _doubled(base: str) -> str:
    """The base, its last consonant doubled if a lone vowel stands before it: chopp, but wait, work, fix."""
    lone_vowel = base[-2] in VOWELS and sum(letter in VOWELS for letter in base) == 1
    return base + base[-1] if lone_vowel and base[-1] not in "wxy" else base


@dataclass(frozen=True)
class Verb:
    """A verb's five forms, its possible complements ("" for none) and the kinds of subject that suit it."""

    base: str
    third: str
    past: str
    participle: str
    ing: str
    objects: tuple[str, ...]
    kinds: tuple[str, ...]


def _choices(text: str) -> tuple[str, ...]:
    return tuple("" if choice == "-" else choice for choice in text.split(" | "))


def _verbs(tables: dict[str, dict[str, str]]) -> Iterator[Verb]:
    for kinds, rows in tables.items():
        for forms, objects in rows.items():
            base, *irregular = forms.split()
            past, participle = irregular or [past_form(base)] * 2
            third, ing = third_person(base), ing_form(base)
            yield Verb(base, third, past, participle, ing, _choices(objects), tuple(kinds.split()))


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
# Name -> its form and kind.
SUBJECTS = {name: (form, kind) for kind, form, names in _TABLES["subjects"] for name in _choices(names)}
VERBS = {verb.base: verb for verb in _verbs(_TABLES["verbs"])}
ADVERBIALS = {tense: ("", *_choices(texts)) for tense, texts in _TABLES["adverbials"].items()}
TENSES = tuple(ADVERBIALS)


@dataclass(frozen=True)
class Sentence:
    """The parts of a sentence as the tables name them, the verb by its base form; `str()` spells it."""

    subject: str
    verb: str
    tense: str
    object: str = ""
    adverbial: str = ""

    def __str__(self) -> str:
        phrase = verb_phrase(VERBS[self.verb], self.tense, SUBJECTS[self.subject][0])
        return _join(self.subject, phrase, self.object, self.adverbial) + "."


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))


def verb_phrase(verb: Verb, tense: str, form: str) -> str:
    """The verb with its auxiliaries, in agreement with a subject of the form "I", "he" or "they"."""
    time, aspect = tense.split(" ", 1)
    be, have = _TABLES["auxiliaries"][time][form]
    present = verb.third if form == "he" else verb.base
    return {
        "simple": {"past": verb.past, "present": present, "future": f"will {verb.base}"}[time],
        "continuous": f"{be} {verb.ing}",
        "perfect": f"{have} {verb.participle}",
        "perfect continuous": f"{have} been {verb.ing}",
    }[aspect]


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every (subject, verb, tense) that makes sense, in the order of the tables."""
    for (subject, (_, kind)), verb, tense in product(SUBJECTS.items(), VERBS.values(), TENSES):
        if kind in verb.kinds:
            yield subject, verb.base, tense


def is_held_out(subject: str, verb: str, tense: str) -> bool:
    """Whether a combination is kept out of training: one in twenty. Raises ValueError for a name in no table."""
    # 7, 3 and 1 share no divisor with 20, so every pair of parts is left to train on.
    place = 7 * tuple(SUBJECTS).index(subject) + 3 * tuple(VERBS).index(verb) + TENSES.index(tense)
    return place % HELD_OUT_SHARE == 0


@cache
def _phrases(form: str) -> dict[str, list[tuple[Verb, str]]]:
    """Every verb phrase that agrees with a form, and each verb and tense that it can be."""
    phrases: dict[str, list[tuple[Verb, str]]] = {}
    for verb, tense in product(VERBS.values(), TENSES):
        phrases.setdefault(verb_phrase(verb, tense, form), []).append((verb, tense))
    return phrases


def parses(text: str) -> list[Sentence]:
    """All readings of a sentence, [] if the grammar does not make it. Only "read" allows two, past and present."""
    words = text.removesuffix(".").split(" ")
    found = []
    for i, j in product(range(1, 4), range(1, 5)):  # subjects have up to three words, verb phrases up to four
        subject, phrase, rest = " ".join(words[:i]), " ".join(words[i : i + j]), " ".join(words[i + j :])
        form, kind = SUBJECTS.get(subject, ("", ""))
        for verb, tense in _phrases(form).get(phrase, ()) if form else ():
            for pair in product(verb.objects, ADVERBIALS[tense]):
                if kind in verb.kinds and _join(*pair) == rest:
                    found.append(Sentence(subject, verb.base, tense, *pair))
    return [sentence for sentence in dict.fromkeys(found) if str(sentence) == text]


def parse(text: str) -> Sentence | None:
    """The parts of a sentence, None if the grammar does not make it; of two readings, the past."""
    return next(iter(parses(text)), None)


def is_grammatical(text: str) -> bool:
    """Whether the grammar makes this sentence; it need not occur in the corpus."""
    return bool(parses(text))


def draw(rng: random.Random, held_out: bool) -> Iterator[Sentence]:
    """Sentences without end, each of an equally likely seen (or held-out) combination; they may repeat.

    Calls rng.random() alone: its sequence is the one that Python promises to keep between versions.
    """

    def pick(options):
        return options[int(rng.random() * len(options))]

    pool = [parts for parts in combinations() if is_held_out(*parts) == held_out]
    while True:
        subject, verb, tense = pick(pool)
        adverbial = pick(ADVERBIALS[tense][1:]) if rng.random() < 0.5 else ""
        yield Sentence(subject, verb, tense, pick(VERBS[verb].objects), adverbial)


def corpus() -> list[Sentence]:
    """The default corpus: distinct sentences of one reading each, first the seen ones, last the held-out."""
    rng = random.Random(SEED)
    sentences: dict[str, Sentence] = {}
    for held_out, lines in ((False, SEEN_LINES), (True, SEEN_LINES + HELD_OUT_LINES)):
        source = draw(rng, held_out)
        while len(sentences) < lines:
            sentence = next(source)
            if len(parses(str(sentence))) == 1:
                sentences[str(sentence)] = sentence
    return list(sentences.values())


def validation(lines: list[str], held_out: bool) -> list[str]:
    """The sentences of seen, or of held-out, combinations among the last tenth of a corpus.

    Raises UserError for a line there that is not of the grammar.
    """
    chosen = []
    for line in lines[len(lines) - len(lines) // VALIDATION_SHARE :]:
        sentence = parse(line)
        if sentence is None:
            raise UserError(
                f"every corpus line must be a sentence of the grammar, got {line!r:.60}; give such a corpus"
            )
        if is_held_out(sentence.subject, sentence.verb, sentence.tense) == held_out:
            chosen.append(line)
    return chosen


def judge(text: str, limit: int | None = None) -> tuple[list[str], int]:
    """The ungrammatical lines of a text, and how many were judged: the first `limit`, or all.

    Blank lines, and a last line without its end, do not count.
    Raises ConfigError for a limit below 1, UserError if there is nothing to judge.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1 line, got {limit}")
    lines = [line.removesuffix("\r") for line in text.split("\n")[:-1] if line.strip()][:limit]
    if not lines:
        raise UserError("expected a complete line to judge, got none; generate more text")
    return [line for line in lines if not is_grammatical(line)], len(lines)
