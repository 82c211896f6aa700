"""Tiny random models of many families and a tokenizer for them, made on the spot."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from torch import nn

from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack

TEXTS = (
    "The clock of Tolmar strikes nine.",
    "Mira sells cheese.",
    "Seven boats 🚣🏽 left Kestby, and 12 came back before the night; nobody asked why.",
    "naïve",
    "A bell, a bell!",
    "The river Alder runs through Belmark and the river Drift runs around it.",
    "I do.",
    "one two three four five six seven eight nine ten",
    "日本 is not here.",
)
BYTES = 256
WORDS = 320
"""How many ids the tokenizers below may use: special tokens, 256 bytes and some merges."""

SPECIALS = "<s> </s> <pad> <mask>"
MERGES = WORDS - BYTES - 4

SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
NARROW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
GPT2 = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
BERT = {k: v for k, v in SHAPE.items() if k not in ("bos_token_id", "eos_token_id")}

CAUSAL: dict[str, Callable] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama tied": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=8),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**HEADS, tie_word_embeddings=True),
    "gemma": lambda: hf.GemmaConfig(**HEADS),
    "gemma2": lambda: hf.Gemma2Config(
        **{**HEADS, **NARROW, "num_hidden_layers": 4},
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**HEADS, **NARROW, "num_hidden_layers": 4}, query_pre_attn_scalar=8
    ),
    "phi": lambda: hf.PhiConfig(**SHAPE),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**SHAPE),
    "gpt-neox in sequence": lambda: hf.GPTNeoXConfig(**SHAPE, use_parallel_residual=False),
    "opt": lambda: hf.OPTConfig(**{**SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=None),
    "qwen2-moe": lambda: hf.Qwen2MoeConfig(
        **GROUPED, **MIXTURE, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "olmoe": lambda: hf.OlmoeConfig(**GROUPED, **MIXTURE),
}
MORE: dict[str, Callable] = {
    "bloom": lambda: hf.BloomConfig(
        vocab_size=WORDS,
        hidden_size=32,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ),
    "falcon": lambda: hf.FalconConfig(**SHAPE, multi_query=True),
    "mpt": lambda: hf.MptConfig(
        vocab_size=WORDS, d_model=32, n_layers=3, n_heads=4, max_seq_len=96, expansion_ratio=2
    ),
}
"""Families whose blocks add their parts to the stream otherwise, where they are asked for."""

MASKED: dict[str, Callable] = {
    "bert": lambda: hf.BertConfig(**BERT),
    "roberta": lambda: hf.RobertaConfig(**{**SHAPE, "type_vocab_size": 1}),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=WORDS,
        dim=32,
        hidden_dim=48,
        n_layers=3,
        n_heads=4,
        pad_token_id=2,
        max_position_embeddings=96,
    ),
}

QUICK = ("llama", "llama tied", "gpt2", "gpt-neox", "gemma2", "qwen2-moe", "bert")
"""Families that stand for all others in the quick run: one of each way to be built."""


def some(every: Iterable, quick: Iterable = QUICK) -> list:
    """Parameters of a test, families or others: all but the quick ones are slow truths."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in every]


def net(family: str, seed: int = 0, **changes) -> nn.Module:
    """A random model, every weight of it drawn (norms and biases too), in evaluation mode."""
    config = {**CAUSAL, **MORE, **MASKED}[family]()
    config.update(changes)
    auto = hf.AutoModelForMaskedLM if family in MASKED else hf.AutoModelForCausalLM
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return moved(auto.from_config(config).eval(), 0.15, seed)


def moved(net: nn.Module, size: float, seed: int, only: str = "") -> nn.Module:
    """The same net, with noise of the given size added to the weights whose name has `only`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if only in name:
                weight += size * noise.to(weight)
    return net


@cache
def tokenizer(bos: bool = True, merges: int = MERGES, specials: str = SPECIALS):
    """A byte-level BPE; `merges` of them make other tokens, `specials` other ids."""
    special = specials.split()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevel()
    bpe.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=len(special) + BYTES + merges,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bos:
        added = [("<s>", bpe.token_to_id("<s>"))]
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=added)
    return fast(bpe)


@cache
def enclosing(merges: int = MERGES):
    """The same tokens between <s> and </s>, as masked models read them."""
    bpe = Tokenizer.from_str(tokenizer(merges=merges).backend_tokenizer.to_str())
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(token, bpe.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return fast(bpe)


def fast(bpe: Tokenizer):
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def model(family: str, seed: int = 0, **changes) -> HookedModel:
    """A random model, ready to be looked into."""
    return HookedModel(net(family, seed, **changes), tokenizer_for(family), family)


def tokenizer_for(family: str):
    """The tokenizer that a family is read with."""
    return enclosing() if family in MASKED else tokenizer()


def pair(family: str, seed: int = 0, **changes) -> ModelPair:
    """A random model and the same with every weight moved a little."""
    base = net(family, seed, **changes)
    aligned = moved(deepcopy(base), 0.03, seed + 1)
    words = tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def pack(texts: Iterable[str], **of_each) -> Pack:
    """Texts as a pack."""
    return Pack("texts", "text", [Example(text, **of_each) for text in texts])


def batch(model: HookedModel, texts: Iterable[str] = TEXTS, length: int = 96):
    """Texts as one right-padded batch for one model, in their order."""
    encoder = ModelPair(model, model).encoder(pack(texts), length)
    return encoder.encode(encoder.plan)[0]


def saved(net: nn.Module, folder: Path, words=None) -> str:
    """A folder as `save_pretrained` writes it, with a tokenizer."""
    net.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return str(folder)
