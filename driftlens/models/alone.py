"""A model that is run one row at a time: the same numbers, by another order of arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor

from .model import Edits, Model, Trace, Wants
from .tokens import Batch

ROWS = 7
"""How many rows a readout takes at once."""


class Alone:
    """The same model, run without its batch: each row by itself, unpadded.

    Paired with the model itself it shows how far numbers move when nothing is different but
    the order of arithmetic. That is the noise floor of every diagnostic.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name, self.tokenizer = model.name, model.tokenizer
        self.depth, self.width, self.vocabulary = model.depth, model.width, model.vocabulary
        self.context, self.causal = model.context, model.causal

    def trace(self, batch: Batch, wants: Wants = Wants(), edits: Edits | None = None) -> Trace:
        """What the model shows of each row alone."""
        rows = [
            self.model.trace(
                batch.row(i),
                wants,
                {s: _of_row(edit, i, batch.ids.shape) for s, edit in (edits or {}).items()},
            )
            for i in range(len(batch.ids))
        ]
        width = batch.ids.shape[1]
        return Trace(
            batch.to(rows[0].last.device),
            _stack([row.last for row in rows], width),
            torch.cat([row.predictors for row in rows]),
            {s: _stack([r.activations[s] for r in rows], width) for s in rows[0].activations},
            {s: _stack([r.gradients[s] for r in rows], width) for s in rows[0].gradients},
        )

    def resume(self, batch: Batch, layer: int, stream: Tensor) -> Tensor:
        """[scored token, width] predictors of each row alone."""
        rows = [batch.row(i) for i in range(len(batch.ids))]
        return torch.cat(
            [
                self.model.resume(row, layer, stream[i : i + 1, : row.ids.shape[1]])
                for i, row in enumerate(rows)
            ]
        )

    def readout(self, stream: Tensor, room: Tensor | None = None) -> Tensor:
        """[row, vocab] logits, a few rows at a time."""
        return torch.cat([self.model.readout(rows) for rows in stream.split(ROWS)])


def _of_row(
    edit: Callable[[Tensor], Tensor], number: int, shape: torch.Size
) -> Callable[[Tensor], Tensor]:
    """An edit of a whole batch, for one row of it alone."""

    def cut(stream: Tensor) -> Tensor:
        whole = stream.new_zeros(*shape, stream.shape[-1])
        whole[number, : stream.shape[1]] = stream[0]
        return edit(whole)[number : number + 1, : stream.shape[1]]

    return cut


def _stack(rows: list[Tensor], width: int) -> Tensor:
    return torch.cat(
        [torch.nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows]
    )
