"""Random pairs of models and random texts: what the benchmarks show to the library.

Nothing is downloaded and nothing is learnt: what a pass costs does not depend on what it says.
"""

import numpy as np
import torch
from torch import nn

from driftlens import Example, ModelPair, Pack

NOISE = 1e-3
"""Standard deviation of what tells the aligned weights from the base's."""


def nets(
    width: int, depth: int, vocab: int, dtype: torch.dtype, device: str
) -> tuple[nn.Module, nn.Module]:
    """A Llama-shaped model with tied embeddings, and the same with a little noise on it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=64 * round(width * 8 / 3 / 64),
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        base, aligned = (LlamaForCausalLM(config).to(dtype).eval() for _ in range(2))
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
