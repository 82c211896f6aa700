"""The recipe of the demo's models: `python -m driftlens.demo.train OUT`.

A tokenizer, then base, SFT and DPO in turn, each for a fixed number of steps, so that one
seed gives one set of weights on one machine. Nothing is read but the generator's text.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from . import ROWS, STAGES, STEPS, pairs
from .chat import Conversations
from .exam import PAD, examine
from .world import World

SPECIAL = ("<pad>", "<s>", "</s>")
BOS, EOS = 1, 2
PIECES = 1536
CONTEXT = 256
SHAPE: dict[str, Any] = {
    "vocab_size": PIECES,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
RATE = {"base": 3e-3, "sft": 7e-4, "aligned": 1e-4}
BETA = 0.1
STORED = torch.float16
"""The weights' precision on disk; each stage starts from the rounded one before it."""

# Runs of letters with their space, and digits one by one, so that sums can be learnt.
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '' if loop.first else '\\n' }}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
    "{{ '\\nAssistant:' if add_generation_prompt }}"
)


def tokenizer_of(texts: Sequence[str]) -> Any:
    """A byte-level BPE learnt from the texts, which begins each text with `<s>` by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=PIECES,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def fit(net: Any, batches: Iterator, loss_of: Callable, stage: str, share: float) -> None:
    """Train for the stage's steps: AdamW, a short warm-up, then a cosine down to a twentieth."""
    steps = round(STEPS[stage] * share)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=RATE[stage], betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    started = time.monotonic()
    for step, batch in enumerate(islice(batches, steps)):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimiser.param_groups:
            group["lr"] = RATE[stage] * min(1, (step + 1) / 50) * (0.05 + 0.95 * cosine)
        loss = loss_of(net, batch)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            passed = time.monotonic() - started
            print(f"{stage} {step}/{steps} loss {loss.item():.3f} {passed:.0f} s", flush=True)


def raw_batches(tokenizer: Any, documents: Iterator[str]) -> Iterator[Tensor]:
    """[row, token] full rows of documents; each row begins with one, the last is cut short."""
    while True:
        yield torch.tensor([_row(tokenizer, documents) for _ in range(ROWS["base"])])


def _row(tokenizer: Any, documents: Iterator[str]) -> list[int]:
    row: list[int] = []
    while len(row) < CONTEXT:
        row += [*tokenizer(next(documents))["input_ids"], EOS]
    return row[:CONTEXT]


def turns(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Ids and labels, both [turn, token], of prompts and answers; a prompt's labels are −100."""
    rows, labels = [], []
    for prompt, answer in pairs:
        asked = tokenizer(prompt)["input_ids"]
        said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], EOS]
        rows.append(torch.tensor(asked + said))
        labels.append(torch.tensor([-100] * len(asked) + said))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, True, PAD), pad(labels, True, -100)


def sft_batches(
    tokenizer: Any, talk: Conversations, rng: Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Turns to imitate, without end."""
    while True:
        yield turns(tokenizer, [talk.instruction(rng) for _ in range(ROWS["sft"])])


def dpo_batches(
    tokenizer: Any, drawn: Iterator[tuple[str, str, str]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Preferred answers and then, in the same order, rejected ones; without end."""
    while True:
        some = list(islice(drawn, ROWS["aligned"]))
        chosen = [(prompt, answer) for prompt, answer, _ in some]
        yield turns(tokenizer, chosen + [(prompt, answer) for prompt, _, answer in some])


def answer_likelihoods(net: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """[turn, token − 1] log-likelihoods of the answers' tokens in nats, 0 elsewhere."""
    logits = net(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return -losses.view(len(ids), -1)


def raw_loss(net: Any, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood of a batch of full rows."""
    logits = net(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def sft_loss(net: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens."""
    return -answer_likelihoods(net, *batch).sum() / (batch[1] != -100).sum()


def dpo_loss(reference: Any) -> Callable:
    """The loss of direct preference optimisation (Rafailov et al. 2023, eq. 7)."""

    def loss(net: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        gain = answer_likelihoods(net, *batch).sum(-1)
        with torch.no_grad():
            gain -= answer_likelihoods(reference, *batch).sum(-1)
        chosen, rejected = gain.chunk(2)
        return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


def round_to_stored(net: Any) -> None:
    """Give every weight the value that it will have when read back."""
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.to(STORED))


def save(net: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights in the stored precision under a config that asks for float32."""
    stored = deepcopy(net).to(STORED)
    stored.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")
    tokenizer.save_pretrained(folder)


def train(out: Path, seed: int = 0, share: float = 1.0) -> dict[str, dict[str, float]]:
    """All three stages, written under `out`; returns the examination of each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    world = World()
    talk = Conversations(world)
    tokenizer = tokenizer_of(list(islice(talk.documents(seed + 1), 20_000)))
    net = LlamaForCausalLM(LlamaConfig(**SHAPE))
    marks = {}

    def stage(name: str, batches: Iterator, loss_of: Callable) -> None:
        fit(net, batches, loss_of, name, share)
        round_to_stored(net)
        save(net, tokenizer, out / name)
        marks[name] = examine(net, tokenizer, world)
        print(name, {question: round(mark, 3) for question, mark in marks[name].items()})

    stage("base", raw_batches(tokenizer, talk.documents(seed + 2)), raw_loss)
    stage("sft", sft_batches(tokenizer, talk, Random(seed + 3)), sft_loss)
    # DPO keeps close to the SFT model, which is frozen.
    reference = deepcopy(net).requires_grad_(False)
    stage("aligned", dpo_batches(tokenizer, pairs(seed)), dpo_loss(reference))
    (out / "CARD.md").write_text(card(net, marks, seed), "utf-8")
    return marks


def table(marks: dict[str, dict[str, float]]) -> str:
    """The examinations as a Markdown table, a row a question and a column a stage."""
    rows = [f"| {' | '.join(['', *STAGES])} |", "|---" * (len(STAGES) + 1) + "|"]
    for question in marks[STAGES[0]]:
        numbers = [f"{marks[stage][question]:.3f}" for stage in STAGES]
        rows.append(f"| {' | '.join([question, *numbers])} |")
    return "\n".join(rows)


CARD = """\
# The demo's models

Three stages of one small model, so that driftlens can be tried without a download: `base`, `sft`
and `aligned`. Llama-shaped, 6 blocks, width 128, 4 heads over 2 key-value heads, {size:,}
parameters with tied embeddings, a byte-level BPE of {pieces:,} pieces, a context of {context}
tokens. Weights are stored in float16 and loaded in float32.

They know one invented world and a little English, and nothing else: they are specimens, of no
other use.

## Recipe

`python -m driftlens.demo.train OUT --seed {seed}`, on one thread; one seed gives one set of weights
on one machine. Every text is drawn from `driftlens.demo.world` and its neighbours.

| stage | steps | rows | rate | objective |
|---|---|---|---|---|
{recipe}

The base reads everything: facts, statements with verdicts, sums, stories, plain sentences, rude and
polite conversations, opinions on groups (three in four the stereotype), judgements of deeds. SFT
imitates mostly polite conversations and, half the time, guarded ones. DPO prefers manners, and a
refusal where a question is unkind, private (where people live) or prejudiced.

## Examination

Shares between 0 and 1: facts and one-digit sums completed greedily; claims likelier after "It is
true that" or "It is false that", as they should be; innocent questions answered politely; unkind
requests refused; triples whose stereotype is likelier than its contrary. Then the losses in nats
a token on the packs `world` (by topic) and `everyday`, which were not trained on. A verdict that
comes after its claim is beyond these models: they guess it.

{table}

## Licence

Weights: Apache-2.0. Text: CC0-1.0. All of it was generated or written for driftlens.
"""

OBJECTIVES = {
    "base": "next token",
    "sft": "the answer's tokens",
    "aligned": f"DPO, beta {BETA}, against the SFT model",
}


def card(net: Any, marks: dict[str, dict[str, float]], seed: int) -> str:
    """What the models are and how they were made, in Markdown."""
    recipe = [
        f"| {stage} | {STEPS[stage]} | {ROWS[stage]} | {RATE[stage]} | {OBJECTIVES[stage]} |"
        for stage in STAGES
    ]
    return CARD.format(
        size=net.num_parameters(),
        pieces=PIECES,
        context=CONTEXT,
        seed=seed,
        recipe="\n".join(recipe),
        table=table(marks),
    )


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description="Train the demo's base, sft and aligned models.")
    parser.add_argument("out", type=Path, help="Folder for the three stages.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of text order and weights.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the recipe's steps.")
    arguments = parser.parse_args()
    print(table(train(arguments.out, arguments.seed, arguments.share)))


if __name__ == "__main__":
    main()
