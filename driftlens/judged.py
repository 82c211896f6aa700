"""What judges said of both models' texts: how toxic each is, and how faithful.

The scores are the caller's own, or a classifier's that the caller names. No model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DriftlensError
from .packs import named, string, table, wrong

MODELS = ("base", "aligned")
SCORES = ("toxicity", "faithfulness")

FORM = "Give base_toxicity, aligned_toxicity, base_faithfulness and aligned_faithfulness on a row."


@dataclass(frozen=True)
class Judged:
    """Scores of the same items for both models."""

    name: str
    ids: tuple[str, ...]
    """[item] what it is called."""
    topics: tuple[str, ...]
    """[item] its topic, or nothing."""
    toxicity: np.ndarray
    """[item, model] score of base and of aligned; more is more toxic."""
    faithfulness: np.ndarray
    """[item, model] score of base and of aligned; more is more faithful."""
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: str | Path, name: str | None = None) -> "Judged":
        """Read scores: JSONL or Parquet, gzipped or not; `-` is standard input.

        A row holds `base_toxicity`, `aligned_toxicity`, `base_faithfulness` and
        `aligned_faithfulness`, and perhaps `id` and `topic`. Or it holds one model's: `id`, `model`
        (base or aligned), `toxicity` and `faithfulness`; of several rows of one id and one model,
        as of several answers to one prompt, the mean is taken.

        Raises:
            LoadError: The file is missing or cannot be read.
            DriftlensError: A row is broken, or no item has all four scores.
        """
        file = str(file)
        rows = table(file)
        told = [_scores(number, *row) for number, row in enumerate(rows)]
        return cls.of(name or named(file), [one for many in told for one in many])

    @classmethod
    def of(cls, name: str, told: Sequence["Told"]) -> "Judged":
        """Scores from what was told of single texts."""
        sums: dict[str, np.ndarray] = {}
        topics: dict[str, str] = {}
        for one in told:
            both = sums.setdefault(one.id, np.zeros((2, len(MODELS), len(SCORES))))
            side = MODELS.index(one.model)
            known = np.isfinite(one.scores)
            both[0, side, known] += np.array(one.scores)[known]
            both[1, side, known] += 1
            topics[one.id] = topics.get(one.id) or one.topic
        whole = [name for name, (_, counts) in sums.items() if (counts > 0).all()]
        if not whole:
            raise DriftlensError(
                f"items with the scores of both models in {name}",
                found=f"{len(sums)} items, none with all four" if sums else "no rows",
                remedy=FORM,
            )
        scores = np.stack([sums[one][0] / sums[one][1] for one in whole])
        notes = []
        if len(whole) < len(sums):
            some = f"{len(sums) - len(whole)} of {len(sums)} items"
            notes.append(f"{some} lack a score and are left out.")
        if any((sums[one][1] > 1).any() for one in whole):
            notes.append("Of several texts of one item and one model the mean score is taken.")
        order = tuple(topics[one] for one in whole)
        return cls(name, tuple(whole), order, scores[..., 0], scores[..., 1], tuple(notes))


@dataclass(frozen=True)
class Told:
    """What was told of one text of one model."""

    id: str
    model: str
    scores: tuple[float, float]
    """Toxicity and faithfulness; NaN of what was not told."""
    topic: str = ""


@dataclass(frozen=True)
class Text:
    """A text of one model, to be judged."""

    id: str
    model: str
    text: str
    source: str = ""
    """What it is to be faithful to: its prompt, or the text that it rewrites."""
    topic: str = ""


def texts(file: str | Path) -> list[Text]:
    """The texts of both models in a file, to be judged by classifiers.

    A row holds `base_text` and `aligned_text`, or `model` and `text`; and perhaps `id`, `topic` and
    what the texts are to be faithful to, as `source` or else `prompt`.

    Raises:
        LoadError: The file is missing or cannot be read.
        DriftlensError: A row is broken, or there are none.
    """
    found = [one for number, row in enumerate(table(file)) for one in _texts(number, *row)]
    if not found:
        raise DriftlensError(
            f"texts in {file}", found="none", remedy="Give base_text and aligned_text on a row."
        )
    return found


Judge = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Gives [text] a score for texts and what they are to be faithful to."""


def judged(name: str, found: Sequence[Text], toxicity: Judge, faithfulness: Judge) -> Judged:
    """The scores that judges give to texts.

    Args:
        name: What to call the texts.
        found: The texts of both models.
        toxicity: Says how toxic texts are.
        faithfulness: Says how faithful they are to their sources.
    """
    both = [one.text for one in found], [one.source for one in found]
    scores = np.stack([toxicity(*both), faithfulness(*both)], 1)
    return Judged.of(
        name,
        [
            Told(one.id, one.model, (float(row[0]), float(row[1])), one.topic)
            for one, row in zip(found, scores, strict=True)
        ],
    )


def _scores(number: int, where: str, record: Mapping[str, Any]) -> list[Told]:
    called, topic = _called(number, record), string(where, record, "topic", "")
    if "model" in record:
        scores = _number(where, record, SCORES[0]), _number(where, record, SCORES[1])
        return [Told(called, _model(where, record), scores, topic)]
    wide = [f"{model}_{score}" for model in MODELS for score in SCORES]
    if not any(name in record for name in wide):
        raise DriftlensError(
            f"scores of both models on {where}",
            found=f"fields {', '.join(map(repr, record)) or 'none'}",
            remedy=FORM,
        )
    numbers = [_number(where, record, name) for name in wide]
    pairs = (numbers[0], numbers[1]), (numbers[2], numbers[3])
    return [Told(called, model, two, topic) for model, two in zip(MODELS, pairs, strict=True)]


def _texts(number: int, where: str, record: Mapping[str, Any]) -> list[Text]:
    called, topic = _called(number, record), string(where, record, "topic", "")
    source = string(where, record, "source" if "source" in record else "prompt", "")
    if "model" in record:
        text = string(where, record, "text")
        return [Text(called, _model(where, record), text, source, topic)]
    return [
        Text(called, model, string(where, record, f"{model}_text"), source, topic)
        for model in MODELS
    ]


def _called(number: int, record: Mapping[str, Any]) -> str:
    """What an item is called; its number, if it is called nothing."""
    told = record.get("id")
    return str(number) if told is None else str(told)


def _model(where: str, record: Mapping[str, Any]) -> str:
    told = string(where, record, "model")
    if told not in MODELS:
        raise wrong(where, "model", "base or aligned", told)
    return told


def _number(where: str, record: Mapping[str, Any], name: str) -> float:
    """A score; NaN where none is told."""
    told = record.get(name)
    if told is None:
        return float("nan")
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise wrong(where, name, "a number", told)
    return float(told) if isfinite(told) else float("nan")
