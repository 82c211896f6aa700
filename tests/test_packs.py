"""Packs: what is read from which file, and what is said of a file that cannot be read."""

import gzip
import hashlib
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from driftlens.errors import DriftlensError, LoadError
from driftlens.packs import ROLES, STANDARD, Example, Pack, names, refuse_preferences, table

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


def test_a_limit_of_nothing_is_refused(tmp_path):
    with pytest.raises(DriftlensError, match="at least 1 example"):
        read_rows(tmp_path, STEREOSET).limit(0)


@pytest.mark.parametrize("name", STANDARD)
def test_the_shipped_packs_can_be_read_and_say_where_they_come_from(name):
    pack = Pack.load(name)
    assert pack.examples
    assert {"kind", "source", "licence", "made", "sha256"} <= pack.card.keys()
    assert name in names()


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


def test_preferences_are_refused_where_two_models_are_compared(tmp_path):
    refuse_preferences([Pack("mine", "text", [Example("x")])])
    with pytest.raises(DriftlensError, match=r"found preferences in mine.*`driftlens check`"):
        refuse_preferences([preferences(tmp_path / "mine", *PAIR)])


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


def test_an_unknown_pack_is_told_those_that_there_are():
    with pytest.raises(DriftlensError) as caught:
        Pack.load("wrold")
    assert all(name in str(caught.value) for name in STANDARD)
