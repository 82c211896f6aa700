"""Directions and steps against the steering-vectors package, an independent oracle."""

from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens.estimators.directions import contrast_pca, mean_difference, paired_difference
from driftlens.models import Site, Wants
from driftlens.models.hooks import HookedModel
from driftlens.models.steering import Ablate, Add, Clamp, Steer, steered
from driftlens.models.tokens import Batch
from driftlens.steer.exchange import steering_vector

oracle = pytest.importorskip(
    "steering_vectors", reason="steering-vectors is not installed; `./dev setup` brings it"
)

FAMILIES = nets.some(["llama", "gpt2", "gpt-neox", "gemma2", "mistral", "qwen2", "phi", "opt"])
# Gemma 2 takes its softmax in float32, where the lowest number of float64 is −∞: a token of
# padding that sees nothing else in its window becomes NaN.
WIDE = [family for family in FAMILIES if family != "gemma2"]
CLOSE = 1e-5
"""How far apart vectors may lie as a share of their length, and logits as a share of theirs."""

QUESTIONS = [
    ("Does the clock strike nine?", "A", "B"),
    ("Who sells cheese, Mira or the river?", "B", "A"),
    ("How many boats came back before the night?", "A", "B"),
    ("Is a bell naïve?", "B", "A"),
    ("Which river runs through Belmark 🚣🏽?", "A", "B"),
    ("日本?", "B", "A"),
    ("one two three four five?", "A", "B"),
]
CONTRASTS = [
    tuple(f"{question}\n\nAnswer: ({letter})" for letter in letters)
    for question, *letters in QUESTIONS
]
"""Pairs of texts as contrastive activation addition (CAA) makes them: "(A)" against "(B)"."""

ENDS = {"last token": lambda text: len(text) - 1, "answer's token": lambda text: len(text) - 2}
"""Which character a state is read at."""


@cache
def net(family, dtype=torch.float32):
    """Shared by tests: nobody may change it."""
    return nets.net(family).to(dtype)


def reader():
    return nets.tokenizer()


def token_at(text, character):
    """The token that ends with, or runs over, a character: found by its place in the text."""
    return reader()(text).char_to_token(character)


def states(model, texts, character):
    """[text, layer, width] of what leaves each block, by plain hooks, text by text."""
    seen = []

    def keep(block, inputs, output):
        seen.append((output if torch.is_tensor(output) else output[0])[0])

    hooks = [b.register_forward_hook(keep) for b in HookedModel(model, reader()).blocks]
    found = []
    for text in texts:
        seen.clear()
        with torch.no_grad():
            model(**reader()(text, return_tensors="pt"))
        place = token_at(text, character(text))
        found.append(torch.stack([stream[place] for stream in seen]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).numpy()


def padded(texts):
    return reader()(list(texts), return_tensors="pt", padding=True)


def traced(model, texts, character):
    """The same by a trace of all texts as one padded batch."""
    rows, hooked = padded(texts), HookedModel(model, reader())
    none = torch.zeros(0, dtype=torch.long)
    batch = Batch(rows.input_ids, rows.attention_mask.bool(), (none, none), (none, none), none)
    seen = hooked.trace(batch, Wants(frozenset({"out"}), None)).activations
    places = [token_at(text, character(text)) for text in texts]
    streams = torch.stack([seen[Site(n)] for n in range(hooked.depth)], 1)
    return streams[range(len(places)), :, places].numpy()


def trained(model, aggregator, where, batch_size=1):
    """[layer, width] the package's vectors, and their blocks' numbers."""
    found = oracle.train_steering_vector(
        model,
        reader(),
        CONTRASTS,
        aggregator=aggregator,
        # They count tokens from the end; the last of them holds ")" alone.
        read_token_index={"last token": -1, "answer's token": -2}[where],
        batch_size=batch_size,
    ).layer_activations
    assert list(found) == list(range(len(found)))
    return torch.stack(list(found.values())).double().numpy()


def apart(one, other):
    """[layer] how far vectors lie from each other, as a share of their length."""
    return np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)


def classes(model, where, read=states):
    """[pair, layer, width] positive and negative states."""
    return [read(model, texts, ENDS[where]) for texts in zip(*CONTRASTS, strict=True)]


def test_the_answer_is_a_token_of_its_own():
    for text in (text for pair in CONTRASTS for text in pair):
        tokens = reader().convert_ids_to_tokens(reader()(text).input_ids)
        assert tokens[token_at(text, ENDS["answer's token"](text))] in ("A", "B")
        assert token_at(text, ENDS["last token"](text)) == len(tokens) - 1


def found_by(estimate, classes):
    """Our direction in each layer."""
    positive, negative = classes
    return [estimate(positive[:, n], negative[:, n]) for n in range(positive.shape[1])]


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("where", ENDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_means_of_differences_are_those_of_the_package(family, where, batch_size):
    """Its vector is the mean difference with its length; ours are a unit vector and a `gap`.

    In float64, as states in float32 are no better known than to a few millionths of their own
    length, which can be some hundred times that of their difference.
    """
    model = net(family, torch.float64)
    theirs = trained(model, oracle.mean_aggregator(), where, batch_size)
    for read in (states, traced):
        for estimate in (mean_difference, paired_difference):
            ours = [one.vector for one in found_by(estimate, classes(model, where, read))]
            assert (apart(np.array(ours), theirs) < CLOSE).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ENDS)
def test_in_float32_the_same_means_differ_by_the_rounding_of_states_alone(family, where):
    theirs = trained(net(family), oracle.mean_aggregator(), where, batch_size=3)
    found = found_by(mean_difference, classes(net(family), where, traced))
    lengths = np.array([one.lengths.mean() for one in found])
    off = np.linalg.norm(np.array([one.vector for one in found]) - theirs, axis=1)
    assert (off < CLOSE * lengths).all()


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("where", ENDS)
def test_principal_components_of_differences_are_those_of_the_package(family, where):
    """It joins differences with their negatives and does not centre: our form without `shuffle`.

    Two things differ. Its component has length 1, which is our `unit`; our `vector` is as long
    as the means lie apart along it. And its sign is that of the mean lead of pairs, ours of most
    pairs: they agree wherever a direction is clear, and need not elsewhere.
    """
    model = net(family, torch.float64)
    theirs = trained(model, oracle.pca_aggregator(), where)
    found = found_by(contrast_pca, classes(model, where))
    # Below 0 only where most pairs point against their mean.
    turned = np.sign([[one.gap] for one in found])
    assert (apart(np.array([one.unit for one in found]) * turned, theirs) < CLOSE).all()
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, rtol=1e-6)


def test_the_package_turns_a_component_by_the_mean_lead_and_we_by_most_pairs():
    differences = np.array([[10.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    positive, negative = differences, np.zeros((3, 2))
    theirs = oracle.pca_aggregator()(torch.tensor(positive), torch.tensor(negative)).numpy()
    ours = contrast_pca(positive, negative)
    np.testing.assert_allclose(ours.unit, -theirs, atol=1e-12)
    assert theirs[0] > 0 > ours.gap


def test_centred_components_of_shuffled_pairs_are_not_those_of_the_package():
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 40, 8))
    positive = positive + 2 * np.eye(8)[0]
    theirs = oracle.pca_aggregator()(torch.tensor(positive), torch.tensor(negative)).numpy()
    assert apart(contrast_pca(positive, negative).unit, theirs) < 1e-9
    assert apart(contrast_pca(positive, negative, shuffle=0).unit, theirs) > 1e-2


# Steps along them

TEXTS = [text for pair in CONTRASTS[:3] for text in pair]


def logits(model):
    """[token, vocab] of the tokens of a padded batch that are no padding."""
    rows = padded(TEXTS)
    with torch.no_grad():
        return model(**rows).logits[rows.attention_mask.bool()]


def vectors(model):
    """[width] by block: the package's."""
    return dict(enumerate(trained(model, oracle.mean_aggregator(), "answer's token")))


def assert_same_logits(ours, theirs, plain):
    scale = float(plain.abs().max())
    assert float((ours - theirs).abs().max()) < CLOSE * scale
    assert float((theirs - plain).abs().max()) > 1e-2 * scale


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("multiplier", [-2.0, 0.5, 4.0])
@pytest.mark.parametrize("layers", [[1], [0, 2]])
def test_a_multiplier_of_the_package_is_our_strength_in_units_of_the_vector(
    family, multiplier, layers
):
    """The package adds m v, we r v̂: of a vector v that is r = m with ``norm=‖v‖``."""
    model = net(family)
    some = {n: v for n, v in vectors(model).items() if n in layers}
    with steering_vector(some).apply(model, multiplier=multiplier):
        theirs = logits(model)
    steers = [Steer(Add(v, multiplier, norm=np.linalg.norm(v)), n) for n, v in some.items()]
    with steered(model, steers):
        ours = logits(model)
    assert_same_logits(ours, theirs, logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_to_start_at_is_where_our_response_begins(family):
    model = net(family)
    v = vectors(model)[1]
    with steering_vector({1: v}).apply(model, min_token_index=5):
        theirs = logits(model)
    with steered(model, Steer(Add(v, np.linalg.norm(v)), 1), positions="response", prompt=5):
        ours = logits(model)
    assert_same_logits(ours, theirs, logits(model))


OPERATORS = {
    "ablation": (oracle.ablation_operator, lambda v: Ablate(v)),
    "ablation, then addition": (
        oracle.ablation_then_addition_operator,
        lambda v: Clamp(v, np.linalg.norm(v)),
    ),
}
"""What the package does, and what it is here."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_of_the_package_are_changes_of_ours(operator, family):
    theirs_of, ours_of = OPERATORS[operator]
    model = net(family)
    v = vectors(model)[1]
    with steering_vector({1: v}).apply(model, operator=theirs_of()):
        theirs = logits(model)
    with steered(model, Steer(ours_of(torch.tensor(v)), 1)):
        ours = logits(model)
    assert_same_logits(ours, theirs, logits(model))
