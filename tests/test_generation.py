"""What models answer: the model's own distribution, whatever the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

import nets
from driftlens.models import generation as made
from driftlens.models.generation import GREEDY, Sampling, answers, uniforms
from driftlens.models.tokens import opening

PROMPTS = nets.TEXTS
"""Of different lengths, so that they are padded."""

FAMILIES = nets.some([*nets.CAUSAL, *nets.MORE], ("llama", "gpt2", "gemma2", "bloom"))
ROUNDED = 1e-5
"""A cache and padding round logits otherwise in float32; an answer adds up a dozen of them."""


def read_alone(model, answer):
    """[token, vocab] log-probabilities of an answer's tokens, all read at once, without a cache."""
    prompt = opening(model.tokenizer, PROMPTS[answer.prompt])
    logits = model.logits(torch.tensor([[*prompt, *answer.ids]]))[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 :].detach()[: len(answer.entropy)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_noted_of_an_answer_is_what_a_pass_over_all_of_it_says(family):
    model = nets.model(family)
    found = answers(model, PROMPTS, Sampling(2, tokens=10))
    for answer in found:
        logs = read_alone(model, answer)
        entropy = -(logs.exp() * logs).sum(-1)
        np.testing.assert_allclose(answer.entropy, entropy, atol=ROUNDED)
        likely = logs[torch.arange(len(answer.ids)), list(answer.ids)].sum()
        if answer.ended:
            likely += torch.log(logs[-1][list(made._ends(model))].exp().sum())
        assert answer.logprob == pytest.approx(float(likely), abs=ROUNDED)
        if answer.sample == GREEDY:
            assert answer.ids == tuple(logs.argmax(-1)[: len(answer.ids)].tolist())
    assert len(found) == 3 * len(PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_in_any_batch_and_order(family):
    model, asked = nets.model(family), Sampling(2, tokens=8)
    whole = answers(model, PROMPTS, asked)
    numbers = range(len(PROMPTS))[::-1]
    for batch in (1, 7):
        turned = answers(model, PROMPTS[::-1], asked, numbers=numbers, batch=batch)
        assert [one[:4] for one in sorted(turned)] == [one[:4] for one in whole]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_greedy_answer_is_what_transformers_gives(family):
    model = nets.model(family)
    for answer in answers(model, PROMPTS, Sampling(0, tokens=10)):
        ids = torch.tensor([opening(model.tokenizer, PROMPTS[answer.prompt])])
        # Told, for a mask that is not would be guessed of the padding id, which begins a text.
        whole = torch.ones_like(ids)
        given = model.net.generate(
            ids, attention_mask=whole, do_sample=False, max_new_tokens=10, pad_token_id=0
        )
        own = given[0, ids.shape[1] :].tolist()
        assert list(answer.ids) == own[: len(answer.ids)]
        assert len(answer.ids) + answer.ended == len(own)


def test_the_draws_of_an_answer_are_its_own_and_do_not_change_with_its_length():
    np.testing.assert_array_equal(uniforms(3, 5, 7, 100)[:9], uniforms(3, 5, 7, 9))
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = np.concatenate([uniforms(*key, 5000) for key in keys])
    assert len(np.unique(drawn)) == len(drawn)
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn.reshape(4, -1)) - np.eye(4)).max() < 0.06
