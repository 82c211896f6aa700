"""The plane of toxicity and faithfulness, and margins between roles: planted truths and oracles."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity

import nets
from driftlens.diagnostics import ContrastiveMargin, FaithfulnessResult, faithfulness
from driftlens.diagnostics.faithfulness import QUADRANTS
from driftlens.errors import DriftlensError, LoadError
from driftlens.formulas.contrastive import cosines, margin
from driftlens.formulas.ranks import spearman, spearman_bounds
from driftlens.judged import Judged, Text, judged, texts
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.classifier import Classifier
from driftlens.packs import Example, Pack
from driftlens.results import load, same, save


def planted(toxic=-0.25, faithful=-0.0625, count=40, seed=0):
    """Items whose scores all moved by the same, in numbers that floats hold exactly."""
    random = np.random.default_rng(seed)
    base = random.integers(100, 160, (2, count)) / 256
    moved = base + np.array([[toxic], [faithful]])
    both = np.stack([base, moved], 2)
    ids = tuple(str(number) for number in range(count))
    return Judged("planted", ids, ("",) * count, both[0], both[1])


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


WIDE = [
    {
        "id": n,
        "topic": "odd" if n % 2 else "even",
        "base_toxicity": 0.5 + 0.1 * n,
        "aligned_toxicity": 0.25,
        "base_faithfulness": 0.9,
        "aligned_faithfulness": 0.9 - 0.1 * n,
    }
    for n in range(4)
]


def long(rows=WIDE):
    """The same scores, a model on a row."""
    return [
        {"id": row["id"], "topic": row["topic"], "model": model}
        | {score: row[f"{model}_{score}"] for score in ("toxicity", "faithfulness")}
        for model in ("base", "aligned")
        for row in rows
    ]


# The plane


def test_scores_that_all_move_alike_are_one_point_of_the_plane():
    found = faithfulness(planted(-0.25, -0.0625))
    for estimate, wanted in (
        (found.toxicity_change, -0.25),
        (found.faithfulness_change, -0.0625),
    ):
        assert tuple(estimate) == (wanted, wanted, wanted)
    assert set(found.quadrant) == {"paid"}
    assert found.paid.value == 1
    assert found.headline() == "toxicity fell by 0.25 and faithfulness fell by 0.0625"
    assert found.aligned_toxicity.value == pytest.approx(found.base_toxicity.value - 0.25)


def test_a_model_beside_itself_stands_where_the_axes_cross():
    found = faithfulness(planted(0, 0))
    for name in FaithfulnessResult.near_zero:
        assert (np.ravel(np.asarray(getattr(found, name)))[:1] == 0).all(), name
    assert set(found.quadrant) == {"neither"}
    assert np.isnan([found.paid.value, found.correlation.value]).all()
    assert found.headline() == "toxicity did not change beyond noise, nor did faithfulness"


CORNERS = {
    "safer": (-0.1, 0.1),
    "paid": (-0.1, -0.1),
    "neither": (0.1, 0.1),
    "worse": (0.1, -0.1),
}


@pytest.mark.parametrize("corner", CORNERS)
def test_each_quadrant_is_where_it_is(corner):
    found = faithfulness(planted(*CORNERS[corner]))
    assert found.shares() == {name: float(name == corner) for name in QUADRANTS}


def test_what_judges_disagree_about_by_chance_is_no_fall():
    one = planted(-0.02, -0.02)
    assert set(faithfulness(one).quadrant) == {"paid"}
    assert set(faithfulness(one, least=0.05).quadrant) == {"neither"}


def test_over_cleaned_is_what_was_clean_and_lost_faithfulness():
    toxicity = np.array([[0.1, 0.0], [0.2, 0.2], [0.9, 0.1], [0.3, 0.1]])
    faith = np.array([[0.8, 0.5], [0.8, 0.8], [0.8, 0.1], [0.8, 0.9]])
    found = faithfulness(Judged("four", tuple("abcd"), ("",) * 4, toxicity, faith))
    assert found.over_cleaned.value == pytest.approx(1 / 3)
    assert found.paid.value == pytest.approx(2 / 3)
    assert (
        faithfulness(
            Judged("four", tuple("abcd"), ("",) * 4, toxicity, faith), clean=0.05
        ).over_cleaned.value
        != found.over_cleaned.value
    )
    assert "67% of the items made safer lost faithfulness" in found.summary()


def test_the_correlation_is_scipys_of_the_two_changes():
    random = np.random.default_rng(1)
    scores = random.random((2, 30, 2))
    found = faithfulness(Judged("n", tuple(map(str, range(30))), ("",) * 30, *scores))
    wanted = spearmanr(*(side[:, 1] - side[:, 0] for side in scores)).statistic
    assert found.correlation.value == pytest.approx(wanted)
    assert found.correlation.low < wanted < found.correlation.high


def test_exchanging_the_models_turns_the_changes_round():
    one = planted(-0.25, -0.0625)
    other = replace(one, toxicity=one.toxicity[:, ::-1], faithfulness=one.faithfulness[:, ::-1])
    ours, theirs = faithfulness(one), faithfulness(other)
    np.testing.assert_allclose(theirs.moved_toxicity, -ours.moved_toxicity)
    assert set(theirs.quadrant) == {"neither"}
    assert theirs.headline() == "toxicity rose by 0.25 and faithfulness rose by 0.0625"


def test_a_plane_survives_the_store_and_is_drawn(tmp_path):
    one = replace(planted(), topics=("a", "b") * 20)
    found = faithfulness(one)
    assert same(load(save(found, tmp_path / "stored")), found)
    figure = found.figure()
    assert "toxicity" in figure.axes[0].get_xlabel()
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["all", "a", "b"]


def test_bounds_of_spearmans_correlation_are_those_of_fishers_z():
    low, high = spearman_bounds(0.5, 28)
    # √((1 + 0.125) / 25) = 0.21213.
    assert np.arctanh(high) - np.arctanh(0.5) == pytest.approx(1.959964 * 0.2121320, rel=1e-6)
    assert np.arctanh(0.5) - np.arctanh(low) == pytest.approx(1.959964 * 0.2121320, rel=1e-6)
    assert spearman_bounds(1.0, 10) == (1, 1)
    assert np.isnan(spearman_bounds(0.5, 3)).all()
    assert np.isnan(spearman_bounds(np.nan, 30)).all()


@pytest.mark.slow
def test_bounds_of_spearmans_correlation_hold_the_truth_as_often_as_they_say():
    random, held, runs = np.random.default_rng(2), 0, 2000
    # Of normal rows with Pearson's r it is 6 / π · arcsin(r / 2) (Kendall & Gibbons 1990).
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    for _ in range(runs):
        x, y = random.standard_normal((2, 60))
        rho = spearman(x, 0.6 * x + 0.8 * y)
        low, high = spearman_bounds(rho, 60)
        held += low <= truth <= high
    assert held / runs == pytest.approx(0.95, abs=0.015)


# Files


def test_scores_are_read_from_either_form_of_rows(tmp_path):
    (tmp_path / "wide.jsonl").write_text(lines(WIDE))
    (tmp_path / "long.jsonl.gz").write_bytes(gzip.compress(lines(long()).encode()))
    wide, tall = Judged.read(tmp_path / "wide.jsonl"), Judged.read(tmp_path / "long.jsonl.gz")
    assert (wide.name, tall.name) == ("wide", "long")
    assert same(faithfulness(tmp_path / "wide.jsonl"), faithfulness(wide))
    assert wide.ids == tall.ids == ("0", "1", "2", "3")
    assert wide.topics == tall.topics == ("even", "odd", "even", "odd")
    np.testing.assert_array_equal(wide.toxicity, tall.toxicity)
    np.testing.assert_array_equal(wide.faithfulness, tall.faithfulness)
    np.testing.assert_allclose(
        wide.faithfulness[:, 1] - wide.faithfulness[:, 0], -0.1 * np.arange(4)
    )


def test_of_several_answers_to_one_prompt_the_mean_is_taken(tmp_path):
    rows = [*long(), {**long()[0], "toxicity": 0.9, "faithfulness": 0.5}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    found = Judged.read(tmp_path / "rows.jsonl")
    assert found.toxicity[0].tolist() == [pytest.approx(0.7), 0.25]
    assert found.faithfulness[0, 0] == pytest.approx(0.7)
    assert any("the mean score is taken" in note for note in found.notes)


def test_items_that_lack_a_score_are_left_out_with_a_note(tmp_path):
    rows = [WIDE[0], {**WIDE[1], "aligned_toxicity": None}, {**WIDE[2], "base_toxicity": np.nan}]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    found = faithfulness(Judged.read(tmp_path / "rows.jsonl"))
    assert found.item.tolist() == ["0"]
    assert found.notes == ("2 of 3 items lack a score and are left out.",)
    assert np.isnan(found.toxicity_change.low)


REFUSED = {
    "a field that is no number": ({**WIDE[0], "base_toxicity": "high"}, "`base_toxicity` to be a"),
    "a truth": ({**WIDE[0], "base_toxicity": True}, "`base_toxicity` to be a number"),
    "another model": ({**long()[0], "model": "sft"}, "`model` to be base or aligned"),
    "no scores": ({"id": 1, "text": "x"}, "scores of both models on line 1"),
    "one model alone": (long()[0], "found 1 items, none with all four"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_tell_no_scores_are_refused(what, tmp_path):
    record, said = REFUSED[what]
    (tmp_path / "rows.jsonl").write_text(lines([record]))
    with pytest.raises(DriftlensError, match=said):
        Judged.read(tmp_path / "rows.jsonl")


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DriftlensError, match="found no rows"):
        Judged.read(tmp_path / "rows.jsonl")
    with pytest.raises(DriftlensError, match="texts in"):
        texts(tmp_path / "rows.jsonl")


def test_texts_are_read_from_either_form_of_rows(tmp_path):
    wide = {"prompt": "Say it.", "base_text": "Rude.", "aligned_text": "Kind.", "topic": "t"}
    long = [
        {"id": "0", "model": m, "text": t, "source": "Say it.", "topic": "t"}
        for m, t in (("base", "Rude."), ("aligned", "Kind."))
    ]
    (tmp_path / "wide.jsonl").write_text(lines([wide]))
    (tmp_path / "long.jsonl").write_text(lines(long))
    wanted = [Text("0", m, t, "Say it.", "t") for m, t in (("base", "Rude."), ("aligned", "Kind."))]
    assert texts(tmp_path / "wide.jsonl") == texts(tmp_path / "long.jsonl") == wanted


def test_judges_score_each_text_against_its_source():
    found = [
        Text("a", "base", "bad bad", "good"),
        Text("a", "aligned", "good", "good"),
        Text("b", "base", "bad", "bad"),
        Text("b", "aligned", "fine", "bad"),
    ]
    toxic = lambda said, _: np.array([text.count("bad") / 2 for text in said])  # noqa: E731
    faithful = lambda said, of: np.array(  # noqa: E731
        [float(text == source) for text, source in zip(said, of, strict=True)]
    )
    scores = judged("said", found, toxic, faithful)
    assert scores.toxicity.tolist() == [[1, 0], [0.5, 0]]
    assert scores.faithfulness.tolist() == [[0, 1], [1, 0]]
    assert faithfulness(scores).quadrant.tolist() == ["safer", "paid"]


# Classifiers


def classifier(folder, labels=("clean", "toxic"), **changes):
    config = hf.BertConfig(
        vocab_size=nets.WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=2,
        type_vocab_size=2,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        **changes,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = nets.moved(hf.BertForSequenceClassification(config).eval(), 0.2, 0)
    return nets.saved(net, folder, nets.enclosing()), net


@pytest.mark.parametrize("several", [False, True])
def test_a_classifier_gives_the_probability_of_its_label(several, tmp_path):
    kind = "multi_label_classification" if several else "single_label_classification"
    name, net = classifier(tmp_path / "judge", problem_type=kind)
    said = Classifier(name, "toxic", rows=2)(nets.TEXTS, [""] * len(nets.TEXTS))
    for text, found in zip(nets.TEXTS, said, strict=True):
        ids = torch.tensor([nets.enclosing()(text)["input_ids"]])
        with torch.inference_mode():
            logits = net(input_ids=ids).logits[0]
        wanted = logits.sigmoid()[1] if several else logits.softmax(0)[1]
        assert found == pytest.approx(float(wanted), abs=1e-5)


def test_a_classifier_of_pairs_reads_the_source_first(tmp_path):
    name, net = classifier(tmp_path / "judge", labels=("no", "perhaps", "entailment"))
    said = Classifier(name, "entailment", paired=True)(["I do.", "A bell!"], ["naïve", "I do."])
    for found, text, source in zip(said, ["I do.", "A bell!"], ["naïve", "I do."], strict=True):
        batch = nets.enclosing()(source, text, return_tensors="pt")
        with torch.inference_mode():
            wanted = net(**batch).logits[0].softmax(0)[2]
        assert found == pytest.approx(float(wanted), abs=1e-5)


def test_a_text_that_is_too_long_is_cut(tmp_path):
    name, _ = classifier(tmp_path / "judge")
    (found,) = Classifier(name, "toxic")(["one two three " * 100], [""])
    assert 0 < found < 1


def test_what_is_no_classifier_is_refused(tmp_path):
    name, net = classifier(tmp_path / "judge")
    with pytest.raises(DriftlensError, match=r"a label of .*: clean, toxic, found 'rude'"):
        Classifier(name, "rude")
    with pytest.raises(LoadError, match="a sequence classifier with safetensors"):
        Classifier(str(tmp_path / "none"), "toxic", local_files_only=True)
    torch.save(net.state_dict(), tmp_path / "judge" / "pytorch_model.bin")
    (tmp_path / "judge" / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="a sequence classifier with safetensors"):
        Classifier(name, "toxic", local_files_only=True)
    untrained = nets.saved(nets.net("bert"), tmp_path / "masked", nets.enclosing())
    with pytest.raises(LoadError, match="weights of the classifier"):
        Classifier(untrained, "LABEL_1")


# Margins


def test_cosines_are_sklearns():
    states = np.random.default_rng(3).standard_normal((9, 5))
    np.testing.assert_allclose(cosines(states), cosine_similarity(states), atol=1e-12)


def test_opposite_roles_have_the_largest_margin_and_no_loss():
    u = np.array([1.0, 2.0, 3.0])
    found = margin(cosines([u, 2 * u, 5 * u, -u, -3 * u]), [1, 1, 1, 0, 0])
    assert (found.within, found.between, found.margin) == pytest.approx((1, -1, 2))
    assert found.loss == pytest.approx(0, abs=1e-12)


def test_roles_at_right_angles_have_a_margin_of_one():
    found = margin(cosines(np.eye(2)[[0, 0, 1, 1]]), [1, 1, 0, 0])
    assert (found.within, found.between, found.margin) == (1, 0, 1)
    # Of states at right angles the loss of a pair is ln 2.
    assert margin(cosines(np.eye(3)), [1, 1, 1]).loss == pytest.approx(np.log(2))


@given(st.integers(0, 10_000))
def test_margins_do_not_change_with_lengths_order_and_rotation(seed):
    random = np.random.default_rng(seed)
    states, kinds = random.standard_normal((8, 4)), np.array([0, 1] * 4)
    found = margin(cosines(states), kinds)
    turn, order = np.linalg.qr(random.standard_normal((4, 4)))[0], random.permutation(8)
    other = (states * random.uniform(0.5, 2, (8, 1)) @ turn)[order]
    np.testing.assert_allclose(margin(cosines(other), kinds[order]), found, atol=1e-9)


def test_weights_count_a_state_as_often_as_they_say():
    random = np.random.default_rng(4)
    states, kinds = random.standard_normal((6, 3)), np.array([0, 0, 0, 1, 1, 1])
    weights = np.array([2, 0, 1, 1, 3, 1])
    rows = np.repeat(np.arange(6), weights)
    # What is drawn twice is no pair with itself.
    wanted = margin(cosines(states[rows]), kinds[rows], clusters=rows)
    np.testing.assert_allclose(margin(cosines(states), kinds, weights=weights), wanted, atol=1e-12)


def test_twins_are_no_pair():
    random = np.random.default_rng(5)
    wording, role = random.standard_normal((2, 40, 400)), np.array([0, 1] * 20)
    alike = np.repeat(wording[0, :20], 2, 0) + 0.1 * wording[1]
    with_twins = margin(cosines(alike), role)
    without = margin(cosines(alike), role, clusters=np.repeat(np.arange(20), 2))
    # Roles mean nothing here; a twin's wording would draw the roles together.
    assert with_twins.margin < -0.04
    assert abs(without.margin) < 0.01


def test_one_state_of_each_kind_has_no_pair_of_one_kind():
    assert np.isnan(margin(cosines(np.eye(2)), [0, 1]).within)


def roles(count=8):
    said = ["is kind", "is cruel"]
    names = ("Mira", "The baker", "A sailor", "Nobody", "Tolmar", "A bell", "The river", "Belmark")
    return Pack(
        "roles",
        "roles",
        [
            Example(f"{name} {said[side]}.", None, number, ("positive", "negative")[side])
            for number, name in enumerate(names[:count])
            for side in (0, 1)
        ],
    )


def test_margins_of_models_are_those_of_their_closing_states():
    pair = nets.pair("llama")
    (found,) = measure(pair, roles(), [ContrastiveMargin()], rows=3)
    words, pack = nets.tokenizer(), roles()
    kinds = [example.role for example in pack.examples]
    for name, model in (("base", pair.base), ("aligned", pair.aligned)):
        states = []
        for example in pack.examples:
            with torch.inference_mode():
                ids = torch.tensor([words(example.text)["input_ids"]])
                states.append(model.net(ids, output_hidden_states=True).hidden_states[2][0, -1])
        wanted = margin(cosines(torch.stack(states)), kinds, [e.group for e in pack.examples])
        assert getattr(found, f"{name}_margin")[1] == pytest.approx(wanted.margin, abs=1e-5)
        assert getattr(found, f"{name}_loss")[1] == pytest.approx(wanted.loss, abs=1e-5)
    np.testing.assert_allclose(found.change, found.aligned_margin - found.base_margin, atol=1e-12)
    assert found.margin_change.value == found.change[found.peak]
    assert (found.positive, found.negative) == (8, 8)
    assert "furthest apart of 3 blocks" in found.summary()


def test_a_planted_turn_of_one_role_moves_the_margin_from_its_block_on():
    pair = nets.pair("llama")
    (found,) = measure(ModelPair(pair.base, pair.base), roles(), [ContrastiveMargin()])
    assert (found.change == 0).all()
    assert tuple(found.margin_change) == (0, 0, 0)
    late = nets.net("llama")
    nets.moved(late, 0.5, 7, only="layers.2.mlp")
    moved = ModelPair.load(nets.net("llama"), late, tokenizer=nets.tokenizer())
    (found,) = measure(moved, roles(), [ContrastiveMargin()])
    assert (found.change[:2] == 0).all()
    assert found.change[2] != 0


def test_too_few_texts_have_no_margin():
    (found,) = measure(nets.pair("llama"), roles(1), [ContrastiveMargin()])
    assert np.isnan(found.margin_change.value)
    assert found.peak == -1
    assert found.figure() is None
    assert "Too few texts" in found.summary()


# The command


FAST = ["--out", "out", "--format", "json,parquet"]


def test_scores_are_one_command(driftlens):
    Path("scores.jsonl").write_text(lines(WIDE))
    code, out, err = driftlens("evals", "scores", "scores.jsonl", *FAST, "--least", "0.01")
    assert (code, out) == (0, "out/results.json\n")
    assert "Toxicity fell by" in err
    (record,) = json.loads(Path("out/results.json").read_text())["results"]
    assert (record["kind"], record["pack"]) == ("faithfulness", "scores")
    assert record["values"]["faithfulness_change"]["value"] == pytest.approx(-0.15)
    said = ["evals", "scores", "scores.jsonl", *FAST, "--overwrite", "--fail-on"]
    assert driftlens(*said, "faithfulness.faithfulness_change<-0.1")[0] == 1
    assert driftlens(*said, "faithfulness.faithfulness_change<-0.2")[0] == 0


def test_classifiers_are_loaded_where_they_are_named(driftlens, tmp_path):
    toxic, _ = classifier(tmp_path / "toxic")
    faithful, _ = classifier(tmp_path / "faithful", labels=("no", "entailment"))
    rows = [
        {"prompt": text, "base_text": text[::-1], "aligned_text": text} for text in nets.TEXTS[:4]
    ]
    Path("texts.jsonl").write_text(lines(rows))
    said = ["evals", "scores", "texts.jsonl", *FAST, "--toxicity", f"{toxic}:toxic"]
    code, _, err = driftlens(*said)
    assert code == 2
    assert "--toxicity and --faithfulness together" in err
    code, _, err = driftlens(*said, "--faithfulness", f"{faithful}:entailment", "--quiet")
    assert code == 0, err
    record = json.loads(Path("out/results.json").read_text())
    assert record["run"]["models"]["toxicity"] == {"given": toxic, "label": "toxic"}
    found = Classifier(toxic, "toxic")([row["base_text"] for row in rows], [""] * 4).mean()
    value = record["results"][0]["values"]["base_toxicity"]["value"]
    assert value == pytest.approx(found, abs=1e-6)
    code, _, err = driftlens(*said, "--overwrite", "--faithfulness", "entailment")
    assert code == 2
    assert "a classifier as NAME:LABEL" in err
