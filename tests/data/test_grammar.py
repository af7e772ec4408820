"""The default corpus and its judge: what the grammar makes, what it refuses, what is held out."""

import io
import random
import subprocess
import sys
from collections import Counter
from itertools import islice, product
from pathlib import Path

import pytest

from data import grammar
from data.grammar import (
    ADVERBIALS,
    SUBJECTS,
    TENSES,
    VERBS,
    Sentence,
    is_grammatical,
    is_held_out,
    parse,
    parses,
)

ROOT = Path(__file__).parents[2]
CORPUS_FILE = ROOT / "data" / "tense.txt"

# Written by hand, not taken from the code: base, third person, past, past participle, present participle.
FORMS = """
sleep sleeps slept slept sleeping               lie lies lay lain lying
sit sits sat sat sitting                        drink drinks drank drunk drinking
play plays played played playing                run runs ran run running
swim swims swam swum swimming                   eat eats ate eaten eating
hide hides hid hidden hiding                    dig digs dug dug digging
walk walks walked walked walking                wait waits waited waited waiting
laugh laughs laughed laughed laughing           smile smiles smiled smiled smiling
cry cries cried cried crying                    write writes wrote written writing
read reads read read reading                    draw draws drew drawn drawing
tell tells told told telling                    sing sings sang sung singing
speak speaks spoke spoken speaking              ride rides rode ridden riding
fly flies flew flown flying                     throw throws threw thrown throwing
catch catches caught caught catching            feed feeds fed fed feeding
sell sells sold sold selling                    make makes made made making
build builds built built building               sweep sweeps swept swept sweeping
study studies studied studied studying          carry carries carried carried carrying
bake bakes baked baked baking                   paint paints painted painted painting
wash washes washed washed washing               fix fixes fixed fixed fixing
watch watches watched watched watching          chop chops chopped chopped chopping
shop shops shopped shopped shopping             dance dances danced danced dancing
visit visits visited visited visiting           help helps helped helped helping
listen listens listened listened listening      work works worked worked working
"""

# Every tense by hand, with an irregular verb for "he", regular ones for "they" and "I".
CONJUGATION = {
    "past simple": "He wrote a letter. | They studied music. | I danced.",
    "past continuous": "He was writing a letter. | They were studying music. | I was dancing.",
    "past perfect": "He had written a letter. | They had studied music. | I had danced.",
    "past perfect continuous": "He had been writing a letter. | They had been studying music. | "
    "I had been dancing.",
    "present simple": "He writes a letter. | They study music. | I dance.",
    "present continuous": "He is writing a letter. | They are studying music. | I am dancing.",
    "present perfect": "He has written a letter. | They have studied music. | I have danced.",
    "present perfect continuous": "He has been writing a letter. | They have been studying music. | "
    "I have been dancing.",
    "future simple": "He will write a letter. | They will study music. | I will dance.",
    "future continuous": "He will be writing a letter. | They will be studying music. | I will be dancing.",
    "future perfect": "He will have written a letter. | They will have studied music. | I will have danced.",
    "future perfect continuous": "He will have been writing a letter. | "
    "They will have been studying music. | I will have been dancing.",
}

RIGHT = [
    "The baby is sleeping.",
    "The baby cried last night.",
    "The puppies lay on the sofa this morning.",
    "My sisters had been reading a book for two hours.",
    "Anna and Tom are dancing in the kitchen right now.",
    "It has eaten fish already.",
    "It is digging a hole at the moment.",
    "The dog will be waiting by the door tomorrow morning.",
    "The puppies have been running through the forest all day.",
    "You were listening to an old song when the rain started.",
    "We will have swum in the lake by tomorrow evening.",
    "I read a book.",
    "She read a book yesterday.",
    "She reads a book every day.",
    "I have hidden behind a tree twice today.",
    "Our neighbours lay on the grass last Sunday.",
    "The children chopped carrots an hour ago.",
    "My father flies a kite on the beach very often.",
    "The women will have been baking bread for two hours by then.",
]

WRONG = {
    "agreement": """
        The baby are sleeping. | They is sleeping. | I are sleeping. | I is sleeping. | He am sleeping.
        | We was sleeping. | He were sleeping. | She have written a letter. | They has written a letter.
        | He write a letter. | They writes a letter. | I writes a letter. | Anna and Tom is dancing.""",
    "form": """
        She has wrote a letter. | She written a letter. | She is write a letter.
        | She is written a letter. | She will wrote a letter. | She will writing a letter.
        | She will be write a letter. | She writing a letter. | She will have wrote a letter.
        | She has been written a letter. | She had be writing a letter. | She will been writing a letter.
        | She has writing a letter. | She writed a letter. | He will sleeps.""",
    "spelling": """
        He studys music. | He is writeing a letter. | He is runing. | He choped wood.
        | He is lieing on the grass. | He visitted a museum. | He carryed wood. | He washs the dishes.
        | He fixs toys. | The babys slept.""",
    "adverbial": """
        He slept tomorrow. | He will sleep yesterday. | He is sleeping every day. | He sleeps by then.
        | He had slept every day. | He has slept yesterday. | He will have slept now. | He slept for.
        | He slept yesterday yesterday. | He slept yesterday last night. | Yesterday he slept.
        | He slept an hour.""",
    "object": """
        He drinks a book. | He reads water. | He writes. | He sleeps a letter. | He plays wood.
        | He reads book. | He reads a. | He reads a book a letter. | He sings to music. | He chops.
        | He studies a English.""",
    "subject": """
        Reads a book. | Him reads a book. | The reads a book. | My reads a book. | Baby is sleeping.
        | He she reads a book. | The sister reads a book. | The baby reads a book.
        | The dog writes a letter. | It laughs. | The puppies sing. | Anna and is dancing.
        | Anna Tom are dancing. | Peter sleeps.""",
    "writing": """
        He sleeps | He sleeps.. | He sleeps! | He sleeps . | he sleeps. | i sleep. | HE SLEEPS.
        | He Sleeps. | the baby is sleeping. | He sleeps, sleeps. | He sleeps. He sleeps.
        | He sleeps.He sleeps. | He, sleeps. | . | He. | He is. | He will. | He he sleeps.
        | He sleeps sleeps. | The the baby is sleeping. | He is is sleeping. | Sleeps he.
        | Is he sleeping. | He is not sleeping.""",
}
WRONG_SENTENCES = [" ".join(s.split()) for text in WRONG.values() for s in text.split("|")] + [
    "",
    " He sleeps.",
    "He sleeps. ",
    "He sleeps.\n",
    "He  sleeps.",
    "He\tsleeps.",
    "He slеeps.",  # the second e is Cyrillic
]


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return grammar.corpus()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return CORPUS_FILE.read_bytes().decode("ascii").splitlines()


@pytest.fixture(scope="module")
def training(lines) -> list[Sentence]:
    return [parse(line) for line in lines[: len(lines) * 9 // 10]]


def feed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# ------------------------------------------------------------- what is right, what is wrong


def test_verbs_have_the_forms_of_the_hand_written_table():
    """All five forms of every verb, regular or not, are those that English gives it."""
    made = [form for v in VERBS.values() for form in (v.base, v.third, v.past, v.participle, v.ing)]
    words = FORMS.split()
    by_hand = {words[i]: words[i : i + 5] for i in range(0, len(words), 5)}
    assert {made[i]: made[i : i + 5] for i in range(0, len(made), 5)} == by_hand


@pytest.mark.parametrize(
    ("base", "third", "past", "ing"),
    [
        ("enjoy", "enjoys", "enjoyed", "enjoying"),
        ("try", "tries", "tried", "trying"),
        ("tie", "ties", "tied", "tying"),
        ("hope", "hopes", "hoped", "hoping"),
        ("stop", "stops", "stopped", "stopping"),
        ("mix", "mixes", "mixed", "mixing"),
        ("row", "rows", "rowed", "rowing"),
        ("kiss", "kisses", "kissed", "kissing"),
        ("cook", "cooks", "cooked", "cooking"),
        ("open", "opens", "opened", "opening"),
    ],
)
def test_spelling_rules_hold_for_verbs_outside_the_table(base, third, past, ing):
    """The rules are rules: they spell regular verbs that the grammar does not have."""
    assert (grammar.third_person(base), grammar.past_form(base), grammar.ing_form(base)) == (third, past, ing)


@pytest.mark.parametrize("tense", TENSES)
def test_conjugation_is_that_of_the_hand_written_table(tense):
    """In each tense "he", "they" and "I" get the phrase written by hand, and it reads back as that tense."""
    parts = (("He", "write", "a letter"), ("They", "study", "music"), ("I", "dance", ""))
    for by_hand, (subject, verb, complement) in zip(CONJUGATION[tense].split(" | "), parts, strict=True):
        sentence = Sentence(subject, verb, tense, complement)
        assert str(sentence) == by_hand
        assert parses(by_hand) == [sentence]


@pytest.mark.parametrize("text", RIGHT)
def test_right_sentences_are_accepted(text):
    """A sentence that a person wrote by the tables is grammatical, whether or not the corpus has it."""
    assert is_grammatical(text)


@pytest.mark.parametrize("text", WRONG_SENTENCES)
def test_wrong_sentences_are_refused(text):
    """Each kind of mistake makes a sentence ungrammatical."""
    assert parse(text) is None


def test_parse_names_every_part():
    """The parts are those that a person would name."""
    assert parse("My sisters had been reading a book for two hours.") == Sentence(
        "My sisters", "read", "past perfect continuous", "a book", "for two hours"
    )


def test_only_read_has_two_readings():
    """A sentence reads back as what made it, and alone unless it is a bare "read" of present or past."""
    for subject, verb, tense in grammar.combinations():
        if subject not in ("They", "It"):
            continue
        for complement, adverbial in product(VERBS[verb].objects, ADVERBIALS[tense]):
            sentence = Sentence(subject, verb, tense, complement, adverbial)
            readings = {r.tense for r in parses(str(sentence))}
            twofold = verb == "read" and "simple" in tense and "future" not in tense
            if twofold and adverbial == "":
                assert readings == {"past simple", "present simple"}
            else:
                assert parses(str(sentence)) == [sentence]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_refuses_the_other_agreement(subject):
    """Each subject takes its own form of "be", "have" and the present, and none of the others."""
    plurals = ("You", "We", "They", "Anna and Tom", "The women", "The children")
    plural = subject.endswith("s") or subject in plurals
    be = "am" if subject == "I" else "are" if plural else "is"
    was, has, sleeps = ("were", "have", "sleep") if plural else ("was", "has", "sleeps")
    if subject == "I":
        has, sleeps = "have", "sleep"
    for pattern, choices, right in (
        ("{} {} sleeping.", ("am", "are", "is"), be),
        ("{} {} sleeping yesterday.", ("was", "were"), was),
        ("{} {} slept.", ("has", "have"), has),
        ("{} {} been sleeping.", ("has", "have"), has),
        ("{} {} every day.", ("sleep", "sleeps"), sleeps),
    ):
        assert [form for form in choices if is_grammatical(pattern.format(subject, form))] == [right]


@pytest.mark.parametrize("verb", [v for v in VERBS.values() if v.participle != grammar.past_form(v.base)])
def test_every_irregular_verb_refuses_its_wrong_forms(verb):
    """An irregular verb refuses the regular past, and the past for the participle or the reverse."""
    complement = f" {verb.objects[-1]}" if verb.objects[-1] else ""

    def ok(phrase):
        return is_grammatical(f"He {phrase}{complement}.")

    assert ok(verb.past)
    assert ok(f"has {verb.participle}")
    assert not ok(grammar.past_form(verb.base))
    assert not ok(f"has {grammar.past_form(verb.base)}")
    assert ok(f"has {verb.past}") == ok(verb.participle) == (verb.past == verb.participle)
    assert ok(f"has {verb.base}") == (verb.base == verb.participle)


def test_a_word_doubled_or_swapped_with_its_neighbour_is_refused(sentences):
    """No right sentence stays right when a word is said twice or two neighbours change places."""
    for sentence in random.Random(1).sample(sentences, 600):
        words = str(sentence).removesuffix(".").split()
        for i in range(len(words)):
            assert not is_grammatical(" ".join(words[: i + 1] + words[i:]) + ".")
            swapped = words[:i] + words[i : i + 2][::-1] + words[i + 2 :]
            assert swapped == words or not is_grammatical(" ".join(swapped) + ".")


def test_a_missing_verb_or_auxiliary_is_refused():
    """ "He" needs each word of his verb phrase, save where the past and the participle are one word.

    "He has slept." without "has" is right, and "He will have run." without "have". Nothing else is.
    """
    for verb, tense in product(VERBS.values(), TENSES):
        phrase = grammar.verb_phrase(verb, tense, "he").split()
        for i, missing in enumerate(phrase):
            rest = phrase[:i] + phrase[i + 1 :]
            right = rest == [verb.past] or (rest == ["will", verb.base] and missing == "have")
            assert is_grammatical(" ".join(["He", *rest, verb.objects[-1]]).strip() + ".") == right


# ------------------------------------------------------------- the corpus


def test_the_file_is_what_the_code_makes(sentences):
    """data/tense.txt is a function of the code, byte for byte."""
    assert CORPUS_FILE.read_bytes() == "".join(f"{sentence}\n" for sentence in sentences).encode()


def test_every_line_parses_back_to_what_made_it(sentences, lines):
    """Each line has one reading, the sentence that was drawn; no line occurs twice."""
    assert [parses(line) for line in lines] == [[sentence] for sentence in sentences]
    assert len(set(lines)) == len(lines)
    assert 20_000 <= len(lines) <= 30_000


def test_training_has_every_word_and_every_pair(training):
    """Training misses no subject, verb, tense, object or adverbial, nor any pair of the first three."""

    def pairs(combinations):
        return {pair for s, v, t in combinations for pair in ((s, v), (v, t), (s, t))}

    assert pairs((x.subject, x.verb, x.tense) for x in training) == pairs(grammar.combinations())
    assert {x.subject for x in training} == set(SUBJECTS)
    assert {(x.verb, x.object) for x in training} == {(v.base, o) for v in VERBS.values() for o in v.objects}
    assert {(x.tense, x.adverbial) for x in training} == {(t, a) for t in TENSES for a in ADVERBIALS[t]}


def test_no_held_out_combination_is_trained_on(training):
    """The first nine tenths of the lines hold seen combinations alone."""
    assert not any(is_held_out(x.subject, x.verb, x.tense) for x in training)


def test_the_last_tenth_has_both_kinds(lines):
    """Validation holds many sentences of either kind, and the two together are all of it."""
    seen, held_out = (grammar.validation(lines, kind) for kind in (False, True))
    assert seen + held_out == lines[len(lines) * 9 // 10 :]
    assert min(len(seen), len(held_out)) >= 500


def test_one_combination_in_twenty_is_held_out_evenly():
    """The held-out share is near 5 % overall; each pair keeps most of its combinations."""
    every = list(grammar.combinations())
    held_out = [c for c in every if is_held_out(*c)]
    assert 0.045 < len(held_out) / len(every) < 0.055
    for i, j in ((0, 1), (1, 2), (0, 2)):
        total, out = (Counter((c[i], c[j]) for c in part) for part in (every, held_out))
        assert all(out[pair] <= total[pair] / 5 for pair in total)


def test_held_out_refuses_an_unknown_name():
    """A name that is in no table is an error, not a combination."""
    with pytest.raises(ValueError, match="not in tuple"):
        is_held_out("Peter", "sleep", "past simple")


def test_drawing_uses_its_own_generator():
    """Equal seeds draw equal sentences; Python's global generator neither matters nor moves."""
    draws = []
    for seed in (3, 4):
        random.seed(seed)
        before = random.getstate()
        draws.append(list(islice(grammar.draw(random.Random(1), held_out=False), 200)))
        assert random.getstate() == before
    assert draws[0] == draws[1]
    assert draws[0] != list(islice(grammar.draw(random.Random(2), held_out=False), 200))


# ------------------------------------------------------------- the command line


def test_judge_reports_the_wrong_lines_and_the_share():
    """From the shell: wrong lines, then the count; blank lines and a line cut short do not count."""
    text = "He sleeps.\n\nThe baby are sleeping.\r\n  \nHe slеeps.\nShe reads a book.\r\nThe baby is sl"
    done = subprocess.run(
        [sys.executable, "cli.py", "corpus", "judge"], cwd=ROOT, input=text.encode(), capture_output=True
    )
    assert done.stdout.decode().splitlines() == [
        "The baby are sleeping.",
        "He sl\\xd0\\xb5eps.",
        "2 of 4 sentences grammatical (50.0 %)",
    ]
    assert (done.returncode, done.stderr) == (0, b"")


def test_judge_stops_at_the_limit(monkeypatch, run_cli):
    """The limit counts the lines that are judged, not the blank ones."""
    feed(monkeypatch, b"He sleeps.\n\nShe sleeps.\nThey sleeps.\n")
    assert run_cli("corpus", "judge", "--limit", "2") == (0, "2 of 2 sentences grammatical (100.0 %)\n", "")


@pytest.mark.parametrize(
    ("arguments", "data", "code", "message"),
    [
        (["judge"], b"", 1, "expected a complete line to judge, got none"),
        (["judge"], b"He sleeps.", 1, "expected a complete line to judge, got none"),
        (["judge", "--limit", "0"], b"He sleeps.\n", 2, "--limit must be at least 1 line, got 0"),
        (["validation", "seen", "no/such/file"], b"", 1, "no/such/file: No such file"),
        (["validation", "seen", str(ROOT / "LICENSE")], b"", 1, "every corpus line must be"),
        (
            ["validation", "unseen", str(CORPUS_FILE)],
            b"",
            2,
            "unknown kind 'unseen'; choose seen or held-out",
        ),
        (["write", "no/such/folder/tense.txt"], b"", 1, "no/such/folder/tense.txt: cannot be written"),
        (["write", str(CORPUS_FILE)], b"", 1, f"{CORPUS_FILE} already exists"),
    ],
)
def test_failures_are_one_line(monkeypatch, run_cli, arguments, data, code, message):
    """A user's mistake is one line on stderr, an exit status of 1 or 2, nothing on stdout."""
    feed(monkeypatch, data)
    monkeypatch.setattr(grammar, "corpus", list)
    found, out, err = run_cli("corpus", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_write_ends_every_line_with_a_line_feed(monkeypatch, run_cli, tmp_path, sentences):
    """The file has one sentence a line and a line feed alone at each end, on every system."""
    monkeypatch.setattr(grammar, "corpus", lambda: sentences[:2])
    assert run_cli("corpus", "write", tmp_path / "two.txt") == (0, "", "")
    assert (tmp_path / "two.txt").read_bytes() == f"{sentences[0]}\n{sentences[1]}\n".encode()


def test_validation_prints_one_kind(run_cli, lines):
    """The command prints the validation lines of one kind, in the order of the file."""
    for kind, wanted in (("held-out", lines[-1250:]), ("seen", lines[-2500:-1250])):
        code, out, _ = run_cli("corpus", "validation", kind, CORPUS_FILE)
        assert (code, out.splitlines()) == (0, wanted)
