"""What a model's memory and time depend on, read from its configuration: no weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from driftlens.errors import DriftlensError, LoadError

from . import anatomy
from .load import _auto, _first_line, _unreadable
from .model import Model

BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Of a number in each dtype; int8 and int4 are those of quantised weights."""

KEPT = 16
"""Bits of what quantisation leaves alone: embeddings, norms and the head."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one language model."""

    name: str
    depth: int
    """Blocks."""
    width: int
    """Of the residual stream."""
    vocabulary: int
    """Logits that it gives."""
    block: int
    """Numbers in the weights of the largest block."""
    blocks: int
    """Numbers in the weights of all blocks."""
    parameters: int
    """Numbers in all weights; tied ones count once."""
    features: int
    """Numbers that the linear maps of a block give for a token."""
    dtype: str
    """What its checkpoint is in."""
    causal: bool = True

    def weights(self, dtype: str = "auto") -> int:
        """Bytes of the weights in a dtype; of a quantised one only what lies in the blocks."""
        bits = bits_of(self.dtype if dtype == "auto" else dtype)
        rest = (self.parameters - self.blocks) * max(bits, KEPT)
        return (self.blocks * bits + rest) // 8

    def block_bytes(self, dtype: str = "auto") -> int:
        """Bytes of the largest block."""
        return self.block * bits_of(self.dtype if dtype == "auto" else dtype) // 8

    def forward(self, length: int) -> float:
        """Operations of a forward pass for a token of a text of so many, without the head."""
        # Each number of a block's weights is multiplied and added once for each token, and
        # attention reads on average half of the text, for its scores and for its values.
        return 2.0 * self.blocks + 2.0 * self.depth * self.width * length

    @property
    def readout(self) -> float:
        """Operations of the head for a token."""
        return 2.0 * self.width * self.vocabulary


def bits_of(dtype: str) -> int:
    """Bits of a number.

    Raises:
        DriftlensError: There is no such dtype.
    """
    if dtype not in BITS:
        raise DriftlensError(
            f"a dtype among {', '.join(BITS)}", found=dtype, remedy="Give one of these."
        )
    return BITS[dtype]


def shape_of(net: Any, name: str = "") -> Shape:
    """The shape of a live net, on whatever device: `meta` will do."""
    text = net.config.get_text_config()
    blocks = anatomy.blocks(getattr(net, "base_model", net))
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    head = net.get_output_embeddings()
    return Shape(
        name=name or getattr(net.config, "name_or_path", "") or type(net).__name__,
        depth=len(blocks),
        width=int(text.hidden_size),
        vocabulary=int(head.weight.shape[0] if head is not None else text.vocab_size),
        block=max(sizes),
        blocks=sum(sizes),
        parameters=sum(p.numel() for p in net.parameters()),
        features=sum(map(_features, blocks[0].modules())),
        dtype=str(next(net.parameters()).dtype).removeprefix("torch."),
        causal=not type(net).__name__.endswith("ForMaskedLM"),
    )


def shape_of_model(model: Model) -> Shape | None:
    """That of a loaded model; None of one that shows no net of transformers."""
    net = getattr(model, "net", None)
    return shape_of(net, model.name) if hasattr(net, "get_output_embeddings") else None


def planned(config: Any, name: str = "") -> Shape:
    """The shape that a configuration of transformers describes, built without any memory."""
    with torch.device("meta"):
        net = _auto(config).from_config(config)
    known = getattr(config, "dtype", None)
    found = shape_of(net, name)
    if known is None:
        return found
    return Shape(**{**vars(found), "dtype": str(known).removeprefix("torch.")})


def shape_named(name: str, **hub: Any) -> Shape:
    """The shape of a hub id or of a folder with a config.json, with weights in it or without.

    Args:
        name: Hub id, folder, `demo:base`, or the config.json itself.
        **hub: Options of transformers' `from_pretrained`: `revision`, `local_files_only`, …

    Raises:
        LoadError: There is no configuration of a language model.
    """
    from transformers import AutoConfig

    try:
        return planned(AutoConfig.from_pretrained(_folder(name), **hub), name)
    except _unreadable() as error:
        raise LoadError(
            f"a config.json of a language model at {name}",
            found=_first_line(error),
            remedy="Give a hub id, or a folder with a config.json; weights are not needed.",
        ) from None


def _folder(name: str) -> str:
    from driftlens import demo

    if name.startswith("demo:"):
        return str(demo.stage(name.removeprefix("demo:")))
    place = Path(name).expanduser()
    return str(place) if place.exists() else name


def adapter_numbers(name: str, base: str, **hub: Any) -> int | None:
    """Numbers in the weights of a LoRA adapter in a folder; None of what is no such folder.

    Args:
        name: The folder.
        base: Hub id or folder of the model that it sits on.
        **hub: As for `shape_named`.
    """
    from transformers import AutoConfig

    file = Path(name).expanduser() / "adapter_config.json"
    if not file.is_file():
        return None
    adapter = json.loads(file.read_text("utf-8"))
    config = AutoConfig.from_pretrained(_folder(base), **hub)
    with torch.device("meta"):
        return _low_rank(_auto(config).from_config(config), adapter)


def _low_rank(net: Any, adapter: Mapping[str, Any]) -> int:
    targets, rank = adapter.get("target_modules") or "all-linear", int(adapter.get("r", 0))
    head = net.get_output_embeddings()
    return rank * sum(
        sum(_sides(module))
        for path, module in net.named_modules()
        if any(_sides(module)) and module is not head and _named(path, targets)
    )


def _named(path: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or path.endswith(targets)
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _sides(module: nn.Module) -> tuple[int, int]:
    """Features that enter and leave a linear map; 0 of anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # GPT-2's own kind of linear map keeps its weight the other way round.
    if type(module).__name__ == "Conv1D":
        rows, columns = module.weight.shape  # type: ignore[misc]
        return int(rows), int(columns)
    return 0, 0


def _features(module: nn.Module) -> int:
    return _sides(module)[1]
