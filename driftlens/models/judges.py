"""Other models that say which answers mean the same: encoders, and classifiers of entailment.

None is looked for unless it is named, no code that comes with one is run, and weights are read from
safetensors alone.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.errors import DriftlensError, LoadError
from driftlens.formulas.clusters import Method, averaged, cosines, entailing

TOGETHER = 32
"""Texts, or couples of them, that are read at a time."""

POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pooling_mode_mean_tokens": lambda states, mask: (
        (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    ),
    "pooling_mode_cls_token": lambda states, mask: states[
        torch.arange(len(states)), mask.argmax(1)
    ],
    "pooling_mode_lasttoken": lambda states, mask: states[
        torch.arange(len(states)), mask.shape[1] - 1 - mask.flip(1).argmax(1)
    ],
}
"""How [row, token, width] states and their [row, token] mask become [row, width]."""

KNOWN = ("Transformer", "Pooling", "Normalize")
"""Parts of a checkpoint of sentence-transformers that are followed."""


def embedding(name: str, device: str = "cpu") -> Method:
    """Average linkage at a mean cosine of at least 0.85 of a sentence encoder's embeddings.

    Args:
        name: A folder or hub id of an encoder that transformers reads. How its states are pooled
            is read from its own files, as sentence-transformers writes them; without any it is
            the mean over tokens.
        device: Where to run it.
    """
    encoder = Encoder(name, device)
    return Method(name, lambda prompt, texts: averaged(cosines(encoder(texts))))


def entailment(name: str, device: str = "cpu") -> Method:
    """Answers are together that follow from the first of a cluster, and it from them.

    Each is read behind the prompt, as a short answer alone says little.

    Args:
        name: A folder or hub id of a sequence classifier with a label that names entailment.
        device: Where to run it.
    """
    judge = Entailment(name, device)

    def labels(prompt: str, texts: Sequence[str]) -> np.ndarray:
        return entailing(judge([f"{prompt.strip()} {text.strip()}" for text in texts]))

    return Method(name, labels)


class _Judge:
    """A model that is loaded when it is first asked."""

    net: Any

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name, self.device = name, device

    @cached_property
    def tokenizer(self) -> Any:
        """Its own."""
        from transformers import AutoTokenizer

        return self._loaded(AutoTokenizer.from_pretrained, "a tokenizer")

    def _net(self, auto: Any) -> Any:
        net, report = self._loaded(
            auto.from_pretrained, "a model", use_safetensors=True, output_loading_info=True
        )
        # A pooler is read by none of what is asked here.
        if missing := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
            raise LoadError(
                f"all weights of {self.name}",
                found=f"none for {', '.join(sorted(missing)[:3])}",
                remedy="Give a checkpoint that was trained for this: others would be random.",
            )
        return net.float().eval().to(self.device)

    def _loaded(self, load: Callable[..., Any], what: str, **options: Any) -> Any:
        place = str(Path(self.name).expanduser())
        try:
            return load(place, trust_remote_code=False, **options)
        # Over a broken file the libraries raise whatever they meet.
        except Exception as error:
            raise LoadError(
                f"{what} at {self.name}, with safetensors and no code of its own",
                found=str(error).strip().split("\n")[0],
                remedy="Check the name, or give a folder that save_pretrained wrote.",
            ) from None

    def _read(self, *texts: Sequence[str]) -> Any:
        """Texts, or couples of texts, as the net reads them; cut at the end that it can hold."""
        limit = min(self.tokenizer.model_max_length, self._longest)
        read = self.tokenizer(
            *map(list, texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return read.to(self.device)

    @property
    def _longest(self) -> int:
        config = self.net.config
        places = getattr(config, "max_position_embeddings", None) or 512
        # RoBERTa's first place stands behind its padding's.
        offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
        return places - offset


class Encoder(_Judge):
    """A sentence encoder: [text, width] embeddings, each text read once."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        super().__init__(name, device)
        self._known: dict[str, np.ndarray] = {}

    @cached_property
    def net(self) -> Any:
        """The encoder."""
        from transformers import AutoModel

        return self._net(AutoModel)

    @cached_property
    def pool(self) -> Callable[[Tensor, Tensor], Tensor]:
        """How a text's states become one, as the checkpoint says."""
        parts = [part["type"].split(".")[-1] for part in self._told("modules.json") or ()]
        if strangers := sorted(set(parts) - set(KNOWN)):
            raise DriftlensError(
                f"an encoder made of {', '.join(KNOWN)}",
                found=f"{', '.join(strangers)} in {self.name}",
                remedy="Give another encoder, or embed the answers yourself.",
            )
        told = self._told("1_Pooling/config.json")
        modes = [key for key, on in (told or {}).items() if key.startswith("pooling_mode_") and on]
        modes = modes if told else ["pooling_mode_mean_tokens"]
        if len(modes) != 1 or modes[0] not in POOLINGS:
            raise DriftlensError(
                f"one of {', '.join(POOLINGS)} in {self.name}",
                found=", ".join(modes) or "none",
                remedy="Give another encoder, or embed the answers yourself.",
            )
        return POOLINGS[modes[0]]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text, width] embeddings."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        for some in _some(fresh):
            self._known.update(zip(some, self._embedded(some), strict=True))
        return np.stack([self._known[text] for text in texts])

    @torch.no_grad()
    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        read = self._read(texts)
        states = self.net(**read).last_hidden_state
        return self.pool(states, read["attention_mask"]).double().cpu().numpy()

    def _told(self, file: str) -> Any:
        """A file of the checkpoint, read as JSON; None if it has no such file."""
        import json

        from transformers.utils import cached_file

        found = cached_file(
            str(Path(self.name).expanduser()),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else json.loads(Path(found).read_text("utf-8"))


class Entailment(_Judge):
    """A classifier of couples of texts: [text, text] P(the second follows from the first)."""

    @cached_property
    def net(self) -> Any:
        """The classifier."""
        from transformers import AutoModelForSequenceClassification

        return self._net(AutoModelForSequenceClassification)

    @cached_property
    def label(self) -> int:
        """Which of its labels is entailment."""
        labels = {int(n): str(label).lower() for n, label in self.net.config.id2label.items()}
        found = [n for n, label in labels.items() if label in ("entailment", "entail", "entailed")]
        if len(found) != 1:
            raise DriftlensError(
                f"one label called entailment in {self.name}",
                found=", ".join(labels.values()),
                remedy="Give a classifier of entailment, and name its labels in its config.",
            )
        return found[0]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """[text, text] probability that the second follows from the first; 1 of the same."""
        each = [*dict.fromkeys(texts)]
        couples = [(i, j) for i in range(len(each)) for j in range(len(each)) if i != j]
        found = np.eye(len(each))
        for some in _some(couples):
            first, second = ([each[couple[side]] for couple in some] for side in (0, 1))
            found[tuple(zip(*some, strict=True))] = self._follows(first, second)
        places = [each.index(text) for text in texts]
        return found[np.ix_(places, places)]

    @torch.no_grad()
    def _follows(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        logits = self.net(**self._read(first, second)).logits
        return logits.double().softmax(1)[:, self.label].cpu().numpy()


def _some(things: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (things[at : at + TOGETHER] for at in range(0, len(things), TOGETHER))
