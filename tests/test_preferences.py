"""Preference sets: what is read from which file, how pairs become text, and what is wrong."""

import gzip
import io
import json
from copy import deepcopy

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, models

import nets
from driftlens.errors import DriftlensError, LoadError
from driftlens.models.tokens import Encoder
from driftlens.packs import Pack
from driftlens.preferences import FAULTS, Message, Preference, Preferences

WORDS, BARE = nets.tokenizer(), nets.tokenizer(bos=False)
TURNS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}[assistant] {% endif %}"


def templated(template, words=BARE):
    words = deepcopy(words)
    words.chat_template = template
    return words


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SKY = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
TALK = {
    "prompt": [user("What is the sky?")],
    "chosen": [assistant("It is blue.")],
    "rejected": [assistant("It is green.")],
}


def lines(*rows):
    return "\n".join(map(json.dumps, rows)).encode()


def as_parquet(*rows):
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def read(folder, *rows, name="set.jsonl"):
    file = folder / name
    file.write_bytes(as_parquet(*rows) if name.endswith("parquet") else lines(*rows))
    return Preferences.read(file)


def only(folder, row):
    return only_of(read(folder, row))


def only_of(found):
    (pair,) = found.pairs
    return pair.prompt, pair.chosen, pair.rejected


def kinds(faults, pair=None):
    return [fault.kind for fault in faults if pair is None or fault.pair == pair]


# Reading


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
def test_strings_are_read_as_they_stand(name, tmp_path):
    found = read(tmp_path, {**SKY, "id": 7}, SKY, name=name)
    assert found.name == "set"
    assert [pair.number for pair in found.pairs] == [0, 1]
    first = found.pairs[0]
    assert (first.prompt, first.chosen, first.rejected) == tuple(SKY.values())
    assert first.record == {**SKY, "id": 7}
    assert ("line 1" if name == "set.jsonl" else "row 1") in first.where


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
def test_messages_are_read_with_what_else_they_hold(name, tmp_path):
    asked = [{"role": "system", "content": "Be brief."}, {**user("Who?"), "name": "Mira"}]
    prompt, chosen, rejected = only(tmp_path, {**TALK, "prompt": asked})
    assert prompt == (Message("system", "Be brief."), Message("user", "Who?", {"name": "Mira"}))
    assert chosen == (Message("assistant", "It is blue."),)
    assert rejected == (Message("assistant", "It is green."),)
    assert [message.fields for message in prompt] == asked


def test_fields_that_only_some_messages_have_are_not_given_to_the_others(tmp_path):
    row = {**TALK, "prompt": [{**user("Who?"), "name": "Mira"}, user("And why?")]}
    prompt, *_ = only_of(read(tmp_path, row, name="set.parquet"))
    assert [message.more for message in prompt] == [{"name": "Mira"}, {}]


def test_standard_input_and_gzip_are_read_too(tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(lines(SKY, TALK)))
    packed = Preferences.read(tmp_path / "mine.jsonl.gz")
    assert packed.name == "mine"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines(SKY, TALK))))
    piped = Preferences.read("-")
    assert piped.name == "stdin"
    parts = [[(p.prompt, p.chosen, p.rejected) for p in of.pairs] for of in (packed, piped)]
    assert parts[0] == parts[1]


HH = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: Why is it so?\n\nAssistant:"
PARTED = {
    "a word": ("The sky is blue.", "The sky is green.", "The sky is"),
    "a word with a common start": ("It is green.", "It is grey.", "It is"),
    "an ending": ("I like it.", "I like it!", "I like"),
    "a line": ("Q: x\nred", "Q: x\nblue", "Q: x\n"),
    "two spaces": ("So:  red", "So:  blue", "So: "),
    "nothing in common": ("Yes", "No", ""),
    "one word": ("Yes", "Yesterday", ""),
    "one that goes on": ("The sky is", "The sky is blue", "The sky"),
    "a dialogue": (f"{HH} I know.", f"{HH} I do not.", HH),
    "a dialogue that goes on": (
        f"{HH} So.\n\nHuman: Ah.\n\nAssistant: Yes.",
        f"{HH} So.\n\nHuman: Oh.\n\nAssistant: Yes.",
        HH,
    ),
}


@pytest.mark.parametrize("what", PARTED)
def test_what_two_strings_begin_with_is_their_prompt(what, tmp_path):
    chosen, rejected, prompt = PARTED[what]
    found = only(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert found == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])
    assert only(tmp_path, {"prompt": None, "chosen": chosen, "rejected": rejected}) == found


def test_the_common_leading_messages_are_the_prompt(tmp_path):
    asked = [user("Hi."), assistant("Yes?"), user("Why?")]
    ends = [[assistant("So.")], [assistant("No."), user("Oh."), assistant("Ah.")]]
    explicit = {"prompt": asked, "chosen": ends[0], "rejected": ends[1]}
    whole = {"chosen": asked + ends[0], "rejected": asked + ends[1]}
    assert only(tmp_path, whole) == only(tmp_path, explicit)
    # As UltraFeedback has it: the question once more as a string.
    assert only(tmp_path, {**whole, "prompt": "Why?"}) == only(tmp_path, explicit)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    common=st.text("ab \n", max_size=12),
    ends=st.tuples(st.text("ab \n", max_size=6), st.text("ab \n", max_size=6)),
)
def test_prompt_and_answer_are_the_text_again(tmp_path_factory, common, ends):
    chosen, rejected = (common + end for end in ends)
    if chosen == rejected:
        return
    prompt, *answers = only(
        tmp_path_factory.getbasetemp(), {"chosen": chosen, "rejected": rejected}
    )
    assert [prompt + answer for answer in answers] == [chosen, rejected]
    # No word is cut in two.
    assert not prompt or prompt[-1].isspace() or all(end[0] == " " for end in answers)


def test_a_limit_counts_pairs(tmp_path):
    found = read(tmp_path, SKY, TALK, SKY)
    assert [len(found.limit(n).pairs) for n in (1, 2, 9, None)] == [1, 2, 3, 3]
    with pytest.raises(DriftlensError, match="at least 1 pair"):
        found.limit(0)


# What cannot be read


def without(name, row=SKY):
    return {key: value for key, value in row.items() if key != name}


BAD = {
    "nothing": ([], "found no pairs"),
    "no chosen": ([SKY, without("chosen")], "on line 2 of set.jsonl, found fields 'prompt'"),
    "no rejected": ([without("rejected")], "fields `chosen` and `rejected`"),
    "no field": ([{}], "found fields none"),
    "a null": (
        [{**SKY, "chosen": None}],
        "`chosen` to be a string or a list of messages on line 1",
    ),
    "a number": ([{**SKY, "prompt": 3}], "`prompt` to be a string or a list of messages on line 1"),
    "half a character": ([{**SKY, "chosen": "a \ud83d"}], "half a surrogate pair"),
    "only identical": ([{**SKY, "rejected": " blue."}] * 2, "found 2 with the same answer twice"),
    "identical wholes": ([{"chosen": "So it is.", "rejected": "So it is."}], "found 1 with"),
    "an empty answer": ([SKY, {**SKY, "rejected": " \n"}], "an answer in `rejected` on line 2"),
    "no messages": ([{**TALK, "chosen": []}], "found no words of the assistant"),
    "an empty message": ([{**TALK, "chosen": [assistant(" ")]}], "an answer in `chosen` on line 1"),
    "no answer": ([{**TALK, "rejected": [user("So?")]}], "found no words of the assistant"),
    "an unknown role": (
        [{**TALK, "prompt": [{"role": "human", "content": "x"}]}],
        "on line 1 of set.jsonl, in `prompt`, found 'human'. Rename it",
    ),
    "no role": ([{**TALK, "chosen": [{"content": "x"}]}], "a field `role` on line 1"),
    "no content": ([{**TALK, "chosen": [{"role": "assistant"}]}], "a field `content` on line 1"),
    "parts": (
        [{**TALK, "chosen": [{"role": "assistant", "content": [{"text": "x"}]}]}],
        "`content` to be a string on line 1",
    ),
    "strings for messages": ([{**TALK, "chosen": ["x"]}], "messages with `role` and `content`"),
    "one answer a string": ([{**TALK, "chosen": "Blue."}], "found some of each"),
    "messages before strings": ([{**SKY, "prompt": TALK["prompt"]}], "found some of each"),
    "a string before messages": ([{**TALK, "prompt": "What?"}], "found some of each"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_set_that_cannot_be_read_is_refused_with_its_place(what, tmp_path):
    rows, said = BAD[what]
    with pytest.raises(DriftlensError) as caught:
        read(tmp_path, *rows)
    assert said in str(caught.value).replace(f"{tmp_path}/", "")
    assert caught.value.exit_code == 2


def test_broken_lines_are_refused_as_in_any_pack(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(SKY) + b'\n{"prompt": "x')
    with pytest.raises(DriftlensError, match="JSON on line 2"):
        Preferences.read(tmp_path / "a.jsonl")
    with pytest.raises(LoadError, match="No such file"):
        Preferences.read(tmp_path / "none.jsonl")
    with pytest.raises(DriftlensError, match=r"`chosen` and `rejected`, .* on row 1"):
        read(tmp_path, {"positive": "x"}, name="a.parquet")


# Packs


def test_a_pair_is_a_group_of_two_texts_scored_after_their_prompt(tmp_path):
    found = read(tmp_path, SKY, {**SKY, "rejected": " blue."}, {**SKY, "chosen": " grey."})
    pack, faults = found.pack(WORDS)
    assert (pack.name, pack.kind) == ("set", "preference")
    assert [(e.group, e.role) for e in pack.examples] == [
        (0, "chosen"),
        (0, "rejected"),
        (2, "chosen"),
        (2, "rejected"),
    ]
    assert [e.text for e in pack.examples[:2]] == ["The sky is blue.", "The sky is green."]
    assert {e.scored[0] for e in pack.examples} == {len(SKY["prompt"])}
    assert kinds(faults, 1) == ["identical"]
    assert pack.clusters == [0, 0, 1, 1]


def test_one_set_makes_one_hash_whatever_its_file_and_form(tmp_path):
    packs = [
        read(tmp_path, {**SKY, "id": 1}).pack(BARE)[0],
        read(tmp_path, SKY, name="other.parquet").pack(BARE)[0],
        read(tmp_path, {k: SKY["prompt"] + SKY[k] for k in ("chosen", "rejected")}).pack(BARE)[0],
    ]
    assert len({pack.sha256 for pack in packs}) == 1
    other = read(tmp_path, {**SKY, "chosen": SKY["rejected"], "rejected": SKY["chosen"]})
    assert other.pack(BARE)[0].sha256 != packs[0].sha256


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(parts=st.lists(st.text("abTe .ïß日🚣🏽\n", min_size=1, max_size=12), min_size=3, max_size=3))
def test_only_the_tokens_of_the_answer_are_scored(parts):
    prompt, chosen, rejected = parts[0], parts[1] + "x", parts[2] + "y"
    pair = Preference(0, "line 1", prompt, chosen, rejected)
    pack, faults = Preferences("p", (pair,)).pack(WORDS)
    encoder = Encoder(pack, (WORDS, WORDS), 999)
    _, batch, units = encoder.encode(encoder.batches(99, rows=2)[0])
    merged = [f for f in faults if f.kind == "merged_boundary"]
    for row, answer in enumerate((chosen, rejected)):
        example = pack.examples[row]
        assert example.text[: example.scored[0]] + answer == prompt + answer == example.text
        mine = units.document[units.scored] == row
        characters = units.characters[units.scored][mine].sum()
        # What a merged token holds of the prompt counts with the answer.
        assert characters >= len(answer)
        assert merged or characters == len(answer)
        shown = batch.ids[row][batch.mask[row]]
        assert batch.targets[batch.target[0] == row].equal(shown[-int(mine.sum()) :])


# Chat templates


def test_messages_are_rendered_up_to_the_answer_and_whole(tmp_path):
    pack, faults = read(tmp_path, TALK).pack(templated(TURNS + OPEN))
    prompt = "[user] What is the sky?</s>[assistant] "
    assert [e.text for e in pack.examples] == [
        f"{prompt}It is blue.</s>",
        f"{prompt}It is green.</s>",
    ]
    assert {e.scored[0] for e in pack.examples} == {len(prompt)}
    assert kinds(faults) == []


def test_a_template_sees_the_other_fields_of_a_message(tmp_path):
    row = {**TALK, "prompt": [{**user("Who?"), "name": "Mira"}]}
    named = "{% for m in messages %}{{ m.name or 'I' }}: {{ m.content }}\n{% endfor %}"
    pack, _ = read(tmp_path, row).pack(templated(named))
    assert pack.examples[0].text == "Mira: Who?\nI: It is blue.\n"


def test_an_answer_may_have_more_than_one_turn(tmp_path):
    more = [assistant("No."), user("Oh."), assistant("Ah.")]
    pack, _ = read(tmp_path, {**TALK, "rejected": more}).pack(templated(TURNS + OPEN))
    last = pack.examples[1]
    assert last.text[last.scored[0] :] == "No.</s>[user] Oh.</s>[assistant] Ah.</s>"


def test_no_answer_is_opened_before_a_question(tmp_path):
    row = {
        "prompt": [user("Hi."), assistant("Yes?")],
        "chosen": [user("Why?"), assistant("So.")],
        "rejected": [user("Who?"), assistant("I.")],
    }
    pack, faults = read(tmp_path, row).pack(templated(TURNS + OPEN))
    assert kinds(faults) == []
    assert pack.examples[0].text[pack.examples[0].scored[0] :].startswith("[user] Why?")


def test_messages_without_a_template_are_refused(tmp_path):
    with pytest.raises(
        DriftlensError, match=r"a chat template .* line 2 .*tokenizer.chat_template"
    ):
        read(tmp_path, SKY, TALK).pack(BARE)


def test_what_a_template_refuses_is_told_with_its_place(tmp_path):
    words = templated("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DriftlensError, match=r"can render on line 1 .*roles must alternate"):
        read(tmp_path, TALK).pack(words)


def test_one_beginning_of_text_is_shown_whoever_adds_it(tmp_path):
    found = read(tmp_path, TALK)
    begun = "{{ bos_token }}" + TURNS + OPEN
    plain, quiet = found.pack(templated(begun, BARE))
    once, told = found.pack(templated(begun, WORDS))
    assert kinds(quiet) == []
    assert kinds(told) == ["double_bos"]
    assert plain.examples[0].text == "<s>" + once.examples[0].text
    ids = []
    for pack, words in ((plain, BARE), (once, WORDS)):
        encoder = Encoder(pack, (words, words), 99)
        _, batch, _ = encoder.encode(encoder.plan)
        assert batch.ids[batch.mask].tolist().count(words.bos_token_id) == 2
        ids.append((batch.ids.tolist(), batch.targets.tolist()))
    assert ids[0] == ids[1]


# Faults: each once on purpose, and what becomes of the pair

DROPS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('@')[-1] }}{{ eos_token }}{% endfor %}"
)
THINKS = "{% if add_generation_prompt %}[assistant] <think>{% endif %}"
LONG = "one two three four five six seven eight nine ten"
SAID = {
    "identical": ([{**SKY, "rejected": " blue."}], WORDS, "as given"),
    "empty_answer": ([{"chosen": f"{HH} So.", "rejected": HH}], WORDS, "the rejected one"),
    "empty_after_template": (
        [{**TALK, "chosen": [assistant("thought@")]}],
        templated(DROPS + "{% if add_generation_prompt %}[assistant]{% endif %}"),
        "the chosen one",
    ),
    "prompt_too_long": ([{**SKY, "prompt": LONG * 9}], WORDS, "of 80 tokens allowed"),
    "truncated": ([{**SKY, "rejected": LONG * 9}], WORDS, "of 80 tokens allowed"),
    "near_duplicate": (
        [{"prompt": "So:", "chosen": " x" * 15 + " y", "rejected": " x" * 15 + " z"}],
        WORDS,
        "96.9% of 32 and 32 tokens",
    ),
    "repeated": ([SKY, TALK, SKY], templated(TURNS + OPEN), "in pair 0"),
    "contradicted": (
        [SKY, {**SKY, "chosen": SKY["rejected"], "rejected": SKY["chosen"]}],
        WORDS,
        "in pair 0",
    ),
    "no_prompt": ([{"chosen": "Yes.", "rejected": "No."}], WORDS, "only <s> comes first"),
    "prompt_repeated": (
        [{**SKY, "chosen": "The sky is red", "rejected": " The sky is blue"}],
        WORDS,
        "shown as given",
    ),
    "template": ([TALK], templated(TURNS + THINKS), "it goes on with '<think>'"),
    "double_bos": ([{**SKY, "prompt": "<s>The sky is"}], WORDS, "<s> in the text and added to it"),
    "no_gap": ([{**SKY, "chosen": "blue."}], WORDS, "'The sky isblue.'"),
    "no_end": ([{**SKY, "chosen": " blue.</s>"}], WORDS, "the rejected one"),
}


def merging(*merges):
    """A tokenizer of characters of which some pairs are one token."""
    letters = ["<s>", "</s>", *sorted(set("Say: yesno.") | set("".join(merges)))]
    tokens = {token: number for number, token in enumerate([*letters, *merges])}
    return nets.fast(Tokenizer(models.BPE(tokens, [tuple(merge) for merge in merges])))


def test_every_fault_is_known_and_shown_here():
    # The one by the tests further down, with tokenizers of its own.
    assert {*SAID, "merged_boundary"} == set(FAULTS)


@pytest.mark.parametrize("kind", SAID)
def test_a_fault_is_found_and_the_pair_kept_or_left_out(kind, tmp_path):
    rows, words, detail = SAID[kind]
    good = {"prompt": "The sea is", "chosen": " blue.</s>", "rejected": " green.</s>"}
    pack, faults = read(tmp_path, *rows, good).pack(words, length=80)
    mine = [fault for fault in faults if fault.kind == kind]
    assert [fault.pair for fault in mine] == [len(rows) - 1]
    assert detail in mine[0].detail
    assert mine[0].kept == FAULTS[kind][1]
    assert (len(rows) - 1 in {example.group for example in pack.examples}) == mine[0].kept
    assert len(rows) in {example.group for example in pack.examples}


def test_a_token_over_the_boundary_is_told_and_counts_with_the_answer(tmp_path):
    row = {"prompt": "Say:", "chosen": "yes", "rejected": "no"}
    words, apart = merging(":y"), merging("ye")
    pack, faults = read(tmp_path, row).pack(words)
    (merged,) = [fault for fault in faults if fault.kind == "merged_boundary"]
    assert (merged.detail, merged.kept) == ("':y' of the chosen one", True)
    assert "merged_boundary" not in kinds(read(tmp_path, row).pack(apart)[1])
    encoder = Encoder(pack, (words, words), 99)
    _, batch, _ = encoder.encode(encoder.batches(99)[0])
    assert words.convert_ids_to_tokens(batch.targets.tolist()) == [":y", "e", "s", "n", "o"]
    # Tokenising prompt and answer apart would see other tokens than the model is shown.
    assert words.convert_ids_to_tokens(words("Say:")["input_ids"])[-1] == ":"


def test_a_space_before_the_boundary_may_merge_with_the_answer(tmp_path):
    row = {"prompt": "Say: ", "chosen": "yes", "rejected": "no"}
    told = [f.detail for f in read(tmp_path, row).pack(merging(" n"))[1] if "merged" in f.kind]
    assert told == ["' n' of the rejected one"]


def test_a_file_of_pairs_that_are_all_left_out_is_refused(tmp_path):
    found = read(tmp_path, {**SKY, "rejected": " blue."}, {**SKY, "chosen": LONG})
    with pytest.raises(DriftlensError, match=r"none of 2 \(1 identical, 1 truncated\).*max-length"):
        found.pack(WORDS, length=20)


def test_answers_that_differ_only_before_the_template_are_identical(tmp_path):
    row = {**TALK, "chosen": [assistant("a@So.")], "rejected": [assistant("b@So.")]}
    _, faults = read(tmp_path, row, TALK).pack(templated(DROPS))
    assert (faults[0].kind, faults[0].detail) == ("identical", "after the chat template")


def test_the_answer_begins_where_a_broken_template_and_both_wholes_part(tmp_path):
    pack, _ = read(tmp_path, TALK).pack(templated(TURNS + THINKS))
    texts = {e.text[: e.scored[0]] for e in pack.examples}
    assert texts == {"[user] What is the sky?</s>[assistant] "}


def test_a_prompt_may_be_absent_where_nothing_is_added(tmp_path):
    pack, faults = read(tmp_path, {"chosen": "Yes, it is.", "rejected": "No, so."}).pack(BARE)
    assert pack.examples[0].scored[0] == 0
    (told,) = [fault.detail for fault in faults if fault.kind == "no_prompt"]
    assert told == "the first token has nothing before it, and is not scored"
    encoder = Encoder(pack, (BARE, BARE), 99)
    _, batch, _ = encoder.encode(encoder.plan)
    assert int(batch.target[1].min()) == 1


def test_answers_are_closed_on_request_and_only_once(tmp_path):
    found = read(tmp_path, {**SKY, "chosen": " blue.</s>"})
    pack, faults = found.pack(WORDS, append_eos=True)
    assert [e.text.count("</s>") for e in pack.examples] == [1, 1]
    assert "no_end" not in kinds(faults)
    closing = nets.enclosing()
    pack, faults = found.pack(closing, append_eos=True)
    assert [e.text.count("</s>") for e in pack.examples] == [1, 0]
    assert "no_end" not in kinds(faults)


def test_a_prompt_is_too_long_where_no_token_of_an_answer_fits(tmp_path):
    found = read(tmp_path, {**SKY, "prompt": LONG}, {**SKY, "prompt": "So"})
    prompt = len(WORDS(LONG)["input_ids"])
    for length, kind in ((prompt, "prompt_too_long"), (prompt + 1, "truncated")):
        assert kind in kinds(found.pack(WORDS, length=length)[1], 0)


def test_one_word_before_two_answers_that_begin_with_it_is_no_repeated_prompt(tmp_path):
    row = {"prompt": "Why?", "chosen": " Why? So.", "rejected": " Why? No."}
    assert "prompt_repeated" not in kinds(read(tmp_path, row).pack(WORDS)[1])


def test_an_answer_may_be_the_end_of_the_text_alone(tmp_path):
    pack, faults = read(tmp_path, {**SKY, "chosen": "</s>"}).pack(WORDS)
    assert pack.examples[0].text == "The sky is</s>"
    assert all(fault.kept for fault in faults)


@pytest.mark.parametrize("length", [8, 12, 20, 60])
def test_what_the_encoder_would_leave_out_is_left_out_and_told(length, tmp_path):
    rows = [
        {"prompt": "A bell.", "chosen": " ring" * n, "rejected": " so" * m}
        for n, m in ((1, 2), (9, 1), (1, 9), (4, 4), (30, 30))
    ]
    found = read(tmp_path, *rows)
    whole, _ = found.pack(WORDS)
    pack, faults = found.pack(WORDS, length=length)
    assert Encoder(pack, (WORDS, WORDS), length).skipped == 0
    out = {fault.pair for fault in faults if not fault.kept}
    assert Encoder(whole, (WORDS, WORDS), length).skipped == 2 * len(out)
    assert {e.group for e in pack.examples} == set(range(5)) - out


def test_a_pack_of_pairs_can_be_kept_as_a_folder(tmp_path):
    pack, _ = read(tmp_path, SKY, {**SKY, "prompt": "The sea is"}).pack(WORDS)
    place = tmp_path / "kept"
    place.mkdir()
    (place / "card.toml").write_text('kind = "preference"')
    rows = [
        {"text": e.text, "scored": e.scored, "group": e.group, "role": e.role}
        for e in pack.examples
    ]
    (place / "examples.jsonl").write_bytes(lines(*rows))
    assert Pack.load(place).sha256 == pack.sha256


def test_pairs_at_hand_are_read_as_those_of_a_file(tmp_path):
    rows = [{"prompt": "P", "chosen": " a", "rejected": " b"}] * 2
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    mine, theirs = Preferences.of(rows, "mine"), Preferences.read(file)
    assert mine.name == theirs.name
    assert [p.chosen for p in mine.pairs] == [p.chosen for p in theirs.pairs]
    assert mine.table().to_dict("records") == rows
    assert repr(mine) == "<Preferences mine: 2 pairs>"
    with pytest.raises(DriftlensError, match="row 1 of given"):
        Preferences.of([{"prompt": "P", "chosen": " a"}])
