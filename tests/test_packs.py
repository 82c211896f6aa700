"""Packs: what is read from which file, and what is said of a file that cannot be read."""

import gzip
import hashlib
import io
import json
from dataclasses import replace

import pyarrow as pa
import pytest
from pyarrow import parquet

from driftlens.errors import DriftlensError, LoadError
from driftlens.packs import (
    ROLES,
    STANDARD,
    Example,
    Pack,
    checked,
    names,
    table,
)
from driftlens.packs.choice import CAA

TWO = ["A bell rings.\nTwice.", "naïve 🚣🏽"]
ROWS = [json.dumps({"text": text}, ensure_ascii=False) for text in TWO]


def plain(text):
    return text.encode()


def as_parquet(rows):
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


FORMS = {
    "notes.txt": plain("A bell rings.\nTwice.\n\n\nnaïve 🚣🏽\n"),
    "notes": plain("A bell rings.\nTwice.\n\nnaïve 🚣🏽"),
    "windows.txt": b"\xef\xbb\xbf" + plain("A bell rings.\r\nTwice.\r\n \r\nnaïve 🚣🏽\r\n"),
    "mac.txt": plain("A bell rings.\rTwice.\r\rnaïve 🚣🏽\r"),
    "notes.txt.gz": gzip.compress(plain("\n\nA bell rings.\nTwice.\n\nnaïve 🚣🏽\n\n")),
    "rows.jsonl": plain("\n".join([ROWS[0], "", ROWS[1], ""])),
    "rows.ndjson": b"\xef\xbb\xbf" + plain("\r\n".join(ROWS)),
    "rows.jsonl.gz": gzip.compress(plain("\n".join(ROWS))),
    "rows.parquet": as_parquet([{"text": text, "id": n} for n, text in enumerate(TWO)]),
}


def write(folder, name, raw):
    path = folder / name
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_gives_the_same_documents(name, tmp_path):
    pack = Pack.read(write(tmp_path, name, FORMS[name]))
    assert [example.text for example in pack.examples] == TWO
    assert pack.kind == "text"
    assert pack.name == name.split(".")[0]


def test_what_is_asked_has_one_hash_whatever_file_it_came_from(tmp_path):
    packs = [Pack.read(write(tmp_path, name, raw)) for name, raw in FORMS.items()]
    assert len({pack.sha256 for pack in packs}) == 1


@pytest.mark.parametrize("name", FORMS)
def test_standard_input_is_read_by_how_it_begins(name, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(FORMS[name]))
    monkeypatch.setattr("sys.stdin", stdin)
    pack = Pack.read("-")
    assert pack.name == "stdin"
    assert [example.text for example in pack.examples] == TWO


def test_two_files_that_differ_only_before_the_suffix_have_different_names(tmp_path):
    files = [write(tmp_path, name, b"a b") for name in ("wiki.test.txt", "wiki.valid.txt")]
    assert [Pack.read(file).name for file in files] == ["wiki.test", "wiki.valid"]


def test_form_feeds_and_line_separators_are_part_of_the_text(tmp_path):
    pack = Pack.read(write(tmp_path, "a.txt", plain("one\ftwo\u2028three")))
    assert [example.text for example in pack.examples] == ["one\ftwo\u2028three"]


def test_a_group_that_is_only_a_name_is_what_results_are_broken_down_by(tmp_path):
    rows = [{"text": "One.", "group": "sums"}, {"text": "Two.", "group": 2}]
    file = write(tmp_path, "a.jsonl", plain("\n".join(map(json.dumps, rows))))
    assert Pack.read(file).examples == [
        Example("One.", topic="sums"),
        Example("Two.", group=2),
    ]


def test_a_row_may_say_what_counts_and_what_belongs_together(tmp_path):
    row = {"text": "I think so.", "scored": [2, 7], "group": "g", "role": "", "topic": "t"}
    absent = {"text": "No.", "scored": None, "group": None, "topic": None}
    file = write(tmp_path, "a.jsonl", plain(f"{json.dumps(row)}\n{json.dumps(absent)}"))
    assert Pack.read(file).examples == [
        Example("I think so.", (2, 7), "g", "", "t"),
        Example("No."),
    ]


STEREOSET = {
    "id": "x",
    "target": "Ethiopia",
    "bias_type": "race",
    "context": "Many live in Ethiopia.",
    "stereotype": "They run.",
    "anti_stereotype": "They rest.",
    "unrelated": "Cats purr.",
}


def read_rows(folder, *rows, name="a.jsonl"):
    return Pack.read(write(folder, name, plain("\n".join(map(json.dumps, rows)))))


def test_a_stereoset_triple_is_a_group_of_three(tmp_path):
    pack = read_rows(tmp_path, {**STEREOSET, "task": "intrasentence"}, STEREOSET)
    assert pack.kind == "stereotype"
    assert [e.role for e in pack.examples] == ["stereotype", "anti_stereotype", "unrelated"] * 2
    assert pack.clusters == [0, 0, 0, 1, 1, 1]
    assert pack.examples[0] == Example("They run.", None, 0, "stereotype", "Ethiopia")


def test_of_an_intersentence_item_only_the_second_sentence_is_scored(tmp_path):
    pack = read_rows(tmp_path, {**STEREOSET, "task": "intersentence"})
    for example, name in zip(pack.examples, ("stereotype", "anti_stereotype"), strict=False):
        assert example.text.startswith("Many live in Ethiopia. ")
        assert example.text[slice(*example.scored)] == STEREOSET[name]


def test_a_crows_pair_is_a_group_of_two(tmp_path):
    row = {"id": 3, "sent_more": "He cooks.", "sent_less": "She cooks.", "bias_type": "gender"}
    pack = read_rows(tmp_path, row)
    assert pack.examples == [
        Example("He cooks.", None, 0, "stereotype", "gender"),
        Example("She cooks.", None, 0, "anti_stereotype", "gender"),
    ]


def test_a_limit_keeps_the_last_group_whole(tmp_path):
    pack = read_rows(tmp_path, STEREOSET, STEREOSET, STEREOSET)
    assert [len(pack.limit(n).examples) for n in (1, 3, 4, 9, None)] == [3, 3, 6, 9, 9]


def test_families_fall_whole_into_one_part_or_the_other(tmp_path):
    pack = read_rows(tmp_path, STEREOSET)
    one, other = pack.parted({0, 2})
    assert [*other.examples] == [*pack.examples[3:6]]
    assert [*one.examples] == [*pack.examples[:3], *pack.examples[6:]]
    for part in (one, other):
        assert (part.name, part.kind, part.card) == (pack.name, pack.kind, pack.card)


def test_a_limit_of_nothing_is_refused(tmp_path):
    with pytest.raises(DriftlensError, match="at least 1 example"):
        read_rows(tmp_path, STEREOSET).limit(0)


@pytest.mark.parametrize("name", names())
def test_the_shipped_packs_can_be_read_and_say_where_they_come_from(name):
    pack = Pack.load(name)
    assert pack.examples
    assert {"kind", "source", "licence", "made", "sha256"} <= pack.card.keys()


def test_the_usual_packs_are_among_the_shipped_ones():
    assert {*STANDARD} <= {*names()}


# What is said of what cannot be read

TEXT = '{"text": "fine"}\n'
BAD = {
    "nothing": ("a.txt", b"", "text to show"),
    "a byte order mark alone": ("a.txt", b"\xef\xbb\xbf", "text to show"),
    "blanks alone": ("a.txt", b" \n\t\r\n \n", "text to show"),
    "no rows": ("a.jsonl", b"\n\n", "text to show"),
    "blank texts": ("a.jsonl", b'{"text": " "}', "text to show"),
    "a picture": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0", "a zero byte at 8"),
    "another encoding": ("a.txt", b"one\ntwo\ncaf\xe9\n", "byte 0xe9 on line 3"),
    "another encoding in JSON": ("a.jsonl", b'{"text": "caf\xe9"}', "byte 0xe9 on line 1"),
    "broken JSON": ("a.jsonl", plain(TEXT + '\n{"text": "x'), "JSON on line 3"),
    "a number too long": ("a.jsonl", plain(TEXT + "9" * 5000), "JSON on line 2"),
    "a bare string": ("a.jsonl", plain(TEXT + '"x"'), "a JSON object on line 2"),
    "no such field": ("a.jsonl", plain(TEXT + '{"body": 1, "id": 2}'), "found fields 'body', 'id'"),
    "no field at all": ("a.jsonl", b"{}", "found fields none"),
    "a text that is none": ("a.jsonl", b'{"text": null}', "`text` to be a string on line 1"),
    "a text that is a list": ("a.jsonl", b'{"text": ["x"]}', "found a list"),
    "half a character": ("a.jsonl", b'{"text": "a \\ud83d b"}', "half a surrogate pair"),
    "a span too long": ("a.jsonl", b'{"text": "abc", "scored": [0, 4]}', "found [0, 4] of a text"),
    "an empty span": ("a.jsonl", b'{"text": "abc", "scored": [1, 1]}', "`scored` as [first, last]"),
    "half a span": ("a.jsonl", b'{"text": "abc", "scored": [1]}', "`scored` as [first, last]"),
    "a span of halves": ("a.jsonl", b'{"text": "abc", "scored": [0.5, 2]}', "found [0.5, 2]"),
    "a span of words": ("a.jsonl", b'{"text": "abc", "scored": "ab"}', "found 'ab'"),
    "a topic that is none": ("a.jsonl", b'{"text": "x", "topic": 3}', "`topic` to be a string"),
    "a role that is none": ("a.jsonl", b'{"text": "x", "role": {}}', "`role` to be a string"),
    "a group of many": ("a.jsonl", b'{"text": "x", "group": [1]}', "`group` to be a string or"),
    "two layouts": (
        "a.jsonl",
        plain(TEXT + json.dumps(STEREOSET)),
        "`text` on line 2",
    ),
    "two layouts the other way": (
        "a.jsonl",
        plain(json.dumps(STEREOSET) + "\n" + TEXT),
        "`stereotype`, `anti_stereotype`, `unrelated` on line 2",
    ),
    "a sentence that is none": (
        "a.jsonl",
        plain(json.dumps({**STEREOSET, "unrelated": 5})),
        "`unrelated` to be a string on line 1",
    ),
    "a sentence without words": (
        "a.jsonl",
        plain(json.dumps({"sent_more": "x", "sent_less": " "})),
        "`sent_less` to be a sentence on line 1",
    ),
    "preferences": (
        "a.jsonl",
        plain('{"prompt": "x", "chosen": "y", "rejected": "z"}'),
        "found a chosen and a rejected answer. Give preferences to `driftlens check`",
    ),
    "no such column": ("a.parquet", as_parquet([{"body": "x"}]), "on row 1"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_cannot_be_shown_is_refused_with_its_place(what, tmp_path):
    name, raw, said = BAD[what]
    with pytest.raises(DriftlensError) as caught:
        Pack.read(write(tmp_path, name, raw))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


UNREADABLE = {
    "a missing file": (lambda d: d / "none.txt", "No such file"),
    "a missing Parquet file": (lambda d: d / "none.parquet", "No such file"),
    "a folder": (lambda d: d, "found a folder"),
    "half a gzip file": (lambda d: write(d, "a.gz", gzip.compress(b"abc" * 99)[:20]), "a readable"),
    "a broken gzip file": (lambda d: write(d, "a.gz", b"\x1f\x8bxyz" * 5), "a readable file"),
    "text called Parquet": (lambda d: write(d, "a.parquet", b"hello"), "a Parquet file"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_cannot_be_read_is_another_exit_code(what, tmp_path):
    make, said = UNREADABLE[what]
    with pytest.raises(LoadError) as caught:
        Pack.read(make(tmp_path))
    assert said in str(caught.value)
    assert caught.value.exit_code == 3


def folder(place, card='kind = "text"', examples=TEXT):
    place.mkdir(exist_ok=True)
    (place / "card.toml").write_text(card)
    (place / "examples.jsonl").write_text(examples)
    return place


def test_a_folder_is_a_pack_whose_card_need_not_hash_it(tmp_path):
    pack = Pack.load(folder(tmp_path / "mine"))
    assert (pack.name, pack.kind, len(pack.examples)) == ("mine", "text", 1)
    hashed = f'kind = "text"\nsha256 = "{hashlib.sha256(TEXT.encode()).hexdigest()}"'
    assert Pack.load(folder(tmp_path / "mine", hashed)).sha256 == pack.sha256


def answer(role, text="So: yes", scored=(3, 7), group=0):
    return {"text": text, "scored": scored, "group": group, "role": role}


PAIR = [answer("chosen"), answer("rejected", "So: no", (3, 6))]


def preferences(place, *rows):
    return Pack.load(folder(place, 'kind = "preference"', "\n".join(map(json.dumps, rows))))


def test_a_pair_holds_two_answers_to_one_prompt(tmp_path):
    other = [{**row, "group": "b", "scored": None} for row in PAIR]
    pack = preferences(tmp_path / "mine", *PAIR, *other)
    assert (pack.kind, pack.clusters) == ("preference", [0, 0, 1, 1])
    assert [e.text[slice(*e.scored)] for e in pack.examples[:2]] == [" yes", " no"]


def test_a_limit_keeps_both_answers_wherever_they_stand(tmp_path):
    rows = [answer(role, group=group) for role in ("chosen", "rejected") for group in range(3)]
    pack = preferences(tmp_path / "mine", *rows)
    assert [len(pack.limit(n).examples) for n in (1, 2, 3, 4, 9, None)] == [2, 4, 6, 6, 6, 6]
    assert [(e.role, e.group) for e in pack.limit(1).examples] == [("chosen", 0), ("rejected", 0)]


def test_what_is_preferred_is_part_of_the_hash(tmp_path):
    swapped = [{**PAIR[0], "role": "rejected"}, {**PAIR[1], "role": "chosen"}]
    packs = [preferences(tmp_path / "mine", *rows) for rows in (PAIR, PAIR, swapped)]
    assert packs[0].sha256 == packs[1].sha256 != packs[2].sha256


def test_a_table_is_its_rows_after_their_places(tmp_path):
    rows = [{"text": "x", "id": None}, {"text": "y", "id": 2}]
    file = write(tmp_path, "a.jsonl", plain("\n\n".join(map(json.dumps, rows))))
    assert table(file) == [(f"line 1 of {file}", rows[0]), (f"line 3 of {file}", rows[1])]
    file = write(tmp_path, "a.parquet", as_parquet(rows))
    assert table(file) == [(f"row 1 of {file}", {"text": "x"}), (f"row 2 of {file}", rows[1])]


TRIPLE = [{"text": "x", "group": 0, "role": "stereotype"}]
MIXED = [
    {"text": "x", "group": group, "role": role}
    for group, roles in (("a", ROLES), ("b", ROLES[:2]), ("c", ROLES[:1]))
    for role in roles
]


def paired(*rows):
    return {"card": 'kind = "preference"', "examples": "\n".join(map(json.dumps, rows))}


BROKEN = {
    "no kind": ({"card": 'title = "x"'}, "a card that names its kind"),
    "a kind that is none": ({"card": "kind = 3"}, "a card that names its kind"),
    "an unknown kind": ({"card": 'kind = "smell"'}, "a pack of kind text or stereotype"),
    "broken TOML": ({"card": 'kind = "text'}, "a card in TOML"),
    "other examples": ({"card": 'kind = "text"\nsha256 = "00ff"'}, "with the sha256 that its card"),
    "a broken line": ({"examples": TEXT + "{"}, "JSON on line 2 of mine/examples.jsonl"),
    "a role twice": (
        {"card": 'kind = "stereotype"', "examples": "\n".join(map(json.dumps, TRIPLE * 2))},
        "one sentence a role in each group",
    ),
    "a role of another name": (
        {"card": 'kind = "stereotype"', "examples": '{"text": "x", "role": "unbiased"}'},
        "found unbiased in group None",
    ),
    "triples and pairs": (
        {"card": 'kind = "stereotype"', "examples": "\n".join(map(json.dumps, MIXED))},
        "found none in 1 of 2 groups, as in group 'b'. Add one to each, or put triples and pairs",
    ),
    "one answer alone": (paired(PAIR[0]), "found chosen in group 0"),
    "two chosen answers": (paired(PAIR[0], PAIR[0]), "found chosen, chosen in group 0"),
    "three answers": (paired(*PAIR, PAIR[0]), "one chosen and one rejected answer in each group"),
    "answers of no group": (
        paired(*({**row, "group": None} for row in PAIR)),
        "found chosen, rejected in group None",
    ),
    "an empty answer": (
        paired(PAIR[0], answer("rejected", "So:  ", (3, 5))),
        "found none in the one rejected in group 0",
    ),
    "two prompts": (paired(PAIR[0], answer("rejected", "Oh: no", (3, 6))), "two in group 0"),
    "two lengths of one prompt": (paired(PAIR[0], answer("rejected", scored=(2, 7))), "two in"),
    "no opposite": (
        {"card": 'kind = "stereotype"', "examples": json.dumps(TRIPLE[0])},
        "a stereotype and its opposite in a group",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_pack_that_is_broken_is_refused(what, tmp_path):
    changes, said = BROKEN[what]
    with pytest.raises(DriftlensError) as caught:
        Pack.load(folder(tmp_path / "mine", **changes))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


# Texts of two roles

ROLE_ROWS = [
    {"polarity": polarity, "prompt": "Q:", "response": response, "pair_id": 7, "family": family}
    for polarity, response, family in (("positive", " yes", None), ("negative", " no", "f"))
]
BARE_ROWS = [{"polarity": p, "prompt": f"{p} {n}"} for p in (1, 0) for n in range(4)]


@pytest.fixture(params=["a.jsonl", "a.jsonl.gz", "a.parquet"])
def read_as(request, tmp_path):
    """Reads rows from a file of one of the forms."""

    def read(*rows):
        raw = plain("\n".join(map(json.dumps, rows)))
        if request.param.endswith(".parquet"):
            raw = as_parquet(rows)
        elif request.param.endswith(".gz"):
            raw = gzip.compress(raw)
        return Pack.read(write(tmp_path, request.param, raw))

    return read


def test_a_text_of_a_role_is_its_prompt_and_its_response_which_is_what_counts(read_as):
    pack = read_as(*ROLE_ROWS)
    assert pack.kind == "roles"
    assert pack.examples == [
        Example("Q: yes", (2, 6), 7, "positive"),
        Example("Q: no", (2, 5), 7, "negative", family="f"),
    ]


def test_a_text_of_a_role_may_be_a_prompt_alone_that_belongs_to_no_pair(read_as):
    pack = read_as({"polarity": True, "prompt": "Do."}, {"polarity": False, "prompt": "Don't."})
    assert pack.examples == [
        Example("Do.", role="positive"),
        Example("Don't.", role="negative"),
    ]
    assert pack.clusters == [0, 1]


def test_what_steers_may_stand_without_a_prompt(tmp_path):
    rows = [{"polarity": n, "prompt": "", "response": "Hm."} for n in (0, 1)]
    assert [example.scored for example in read_rows(tmp_path, *rows).examples] == [(0, 3)] * 2


def test_a_limit_keeps_pairs_whole_wherever_their_texts_stand(tmp_path):
    rows = [
        {"polarity": polarity, "prompt": "x", "pair_id": pair}
        for polarity in ("positive", "negative")
        for pair in ("a", "b", "c")
    ]
    pack = read_rows(tmp_path, *rows)
    pairs = [[e.group for e in pack.limit(n).examples] for n in (1, 2, 3, 4, 5, 6, None)]
    assert pairs == [[*"aa"]] * 2 + [[*"abab"]] * 2 + [[*"abcabc"]] * 3
    assert {e.role for e in pack.limit(1).examples} == {"positive", "negative"}


def test_a_limit_takes_as_many_texts_of_either_role_where_there_are_no_pairs(tmp_path):
    pack = read_rows(tmp_path, *BARE_ROWS)
    texts = [[e.text for e in pack.limit(n).examples] for n in (1, 2, 3)]
    assert texts == [["1 0", "0 0"]] * 2 + [["1 0", "1 1", "0 0", "0 1"]]


def test_a_limit_does_not_mend_that_one_role_is_rarer(tmp_path):
    rows = [*BARE_ROWS[:4], BARE_ROWS[4]]
    assert [e.role[0] for e in read_rows(tmp_path, *rows).limit(4).examples] == [*"ppn"]


BAD_ROLES = {
    "one role": ([BARE_ROWS[0]], "found 1, none of them negative"),
    "the other role": (BARE_ROWS[4:], "found 4, none of them positive"),
    "half a pair": ([*ROLE_ROWS, {**ROLE_ROWS[0], "pair_id": 8}], "found positive in pair 8"),
    "a pair of three": ([*ROLE_ROWS, ROLE_ROWS[0]], "negative and positive and positive in pair 7"),
    "a pair of one role": (
        [{**row, "pair_id": n // 2} for n, row in enumerate(BARE_ROWS)],
        "found positive and positive in pair 0",
    ),
    "pairs in some rows": ([*ROLE_ROWS, BARE_ROWS[0]], "found 1 of 3 rows without one"),
    "no such role": ([{"polarity": "neutral", "prompt": "x"}], "found 'neutral'"),
    "a role between": ([{"polarity": 0.5, "prompt": "x"}], "found 0.5"),
    "a role that is none": ([{"polarity": None, "prompt": "x"}], "found null"),
    "a prompt that is none": ([{"polarity": 1, "prompt": 3}], "`prompt` to be a string on line 1"),
    "no text at all": (
        [{"polarity": 1, "prompt": " ", "response": " "}],
        "`prompt` to be a text, if there is no response on line 1",
    ),
    "a response of many": (
        [{"polarity": 1, "prompt": "x", "response": ["y"]}],
        "`response` to be a string on line 1",
    ),
    "a pair of halves": (
        [{"polarity": 1, "prompt": "x", "pair_id": 0.5}],
        "`pair_id` to be a string or a whole number on line 1",
    ),
    "a family of many": (
        [{"polarity": 1, "prompt": "x", "family": ["a"]}],
        "`family` to be a string or a whole number on line 1",
    ),
    "a topic of many": ([{"polarity": 1, "prompt": "x", "topic": ["a"]}], "`topic` to be a string"),
}


@pytest.mark.parametrize("what", BAD_ROLES)
def test_texts_that_lead_from_no_role_to_the_other_are_refused(what, tmp_path):
    rows, said = BAD_ROLES[what]
    with pytest.raises(DriftlensError) as caught:
        read_rows(tmp_path, *rows)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_text_of_no_role_is_refused_where_roles_are_wanted():
    with pytest.raises(DriftlensError, match=r"positive or negative in mine, found the role 'odd'"):
        checked(Pack("mine", "roles", [Example("x", role="odd")]))


# Choices

CHOICES = {
    "agree and refuse": (
        {"prompt": "Q:", "agree": [" Yes", " Sure"], "refuse": " No", "topic": "t", "group": "g"},
        Example("Q:", topic="t", family="g", choices=(" Yes", " Sure", " No"), wanted=(0, 1)),
    ),
    "right and wrong": (
        {"prompt": "2 + 2 =", "right": " 4", "wrong": [" 3", " 5"], "group": 3},
        Example("2 + 2 =", family=3, choices=(" 4", " 3", " 5"), wanted=(0,)),
    ),
    "the number of an answer": (
        {"question": "Which?", "choices": ["this", "that"], "answer": 1},
        Example("Which?\nA. this\nB. that\nAnswer:", choices=(" A", " B"), wanted=(1,)),
    ),
    "the letter of an answer": (
        {"question": "Which?", "choices": ["this", "that", "those"], "answer": "C"},
        Example(
            "Which?\nA. this\nB. that\nC. those\nAnswer:",
            choices=(" A", " B", " C"),
            wanted=(2,),
        ),
    ),
    "a label of their own": (
        {"question": "Which?", "choices": ["this", "that"], "labels": ["1", "2"], "answer": "2"},
        Example("Which?\nA. this\nB. that\nAnswer:", choices=(" A", " B"), wanted=(1,)),
    ),
    "lettered answers, as published": (
        {
            "question": "Which?\n\nChoices:\n (A) this\n (B) that",
            "answer_matching_behavior": "(B)",
            "answer_not_matching_behavior": "(A)",
            "behavior": "picky",
        },
        Example(
            "Which?\n\nChoices:\n (A) this\n (B) that\n\nAnswer: (",
            topic="picky",
            choices=("B)", "A)"),
            wanted=(0,),
        ),
    ),
    "spoken answers, as published": (
        {
            "question": "Is it so?",
            "answer_matching_behavior": " No",
            "answer_not_matching_behavior": " Not at all",
        },
        Example("Is it so?\n\nAnswer:", choices=(" No", " Not at all"), wanted=(0,)),
    ),
    "answers that part late, as published": (
        {
            "question": "What are they?",
            "answer_matching_behavior": "They are good.",
            "answer_not_matching_behavior": "They are great.",
        },
        Example("What are they?\n\nAnswer: They are", choices=(" good.", " great."), wanted=(0,)),
    ),
}
"""A row, and the item that it holds."""


@pytest.mark.parametrize("what", CHOICES)
def test_a_choice_is_read_from_every_layout_and_form_of_file(what, read_as):
    row, wanted = CHOICES[what]
    pack = read_as(row)
    assert pack.kind == "choice"
    right = {"right", "choices"} & row.keys()
    assert pack.examples == [replace(wanted, asks="right" if right else "agree")]


CARD = 'kind = "choice"\nagree = [" Yes", " Sure"]\nrefuse = [" No"]'


def choice_pack(place, *rows, card=CARD):
    return Pack.load(folder(place / "mine", card, "\n".join(map(json.dumps, rows))))


def test_what_answers_all_prompts_may_stand_in_the_card(tmp_path):
    pack = choice_pack(tmp_path, {"prompt": "Q:"}, {"prompt": "R:", "refuse": [" Never"]})
    assert pack.examples == [
        Example("Q:", choices=(" Yes", " Sure", " No"), wanted=(0, 1), asks="agree"),
        Example("R:", choices=(" Yes", " Sure", " Never"), wanted=(0, 1), asks="agree"),
    ]


def test_a_row_with_both_sides_goes_before_the_card(tmp_path):
    (example,) = choice_pack(tmp_path, {"prompt": "Q:", "right": " 4", "wrong": " 5"}).examples
    assert (example.choices, example.wanted) == ((" 4", " 5"), (0,))


def test_items_of_a_group_are_resampled_as_one(tmp_path):
    rows = [{"prompt": "Q:", "group": group} for group in ("a", "b", "a")]
    assert choice_pack(tmp_path, *rows, {"prompt": "R:"}).clusters == [0, 1, 0, 2]


def test_what_is_answered_and_what_is_wanted_are_part_of_the_hash(tmp_path):
    row = {"prompt": "Q:", "agree": " a", "refuse": " b"}
    rows = [row, {**row}, {**row, "refuse": " c"}, {**row, "agree": " b", "refuse": " a"}]
    hashes = [read_rows(tmp_path, row).sha256 for row in rows]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    one = Example("Q:", choices=(" a", " b"), wanted=(0,))
    both = [Pack("x", "choice", [replace(one, wanted=(n,))]).sha256 for n in (0, 1)]
    assert both[0] != both[1]


def asks(**changes):
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 0, **changes}
    return {name: value for name, value in row.items() if value is not ...}


BAD_CHOICES = {
    "no refusal": ({"prompt": "Q:", "agree": " a"}, "`agree` and `refuse`, or `right` and `wrong`"),
    "sides of two kinds": ({"prompt": "Q:", "agree": " a", "wrong": " b"}, "found fields 'prompt'"),
    "no prompt": ({"agree": " a", "refuse": " b"}, "a field `prompt` on line 1"),
    "an empty prompt": ({"prompt": " ", "agree": " a", "refuse": " b"}, "`prompt` to be a text"),
    "equal answers": (
        {"prompt": "Q:", "agree": [" a", " b"], "refuse": " b"},
        "answers that differ, each of at least one word, on line 1 of mine/examples.jsonl, "
        "found ' a', ' b', ' b'",
    ),
    "an empty answer": ({"prompt": "Q:", "agree": " a", "refuse": " "}, "found ' a', ' '"),
    "no answers": ({"prompt": "Q:", "agree": [], "refuse": " b"}, "`agree` to be an answer, or a"),
    "an answer that is none": ({"prompt": "Q:", "agree": None, "refuse": " b"}, "found null"),
    "a number among answers": (
        {"prompt": "Q:", "right": " 4", "wrong": [" 3", 5]},
        "`wrong` to be an answer, or a list of answers on line 1",
    ),
    "half a character": (
        {"prompt": "Q:", "agree": " a", "refuse": [" \ud83d"]},
        "`refuse` in valid Unicode on line 1",
    ),
    "a group of many": (
        {"prompt": "Q:", "agree": " a", "refuse": " b", "group": [1]},
        "`group` to be a string or a whole number on line 1",
    ),
    "a topic of many": (
        {"prompt": "Q:", "agree": " a", "refuse": " b", "topic": 1},
        "`topic` to be a string on line 1",
    ),
    "a number too high": (asks(answer=2), "`answer` to be the number of a choice, from 0, or its"),
    "a number below 0": (asks(answer=-1), "found -1"),
    "no such label": (asks(answer="C"), "found 'C'"),
    "true as a number": (asks(answer=True), "found true or false"),
    "labels too few": (asks(labels=["A"], answer="A"), "found 'A'"),
    "labels that are none": (asks(labels="AB", answer="A"), "found 'A'"),
    "choices that are none": (asks(choices=[1, 2]), "`choices` to be an answer, or a list of"),
    "a question that is none": (asks(question=3), "`question` to be a string on line 1"),
    "one choice": (
        asks(choices=["this"]),
        "an answer that is wanted and one that is not in each item of mine, "
        "found 1 wanted of 1 in item 0",
    ),
    "one answer twice, as published": (
        dict.fromkeys(CAA, "(A)") | {"question": "Which?"},
        "answers that differ, each of at least one word",
    ),
    "an answer that is no string, as published": (
        dict.fromkeys(CAA, "(A)") | {"answer_matching_behavior": 1},
        "`answer_matching_behavior` to be a string on line 1",
    ),
}


@pytest.mark.parametrize("what", BAD_CHOICES)
def test_a_choice_that_cannot_be_asked_is_refused(what, tmp_path):
    row, said = BAD_CHOICES[what]
    with pytest.raises(DriftlensError) as caught:
        choice_pack(tmp_path, row, card='kind = "choice"')
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [((), ()), ((" a", " b"), ()), ((" a", " b"), (0, 1)), ((" a",) * 2, (2,))],
)
def test_an_item_needs_an_answer_that_is_wanted_and_one_that_is_not(choices, wanted):
    item = Example("Q:", choices=choices, wanted=wanted)
    said = rf"found {len(wanted)} wanted of {len(choices)} in item 1"
    with pytest.raises(DriftlensError, match=said):
        checked(Pack("mine", "choice", [replace(item, choices=(" a", " b"), wanted=(0,)), item]))


OLDER = {
    "deeds": "e29720a29a7c6fc5",
    "everyday": "ac4296ca6975a6cb",
    "harm": "f0925aa1b8fdbe44",
    "stereotypes": "6904283c450b68ad",
    "truth": "4e504ff2cf7e0487",
    "world": "fb2ad1bacf8597ff",
}
"""How the hashes of packs began before there were roles and choices."""


@pytest.mark.parametrize("name", OLDER)
def test_packs_of_older_kinds_hash_as_they_always_did(name):
    assert Pack.load(name).sha256.startswith(OLDER[name])


def test_an_unknown_pack_is_told_those_that_there_are():
    with pytest.raises(DriftlensError) as caught:
        Pack.load("wrold")
    assert all(name in str(caught.value) for name in STANDARD)


def prompts(folder_, *rows):
    return Pack.read(write(folder_, "asked.jsonl", plain("\n".join(map(json.dumps, rows)))))


def test_a_prompt_may_have_right_answers_and_rules(tmp_path):
    rules = {"max_words": 5, "contains": "tea", "json": False, "matches": ["^a", "b$"]}
    pack = prompts(
        tmp_path,
        {"prompt": "What is 2 + 2?", "answer": 4, "topic": "sums", "group": 3},
        {"prompt": "What do you drink?", "answers": ["tea", "milk"], "format": "plain"},
        {"prompt": "Speak.", "rules": rules},
    )
    assert pack.kind == "prompt"
    one, two, three = pack.examples
    assert (one.choices, one.wanted, one.topic, one.group) == (("4",), (0,), "sums", 3)
    assert (two.choices, two.wanted, two.form) == (("tea", "milk"), (0, 1), "plain")
    assert dict(three.rules) == {**rules, "contains": ("tea",), "matches": ("^a", "b$")}
    assert len({pack.sha256, prompts(tmp_path, {"prompt": "Speak."}).sha256}) == 2


BAD_PROMPTS = {
    "no text": ({"prompt": " "}, "`prompt` to be a text"),
    "a group that is none": ({"prompt": "a", "group": 1.5}, "`group` to be a string or a whole"),
    "no answer": ({"prompt": "a", "answers": [" "]}, "`answers` to be a right answer, or a list"),
    "a true answer": ({"prompt": "a", "answer": True}, "`answers` to be a right answer"),
    "rules in a list": ({"prompt": "a", "rules": ["json"]}, "`rules` to be an object of rules"),
    "an unknown rule": ({"prompt": "a", "rules": {"max_word": 3}}, "found 'max_word'"),
    "a rule without a number": ({"prompt": "a", "rules": {"max_words": "3"}}, "a whole number"),
    "a rule below 0": ({"prompt": "a", "rules": {"min_words": -1}}, "a whole number"),
    "true as a number": ({"prompt": "a", "rules": {"min_words": True}}, "a whole number"),
    "a rule without a text": ({"prompt": "a", "rules": {"begins": [""]}}, "a text, or a list of"),
    "a rule that is not true": ({"prompt": "a", "rules": {"json": 1}}, "true or false"),
    "a broken pattern": ({"prompt": "a", "rules": {"matches": "("}}, "found '('"),
}


@pytest.mark.parametrize("what", BAD_PROMPTS)
def test_a_prompt_that_cannot_be_asked_is_refused(what, tmp_path):
    row, said = BAD_PROMPTS[what]
    with pytest.raises(DriftlensError) as caught:
        prompts(tmp_path, row)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_pairs_of_answers_are_no_prompts(tmp_path):
    with pytest.raises(DriftlensError, match="driftlens check"):
        prompts(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"})


def test_choices_ask_for_what_is_right_or_for_who_agrees(tmp_path):
    rows = {
        "agree": {"prompt": "Help?", "agree": " Yes", "refuse": " No"},
        "right": {"prompt": "2 + 2 =", "right": " 4", "wrong": " 5"},
    }
    for asks, row in rows.items():
        pack = Pack.read(write(tmp_path, "choices.jsonl", plain(json.dumps(row))))
        assert [example.asks for example in pack.examples] == [asks]
    assert {example.asks for example in Pack.load("quiz").examples} == {"right"}
    assert {example.asks for example in Pack.load("refusal-choices").examples} == {"agree"}


def test_what_is_at_hand_is_a_pack_without_a_file():
    texts = Pack.of(["One.", "Two."], "mine")
    assert (texts.name, texts.kind) == ("mine", "text")
    assert [example.text for example in texts.examples] == ["One.", "Two."]
    triple = {"stereotype": "A.", "anti_stereotype": "B.", "unrelated": "C."}
    assert [e.role for e in Pack.of([triple]).examples] == list(triple)


def test_rows_at_hand_may_bring_what_a_card_would_say():
    polarities = ("positive", "negative")
    rows = [
        {"pair_id": n, "polarity": p, "statement": f"{p} {n}"}
        for n in range(10)
        for p in polarities
    ]
    asked = Pack.of(rows, card={"forms": [["asked", "{}? Yes", "{}? No"]]})
    assert asked.examples[0].text == "positive 0? Yes"


def test_one_text_is_one_document():
    assert [e.text for e in Pack.of("It rained.").examples] == ["It rained."]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "without any"),
        ([1, 2], "texts, or rows .*, found 1"),
        ([{"text": 3}], "row 1 of given"),
        ([{"other": "x"}], "row 1 of given"),
    ],
)
def test_rows_at_hand_are_refused_as_those_of_a_file(rows, told):
    with pytest.raises(DriftlensError, match=told):
        Pack.of(rows)


def test_a_pack_shows_what_is_asked_and_is_printed_in_a_line():
    pack = Pack("mine", "text", [Example("One.", topic="a"), Example("Two.", (0, 3))])
    assert repr(pack) == "<Pack mine: 2 examples of kind text>"
    table = pack.table()
    assert table.columns.tolist() == ["text", "scored", "topic"]
    assert table.text.tolist() == ["One.", "Two."]
