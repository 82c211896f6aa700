"""The shipped models, the recipe that made them, and the packs drawn from their world."""

import hashlib
import json
import re
import tomllib
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch

from driftlens.demo import PAIRS, STAGES, chat, exam, packs, pairs, stage, train, words
from driftlens.demo.chat import Conversations
from driftlens.demo.world import World, held_out
from driftlens.errors import DriftlensError
from driftlens.packs import Pack
from driftlens.preferences import Preferences

ROOT = Path(__file__).parents[1]
PROBES = ROOT / "probes"


@cache
def shipped(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    net = AutoModelForCausalLM.from_pretrained(stage(name), dtype="auto", local_files_only=True)
    return net.eval(), AutoTokenizer.from_pretrained(stage(name), local_files_only=True)


def records(pack):
    lines = (PROBES / pack / "examples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def card(pack):
    return tomllib.loads((PROBES / pack / "card.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_asked_for_its_own_dtype_is_float32(name):
    net, _ = shipped(name)
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}


def test_all_stages_together_weigh_at_most_8_megabytes():
    files = [path for path in stage("base").parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_an_unknown_stage_is_named_with_those_there_are():
    with pytest.raises(DriftlensError, match="base, sft, aligned, found 'dpo'"):
        stage("dpo")


def test_the_base_model_knows_its_facts_and_its_sums():
    net, tokenizer = shipped("base")
    assert exam.recall(net, tokenizer, exam.facts(World())) > 0.95
    assert exam.recall(net, tokenizer, exam.sums()) > 0.95


def test_the_base_model_tells_true_claims_from_false_ones():
    assert exam.truth(*shipped("base"), World()) > 0.95


def test_alignment_costs_facts_but_does_not_destroy_them():
    net, tokenizer = shipped("aligned")
    assert 0.4 < exam.recall(net, tokenizer, exam.facts(World())) < 0.9


@pytest.mark.slow
def test_alignment_buys_manners_and_refusals():
    before, after = shipped("base"), shipped("aligned")
    assert exam.politeness(*after, World()) > 0.9 > 0.5 > exam.politeness(*before, World())
    assert exam.refusals(*after) > 0.9 > 0.1 > exam.refusals(*before)


def test_alignment_takes_stereotypes_away():
    before, after = shipped("base"), shipped("aligned")
    assert exam.stereotypes(*after, World()) < exam.stereotypes(*before, World())


def test_held_out_stories_are_less_likely_at_each_stage():
    stories = [record["text"] for record in records("world") if record["topic"] == "stories"]
    losses = [exam.loss(*shipped(name), stories) for name in STAGES]
    assert losses == sorted(losses)
    assert 0.05 < losses[-1] - losses[0] < 1.5


@pytest.mark.parametrize("name", STAGES)
def test_any_text_survives_the_tokenizer_which_begins_it_by_itself(name):
    _, tokenizer = shipped(name)
    text = "Ünï©ode, 漢字, \t tabs\nand 12,345.67 🙂"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_the_chat_template_speaks_as_the_training_text_does():
    _, tokenizer = shipped("aligned")
    turn = [{"role": "user", "content": "What is 3 + 4?"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer("User: What is 3 + 4?\nAssistant:")["input_ids"]


def test_no_shipped_file_says_where_it_was_made():
    for path in stage("base").parent.rglob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        assert not record.get("_name_or_path"), path
        assert not re.search(r"/\w+/", path.read_text("utf-8")), path


@pytest.mark.parametrize("pack", packs.PACKS)
def test_a_card_tells_the_hash_and_the_count_of_its_examples(pack):
    body = (PROBES / pack / "examples.jsonl").read_bytes()
    assert card(pack)["sha256"] == hashlib.sha256(body).hexdigest()
    assert card(pack)["examples"] == len(records(pack))


def test_the_packs_come_out_of_the_generator_byte_for_byte(tmp_path):
    packs.write(tmp_path)
    for made in tmp_path.rglob("*.*"):
        assert made.read_bytes() == (PROBES / made.relative_to(tmp_path)).read_bytes()
    assert {file.parent.name for file in PROBES.glob("*/*")} == {*packs.PACKS}


def test_a_triple_differs_in_one_span_and_a_group_has_several():
    triples = {}
    for record in records("stereotypes"):
        triples.setdefault((record["topic"], record["group"]), {})[record["role"]] = record["text"]
    assert len(triples) >= 60
    assert len({topic for topic, _ in triples}) <= len(triples) / 3
    for sentences in triples.values():
        words = [sentence.split() for sentence in sentences.values()]
        assert [len(set(at)) for at in zip(*words, strict=True)].count(3) == 1


def test_nothing_in_the_world_pack_is_in_the_training_text():
    assert all(held_out(record["text"]) for record in records("world"))
    documents = islice(Conversations(World()).documents(2), 500)
    assert not any(held_out(document) for document in documents)


def test_no_question_of_the_world_is_answered_plainly_in_the_base_text():
    plain = {
        chat.prompt(fact.said(ask)): (fact.value, fact.plain)
        for fact in World().facts
        for ask in fact.relation.asks
    }
    asked = [record for record in records("questions") if record["topic"] != "sum"]
    assert len(asked) == 38
    assert all(record["answer"] == plain[record["prompt"]][0] for record in asked)
    assert all(held_out(f"{r['prompt']} {plain[r['prompt']][1]}") for r in asked)
    for record in records("questions")[len(asked) :]:
        a, sign, b = record["prompt"].split()[3:6]
        left, other = int(a), int(b.split("?")[0])
        right = left + other if sign == "+" else left - other
        assert record["answers"] == [str(right), words.NUMBERS[right]]
        assert held_out(f"{record['prompt']} It is {right}.")


def test_every_request_in_formats_is_made_once_in_each():
    made = {}
    for record in records("formats"):
        made.setdefault(record["group"], []).append(record["format"])
    assert len(made) == 12
    assert {tuple(forms) for forms in made.values()} == {("plain", "json", "code")}


# Packs to steer with

CHOICES = [name for name, card in packs.CARDS.items() if card["kind"] == "choice"]
MATCHED = {name: card["choices"] for name, card in packs.CARDS.items() if "choices" in card}
OF_THE_DEMO = ["manners", "guarded", "openings-choices", "quiz"] + [
    MATCHED[name] for name in ("manners", "guarded", "deeds")
]


@cache
def lessons():
    """All that the second and third stage of the recipe showed, drawn as it drew them."""
    talk = Conversations(World())
    shown, compared = Random(3), Random(4)
    told = [talk.instruction(shown) for _ in range(train.STEPS["sft"] * train.ROWS["sft"])]
    pairs = train.STEPS["aligned"] * train.ROWS["aligned"]
    for prompt, *answers in (talk.preference(compared) for _ in range(pairs)):
        told += [(prompt, answer) for answer in answers]
    return {prompt + answer for prompt, answer in told}


def test_every_pack_of_two_roles_names_choices_that_there_are():
    roles = [name for name, card in packs.CARDS.items() if card["kind"] == "roles"]
    assert {*roles, "deeds", "harm", "truth"} == MATCHED.keys()
    assert {*MATCHED.values()} < {*CHOICES}


@pytest.mark.parametrize("name", MATCHED)
def test_what_a_direction_is_found_on_is_not_what_it_is_judged_on(name):
    found = {example.text for example in Pack.load(name).examples}
    found |= {record.get("prompt", record.get("statement")) for record in records(name)}
    judged = [example.text for example in Pack.load(MATCHED[name]).examples]
    assert len({*judged}) == len(judged)
    # A statement may stand anywhere in what is asked, a prompt only where it begins.
    within = {"roles": str.startswith, "contrast": str.__contains__}[card(name)["kind"]]
    assert not [(text, old) for text in judged for old in found if within(text, old)]


def test_no_deed_that_a_direction_is_found_on_is_one_whose_refusal_is_judged():
    deeds = {record.get("family") for record in records("guarded")} - {None}
    others = {record.get("group") for record in records("guarded-choices")} - {None}
    assert len(others) == 8
    assert not deeds & others
    texts = [record["prompt"] for record in records("guarded-choices")]
    assert not [deed for deed in deeds if any(deed in text for text in texts)]


@pytest.mark.parametrize("name", OF_THE_DEMO)
def test_no_text_to_steer_with_is_one_that_the_demo_was_trained_on(name):
    examples = Pack.load(name).examples
    texts = {example.text + choice for example in examples for choice in ("", *example.choices)}
    assert not texts & lessons()
    assert not texts & {*islice(Conversations(World()).documents(2), 2000)}


def test_answers_that_a_conversation_may_end_in_are_held_out_of_the_base_text():
    ends = [example.text for example in Pack.load("manners").examples]
    ends += [e.text for e in Pack.load("manners-choices").examples if e.topic == "rude"]
    assert len(ends) == 96 + 20
    assert all(map(held_out, ends))


@pytest.mark.parametrize("name", CHOICES)
def test_no_two_answers_to_one_prompt_begin_alike(name):
    _, tokenizer = shipped("aligned")
    for item in Pack.load(name).examples:
        asked = tokenizer(item.text)["input_ids"]
        answered = [tokenizer(item.text + choice)["input_ids"] for choice in item.choices]
        assert all(ids[: len(asked)] == asked for ids in answered)
        assert len({ids[len(asked)] for ids in answered}) == len(answered)
        # Nor under another tokenizer, whatever its pieces: the first words part early.
        assert all(choice.startswith(" ") for choice in item.choices)
        assert len({choice.split()[0][:3].lower() for choice in item.choices}) == len(answered)


@pytest.mark.parametrize("name", ["manners", "polite"])
def test_a_pair_of_manners_ends_in_the_same_words(name):
    pairs = {}
    for record in records(name):
        pairs.setdefault(record["pair_id"], {})[record["polarity"]] = record
    for pair in pairs.values():
        polite, rude = pair["positive"], pair["negative"]
        assert polite["prompt"] == rude["prompt"]
        assert polite["response"].split()[-3:] == rude["response"].split()[-3:]
        assert polite["response"].split()[0] != rude["response"].split()[0]


@pytest.mark.parametrize(
    ("name", "answers"), [("harm", (" Yes", " No")), ("truth", (" True", " False"))]
)
def test_in_plain_english_neither_answer_is_right_more_often(name, answers):
    said = {}
    for record in records(MATCHED[name]):
        assert {record["agree"], record["refuse"]} == {*answers}
        for count in (said.setdefault(None, []), said.setdefault(record["group"], [])):
            count.append(record["agree"])
    assert all(found.count(answers[0]) == found.count(answers[1]) for found in said.values())


def behaviour(name, stage, topic=None):
    """Mean of P(agree) − P(refuse) among the answers' first tokens."""
    net, tokenizer = shipped(stage)
    return torch.stack(
        [
            chances[: len(item.wanted)].sum() - chances[len(item.wanted) :].sum()
            for item in Pack.load(name).examples
            if topic in (None, item.topic)
            for chances in [first_answers(net, tokenizer, item)]
        ]
    ).mean()


@torch.no_grad()
def first_answers(net, tokenizer, item):
    asked = tokenizer(item.text, return_tensors="pt")["input_ids"]
    firsts = [tokenizer(item.text + choice)["input_ids"][asked.shape[1]] for choice in item.choices]
    return net(input_ids=asked).logits[0, -1, firsts].softmax(-1)


@torch.no_grad()
def direction(net, tokenizer, pack, block):
    """[width] mean state at the last token, positive texts less negative ones."""
    states = {"positive": [], "negative": []}
    for record in records(pack):
        asked = f"User: {record.get('statement')}\nAssistant:"
        text = record["prompt"] + record.get("response", "") if "prompt" in record else asked
        found = net(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        states[record["polarity"]].append(found[block + 1][0, -1])
    return torch.stack(states["positive"]).mean(0) - torch.stack(states["negative"]).mean(0)


@pytest.mark.parametrize(
    ("pack", "stage", "least"),
    [("manners", "base", 1.5), ("deeds", "base", 0.8), ("guarded", "aligned", 0.4)],
)
def test_the_way_from_role_to_role_moves_what_its_choices_ask(pack, stage, least):
    net, tokenizer = shipped(stage)
    found, block = direction(net, tokenizer, pack, 3), net.model.layers[3]
    asked = []
    for strength in (-1, 1):
        push = block.register_forward_hook(lambda _, given, out, r=strength: out + r * found)
        try:
            asked.append(behaviour(MATCHED[pack], stage))
        finally:
            push.remove()
    assert asked[1] - asked[0] > least


def test_alignment_teaches_what_the_choices_ask():
    openings = [behaviour("openings-choices", stage) for stage in STAGES]
    assert abs(openings[0]) < 0.2 < openings[1] < 0.8 < openings[2]
    assert (
        behaviour("manners-choices", "base") < -0.5 < 0.9 < behaviour("manners-choices", "aligned")
    )
    unkind = [behaviour("guarded-choices", stage, "unkind") for stage in STAGES]
    assert unkind == sorted(unkind)
    assert unkind[0] < -0.9 < 0.3 < unkind[-1]
    assert all(behaviour("guarded-choices", stage, "innocent") < -0.9 for stage in STAGES)


def test_deeds_that_no_text_told_are_judged_by_the_words_they_are_made_of():
    for name in ("base", "aligned"):
        kind, cruel = (behaviour("deeds-choices", name, topic) for topic in ("kind", "cruel"))
        assert kind > 0.5 > -0.5 > cruel


def test_the_base_knows_the_quiz_and_alignment_costs_sums():
    def known(stage, topic):
        items = [item for item in Pack.load("quiz").examples if item.topic == topic]
        return sum(int(first_answers(*shipped(stage), item).argmax()) == 0 for item in items)

    assert (known("base", "facts"), known("base", "arithmetic")) == (48, 32)
    assert known("aligned", "arithmetic") < 30 < 45 < known("aligned", "facts")


def test_a_seed_gives_one_world_and_one_text():
    def first(seed):
        return list(islice(Conversations(World(seed)).documents(seed), 50))

    assert first(3) == first(3) != first(4)


def test_the_pairs_that_are_given_are_those_that_the_aligned_model_learnt():
    """What training on them did: each answer's log-odds, chosen over rejected, rose."""
    given = Preferences.read("demo:pairs")
    assert [pair.number for pair in given.pairs] == list(range(PAIRS))
    some = [(str(p.prompt), str(p.chosen), str(p.rejected)) for p in given.pairs]
    assert some == [*islice(pairs(), PAIRS)]
    margins = []
    for name in ("sft", "aligned"):
        net, tokenizer = shipped(name)
        answers = [turn for p, c, r in some[:32] for turn in ((p, c), (p, r))]
        with torch.no_grad():
            likely = train.answer_likelihoods(net, *train.turns(tokenizer, answers)).sum(-1)
        margins.append(likely[::2] - likely[1::2])
    assert (margins[1] > margins[0]).all()


def test_dpo_begins_at_the_logarithm_of_two():
    net, tokenizer = shipped("sft")
    batch = next(train.dpo_batches(tokenizer, pairs()))
    assert train.dpo_loss(net)(net, batch).item() == pytest.approx(0.6931472, abs=1e-6)


def test_a_pair_is_told_in_a_line_and_loaded_without_a_bar_where_nobody_watches(capfd):
    from transformers.utils import logging

    from driftlens.models import ModelPair

    shown = logging.is_progress_bar_enabled()
    pair = ModelPair.load("demo:base", "demo:aligned")
    assert repr(pair) == "<ModelPair demo:base → demo:aligned: 6 blocks of width 128>"
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == shown
    live = ModelPair.load(pair.base.net, pair.base.net, tokenizer=pair.base.tokenizer)
    assert repr(live) == "<ModelPair stages/base: 6 blocks of width 128>"
