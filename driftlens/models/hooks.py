"""The reference back-end: plain PyTorch hooks. Hooks are registered in this file only."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driftlens.errors import DriftlensError
from driftlens.formulas.divergence import gold

from . import anatomy
from .model import Edits, Named, Trace, Wants, rows_of
from .placement import hindrance, home, whole
from .sites import EMBED, Site, every
from .tokens import Batch

Listener = Callable[[nn.Module, tuple, dict, Any], Any]
"""Is told what a module was given and gave, and says what it is to give instead."""

Score = Callable[[Tensor, slice], Tensor]
"""Makes a number of each of some scored tokens' logits: [some, vocab], and which of them all."""


class HookedModel:
    """A `transformers` language model, looked into by hooks and left as it was found.

    Args:
        net: A causal or masked language model.
        tokenizer: Its tokenizer.
        name: What to call it.
        around: Gives a context inside which the net is this model; a base model that shares its
            net with an adapter is found with the adapter disabled.
    """

    backend = "hooks"
    """How it is looked into, by the name that `load_pair` takes."""

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        name: str = "",
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.net, self.tokenizer, self.around = net, tokenizer, around
        self.body = getattr(net, "base_model", net)
        self.name = name or getattr(net.config, "name_or_path", "") or type(net).__name__
        self.blocks = anatomy.blocks(self.body)
        self.depth = len(self.blocks)
        self.causal = not type(net).__name__.endswith("ForMaskedLM")
        text = net.config.get_text_config()
        self.width = int(text.hidden_size)
        self.context = _context(self.body, text)
        self.source: dict[str, Any] = {}
        self.alters = False
        """Whether its blocks were seen to write into what their parts gave."""

    @property
    def device(self) -> torch.device:
        """Where it reads its token ids."""
        return home(self.net.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(p.dtype for p in self.body.parameters() if p.is_floating_point())

    @cached_property
    def pieces(self) -> bool:
        """Whether its weights lie in pieces on several processes, as FSDP2 lays them."""
        return any(hasattr(weight, "full_tensor") for weight in self.net.parameters())

    @cached_property
    def hindrance(self) -> str:
        """Why no gradient can be taken and no weight changed, in words; empty if they can."""
        return hindrance(self.net)

    @property
    def processed(self) -> bool:
        """Whether its weights were folded or centred since they were trained."""
        return False

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter by the name that it has in a plain net."""
        return dict(self.net.named_parameters())

    @property
    def bare(self) -> "HookedModel":
        """The model over a plain net, for what works on weights: itself, but for wrapped nets."""
        return self

    @cached_property
    def vocabulary(self) -> int:
        """How many logits it gives."""
        stream = torch.zeros(1, self.width, device=self.device, dtype=self.dtype)
        return self.readout(stream).shape[-1]

    @cached_property
    def residual_identity(self) -> bool:
        """Whether in every block stream in + attention + MLP = stream out."""
        return all(identity for _, _, identity in self._writers)

    def trace(self, batch: Batch, wants: Wants = Wants(), edits: Named | None = None) -> Trace:
        """Run `batch`, with `edits` in place, and return what `wants` asks for."""
        self._check(batch, wants)
        edits = {Site.of(site): edit for site, edit in (edits or {}).items()}
        batch = batch.to(self.device)
        sites = set(self._sites(wants)) | {self._end}
        with self._as_found(frozen=wants.gradients), torch.set_grad_enabled(wants.gradients):
            seen = self._run(batch, sites, edits)
            last = seen[self._end]
            predictors = self._predictors(batch, last, edits)
            gradients: dict[Site, Tensor] = {}
            if wants.gradients:
                by = self._upstream(predictors, batch.targets)
                found = torch.autograd.grad(predictors, list(seen.values()), by)
                gradients = dict(zip(seen, found, strict=True))
        return Trace(
            batch,
            last.detach().to(self.device),
            predictors.detach(),
            {site: tensor.detach() for site, tensor in seen.items()},
            gradients,
        )

    def _upstream(self, predictors: Tensor, targets: Tensor) -> Tensor:
        """[scored token, width] gradient of their likelihoods by the predictors.

        The logits of a few are held at a time, and never those of all.
        """
        rows, found = rows_of(self.vocabulary), [torch.zeros_like(predictors[:0])]
        for some, ids in zip(predictors.split(rows), targets.split(rows), strict=True):
            stream = some.detach().requires_grad_()
            found += torch.autograd.grad(gold(self.readout(stream), ids).sum(), [stream])
        return torch.cat(found)

    def resume(
        self,
        batch: Batch,
        layer: int,
        stream: Tensor,
        keep: dict[Site, Tensor] | None = None,
        edits: Edits | None = None,
    ) -> Tensor:
        """[scored token, width] predictors when block `layer` left the given stream.

        The blocks up to `layer` are not run. Layer -1 gives block 0 the stream to read. The
        streams that leave the blocks above are put into `keep`, and `edits` made there. A stream
        that a gradient runs through keeps its graph.
        """
        batch, stream = batch.to(self.device), stream.to(self.device)
        if layer == self.depth - 1:
            return self._predictors(batch, stream, {})
        edits = {**(edits or {}), **({EMBED: lambda _: stream} if layer < 0 else {})}
        above = {Site(number) for number in range(layer + 1, self.depth)}
        graph = torch.is_grad_enabled() and stream.requires_grad
        with (
            self._as_found(frozen=graph),
            torch.set_grad_enabled(graph),
            self._skip(layer, stream),
        ):
            seen = self._run(batch, {self._end} if keep is None else above, edits)
        if keep is not None:
            keep.update(seen)
        return self._predictors(batch, seen[self._end], {})

    def readout(self, stream: Tensor, room: Tensor | None = None) -> Tensor:
        """[row, vocab] logits that the model's own head reads from [row, width] last streams.

        The net's own forward pass is run with its blocks skipped, so that final norm, head, soft
        caps and scales are the model's, whatever they are. Rows stand in the batch axis, each as
        a text of one token.

        Args:
            stream: What leaves the last block.
            room: [row, vocab] or more rows, where logits may be written; they are then good only
                until it is used again.
        """
        stream = stream.to(self.device)[:, None]
        ids = torch.zeros(stream.shape[:2], dtype=torch.long, device=self.device)
        grad = torch.is_grad_enabled() and stream.requires_grad
        with (
            self._as_found(),
            torch.set_grad_enabled(grad),
            self._skip(self.depth - 1, stream),
            self._writing(None if grad else room),
        ):
            return self.net(input_ids=ids, **_off(self.net)).logits.squeeze(1)

    def read_from(self, stream: Tensor) -> Tensor:
        """[row, width] what the unembedding is given of [row, width] last streams: normed."""
        head, seen = self.net.get_output_embeddings(), []

        def forward(states: Tensor) -> Tensor:
            seen.append(states.reshape(len(stream), -1))
            return states

        with _instead(head, forward):
            self.readout(stream)
        return seen[0]

    def logits(self, ids: Tensor) -> Tensor:
        """[text, token, vocab] what the net itself makes of [text, token] ids."""
        with self._as_found():
            return self.net(input_ids=ids, **_off(self.net)).logits

    def by_state(
        self, batch: Batch, sites: Iterable[Site], scores: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[dict[Site, Tensor]]]:
        """What is made of the logits of scored tokens, and its gradients by the states.

        Args:
            batch: What to read.
            sites: At which places.
            scores: Makes [score, scored token] of [scored token, vocab] logits.

        Returns:
            [score, scored token] and, for each score, [batch, token, width] gradient of its sum
            at each site.
        """
        batch, sites = batch.to(self.device), tuple(sites)
        with self._as_found(frozen=True), torch.enable_grad():
            seen = self._run(batch, {*sites, self._end}, {})
            values = scores(self.readout(self._predictors(batch, seen[self._end], {})))
            wanted, found = [seen[site] for site in sites], []
            for one in values:
                grads = torch.autograd.grad(
                    one.sum(), wanted, retain_graph=True, materialize_grads=True
                )
                found.append(dict(zip(sites, grads, strict=True)))
        return values.detach(), found

    def pull(
        self,
        batch: Batch,
        listeners: Callable[[slice | None], Mapping[str, "Listener"]],
        cuts: Sequence[slice] | None = None,
        score: Score | None = None,
    ) -> Tensor:
        """[scored token] log-likelihoods in nats, after their gradient went back through the net.

        No weight's gradient is taken. What listens to a module may ask for that of its output.

        Args:
            batch: What to read.
            listeners: Those of modules by path: of the blocks' pass over all tokens (None), and
                of the readout of some scored tokens (a slice of them).
            cuts: Which scored tokens are read out together; None is as many as have room.
            score: What is made of logits in place of log-likelihoods.
        """
        batch = batch.to(self.device)
        likelihoods: list[Tensor] = []
        upstream: list[Tensor] = []
        with self._as_found(frozen=True), torch.enable_grad():
            with self.listening(listeners(None)):
                seen = self._run(batch, {self._end}, {})
            predictors = self._predictors(batch, seen[self._end], {})
            rows = rows_of(self.vocabulary)
            starts = range(0, len(predictors), rows)
            for some in cuts or [slice(start, start + rows) for start in starts]:
                stream = predictors[some].detach().requires_grad_()
                with self.listening(listeners(some)):
                    logits = self.readout(stream)
                    likelihood = score(logits, some) if score else gold(logits, batch.targets[some])
                upstream += torch.autograd.grad(likelihood.sum(), [stream])
                likelihoods.append(likelihood.detach())
            if len(predictors):
                predictors.backward(torch.cat(upstream))
        return torch.cat([*likelihoods, predictors.new_zeros(0)])

    @contextmanager
    def listening(self, listeners: Mapping[str, "Listener"]) -> Iterator[None]:
        """Let what each module by path gives pass through its listener while inside."""
        with ExitStack() as hooks:
            for path, listener in listeners.items():
                module = self.net.get_submodule(path)
                handle = module.register_forward_hook(listener, with_kwargs=True)
                hooks.callback(handle.remove)
            yield

    @property
    def _end(self) -> Site:
        return Site(self.depth - 1, "out")

    def _sites(self, wants: Wants) -> Iterable[Site]:
        layers = range(self.depth) if wants.layers is None else sorted(wants.layers)
        return [site for site in every(layers, *sorted(wants.parts)) if self.has(site)]

    def has(self, site: Site) -> bool:
        """Whether there is such a place; some blocks have no attention or no MLP of their own."""
        return site.part in ("in", "out") or self._module(site) is not None

    def features(self, site: Site) -> int:
        """How many features the tensor at a place has."""
        return self._outward[site.layer][1] if site.part == "heads" else self.width

    def _module(self, site: Site) -> str | None:
        """The module of the block at whose end a place is; `heads` are at the entry of theirs."""
        if site.part == "heads":
            return self._outward[site.layer][0]
        attention, mlp, _ = self._writers[site.layer]
        return mlp if site.part == "mlp" else attention

    def _check(self, batch: Batch, wants: Wants) -> None:
        known, highest = len(self.net.get_input_embeddings().weight), int(batch.ids.max())
        if highest >= known:
            raise DriftlensError(
                f"token ids below {known}, all that {self.name} knows",
                found=str(highest),
                remedy="Give the tokenizer that belongs to this model.",
            )
        if wants.gradients and not self.causal:
            raise DriftlensError(
                "a model that continues text, to take gradients of",
                found=f"{self.name}, which fills in masked tokens",
                remedy="Leave out the metrics that want gradients.",
            )
        if wants.gradients and self.hindrance:
            raise DriftlensError(
                "a model with its weights at hand, to take gradients of",
                found=f"{self.name}, with {self.hindrance}",
                remedy="Leave out what wants gradients, or load it whole and unquantised.",
            )

    def _forward(self, **inputs: Any) -> None:
        """Run the blocks, whose sites are heard."""
        if not self.pieces:
            self.body(**inputs)
            return
        # Weights in pieces are put together by the pass of the whole net alone.
        keep = {"logits_to_keep": 1} if _accepts(self.net, "logits_to_keep") else {}
        self.net(**inputs, **keep)

    def _run(self, batch: Batch, sites: Iterable[Site], edits: Edits) -> Mapping[Site, Tensor]:
        """Run the blocks over `batch` with `edits` in place, and keep what passes `sites`."""
        with self._tap(batch, sites, edits) as seen:
            self._forward(**self._inputs(batch))
        if seen.altered:
            # From now on what is handed on is a copy.
            self.alters = True
            return self._run(batch, sites, edits)
        return seen

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.ids, **_off(self.body)}
        if not bool(batch.mask.all()):
            inputs["attention_mask"] = batch.mask.long()
        # Places are told only where they differ from what a model counts by itself: told, they
        # are searched for packed texts. Masked models count from an offset of their own.
        left = not bool(batch.mask[:, 0].all())
        if left and self.causal and _accepts(self.body, "position_ids"):
            inputs["position_ids"] = batch.positions
        return inputs

    def _predictors(self, batch: Batch, last: Tensor, edits: Edits) -> Tensor:
        rows, tokens = batch.target
        if self.causal:
            # The last block may lie on another device than the ids.
            return last.to(rows.device)[rows, tokens - 1]
        return torch.cat([last[:0, 0], *self._masked(batch, edits)])

    def _masked(self, batch: Batch, edits: Edits) -> Iterator[Tensor]:
        """Predictors of a masked model: each scored token is masked in a copy of its row."""
        rows, tokens = batch.target
        if not len(rows):
            # Split, it would still be one part, of no rows, which nets cannot read.
            return
        size = max(1, batch.ids.shape[0])
        for some_rows, some in zip(rows.split(size), tokens.split(size), strict=True):
            ids = batch.ids[some_rows].clone()
            here = torch.arange(len(some), device=ids.device)
            ids[here, some] = self.tokenizer.mask_token_id
            none = (some[:0], some[:0])
            copies = Batch(ids, batch.mask[some_rows], none, none, some[:0])
            yield self._run(copies, {self._end}, edits)[self._end].to(here.device)[here, some]

    @cached_property
    def _anatomy(self) -> list[tuple[tuple[str | None, str | None, bool], int | None]]:
        """For each block its writers, and the length of its output if that is a tuple."""
        ids = torch.arange(5, device=self.device)[None]
        seen: dict[tuple[int, str], tuple[Tensor, object]] = {}
        with self._as_found(), torch.no_grad(), ExitStack() as hooks:
            for number, block in enumerate(self.blocks):
                still = _before(Site(number, "in"), lambda _, stream: anatomy.ripple(stream))
                handle = block.register_forward_pre_hook(still, with_kwargs=True)
                hooks.callback(handle.remove)
                children = ((n, m) for n, m in self._named(number) if n and "." not in n)
                for name, module in [("", block), *children]:
                    hook = _recorder(seen, (number, name))
                    handle = module.register_forward_hook(hook, with_kwargs=True)
                    hooks.callback(handle.remove)
            self._forward(input_ids=ids)
        return [self._block_anatomy(number, seen) for number in range(self.depth)]

    def _block_anatomy(
        self, number: int, seen: Mapping[tuple[int, str], tuple[Tensor, object]]
    ) -> tuple[tuple[str | None, str | None, bool], int | None]:
        before, output = seen[number, ""]
        # What enters a block may lie where the block below it does.
        assert isinstance(output, Tensor | tuple), "a block leaves a stream, alone or first"
        before = before.to(first(output).device)
        after = anatomy.stream_of(output, before)
        assert after is not None, "a block leaves what can enter the next"
        outputs = {
            name: stream
            for (block, name), (_, given) in seen.items()
            if block == number and name and (stream := anatomy.stream_of(given, before)) is not None
        }
        names = [name for name, _ in self._named(number)]
        found = anatomy.writers(names, before, after, outputs)
        return found, len(output) if isinstance(output, tuple) else None

    @cached_property
    def _writers(self) -> list[tuple[str | None, str | None, bool]]:
        return [found for found, _ in self._anatomy]

    @cached_property
    def _outward(self) -> list[tuple[str | None, int]]:
        """For each block the map by which attention writes, and how many features enter it."""
        found: list[tuple[str | None, int]] = [(None, 0)] * self.depth
        # A norm may stand between the map and the stream: it is the last map before the writer.
        left = {number for number, (writer, _, _) in enumerate(self._writers) if writer}

        ends = {n: self._part(n, self._writers[n][0] or "") for n in left}

        def recorder(number: int, name: str) -> Callable:
            def record(module: nn.Module, inputs: tuple, _: object) -> None:
                flat = getattr(getattr(module, "weight", None), "ndim", 0) == 2
                if number in left and flat and inputs:
                    found[number] = name, inputs[0].shape[-1]
                if module is ends.get(number):
                    left.discard(number)

            return record

        ids = torch.arange(5, device=self.device)[None]
        with self._as_found(), torch.no_grad(), ExitStack() as hooks:
            for number in range(self.depth):
                for name, module in self._named(number):
                    handle = module.register_forward_hook(recorder(number, name))
                    hooks.callback(handle.remove)
            self._forward(input_ids=ids)
        return found

    @contextmanager
    def reading(self, hear: Callable[[nn.Module, tuple, dict], None]) -> Iterator[None]:
        """Let `hear` know what the net is given to read while inside."""
        holders = (m for m in self.net.modules() if any(c is self.blocks for c in m.children()))
        with ExitStack() as hooks:
            for module in dict.fromkeys((self.net, self.body, *holders)):
                hooks.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
            yield

    @contextmanager
    def _as_found(self, frozen: bool = False) -> Iterator[None]:
        """Evaluation mode (and no parameter's gradient, if `frozen`) while inside."""
        training = [module for module in self.net.modules() if module.training]
        # Disabling an adapter also touches what of it can learn; else nothing but `frozen` does.
        touched = frozen or self.around is not nullcontext
        learning = {p: p.requires_grad for p in self.net.parameters()} if touched else {}
        try:
            for module in training:
                module.training = False
            with self.around():
                for parameter in learning if frozen else ():
                    parameter.requires_grad_(False)
                yield
        finally:
            if self.pieces and hasattr(self.net, "reshard"):
                self.net.reshard()
            for module in training:
                module.training = True
            for parameter, learns in learning.items():
                if parameter.requires_grad != learns:
                    parameter.requires_grad_(learns)

    @contextmanager
    def _skip(self, layer: int, stream: Tensor) -> Iterator[None]:
        """Blocks up to `layer` do not run while inside; that one leaves `stream`."""
        forms = [length for _, length in self._anatomy]
        with ExitStack() as skipped:
            for number in range(layer + 1):
                leaving = _leaving(stream if number == layer else None, forms[number])
                skipped.enter_context(_instead(self.blocks[number], leaving))
            yield

    @contextmanager
    def _writing(self, room: Tensor | None) -> Iterator[None]:
        """The head writes into `room` while inside, if it is a plain linear map."""
        head = self.net.get_output_embeddings() if room is not None else None
        # Memory that is new at each reading costs a tenth of the reading itself.
        if type(head) is not nn.Linear or head.bias is not None or "forward" in vars(head):
            yield
            return

        def forward(stream: Tensor) -> Tensor:
            rows = stream.reshape(-1, stream.shape[-1])
            logits = torch.mm(rows, head.weight.T, out=room[: len(rows)])
            return logits.reshape(*stream.shape[:-1], -1)

        with _instead(head, forward):
            yield

    @contextmanager
    def _tap(self, batch: Batch, sites: Iterable[Site], edits: Edits) -> Iterator["Seen"]:
        """Record what passes through `sites`, and replace what `edits` names, while inside."""
        seen, wanted = Seen(), frozenset(sites)
        places = sorted(wanted | frozenset(edits))
        for site in places:
            # Where a part is, is found by running the net, which must not meet our own hooks.
            self._place(site)
        through = passing(batch, wanted, edits, seen, self.alters)
        with ExitStack() as hooks:
            for site in places:
                hooks.callback(self._register(site, through).remove)
            yield seen

    def _register(
        self, site: Site, pass_through: Callable[[Site, Tensor], Tensor]
    ) -> RemovableHandle:
        module = self._place(site)
        if site.part in ("in", "heads"):
            return module.register_forward_pre_hook(_before(site, pass_through), with_kwargs=True)
        return module.register_forward_hook(
            lambda _, __, output: with_first(output, pass_through(site, first(output)))
        )

    def _place(self, site: Site) -> nn.Module:
        """The module at whose entry or end a place is."""
        if site.layer >= self.depth:
            raise DriftlensError(
                f"a site in one of the {self.depth} blocks of {self.name}",
                found=str(site),
                remedy=f"Blocks are counted from 0: the last such is {self.depth - 1}.{site.part}.",
            )
        name = "" if site.part in ("in", "out") else self._module(site)
        if name is None:
            raise DriftlensError(
                f"a place {site} in {self.name}",
                found=f"a block without {site.part}",
                remedy="Choose another place.",
            )
        return self._part(site.layer, name)

    def _named(self, number: int) -> Iterable[tuple[str, nn.Module]]:
        """The modules of a block by the names that they have in it."""
        return self.blocks[number].named_modules()

    def _part(self, number: int, name: str) -> nn.Module:
        """A module of a block by its name in it."""
        return self.blocks[number].get_submodule(name)


class Seen(dict[Site, Tensor]):
    """What passed through each site."""

    def __init__(self) -> None:
        self.versions: dict[Site, int] = {}
        """How often each tensor had been written to when it passed."""

    @property
    def altered(self) -> bool:
        """Whether a block wrote into a tensor after it had passed."""
        return any(self[site]._version != version for site, version in self.versions.items())


def passing(
    batch: Batch, wanted: Collection[Site], edits: Edits, seen: Seen, copies: bool
) -> Callable[[Site, Tensor], Tensor]:
    """What becomes of the tensor at a site: replaced if `edits` says so, kept if it is wanted.

    Args:
        batch: What is read.
        wanted: Which sites are kept.
        edits: What is put in place of a site's tensor.
        seen: Where it is kept.
        copies: Whether to hand on a copy of what is kept, as blocks write into it.
    """
    shape = (*batch.ids.shape, -1)

    def pass_through(site: Site, given: Tensor) -> Tensor:
        # Some MLPs flatten batch and token; of what lies on several processes all is read.
        stream = whole(given).reshape(shape)
        if site in edits:
            stream = edits[site](stream)
        if site in wanted:
            copied = copies
            if torch.is_grad_enabled() and not stream.requires_grad:
                stream = stream.detach().requires_grad_()
                # What a gradient begins at may not be written into.
                copied = True
            seen[site] = stream
            if stream.is_inference():
                # In inference mode it is not counted how often a tensor was written to.
                copied = True
            else:
                seen.versions[site] = stream._version
            stream = stream.clone() if copied else stream
        return stream.reshape(given.shape)

    return pass_through


@contextmanager
def _instead(module: nn.Module, forward: Callable) -> Iterator[None]:
    """The module's own forward pass is another while inside."""
    # Set where the instance keeps its own, for some wrappers hand on what is set on them.
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


def _recorder(seen: dict, key: tuple[int, str]) -> Callable:
    def record(_: nn.Module, inputs: tuple, keywords: dict, output: object) -> None:
        # A child of a block may read something else than a stream.
        entered = inputs[0] if inputs else keywords.get("hidden_states")
        # Some blocks add to what a part gave in place, once it has left.
        seen[key] = (_copied(entered), _copied(output))

    return record


def _copied(what: Any) -> Any:
    """A tensor as it is now, alone or first in a tuple."""
    if isinstance(what, tuple) and what:
        return (_copied(what[0]), *what[1:])
    return what.clone() if isinstance(what, Tensor) else what


def _entering(inputs: tuple, keywords: Mapping[str, Any]) -> Tensor:
    return inputs[0] if inputs else keywords["hidden_states"]


def _before(site: Site, pass_through: Callable[[Site, Tensor], Tensor]) -> Callable:
    def replace(_: nn.Module, inputs: tuple, keywords: dict) -> tuple[tuple, dict]:
        stream = pass_through(site, _entering(inputs, keywords))
        if inputs:
            return (stream, *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": stream}

    return replace


def _leaving(stream: Tensor | None, length: int | None) -> Callable:
    """A forward pass that does nothing but leave `stream`, or what entered."""

    def forward(*inputs: Any, **keywords: Any) -> Tensor | tuple:
        left = _entering(inputs, keywords) if stream is None else stream
        return left if length is None else (left, *[None] * (length - 1))

    return forward


def first(output: Tensor | tuple) -> Tensor:
    """The stream in what a block gave."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Tensor | tuple, tensor: Tensor) -> Tensor | tuple:
    """What a block gave with another stream in it."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _accepts(module: nn.Module, name: str) -> bool:
    own = getattr(type(module), "forward", None)
    if getattr(module.forward, "__func__", None) is own:
        return name in _parameters(own)
    return name in inspect.signature(module.forward).parameters


# To take a signature apart costs a tenth of a small net's pass, and no class changes its own.
@lru_cache(maxsize=64)
def _parameters(forward: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _off(module: nn.Module) -> dict[str, bool]:
    """What a module is asked to leave out: a cache, and the losses of routers."""
    return {n: False for n in ("use_cache", "output_router_logits") if _accepts(module, n)}


def _context(body: nn.Module, config: Any) -> int | None:
    """How many tokens the positions of a model reach, as its configuration names it."""
    limit = getattr(config, "max_position_embeddings", None)
    for name, table in body.named_modules():
        # RoBERTa and its kin count places from their padding id on.
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            return limit - table.padding_idx - 1
    return limit
