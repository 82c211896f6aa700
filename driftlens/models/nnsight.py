"""An nnsight model as a back-end: the same sites, read and edited in its traces.

nnsight leaves the net as it was found, so that all that works on weights works on the net itself.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from driftlens.errors import DriftlensError

from .hooks import HookedModel, Seen, first, passing, with_first
from .model import Edits
from .sites import Site
from .tokens import Batch

ORDER = ("in", "heads", "attn", "mlp", "out")
"""Parts of a block as they run; a trace must name places in that order."""


class TracedModel(HookedModel):
    """A language model that is looked into by traces of nnsight.

    Args:
        traced: An nnsight `TransformersModel` or `LanguageModel`.
        tokenizer: The tokenizer, if not its own.
        **named: `name` and `around`, as of `HookedModel`.

    Without weights it can only be asked for what it shows elsewhere, by `remotely`.

    Raises:
        DriftlensError: It holds edits that would stand in every trace.
    """

    backend = "nnsight"

    def __init__(self, traced: Any, tokenizer: Any = None, **named: Any) -> None:
        _check(traced)
        own = tokenizer or vars(traced).get("tokenizer")
        super().__init__(traced._module, own, **named)
        self.traced = traced

    @property
    def absent(self) -> bool:
        """Whether its weights are not here."""
        # Asked at every trace; and what is offloaded is absent from the net, but not from here.
        return not getattr(self.traced, "dispatched", True)

    def has(self, site: Site) -> bool:
        """Whether there is such a place; without weights only streams can be told from others."""
        return site.part in ("in", "out") if self.absent else super().has(site)

    def remotely(
        self, batch: Batch, sites: Iterable[Site], remote: bool | str = True
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """What it shows where nnsight keeps it, on NDIF: never run by our tests but in a dry run.

        Args:
            batch: What to read.
            sites: Where to look.
            remote: Handed on to nnsight; `local` is its dry run in this process.

        Returns:
            [batch, token, vocab] logits, and for each site [batch, token, width] its tensor.
        """
        places = sorted(sites, key=_turn)
        entered = [site.part in ("in", "heads") for site in places]
        envoys = [self._envoys[self._place(site)] for site in places]
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        logits, kept = _shown(self.traced, inputs, entered, envoys, remote)
        shape = (*batch.ids.shape, -1)
        found = {
            site: first(given).reshape(shape).detach()
            for site, given in zip(places, kept, strict=True)
        }
        return logits.detach(), found

    def _run(self, batch: Batch, sites: Iterable[Site], edits: Edits) -> Mapping[Site, Tensor]:
        """Run the blocks over `batch` with `edits` in place, and keep what passes `sites`."""
        if self.absent:
            raise DriftlensError(
                "an nnsight model whose weights are loaded",
                found="one that was not dispatched",
                remedy="Load it with dispatch=True, or look by run_with_cache(…, remote=True).",
            )
        wanted, seen = frozenset(sites), Seen()
        places = sorted(wanted | frozenset(edits), key=_turn)
        envoys = [(site, self._envoys[self._place(site)]) for site in places]
        through = passing(batch, wanted, edits, seen, self.alters)
        inputs = self._inputs(batch)
        # Only the blocks are run, and nothing is done to what they are given.
        with self.traced.trace(batch.ids, fn=lambda *_, **__: self.body(**inputs)):
            for site, envoy in envoys:
                if site.part in ("in", "heads"):
                    envoy.input = through(site, envoy.input)
                else:
                    given = envoy.output
                    envoy.output = with_first(given, through(site, first(given)))
        if seen.altered:
            self.alters = True
            return self._run(batch, sites, edits)
        return seen

    @cached_property
    def _envoys(self) -> Mapping[nn.Module, Any]:
        """By each module, how nnsight names it."""
        return {envoy._module: envoy for envoy in self.traced.modules()}


def wrap(net: nn.Module, tokenizer: Any) -> Any:
    """An nnsight model of a net, each of whose modules is told of by it from then on."""
    try:
        from nnsight import TransformersModel
    except ImportError as error:
        raise DriftlensError(
            "nnsight from 0.8.1, below 0.9",
            found=str(error),
            remedy="Type: pip install 'nnsight>=0.8.1,<0.9'.",
        ) from None
    # It would change on which side the tokenizer pads.
    own, masked = copy.deepcopy(tokenizer), type(net).__name__.endswith("ForMaskedLM")
    task = "fill-mask" if masked else "text-generation"
    with warnings.catch_warnings():
        # Of parts that have the name of an attribute; we never ask for a part by its name.
        warnings.filterwarnings("ignore", ".*which nnsight already serves", UserWarning)
        return TransformersModel(net, tokenizer=own, task=task)


def _check(traced: Any) -> None:
    if traced._edits:
        raise DriftlensError(
            "an nnsight model that runs as its weights say",
            found=f"{len(traced._edits)} edits that stand in every trace",
            remedy="Call clear_edits() on it first.",
        )


def _turn(site: Site) -> tuple[int, int]:
    """When a place is met in a pass."""
    return site.layer, ORDER.index(site.part)


def _shown(traced: Any, inputs: dict, entered: list, envoys: list, remote: bool | str) -> tuple:
    """Logits, and what entered or left some modules.

    The block below is sent away, so that nothing in it may be of ours.
    """
    import nnsight

    with traced.trace(**inputs, remote=remote):
        kept = []
        for place in range(len(envoys)):
            kept.append(envoys[place].input if entered[place] else envoys[place].output)
        logits = traced.output.logits
        nnsight.save(kept)
        nnsight.save(logits)
    return logits, kept
