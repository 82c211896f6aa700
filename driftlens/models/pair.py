"""A base model beside its aligned version."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.formulas.divergence import Comparison, Said, compare, said
from driftlens.formulas.preferences import Answers
from driftlens.formulas.quadrature import gauss
from driftlens.formulas.words import KINDS, kinds
from driftlens.packs import Pack

from .explore import Filter, PairCache, run_with_cache
from .generation import Answer, Sampling, answers, fits, mute
from .gradients import Gradients, Products, trainable
from .hybrid import Hybrid, Slopes, hybrid, plain
from .load import load_pair
from .matching import Matching, match
from .model import Model, Trace, Wants, called, likelihoods, rows_of
from .pieces import Piece
from .sites import EMBED, Site
from .stored import Stored
from .tokens import Encoder, Units, Window, shared_vocabulary

LENGTH = 1024
"""The longest window that is read unless the caller asks for another."""


@dataclass(frozen=True)
class ModelPair:
    """A base model and its aligned version.

    A pair of a model with itself drifts nowhere, and is every metric's null control.

    Raises:
        DriftlensError: They differ in depth, in width, or in what they are for.
    """

    base: Model
    aligned: Model

    def __post_init__(self) -> None:
        for what, name in (("number of blocks", "depth"), ("width", "width"), ("use", "causal")):
            ours, theirs = getattr(self.base, name), getattr(self.aligned, name)
            if ours != theirs:
                raise DriftlensError(
                    f"two models with the same {what}",
                    found=f"{self.base.name} with {name} {ours}, {self.aligned.name} with {theirs}",
                    remedy="Compare versions of one architecture.",
                )

    def __repr__(self) -> str:
        base, aligned = (called(model.name) for model in (self.base, self.aligned))
        both = base if self.base is self.aligned else f"{base} → {aligned}"
        return f"<ModelPair {both}: {self.depth} blocks of width {self.width}>"

    @classmethod
    def load(cls, base: object, aligned: object, **options: Any) -> "ModelPair":
        """Load both models; each may be a name, a folder or a live model.

        Args:
            base: A hub id, a local folder, `demo:base`, a live `transformers` model, a live
                `TransformerBridge` or nnsight model.
            aligned: The same, or the folder of a PEFT adapter, or a live `PeftModel`. An adapter
                shares the base's weights and is never merged.
            **options: Those of `driftlens.models.load.load_pair`: `device`, `device_map`,
                `base_device`, `aligned_device`, `dtype`, `allow_mixed_dtypes`, `revision`,
                `aligned_revision`, `trust_remote_code`, `attn_implementation`,
                `local_files_only`, `tokenizer`, `backend`.

        Raises:
            LoadError: A model is missing, has no safetensors, or lacks weights.
            DriftlensError: The two cannot be compared.
        """
        return cls(*load_pair(base, aligned, **options))

    @classmethod
    def alone(cls, model: object, **options: Any) -> "ModelPair":
        """A model beside itself, loaded once; `options` are those of `load`."""
        return cls.load(model, model, **options)

    def run_with_cache(
        self,
        texts: Any,
        names_filter: Filter = None,
        *,
        logits: bool = True,
        remote: bool | str = False,
    ) -> tuple[tuple[Tensor, Tensor] | None, PairCache]:
        """Both models' logits and activations of some texts, for looking at them by hand.

        Args:
            texts: A text, several, or [batch, token] ids.
            names_filter: Which sites to keep, by any of their names, or a function of
                TransformerLens' names; None is all.
            logits: Whether to read out the logits too.
            remote: Whether two nnsight models are to run on NDIF.

        Returns:
            [batch, token, vocab] logits of base and of aligned (None if not asked for), and a
            `PairCache`, whose `base` and `aligned` are read by such names as
            `blocks.3.hook_resid_post`.

        Raises:
            DriftlensError: No site has such a name, or the two tokenizers differ.
        """
        return run_with_cache(self, texts, names_filter, logits=logits, remote=remote)

    @property
    def depth(self) -> int:
        """Number of blocks of either model."""
        return self.base.depth

    @property
    def width(self) -> int:
        """Width of either model's residual stream."""
        return self.base.width

    @property
    def together(self) -> bool:
        """Whether both models are alive at once; else base's pass is over, and lies in a store."""
        return not isinstance(self.base, Stored)

    @cached_property
    def mute(self) -> str:
        """Why not both models can answer prompts, in words; empty if they can."""
        found = ((model, mute(model)) for model in (self.base, self.aligned))
        return next((f"{model.name}: {why}" for model, why in found if why), "")

    @property
    def readouts(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """What base reads from [row, width] last streams, and what aligned does, side by side.

        The logits stand where base's do, and either reads the other's streams, though the two may
        lie on different devices or compute in different dtypes.
        """
        here = getattr(self.base, "device", None)

        def read(model: Model, stream: Tensor) -> Tensor:
            own = getattr(model, "dtype", None) if self.mixed else None
            logits = model.readout(stream if own is None else stream.to(own))
            return logits if here is None else logits.to(here)

        return partial(read, self.base), partial(read, self.aligned)

    @cached_property
    def mixed(self) -> bool:
        """Whether the two compute in different dtypes."""
        return getattr(self.base, "dtype", None) != getattr(self.aligned, "dtype", None)

    @cached_property
    def shared(self) -> tuple[Tensor, Tensor] | None:
        """Ids of base and of aligned for the same token strings; None if all are the same."""
        if self.base is self.aligned:
            return None
        sizes = (self.base.vocabulary, self.aligned.vocabulary)
        return shared_vocabulary(self.base.tokenizer, self.aligned.tokenizer, sizes)

    @cached_property
    def hybrid(self) -> Hybrid:
        """What stands between the two models, weight by weight.

        Raises:
            DriftlensError: Their weights cannot be matched by name and shape.
        """
        return hybrid(self.base, self.aligned)

    def matched(self) -> tuple["ModelPair", Matching]:
        """The pair with aligned's weights in the bases nearest to base's, and what that took.

        The models are the same, and so is what they say; only the path of weights between them
        and their grafts change. Where nothing fits better otherwise, nothing is changed.

        Raises:
            DriftlensError: Their weights cannot be matched by name and shape.
        """
        matching = match(plain(self.base), plain(self.aligned))
        if not matching.weights:
            return self, matching
        pair = ModelPair(self.base, self.aligned)
        # Stands where the property would put it.
        vars(pair)["hybrid"] = hybrid(self.base, self.aligned, matching.weights)
        return pair, matching

    def gradients(self, trained: tuple[str, ...] = ("*",)) -> Gradients:
        """Aligned's gradients by the parameters that some patterns name.

        Raises:
            DriftlensError: A pattern names no parameter, or the model's are out of reach.
        """
        if trained not in self._gradients:
            model = plain(self.aligned)
            self._gradients[trained] = Gradients(model, trainable(model, trained))
        return self._gradients[trained]

    @cached_property
    def _gradients(self) -> dict[tuple[str, ...], Gradients]:
        return {}

    def encoder(self, pack: Pack, length: int | None = None) -> Encoder:
        """The pack as both models' tokens, in windows of at most `length` tokens."""
        limits = [n for n in (self.base.context, self.aligned.context) if n is not None]
        length = min([length or LENGTH, *limits])
        tokenizers = (self.base.tokenizer, self.aligned.tokenizer)
        return Encoder(pack, tokenizers, length, masked=not self.base.causal)

    def frames(
        self,
        pack: Pack,
        wants: Wants = Wants(),
        *,
        rows: int | None = None,
        tokens: int = 2048,
        length: int | None = None,
    ) -> Iterator["Frame"]:
        """Show `pack` to both models, `rows` windows or about `tokens` tokens at a time."""
        encoder = self.encoder(pack, length)
        for windows in encoder.batches(tokens, rows):
            yield self.frame(encoder, windows, wants)

    def frame(self, encoder: Encoder, windows: Sequence[Window], wants: Wants = Wants()) -> "Frame":
        """Show a few windows to both models.

        Raises:
            DriftlensError: A model's numbers are not finite; says which model, layer and document.
        """
        ours, theirs, units = encoder.encode(windows)
        base = self.base.trace(ours, wants)
        aligned = base if self.aligned is self.base else self.aligned.trace(theirs, wants)
        frame = Frame(self, encoder, tuple(windows), units, base, aligned)
        for model, trace in ((self.base, base), (self.aligned, aligned)):
            if not bool(trace.last[trace.batch.mask].isfinite().all()):
                raise _not_finite(model, trace, frame)
        return frame


@dataclass(frozen=True)
class Frame:
    """One batch of windows as both models saw it."""

    pair: ModelPair
    encoder: Encoder
    windows: tuple[Window, ...]
    units: Units
    base: Trace
    aligned: Trace

    def both(self, site: Site | str) -> tuple[Tensor, Tensor]:
        """[unit, width] activations of base and of aligned, at the same places of the texts.

        Both stand where base reads its ids, wherever their blocks are.
        """
        here = self.base.last.device
        return self.base.at(site).to(here), self.aligned.at(site).to(here)

    @cached_property
    def scored(self) -> Units:
        """Where the scored units stand."""
        return self.units.of_scored()

    @cached_property
    def comparison(self) -> Comparison:
        """Both models' predictions of each scored token. Needs both to read the same tokens."""
        base, aligned = self.pair.readouts
        pieces = [
            compare(
                base(b),
                base(b) if a is b else aligned(a),
                x,
                y.to(x.device),
                self.pair.shared,
            )
            for b, a, x, y in self._chunks()
        ]
        whole = Comparison(*(torch.cat(column).cpu() for column in zip(*pieces, strict=True)))
        for model, trace, column in (
            (self.pair.base, self.base, whole.base_logprob),
            (self.pair.aligned, self.aligned, whole.aligned_logprob),
        ):
            self._check(model, trace, column)
        return whole

    @cached_property
    def likelihoods(self) -> tuple[Tensor, Tensor]:
        """[scored unit] log-likelihood of each by base and by aligned, in nats, float64."""
        if self.encoder.same:
            base, aligned = self.comparison.base_logprob, self.comparison.aligned_logprob
            return base.double(), aligned.double()
        return (
            self.likelihood_of(self.pair.base, self.base, self.base.predictors),
            self.likelihood_of(self.pair.aligned, self.aligned, self.aligned.predictors),
        )

    @cached_property
    def restored(self) -> Tensor:
        """[boundary, scored unit] log-likelihoods with base below each boundary, aligned above.

        Boundaries lie below the embedding (all is aligned), above it, above each block, and
        above the head (all is base). Putting base's stream at all positions above a block is
        the same as putting base's weights below it, as long as the stream is all that blocks
        hand on. Each run starts at its boundary. float64, in nats.
        """
        return self.restored_said.logprob

    @cached_property
    def corrupted(self) -> Tensor:
        """[boundary, scored unit] the same with aligned below each boundary and base above."""
        return self.corrupted_said.logprob

    @cached_property
    def restored_said(self) -> Said:
        """[boundary, scored unit] of each field: what `restored` is read from, and how sure.

        Floats are float64.
        """
        return self._hybrids(self.base, self.pair.aligned, self.aligned, self._whole)

    @cached_property
    def corrupted_said(self) -> Said:
        """[boundary, scored unit] of each field: the same of `corrupted`."""
        return self._hybrids(self.aligned, self.pair.base, self.base, self._whole[::-1])

    @cached_property
    def _whole(self) -> tuple[Said, Said]:
        """What base and aligned say of each scored unit."""
        c = self.comparison
        return (
            _wide(Said(c.base_logprob, c.base_entropy, c.base_top_logprob, c.base_rank == 0)),
            _wide(
                Said(
                    c.aligned_logprob, c.aligned_entropy, c.aligned_top_logprob, c.aligned_rank == 0
                )
            ),
        )

    def _hybrids(self, below: Trace, model: Model, above: Trace, ends: tuple[Said, ...]) -> Said:
        runs = [ends[1]]
        for layer in range(-1, self.pair.depth):
            site = EMBED if layer < 0 else Site(layer)
            own = above.activations[site]
            stream = below.activations[site].to(own)
            if torch.equal(stream, own):
                runs.append(ends[1])
                continue
            predictors = model.resume(above.batch, layer, stream)
            runs.append(self._said_of(model, above, predictors))
        return Said(*(torch.stack(column) for column in zip(*runs, ends[0], strict=True)))

    def _said_of(self, model: Model, trace: Trace, predictors: Tensor) -> Said:
        """What `model` says of [scored token, width] predictors, which are units of one token."""
        rows, room = rows_of(model.vocabulary), self._room(model.vocabulary, predictors)
        pieces = zip(predictors.split(rows), trace.batch.targets.split(rows), strict=True)
        parts = [said(model.readout(p, room), t) for p, t in pieces]
        found = _wide(Said(*(torch.cat(column).cpu() for column in zip(*parts, strict=True))))
        self._check(model, trace, found.logprob)
        return found

    def grafted(self, aligned: Collection[Piece]) -> Tensor:
        """[scored unit] log-likelihoods with aligned's weights in some pieces, base's elsewhere.

        Each set of pieces is run once, from the lowest stage in which it differs from the set
        before it. float64, in nats.
        """
        chosen = frozenset(aligned)
        if chosen not in self._grafts.found:
            self._grafts.found[chosen] = self._grafted(chosen)
        return self._grafts.found[chosen]

    @cached_property
    def _grafts(self) -> "_Grafts":
        return _Grafts()

    def _grafted(self, chosen: frozenset[Piece]) -> Tensor:
        last, stages = self._grafts, self.pair.hybrid.stages(chosen)
        alike = zip(stages, last.stages, strict=False)
        # Stage 0 is the embedding, and block n is stage n + 1.
        same = next((n for n, (one, other) in enumerate(alike) if one != other), 0)
        with self.pair.hybrid.grafted(chosen) as model:
            if same and self.pair.hybrid.resumes:
                layer = same - 2
                stream = last.streams[EMBED if layer < 0 else Site(layer)]
                predictors = model.resume(self.base.batch, layer, stream, last.streams)
            else:
                trace = model.trace(self.base.batch, Wants(frozenset({"out"}), None))
                last.streams, predictors = dict(trace.activations), trace.predictors
            last.stages = stages
            return self.likelihood_of(model, self.base, predictors)

    def path(self, nodes: int, heads: bool = False) -> "Path":
        """What the weights do along the straight path from base to aligned, at Gauss nodes.

        Args:
            nodes: How many points of the path to look at; each costs a forward and a backward
                pass, and one forward pass of what the change of the weights does.
            heads: Whether to divide what attention does among its heads too.
        """
        if not heads and (nodes, True) in self._paths:
            return replace(self._paths[nodes, True], heads={})
        if (nodes, heads) not in self._paths:
            self._paths[nodes, heads] = self._path(nodes, heads)
        return self._paths[nodes, heads]

    @cached_property
    def _paths(self) -> dict[tuple[int, bool], "Path"]:
        return {}

    def _path(self, nodes: int, heads: bool) -> "Path":
        alphas, weights = gauss(nodes)
        batch, mine = self.base.batch, []
        acts: dict[str, Tensor] = {}
        divided: dict[str, Tensor] = {}
        for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
            slopes = self._slopes(alpha, heads)
            mine.append(self._by_unit(self.base, slopes.likelihood))
            for found, given in ((acts, slopes.acts), (divided, slopes.heads)):
                for path, act in given.items():
                    found[path] = found.get(path, 0) - weight * act.cpu()
        return Path(batch.ids.shape, acts, divided, alphas, torch.stack(mine), self._ends)

    def outset(self, heads: bool = False) -> "Acts":
        """What the weights would do if the path went on as it sets out from base.

        Args:
            heads: Whether to divide what attention does among its heads too.
        """
        if heads not in self._outsets:
            slopes = self._slopes(0.0, heads)
            given = ({n: -act.cpu() for n, act in z.items()} for z in (slopes.acts, slopes.heads))
            self._outsets[heads] = Acts(self.base.batch.ids.shape, *given)
        return self._outsets[heads]

    @cached_property
    def _outsets(self) -> dict[bool, "Acts"]:
        return {}

    def _slopes(self, alpha: float, heads: bool) -> Slopes:
        slopes = self.pair.hybrid.slopes(self.base.batch, alpha, heads)
        self._check(self.pair.hybrid.model, self.base, slopes.likelihood.cpu())
        return slopes

    @cached_property
    def _ends(self) -> Tensor:
        """[2, scored unit] likelihoods of base and of aligned as the path has them."""
        if not self.pair.hybrid.promoted:
            return torch.stack(self.likelihoods)
        found = (self.pair.hybrid.likelihoods(self.base.batch, alpha) for alpha in (0.0, 1.0))
        return torch.stack([self._by_unit(self.base, likelihood) for likelihood in found])

    def said(self, sampling: Sampling) -> tuple[list[Answer], list[Answer]]:
        """What base and aligned answer to the prompts that end in this frame.

        Both are asked, each as its own tokenizer reads them, and drawn by the same numbers. They
        are asked once, whoever wants to know. A prompt that leaves no room for an answer in either
        context is left out.

        Raises:
            DriftlensError: One of them cannot generate.
        """
        if sampling not in self._said:
            self._said[sampling] = self._ask(sampling)
        return self._said[sampling]

    @cached_property
    def _said(self) -> dict[Sampling, tuple[list[Answer], list[Answer]]]:
        return {}

    def _ask(self, sampling: Sampling) -> tuple[list[Answer], list[Answer]]:
        pair, examples = self.pair, self.encoder.pack.examples
        prompts = {
            w.example: examples[w.example].text
            for w in sorted(self.windows, key=lambda w: w.example)
            if w.number == len(self.encoder.document(w.example).windows) - 1
            and all(fits(m, examples[w.example].text, sampling) for m in (pair.base, pair.aligned))
        }
        texts, numbers = [*prompts.values()], [*prompts]
        base = answers(pair.base, texts, sampling, numbers=numbers)
        if pair.aligned is pair.base:
            return base, base
        return base, answers(pair.aligned, texts, sampling, numbers=numbers)

    @cached_property
    def answers(self) -> Answers:
        """The pairs of answers that the rows are, chosen before rejected; base is the reference."""
        rows, count = torch.as_tensor(self.row_of_scored), len(self.windows)
        none = torch.zeros(count, dtype=torch.float64)
        reference, own = (none.index_add(0, rows, z.double()) for z in self.likelihoods)
        lengths = torch.bincount(rows, minlength=count).double()
        return Answers(
            own[::2], own[1::2], lengths[::2], lengths[1::2], reference[::2], reference[1::2]
        )

    @cached_property
    def states(self) -> Tensor:
        """[row, width] sums of the states that aligned's unembedding reads the answers from."""
        states = plain(self.pair.aligned).read_from(self.aligned.predictors).double().cpu()
        sums = states.new_zeros(len(self.windows), states.shape[1])
        return sums.index_add(0, self.aligned.batch.target[0].cpu(), states)

    def products(
        self, trained: Sequence[str] = ("*",), size: int = 2, by_token: bool = False
    ) -> Products:
        """Inner products of the gradients that aligned's likelihoods of the rows have.

        Args:
            trained: Patterns that name the parameters to take gradients by.
            size: Rows in a group; those of a pair stand together.
            by_token: Whether to divide by token what two rows have in common.

        Raises:
            DriftlensError: A pattern names no parameter, or the model's are out of reach.
        """
        key = tuple(trained), size
        found = self._products.get(key)
        if found is None or (by_token and found.by_token is None):
            gradients = self.pair.gradients(tuple(trained))
            found = self._products[key] = gradients.products(self.aligned.batch, size, by_token)
        return found

    @cached_property
    def _products(self) -> dict[tuple, Products]:
        return {}

    def closing(self, sites: Sequence[Site]) -> tuple[np.ndarray, Tensor, Tensor]:
        """What stands at the end of each document that ends in this frame.

        At the last token of the text, which has read all of it; of models that fill in masked
        tokens at the first one, which the whole text is read into.

        Args:
            sites: Where to look; `wants` must have asked for them.

        Returns:
            [document] their numbers, and [document, site, width] of base and of aligned, float32.
        """
        if self.pair.base.causal:
            ends = {w.example: self._last_unit(w.example) for w in self.windows}
        else:
            ends = dict.fromkeys((w.example for w in self.windows), 0)
        at = [ends[number] for number in self.units.document.tolist()]
        found = np.flatnonzero(self.units.position == at)
        streams = [[side[found].float().cpu() for side in self.both(site)] for site in sites]
        base, aligned = (torch.stack(side, 1) for side in zip(*streams, strict=True))
        return self.units.document[found], base, aligned

    def _last_unit(self, number: int) -> int:
        """The last unit of a document that is text."""
        document = self.encoder.document(number)
        # An added end of text adds no characters.
        return int(np.flatnonzero(document.start < document.end)[-1])

    @cached_property
    def row_of_scored(self) -> np.ndarray:
        """[scored unit] number of the row, that is of the window, that it is read in."""
        cuts = (self.encoder.document(w.example).windows[w.number] for w in self.windows)
        fresh = [last - first for _, first, last in cuts]
        return np.repeat(np.arange(len(fresh)), fresh)[self.units.scored]

    @cached_property
    def order_of_scored(self) -> np.ndarray:
        """[scored unit] place among the scored units of its document, from 0, over all windows."""
        found = np.zeros(len(self.scored.document), dtype=np.int64)
        for document in np.unique(self.scored.document):
            mine = self.scored.document == document
            counted = self.encoder.document(document).scored.cumsum()
            found[mine] = counted[self.scored.position[mine]] - 1
        return found

    @cached_property
    def kind_of_scored(self) -> np.ndarray:
        """[scored unit] number, among `formulas.words.KINDS`, of the kind of its word."""
        found = np.zeros(len(self.scored.document), dtype=np.int64)
        for document in np.unique(self.scored.document):
            rows = np.flatnonzero(self.scored.document == document)
            ends = self.scored.start[rows].tolist(), self.scored.end[rows].tolist()
            names = kinds(self.encoder.pack.examples[document].text, [*zip(*ends, strict=True)])
            found[rows] = [KINDS.index(name) for name in names]
        return found

    @cached_property
    def places(self) -> np.ndarray:
        """[row, token] each token's place in its document, as in `units`; −1 on padding.

        Needs both models to read the same tokens.
        """
        mask = self.base.batch.mask.cpu().numpy()
        count = mask.cumsum(1) - 1
        for row, here, window in zip(count, mask, self.windows, strict=True):
            document = self.encoder.document(window.example)
            first, prefix = document.windows[window.number][0], document.sides[0].prefix
            if first:
                row[here & (row >= prefix)] += first - prefix
        return np.where(mask, count, -1)

    def likelihood_of(self, model: Model, trace: Trace, predictors: Tensor) -> Tensor:
        """[scored unit] what `model` reads from [scored token, width] predictors, in nats."""
        room = self._room(model.vocabulary, predictors)
        found = likelihoods(model, predictors, trace.batch.targets, room)
        tokens = found.double().cpu()
        self._check(model, trace, tokens)
        return self._by_unit(trace, tokens)

    def _room(self, vocabulary: int, predictors: Tensor) -> Tensor:
        """[row, vocab] where logits are written again and again."""
        rows = min(rows_of(vocabulary), len(predictors))
        key = vocabulary, rows, predictors.dtype, predictors.device
        if key not in self._rooms:
            self._rooms[key] = predictors.new_empty(rows, vocabulary)
        return self._rooms[key]

    @cached_property
    def _rooms(self) -> dict[tuple, Tensor]:
        return {}

    def _by_unit(self, trace: Trace, tokens: Tensor) -> Tensor:
        """[scored unit] sums of [scored token] log-likelihoods."""
        units = torch.zeros(int(self.units.scored.sum()), dtype=torch.float64)
        return units.index_add(0, trace.batch.owner.cpu(), tokens.double().cpu())

    def _check(self, model: Model, trace: Trace, tokens: Tensor) -> None:
        """Stop if the likelihood of a scored token is not finite."""
        bad = ~tokens.isfinite()
        if bad.any():
            unit = int(trace.batch.owner.cpu()[bad][0])
            raise _error(model, "its logits", int(self.scored.document[unit]))

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        rows = rows_of(self.pair.base.vocabulary + self.pair.aligned.vocabulary)
        base = self.base.predictors.split(rows)
        aligned = base if self.aligned is self.base else self.aligned.predictors.split(rows)
        targets = (trace.batch.targets.split(rows) for trace in (self.base, self.aligned))
        yield from zip(base, aligned, *targets, strict=True)


def _wide(said: Said) -> Said:
    """The same with float64 for its floats."""
    return Said(*(z.double() if z.is_floating_point() else z for z in said))


@dataclass
class _Grafts:
    """What grafted nets gave, and what the last of them left at every boundary."""

    found: dict[frozenset[Piece], Tensor] = field(default_factory=dict)
    stages: Sequence[frozenset[Piece]] = ()
    streams: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Acts:
    """What the weights do along the path from base to aligned, by module and by token.

    Divided by heads or not, as it was asked for; `of` must be given pieces of the same division.
    """

    shape: torch.Size
    """Rows and tokens of the batch."""

    acts: Mapping[str, Tensor]
    """For each module by path, [row, token] what its weights add to the row's loss by their use
    at each token, in nats, float64."""

    heads: Mapping[str, Tensor]
    """For each module of attention, [row, token, head] each head's part of it, if asked for."""

    def of(self, piece: Piece) -> Tensor:
        """[row, token] what a piece's weights add to the row's loss by their use at each token."""
        total = torch.zeros(self.shape, dtype=torch.float64)
        seen: set[tuple[str, int | None]] = set()
        for weight in piece.weights:
            key = weight.module, weight.head
            if key in seen or weight.module not in self.acts:
                continue
            seen.add(key)
            if weight.head is not None:
                total += self.heads[weight.module][..., weight.head]
                continue
            total += self.acts[weight.module]
            if weight.module in self.heads:
                # What no head has, such as the bias of what all of them write.
                total -= self.heads[weight.module].sum(-1)
        return total


@dataclass(frozen=True)
class Path(Acts):
    """The acts of the whole path: all of them add up to the rise in each row's loss.

    But for the error of the quadrature.
    """

    alphas: np.ndarray
    """[node] places on the path; 0 is base and 1 is aligned."""

    likelihoods: Tensor
    """[node, scored unit] log-likelihoods there, in nats, float64."""

    ends: Tensor
    """[2, scored unit] log-likelihoods of base and of aligned in the path's precision, float64."""


def _not_finite(model: Model, trace: Trace, frame: Frame) -> DriftlensError:
    """Where a model's numbers stop to be finite: the lowest layer, and the first document."""
    every = model.trace(trace.batch, Wants(frozenset({"out"}), None))
    for site, stream in sorted(every.activations.items()):
        bad = ~stream.isfinite().all(-1) & trace.batch.mask
        if bad.any():
            window = frame.windows[int(bad.any(1).nonzero()[0])]
            return _error(model, f"the stream at {site}", window.example)
    return _error(model, "its last stream", frame.windows[0].example)


def _error(model: Model, where: str, document: int) -> DriftlensError:
    return DriftlensError(
        "finite numbers in both models",
        found=f"NaN or infinity in {where} of {model.name}, document {document}",
        remedy="Check that checkpoint, or try --dtype float32.",
    )
