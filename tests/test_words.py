"""Kinds of tokens are what a reader would call them, in any text at all."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftlens.formulas.words import FUNCTION_WORDS, KINDS, NUMBER_WORDS, kinds


def kind_of(word: str, text: str) -> str:
    """Kind of the last standing of `word` in `text`."""
    start = text.rindex(word)
    return kinds(text, [(start, start + len(word))])[0]


@pytest.mark.parametrize(
    ("word", "text", "kind"),
    [
        ("3.50", "It costs $3.50 today", "number"),
        ("1,000", "about 1,000 men", "number"),
        ("2nd", "the 2nd time", "number"),
        ("1980s", "in the 1980s", "number"),
        ("twenty", "She was twenty-one", "number"),
        ("½", "a cup and ½ more", "number"),
        ("Bob", "There Alice met Bob.", "name"),
        ("O'Brien", "They saw O'Brien there", "name"),
        ("Smith", "We met Mr. Smith", "name"),
        ("Will", "We saw Will there", "name"),
        ("will", "We will go", "function word"),
        ("The", "The end", "function word"),
        ("I'm", "and I'm here", "function word"),
        ("won’t", "they won’t go", "function word"),
        ("Cats", "Cats sleep.", "other word"),
        ("Come", 'He said, "Come here"', "other word"),
        ("Down", "It ends. Downstairs", "other word"),
        ("HOLE", "DOWN THE RABBIT HOLE", "other word"),
        ("iPhone", "on her iPhone", "other word"),
        ("你好", "he said 你好 to me", "other word"),
        ("_", "an _italic_ word", "punctuation"),
        ("_____", "fill in _____ here", "punctuation"),
        ("🙂", "fine 🙂 then", "punctuation"),
        ("...", "and so on...", "punctuation"),
        ("get_value", "call get_value now", "code"),
        ("getValue", "call getValue now", "code"),
        ("list", "the `list` type", "code"),
        ("f", "def f(x):", "code"),
        ("x", "    return x", "code"),
        ("stdio", "#include <stdio.h>", "code"),
        ("total", "total = 5;", "code"),
        ("main", "int main() {", "code"),
        ("}", "f {\n  }\n", "code"),
        ("pass", "```\npass\n```", "code"),
        ("example", "see https://example.org/a now", "code"),
        ("Ram", "the fleece of the golden Ram;\nand they went", "name"),
        ("following", "for the following reasons:", "other word"),
        ("->", "a -> b", "code"),
        (" \n", "end \n", "whitespace"),
        ("", "anything", "special"),
    ],
)
def test_a_token_is_of_the_kind_a_reader_would_say(word, text, kind):
    assert kind_of(word, text) == kind


def test_a_word_at_a_sentence_start_is_a_name_if_it_is_one_within_a_sentence():
    assert kind_of("Alice", "They saw Alice. Alice slept.") == "name"
    assert kind_of("Alice", "They saw her. Alice slept.") == "other word"


def test_a_piece_of_a_word_and_a_leading_space_change_nothing():
    text = "They met Elizabeth's aunt in Derbyshire"
    at = text.index("Elizabeth")
    pieces = [(at - 1, at + 4), (at, at + 1), (at + 4, at + 9), (at + 9, at + 11)]
    assert kinds(text, pieces) == ["name"] * 4


def test_an_accent_written_apart_is_of_its_letters_kind():
    assert kinds("the cafe\u0301s", [(7, 8), (8, 9), (9, 10)]) == ["other word"] * 3


def test_no_word_is_both_a_function_word_and_a_number():
    assert not FUNCTION_WORDS & NUMBER_WORDS


@settings(deadline=None)
@given(st.text(), st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40))))
def test_any_text_and_any_spans_have_kinds(text, spans):
    found = kinds(text, spans)
    assert len(found) == len(spans)
    assert set(found) <= set(KINDS)


@settings(deadline=None)
@given(st.text(alphabet="aB1_`'’\" \n.=();{}-<>/:&|", max_size=60))
def test_text_made_of_signs_has_kinds_and_its_spaces_are_whitespace(text):
    found = kinds(text, [(i, i + 1) for i in range(len(text))])
    spaces = [i for i, character in enumerate(text) if character.isspace()]
    assert spaces == [i for i, kind in enumerate(found) if kind == "whitespace"]


@pytest.mark.parametrize(
    "unit", ["a", "a_", "_", "`", "` ", "a =", "aB", "== ", "</a", "__a", "\n"]
)
def test_time_goes_with_the_length_of_the_text(unit):
    def seconds(length):
        text, start = unit * (length // len(unit)), time.process_time()
        kinds(text, [m.span() for m in re.finditer(r"\S+", text)])
        return time.process_time() - start

    # 16 times the text: linear is 16 times the time, quadratic 256; 64 leaves room for noise.
    assert seconds(64_000) < 64 * max(seconds(4_000), 1e-3)
