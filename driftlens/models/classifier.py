"""Classifiers that judge texts, such as of toxicity or of entailment, where a caller names one."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from driftlens.errors import DriftlensError, LoadError

LENGTH = 512
"""The most tokens that are read of a text, and of what stands before it."""


class Classifier:
    """A sequence classifier of `transformers`, and the label whose probability it is asked for.

    Nothing but safetensors is read, and no code that comes with a checkpoint runs.

    Args:
        name: Hub id or folder.
        label: One of its labels.
        paired: Whether it reads two texts: what a text is to be faithful to, and the text.
        device: Where to run it; None is the CPU.
        rows: Texts at a time.
        **hub: `revision` and `local_files_only`, as `from_pretrained` takes them.

    Raises:
        LoadError: It cannot be loaded.
        DriftlensError: It has no such label.
    """

    def __init__(
        self,
        name: str,
        label: str,
        *,
        paired: bool = False,
        device: str | None = None,
        rows: int = 16,
        **hub: Any,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name, self.label, self.paired, self.rows = name, label, paired, rows
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)
            self.net, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **hub,
            )
        except (OSError, ValueError, KeyError) as error:
            raise LoadError(
                f"a sequence classifier with safetensors at {name}",
                found=str(error).splitlines()[0],
                remedy="Name one that transformers loads by itself.",
            ) from None
        if missing := sorted(report["missing_keys"]):
            raise LoadError(
                f"all weights of the classifier {name}",
                found=f"{len(missing)} missing, as {missing[0]}",
                remedy="Name a checkpoint that was trained to classify.",
            )
        self.net.eval().to(device or "cpu")
        labels = {str(told): int(number) for number, told in self.net.config.id2label.items()}
        if label not in labels:
            raise DriftlensError(
                f"a label of {name}: {', '.join(labels)}",
                found=repr(label),
                remedy="Name one of these.",
            )
        self.column = labels[label]

    def __call__(self, texts: Sequence[str], sources: Sequence[str]) -> np.ndarray:
        """[text] probability of the label, float64.

        Args:
            texts: What to judge.
            sources: What each is to be faithful to; only a classifier of pairs reads them.
        """
        found = np.empty(len(texts))
        # Texts of like length together, so that little is padded.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), self.rows):
            some = order[start : start + self.rows]
            found[some] = self._read([texts[n] for n in some], [sources[n] for n in some])
        return found

    def _read(self, texts: list[str], sources: list[str]) -> np.ndarray:
        given = (sources, texts) if self.paired else (texts,)
        with warnings.catch_warnings(), torch.inference_mode():
            # That a pair which is too long is cut at its longer text.
            warnings.simplefilter("ignore", UserWarning)
            batch = self.tokenizer(
                *given, padding=True, truncation=True, max_length=self._most, return_tensors="pt"
            )
            logits = self.net(**batch.to(self.net.device)).logits.double()
        return self._probability(logits).cpu().numpy()

    @property
    def _most(self) -> int:
        limits = (
            self.tokenizer.model_max_length,
            getattr(self.net.config, "max_position_embeddings", LENGTH),
        )
        return min(LENGTH, *(int(limit) for limit in limits if limit and limit > 1))

    def _probability(self, logits: torch.Tensor) -> torch.Tensor:
        several = self.net.config.problem_type == "multi_label_classification"
        if several or logits.shape[1] == 1:
            # Labels that do not shut each other out.
            return logits[:, self.column].sigmoid()
        return logits.softmax(1)[:, self.column]
