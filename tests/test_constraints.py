"""Rules that code can check, in closed form; and planted answers whose rates are known."""

from dataclasses import fields

import numpy as np
import pytest

import nets
from driftlens import suite
from driftlens.diagnostics import Constraints
from driftlens.diagnostics.constraints import ConstraintsResult, FormatsResult
from driftlens.formulas.intervals import bootstrap, wilson
from driftlens.formulas.rules import FORBIDS, RULES, keeps, sentences, words
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.generation import GREEDY, Answer, Sampling, answers
from driftlens.packs import RULES as SETTINGS
from driftlens.packs import Example, Pack
from driftlens.sampled import Sampled

KEPT = [
    ("min_words", 3, "one two three", "one two"),
    ("max_words", 2, "one two", "one two three"),
    ("max_words", 2, "yes – indeed", "yes - in deed"),
    ("max_sentences", 1, "It is 3.5 metres long.", "It is long. It is blue."),
    ("max_sentences", 2, 'He said "Stop!" Then he went.', "One. Two. Three"),
    ("begins", ("Yes", "No"), "  No, it is not.", "no, it is not."),
    ("ends", ("!",), "Well done! \n", "Well done!)"),
    ("contains", ("wind", "Tree"), "The tree in the WIND", "The tree"),
    ("excludes", ("water",), "The sea", "Waterfalls"),
    ("matches", (r"\d{2}", "a"), "a 12", "a 1"),
    ("not_matches", ("(?i)kill", "rob"), "Skip it", "robes"),
    ("json", True, '{"a": [1, null]}', "a: 1"),
    ("json", True, "```json\n[1]\n```", "Here:\n```json\n[1]\n```"),
    ("json", True, "[]", "7"),
    ("json", True, "[1e9]", "[NaN]"),
    ("json", True, '{"a": {}}', "[" * 100_000),
    ("json", False, "plain words", "[]"),
    ("lowercase", True, "all small, 1.", "Not all small"),
    ("lowercase", False, "Not all small", "all small"),
    ("uppercase", True, "ALL LARGE, 1.", "NOT all LARGE"),
]


@pytest.mark.parametrize(("rule", "setting", "kept", "broken"), KEPT)
def test_a_rule_is_kept_by_one_text_and_broken_by_another(rule, setting, kept, broken):
    assert keeps(kept, rule, setting)
    assert not keeps(broken, rule, setting)


def test_there_is_a_check_for_every_rule_that_a_pack_may_set_and_for_no_other():
    assert RULES.keys() == SETTINGS.keys()
    assert {rule for rule, *_ in KEPT} == RULES.keys()


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_at_all_keeps_only_rules_that_forbid(text):
    settings = {int: 9, str: ("x",), bool: False}
    kept = {rule for rule, kind in SETTINGS.items() if keeps(text, rule, settings[kind])}
    assert kept == FORBIDS


@pytest.mark.parametrize("text", ["...", "–", "[" * 100_000])
def test_a_text_of_no_words_is_not_within_any_length(text):
    assert not any(keeps(text, rule, 9) for rule in ("min_words", "max_words", "max_sentences"))
    assert not any(keeps(text, rule, True) for rule in ("lowercase", "uppercase", "json"))


def test_words_and_sentences_are_counted_as_one_would():
    assert words("It's 3.5 – no, four-and-a-half!") == 4
    assert sentences("Really?! Yes... (It is.) And so on") == 4
    assert sentences("") == sentences("?!") == 0


# Planted answers

SMALL, LARGE = (("lowercase", True),), (("uppercase", True), ("max_words", 1))
BAD = ("not_matches", ("bad",))
ASKED = [
    Example("first", rules=SMALL, topic="letters"),
    Example("second", rules=LARGE, topic="letters"),
    Example("third", rules=(("max_words", 2),)),
    Example("fourth"),
]
SAID = {
    # Greedy first, and then the samples; of base and of aligned.
    0: (
        ["small", "small", "Large", "small", "Large"],
        ["Large", "small", "Large", "Large", "Large"],
    ),
    1: (["TWO WORDS", "ONE", "one", "TWO WORDS", ""], ["ONE", "ONE", "ONE", "ONE", "one"]),
    2: (["a b", "a b", "a b c", "a", "a b"], ["a b", "a b", "a b c", "a b c", "a"]),
    3: (["any"] * 5, ["any"] * 5),
}
KEEPING = np.array([[2, 1], [1, 3], [3, 2]]) / 4
"""[prompt, side] share of samples that keep all rules, counted by hand."""


@pytest.fixture(scope="module")
def pair():
    return nets.pair("llama")


def fed(pair, monkeypatch, examples, told, samples=4, greedy=True):
    """The metric after a pack whose answers are planted."""
    pack = Pack("asked", "prompt", examples)
    metric = Constraints(Sampling(samples, greedy=greedy))
    numbers = metric.sampling.numbers

    def said(frame, _):
        return tuple(
            [
                Answer(w.example, number, (5,), text, -1.0, (1.0,), True)
                for w in frame.windows
                for number, text in zip(numbers, told[w.example][side], strict=True)
            ]
            for side in (0, 1)
        )

    monkeypatch.setattr("driftlens.models.Frame.said", said)
    return measure(pair, pack, [metric], rows=2)


def rows(result, by):
    return {
        result.name[n]: {
            f.name: getattr(result, f.name)[n]
            for f in fields(result)
            if f.metadata.get("role") == "column"
        }
        for n in range(len(result.by))
        if result.by[n] == by
    }


def test_rates_changes_and_flips_are_those_that_were_planted(pair, monkeypatch):
    (found,) = fed(pair, monkeypatch, ASKED, SAID)
    base, aligned = KEEPING.T
    assert (found.asked, found.samples) == (3, 4)
    assert found.base_satisfied.value == pytest.approx(base.mean())
    assert found.aligned_satisfied.value == pytest.approx(aligned.mean())
    expected = bootstrap(aligned - base, np.ones(3), seed=0)
    np.testing.assert_allclose(found.change, [float(z) for z in expected])
    # Of the greedy answers base's keep the first and the third, aligned's the second and third.
    np.testing.assert_allclose(found.base_greedy, [float(z) for z in wilson(2, 3)])
    np.testing.assert_allclose(found.aligned_greedy, [float(z) for z in wilson(2, 3)])
    assert (found.gained.value, found.lost.value) == (1 / 3, 1 / 3)
    assert found.greedy_change.value == 0
    assert "gained" in found.summary()
    assert found.headline() == ""


def test_each_rule_and_topic_has_its_own_rates(pair, monkeypatch):
    (found,) = fed(pair, monkeypatch, ASKED, SAID)
    by_rule, by_topic = rows(found, "rule"), rows(found, "topic")
    assert [*by_rule] == ["lowercase", "max_words", "uppercase"]
    assert by_rule["uppercase"]["base"] == 2 / 4
    assert by_rule["uppercase"]["aligned"] == 3 / 4
    assert by_rule["max_words"]["prompts"] == 2
    # One word of the second prompt, where an empty answer has none, and two of the third.
    assert by_rule["max_words"]["base"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert by_rule["max_words"]["aligned"] == pytest.approx((4 / 4 + 2 / 4) / 2)
    assert (by_rule["lowercase"]["only_base"], by_rule["lowercase"]["only_aligned"]) == (1, 0)
    assert [*by_topic] == ["letters"]
    assert by_topic["letters"]["rise"] == pytest.approx(((1 - 2) + (3 - 1)) / 8)


def in_two_formats():
    """Four requests in plain words and as JSON; in JSON aligned says what is unwanted."""
    examples, told = [], {}
    for number in range(4):
        for form in ("plain", "json"):
            told[len(examples)] = (
                ["good", "good", "good"],
                ["good", "bad" if form == "json" and number else "good", "good"],
            )
            examples.append(
                Example(f"asked {number} {form}", None, number, form=form, rules=(BAD,))
            )
    return examples, told


def test_unwanted_answers_are_told_apart_by_format(pair, monkeypatch):
    main, found = fed(pair, monkeypatch, *in_two_formats(), samples=2)
    assert isinstance(main, ConstraintsResult)
    assert isinstance(found, FormatsResult)
    assert found.format.tolist() == ["plain", "json"]
    np.testing.assert_allclose(found.aligned, [0, 3 / 8])
    np.testing.assert_allclose(found.aligned_gap, [0, 3 / 8])
    np.testing.assert_allclose(found.base_gap, 0)
    expected = bootstrap([0, 0.5, 0.5, 0.5], np.ones(4), seed=0)
    np.testing.assert_allclose(found.aligned_gap_low[1], expected.low)
    assert found.unwanted_change.value == pytest.approx(3 / 16)
    assert "json (37.5%)" in found.summary()
    assert main.headline().startswith("keeps to what is asked less often")


def test_without_samples_or_without_greedy_answers_the_others_are_told(pair, monkeypatch):
    only = {n: tuple(side[:1] for side in said) for n, said in SAID.items()}
    (found,) = fed(pair, monkeypatch, ASKED, only, samples=0)
    assert np.isnan(found.change.value)
    assert found.greedy_change.value == 0
    assert "greedy answers of base" in found.summary()
    drawn = {n: tuple(side[1:] for side in said) for n, said in SAID.items()}
    (found,) = fed(pair, monkeypatch, ASKED, drawn, greedy=False)
    assert np.isnan(found.gained.value)
    assert found.change.value == pytest.approx(float((KEEPING[:, 1] - KEEPING[:, 0]).mean()))


def test_a_pack_without_rules_is_not_asked_about(pair):
    encoder = pair.encoder(Pack("asked", "prompt", ASKED[3:]))
    assert not Constraints().fits(encoder)
    assert Constraints().fits(pair.encoder(Pack("asked", "prompt", ASKED)))
    assert not Constraints().fits(pair.encoder(nets.pack(nets.TEXTS)))


# Answers that are given


class Texts(Sampled):
    def compute(self):
        raise NotImplementedError


def test_what_was_said_is_laid_out_by_side_prompt_and_answer(pair):
    pack = Pack("asked", "prompt", [*map(Example, nets.TEXTS), Example("long " * 60)])
    sampling = Sampling(2, tokens=5)
    metric = Texts(sampling)
    metric.begin(pair, pair.encoder(pack, 24))
    assert metric.said.text.shape == (2, 0, 3)
    for frame in pair.frames(pack, metric.wants, rows=2, length=24):
        assert frame.said(sampling) is frame.said(Sampling(2, tokens=5))
        metric.update(frame)
    said = metric.said
    assert said.prompts.tolist() == [*range(len(nets.TEXTS))]
    assert said.samples.tolist() == [GREEDY, 0, 1]
    assert metric.unanswered() == [
        "1 of 10 prompts left out: too long for an answer of 5 tokens to follow."
    ]
    for side, model in enumerate((pair.base, pair.aligned)):
        given = answers(model, nets.TEXTS, sampling)
        assert said.text[side].ravel().tolist() == [one.text for one in given]
        np.testing.assert_allclose(
            said.logprob[side].ravel(), [a.logprob for a in given], atol=1e-5
        )
        stats = [
            (np.mean(a.entropy), a.entropy[0], np.max(a.entropy), np.std(a.entropy)) for a in given
        ]
        names = ("entropy", "entropy_first", "entropy_max", "entropy_std")
        kept = np.stack([getattr(said, name)[side].ravel() for name in names], 1)
        np.testing.assert_allclose(kept, stats, atol=1e-5)
        assert said.tokens[side].ravel().tolist() == [len(a.entropy) for a in given]
        assert said.ended[side].ravel().tolist() == [a.ended for a in given]


def test_a_model_with_itself_says_the_same_whether_it_is_one_net_or_two(pair):
    pack = Pack("asked", "prompt", [*map(Example, nets.TEXTS[:4])])
    twin = nets.model("llama")
    two = ModelPair(pair.base, type(pair.base)(twin.net, twin.tokenizer, "copy"))
    for of in (ModelPair(pair.base, pair.base), two):
        metric = Texts(Sampling(3, tokens=6))
        metric.begin(of, of.encoder(pack))
        for frame in of.frames(pack, metric.wants):
            metric.update(frame)
        said = metric.said
        assert (said.text[0] == said.text[1]).all()
        assert len({*said.text[0].ravel()}) > 10


def test_the_suite_takes_constraints_of_packs_with_rules(pair):
    encoder = pair.encoder(Pack("asked", "prompt", ASKED))
    made = suite.applicable(pair, encoder, suite.Options())
    assert any(isinstance(metric, Constraints) for metric in made)
