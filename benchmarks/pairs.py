"""Random pairs of models and random texts, as large as is asked: what the library is shown.

Nothing is downloaded and nothing is learnt: what a pass costs does not depend on what it says.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from driftlens import Example, ModelPair, Pack

NOISE = 1e-3
"""Standard deviation of what tells the aligned weights from the base's."""

SIZES = {
    "width": (768, "Width of the models."),
    "depth": (12, "Number of blocks."),
    "vocab": (32_000, "Number of tokens that they know."),
    "tokens": (256, "Tokens in a text."),
    "rows": (2, "Texts in a batch."),
}
"""By option, the size of a pair and of a batch that is taken where none is asked for."""


def parser(about: str, more: Mapping[str, tuple[int, str]]) -> argparse.ArgumentParser:
    """The options of a benchmark: the sizes, what else is counted, where to run and to write.

    Args:
        about: What the benchmark says of itself; its first line is shown.
        more: Counts besides the sizes: by option, what is taken otherwise and what it is.
    """
    found = argparse.ArgumentParser(description=about.splitlines()[0])
    for name, (default, what) in {**SIZES, **more}.items():
        found.add_argument(f"--{name}", type=int, default=default, help=what)
    found.add_argument("--device", default="cpu")
    found.add_argument("--out", type=Path, help="Where to write it all as JSON.")
    return found


def config(width: int, depth: int, vocab: int):
    """Of a Llama with tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width,
        intermediate_size=64 * round(width * 8 / 3 / 64),
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def nets(
    width: int, depth: int, vocab: int, dtype: torch.dtype, device: str
) -> tuple[nn.Module, nn.Module]:
    """A Llama-shaped model with tied embeddings, and the same with a little noise on it."""
    from transformers import LlamaForCausalLM

    made = config(width, depth, vocab)
    with torch.device(device):
        base, aligned = (LlamaForCausalLM(made).to(dtype).eval() for _ in range(2))
    aligned.load_state_dict(base.state_dict())
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in aligned.parameters():
            noise = torch.randn(weight.shape, generator=random, device=device, dtype=weight.dtype)
            weight.add_(noise, alpha=NOISE)
    return base, aligned


def tokenizer(vocab: int):
    """One word, one token: `w17` is token 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")


def pair(base: nn.Module, aligned: nn.Module) -> ModelPair:
    """Both models as the library takes them."""
    words = tokenizer(base.config.vocab_size)
    return ModelPair.load(base, aligned, tokenizer=words)


def pack(documents: int, tokens: int, vocab: int) -> Pack:
    """Random texts of `tokens` words each."""
    ids = np.random.default_rng(0).integers(vocab, size=(documents, tokens))
    texts = (" ".join(f"w{i}" for i in row) for row in ids)
    return Pack("random", "text", [Example(text) for text in texts])
