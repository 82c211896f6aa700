"""Both models' activations by hand, under the names that TransformerLens gives them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from driftlens.errors import DriftlensError

from .model import Model, Wants
from .sites import HOOKS, Part, Site, unknown
from .tokens import Batch

if TYPE_CHECKING:
    from .pair import ModelPair

NAMES: dict[Part, str] = {part: hook for hook, part in reversed(HOOKS.items())}
"""The first name of each part in a block."""

Filter = str | Site | Sequence[str | Site] | Callable[[str], bool] | None


class Cache(Mapping[str, Tensor]):
    """One model's activations: by TransformerLens' names, or by any other of a site.

    Args:
        kept: For each site, its tensor.
    """

    def __init__(self, kept: Mapping[Site, Tensor]) -> None:
        self._kept = dict(sorted(kept.items()))

    def __getitem__(self, name: str | Site) -> Tensor:
        """[batch, token, width] the activation at a site.

        Raises:
            KeyError: It was not kept.
            DriftlensError: There is no such name.
        """
        site = Site.of(name)
        if site not in self._kept:
            raise KeyError(f"{site} was not kept; kept are {', '.join(self)}")
        return self._kept[site]

    def get(self, name: Any, default: Any = None) -> Any:
        """The activation at a site, or `default` where it was not kept or there is none."""
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return map(hook_name, self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str | Site) and Site.of(name) in self._kept
        except DriftlensError:
            # What is no site's name is in no cache.
            return False


@dataclass(frozen=True)
class PairCache:
    """What both models showed of the same tokens."""

    tokens: Tensor
    """[batch, token] ids."""

    mask: Tensor
    """[batch, token] true where a token stands, false on padding, which is on the right."""

    base: Cache
    aligned: Cache

    def both(self, name: str | Site) -> tuple[Tensor, Tensor]:
        """[batch, token, width] of base and of aligned."""
        return self.base[name], self.aligned[name]

    def difference(self, name: str | Site) -> Tensor:
        """[batch, token, width] aligned − base."""
        base, aligned = self.both(name)
        return aligned.to(base.device) - base


def hook_name(site: Site) -> str:
    """What TransformerLens calls a site."""
    return f"blocks.{site.layer}.{NAMES[site.part]}"


def run_with_cache(
    pair: "ModelPair",
    texts: str | Sequence[str] | Tensor,
    names_filter: Filter = None,
    *,
    logits: bool = True,
    remote: bool | str = False,
) -> tuple[tuple[Tensor, Tensor] | None, PairCache]:
    """Show texts to both models, and keep what they make of them.

    Args:
        pair: The two models.
        texts: A text, several, or [token] or [batch, token] ids without padding.
        names_filter: Which sites to keep: a name, several, or what says of TransformerLens' name
            whether to keep it; None is all. Any name of a site will do.
        logits: Whether to read out the logits too.
        remote: Whether two nnsight models are to run on NDIF; `local` is nnsight's dry run. Only
            the dry run is tested.

    Returns:
        [batch, token, vocab] logits of base and of aligned, or None; and the cache.

    Raises:
        DriftlensError: No site has such a name, the two tokenizers cut a text otherwise, or a
            model cannot run remotely.
    """
    batch = _batch(pair, texts)
    sites = _sites(pair.base, names_filter)
    found = [
        _remote(model, batch, sites, remote) if remote else _look(model, batch, sites, logits)
        for model in dict.fromkeys((pair.base, pair.aligned))
    ]
    (ours, base), (theirs, aligned) = found[0], found[-1]
    both = (ours, theirs) if logits and ours is not None and theirs is not None else None
    return both, PairCache(batch.ids, batch.mask, base, aligned)


def _look(
    model: Model, batch: Batch, sites: frozenset[Site], logits: bool
) -> tuple[Tensor | None, Cache]:
    wants = Wants(frozenset(s.part for s in sites), frozenset(s.layer for s in sites))
    trace = model.trace(batch, wants)
    cache = Cache({site: trace.activations[site] for site in sites})
    if not logits:
        return None, cache
    rows = trace.last.flatten(0, 1)
    return model.readout(rows).unflatten(0, batch.ids.shape), cache


def _remote(
    model: Model, batch: Batch, sites: frozenset[Site], remote: bool | str
) -> tuple[Tensor, Cache]:
    if not hasattr(model, "remotely"):
        raise DriftlensError(
            "an nnsight model, to run remotely",
            found=type(model).__name__,
            remedy="Load the pair with backend='nnsight', or hand in two nnsight models.",
        )
    logits, kept = model.remotely(batch, sites, remote)
    return logits, Cache(kept)


def _sites(model: Model, names: Filter) -> frozenset[Site]:
    has: Callable[[Site], bool] = getattr(model, "has", lambda _: True)
    every = [Site(layer, part) for layer in range(model.depth) for part in NAMES]
    every = [site for site in every if has(site)]
    if names is None:
        return frozenset(every)
    if callable(names):
        return frozenset(site for site in every if names(hook_name(site)))
    asked = [names] if isinstance(names, str | Site) else names
    for name in asked:
        if Site.of(name) not in every:
            raise unknown(str(name), map(hook_name, every))
    return frozenset(map(Site.of, asked))


def _batch(pair: "ModelPair", texts: str | Sequence[str] | Tensor) -> Batch:
    if isinstance(texts, Tensor):
        ids = _checked(texts[None] if texts.ndim == 1 else texts)
        return _whole(ids, torch.ones_like(ids, dtype=torch.bool))
    texts = [texts] if isinstance(texts, str) else texts
    ours, theirs = ([m.tokenizer(t)["input_ids"] for t in texts] for m in (pair.base, pair.aligned))
    if ours != theirs:
        raise DriftlensError(
            "two tokenizers that cut these texts alike, to show both models the same tokens",
            found=f"those of {pair.base.name} and {pair.aligned.name}, which do not",
            remedy="Give token ids, or use frames(), which finds the same places of the texts.",
        )
    if not all(ours) or not ours:
        raise DriftlensError(
            "texts of at least one token each",
            found="one without" if ours else "no text",
            remedy="Leave out what is empty.",
        )
    rows = [torch.tensor(row) for row in ours]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return _whole(ids, torch.arange(ids.shape[1]) < lengths[:, None])


def _checked(ids: Tensor) -> Tensor:
    """[batch, token] ids as they are, or an error that says why they are none."""
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim == 2 and ids.numel() and whole and int(ids.min()) >= 0:
        return ids.long()
    raise DriftlensError(
        "[token] or [batch, token] ids: whole numbers from 0, at least one",
        found=f"{str(ids.dtype).removeprefix('torch.')} of shape {[*ids.shape]}"
        + (f", of which the least is {ids.min()}" if ids.numel() and whole else ""),
        remedy="Give what a tokenizer makes of texts, or the texts.",
    )


def _whole(ids: Tensor, mask: Tensor) -> Batch:
    """A batch of which nothing is scored."""
    none = torch.zeros(0, dtype=torch.long)
    return Batch(ids.cpu(), mask.cpu(), (none, none), (none, none), none)
