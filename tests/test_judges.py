"""Models that judge whether answers mean the same, as tiny random ones made on the spot."""

import json

import numpy as np
import pytest
import torch
import transformers as hf

import nets
from driftlens.errors import DriftlensError, LoadError
from driftlens.formulas.clusters import clustered
from driftlens.models import judges

TEXTS = ["Seven boats left.", "Mira sells cheese.", "A bell, a bell! And then one more bell."]
SHAPE = {**nets.BERT, "max_position_embeddings": 24}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT that was saved without a pooler, as one that was trained to embed."""
    torch.manual_seed(0)
    net = hf.BertModel(hf.BertConfig(**SHAPE), add_pooling_layer=False)
    return nets.saved(nets.moved(net, 0.3, 1), tmp_path_factory.mktemp("encoder"), nets.enclosing())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    names = {0: "contradiction", 1: "neutral", 2: "ENTAILMENT"}
    torch.manual_seed(0)
    net = hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, id2label=names))
    folder = tmp_path_factory.mktemp("classifier")
    return nets.saved(nets.moved(net, 0.5, 1), folder, nets.enclosing())


def copied(folder, to, **files):
    """A folder with the same files, and others."""
    from shutil import copytree

    copytree(folder, to)
    for name, told in files.items():
        path = to / {"modules": "modules.json", "pooling": "1_Pooling/config.json"}[name]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(told))
    return str(to)


def states(folder, text):
    """[token, width] of one text read alone."""
    words = hf.AutoTokenizer.from_pretrained(folder)
    net = hf.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        return net(**words(text, return_tensors="pt", truncation=True, max_length=24))[0][0]


def test_an_embedding_is_the_mean_of_a_texts_own_states_whatever_it_is_read_with(encoder):
    found = judges.Encoder(encoder)(TEXTS)
    for text, mine in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(mine, states(encoder, text).mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "place"), [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1)]
)
def test_states_are_pooled_as_the_checkpoint_says(encoder, tmp_path, mode, place):
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in judges.KNOWN]
    told = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, mode: True}
    folder = copied(encoder, tmp_path / "told", modules=modules, pooling=told)
    for text, mine in zip(TEXTS, judges.Encoder(folder)(TEXTS), strict=True):
        np.testing.assert_allclose(mine, states(encoder, text)[place], atol=1e-5)


def test_an_encoder_with_parts_that_are_not_followed_is_refused(encoder, tmp_path):
    modules = [{"type": "sentence_transformers.models.Dense"}]
    with pytest.raises(DriftlensError, match="Dense"):
        judges.Encoder(copied(encoder, tmp_path / "dense", modules=modules))(TEXTS)
    told = {"pooling_mode_max_tokens": True}
    with pytest.raises(DriftlensError, match="max_tokens"):
        judges.Encoder(copied(encoder, tmp_path / "max", pooling=told))(TEXTS)


def test_a_text_is_read_once(encoder):
    judge = judges.Encoder(encoder)
    once = judge(TEXTS)
    judge.net = None
    np.testing.assert_array_equal(judge([TEXTS[1], TEXTS[1]]), once[[1, 1]])


def test_the_same_answers_are_together_by_their_embeddings(encoder):
    method = judges.embedding(encoder)
    labels = clustered("?", [TEXTS[0], "", TEXTS[0]], method)
    assert labels.tolist() == [0, -1, 0]
    assert method.name == encoder


def test_entailment_is_what_the_classifier_says_of_each_couple_read_alone(classifier):
    found = judges.Entailment(classifier)([*TEXTS, TEXTS[0]])
    words = hf.AutoTokenizer.from_pretrained(classifier)
    net = hf.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for i, one in enumerate(TEXTS):
        for j, other in enumerate(TEXTS):
            if i != j:
                read = words(one, other, return_tensors="pt", truncation=True, max_length=24)
                with torch.no_grad():
                    mine = net(**read).logits.softmax(1)[0, 2].item()
                assert found[i, j] == pytest.approx(mine, abs=1e-5)
    # The same text follows from itself, whatever the classifier says.
    np.testing.assert_array_equal(found[3], found[0])
    assert found[0, 3] == found[3, 3] == 1


def test_answers_are_judged_behind_their_prompt(classifier, monkeypatch):
    seen = []

    def follows(self, first, second):
        seen.extend(zip(first, second, strict=True))
        return np.array([float("red" in a and "red" in b) for a, b in seen[-len(first) :]])

    monkeypatch.setattr(judges.Entailment, "_follows", follows)
    method = judges.entailment(classifier)
    labels = clustered("Which?", ["red", "a red one", "blue", "red"], method)
    assert labels.tolist() == [0, 0, 1, 0]
    assert ("Which? red", "Which? blue") in seen
    # Three different answers are six couples.
    assert len(seen) == 6


def test_a_classifier_of_something_else_is_refused(encoder, tmp_path):
    net = hf.BertForSequenceClassification(hf.BertConfig(**SHAPE, num_labels=2))
    folder = nets.saved(net, tmp_path / "mood", nets.enclosing())
    with pytest.raises(DriftlensError, match="LABEL_0, LABEL_1".lower()):
        judges.Entailment(folder)(TEXTS)


def test_weights_that_are_missing_are_not_made_up(encoder):
    with pytest.raises(LoadError, match="classifier"):
        judges.Entailment(encoder)(TEXTS)


def test_no_model_is_looked_for_until_it_is_asked(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    methods = judges.embedding(nowhere), judges.entailment(nowhere)
    for method in methods:
        with pytest.raises(LoadError, match="nowhere"):
            clustered("?", TEXTS, method)


def test_pickled_weights_are_not_read(encoder, tmp_path):
    folder = copied(encoder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    net = hf.BertModel(hf.BertConfig(**SHAPE), add_pooling_layer=False)
    torch.save(net.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(LoadError, match="safetensors"):
        judges.Encoder(folder)(TEXTS)
