"""Inner products of gradients between the rows of a batch, and with a direction of the weights.

No row's gradient is ever held by itself; a sum of all rows' is, where it is asked for.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from driftlens.errors import DriftlensError
from driftlens.formulas.divergence import gold

from .hooks import HookedModel, Score
from .model import rows_of
from .pieces import Owner
from .survey import Heard, hooked, outcome, survey, tensors
from .tokens import Batch

Key = tuple[str, str]
"""A parameter by its module and the name that it has there."""

Part = Literal["shift", "scale", "either"]
"""How a parameter of one number a feature enters what leaves: it is added, it is multiplied by
what the module makes without it, or it takes some such part among others."""

FORMED = 2**24
"""How many numbers of gradients by weights are held at once, where such are formed at all."""


@dataclass(frozen=True)
class Products:
    """What the gradients of the rows' log-likelihoods have to do with each other."""

    likelihood: Tensor
    """[row] log-likelihood of all that is scored in the row, in nats, float64."""

    inner: Mapping[str, Tensor]
    """For each parameter by name, [group, row, row] inner products, in nats² by the parameter's
    unit squared, float64."""

    owners: Mapping[str, Owner]
    """Where each of these parameters stands. A tied one stands where it is first met."""

    by_token: Tensor | None = None
    """[group, token, token] the first row's gradient as its weights are used at one token, times
    the second row's at another, all parameters together; None where it was not asked for."""

    unplaced: frozenset[str] = field(default=frozenset())
    """Parameters of which `by_token` has no part, as their gradient has no place in the text."""

    @property
    def total(self) -> Tensor:
        """[group, row, row] inner products over all parameters."""
        return torch.stack(list(self.inner.values())).sum(0)


def trainable(model: HookedModel, patterns: Sequence[str] = ("*",)) -> frozenset[Key]:
    """The parameters that some patterns name, as `model.layers.11.*` or `*lora_*`.

    A parameter that has several names, as a tied one does, is meant by any of them.

    Raises:
        DriftlensError: A pattern names none, or the weights are quantised.
    """
    if rough := next((n for n, p in model.net.named_parameters() if _quantised(p)), None):
        raise DriftlensError(
            "weights of real numbers, to take gradients of",
            found=f"{rough} of {model.name}, which is quantised",
            remedy="Load the model without quantisation, or train and check an adapter alone.",
        )
    if model.hindrance:
        raise DriftlensError(
            "weights at hand, to take gradients of",
            found=f"{model.name}, with {model.hindrance}",
            remedy="Load the model whole and unquantised.",
        )
    named = dict(model.net.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in named):
            raise DriftlensError(
                f"patterns that name parameters of {model.name}",
                found=f"{pattern!r}, which names none of {len(named)}",
                remedy=f"Give one such as {next(iter(named), '*')!r}, or '*' for all.",
            )
    meant = {id(p) for name, p in named.items() if any(fnmatch(name, q) for q in patterns)}
    return frozenset(
        (path, name)
        for path, module in model.net.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in meant
    )


class Gradients:
    """The gradients of a model by some of its parameters, as far as rows have them in common.

    Where the parameters stand, and how modules use them, is found once and holds for any number
    of batches; the weights may change meanwhile, as in training.

    Args:
        model: A causal model.
        trained: The parameters to look at, by `trainable`.

    Raises:
        DriftlensError: A parameter has no gradient of its own to be found.
    """

    def __init__(self, model: HookedModel, trained: frozenset[Key]) -> None:
        self.model = model
        holders: dict[str, list[str]] = {}
        for path, name in sorted(trained):
            holders.setdefault(path, []).append(name)
        # Only when modules run is asked, and what they give: a form is not.
        surveyed = survey(model, dict.fromkeys(holders, ()))
        self.heard: Mapping[str, Heard] = surveyed.heard
        if silent := sorted(holders.keys() - self.heard.keys()):
            raise DriftlensError(
                "parameters of modules that run by themselves",
                found=f"{silent[0]} of {model.name}, whose weights are read by another module",
                remedy="Leave it out of what is trained.",
            )
        self.holders = holders
        self.owners = surveyed.owners(holders)
        self.names: dict[int, str] = {}
        for name, parameter in model.net.named_parameters():
            self.names.setdefault(id(parameter), name)
        self.parts: dict[Key, Part | None] = {}
        uses: dict[int, set[str]] = {}
        for path, names in holders.items():
            for name in names:
                uses.setdefault(id(self.parameter(path, name)), set()).add(path)
        self.shared = {where: paths for where, paths in uses.items() if len(paths) > 1}
        for paths in self.shared.values():
            self._check_tied(sorted(paths))

    def products(self, batch: Batch, size: int = 2, by_token: bool = False) -> Products:
        """Inner products between the gradients of the rows of a batch, group by group.

        With g_r the gradient of row r's scored log-likelihood, ⟨g_r, g_s⟩ is taken for every two
        rows of a group and every parameter. For a linear map it is Σ_{t,u} ⟨a_t, a'_u⟩ ⟨δ_t, δ'_u⟩
        over the tokens of both rows, a being what entered and δ the gradient by what left; or the
        gradients are formed, a few outputs of the one map in hand at a time, where that costs
        less. One forward pass and one backward pass by activations serve all.

        Source: Goodfellow (2015), "Efficient Per-Example Gradient Computations"; Li et al. (2022),
        "Large Language Models Can Be Strong Differentially Private Learners", §4 (ghost norms).

        Args:
            batch: Groups of `size` rows, one after the other.
            size: Rows in a group.
            by_token: Whether to divide by token what the first two rows of a group have in common.
        """
        batch = batch.to(self.model.device)
        sums = _Sums(self, batch, size, by_token)

        def listeners(rows: slice | None) -> dict[str, Any]:
            sums.flush()
            spread = _Texts(batch) if rows is None else _Predictors(batch, rows)
            head = rows is not None
            return {
                path: sums.listener(path, spread)
                for path, owner in self.owners.items()
                if (owner.layer == "head") == head
            }

        cuts = _cuts(batch, size, rows_of(self.model.vocabulary))
        tokens = self.model.pull(batch, listeners, cuts)
        likelihood = torch.zeros(len(batch.ids), dtype=torch.float64, device=tokens.device)
        likelihood.index_add_(0, batch.target[0], tokens.double())
        return sums.done(likelihood)

    def summed(self, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
        """The gradient of Σ_r weight_r log π(row r), whole: a number for every trained weight.

        Args:
            batch: Rows of any number.
            weights: [row] what each row's log-likelihood counts.

        Returns:
            For each of `trained`, a tensor of its shape and dtype.
        """
        batch = batch.to(self.model.device)
        counts = weights.to(batch.ids.device)[batch.target[0]]

        def score(logits: Tensor, some: slice) -> Tensor:
            likelihood = gold(logits, batch.targets[some])
            return likelihood * counts[some].to(likelihood.dtype)

        return gradient(self.model, self.trained, batch, score)

    def along(self, batch: Batch, direction: Mapping[str, Tensor]) -> Tensor:
        """How fast each row's log-likelihood changes as the weights move: ⟨g_r, direction⟩.

        Numbers and their rates of change go forward through the net together, so that nothing
        is kept for a way back: one pass, of about three times the products of a plain one.

        Source: Pearlmutter (1994), "Fast Exact Multiplication by the Hessian", its operator R.

        Args:
            batch: Rows of any number.
            direction: For each of `trained`, a tensor of its shape.

        Returns:
            [row] in nats by the length of the move, float64.
        """
        model, batch = self.model, batch.to(self.model.device)
        chunk = max(1, rows_of(model.vocabulary) // 4)
        length = math.hypot(*(float(_wide(z).norm()) for z in direction.values()))
        found = torch.zeros(len(batch.ids), dtype=torch.float64)
        if not length:
            return found

        def read() -> Tensor:
            streams = _predictors(model, batch).split(chunk)
            pieces = zip(streams, batch.targets.split(chunk), strict=True)
            return torch.cat([_gold(model.readout(stream), ids) for stream, ids in pieces])

        with model._as_found(), torch.no_grad(), _in_parts(model.net), forward_ad.dual_level():
            # At length 1, which the range of half precision holds whatever the gradients'.
            moving = {
                name: _moving(p.detach(), (direction[name] / length).to(p))
                for name, p in self.trained.items()
            }
            rates = forward_ad.unpack_dual(_read_with(model.net, moving, read)).tangent
        if rates is None:
            return found
        return found.index_add_(0, batch.target[0].cpu(), rates.double().cpu()) * length

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters, by the names that they have in the net; a tied one by its first."""
        return {
            self.called(path, name): self.parameter(path, name)
            for path, names in self.holders.items()
            for name in names
        }

    @property
    def blocks(self) -> dict[tuple[str, str], int]:
        """How many weights each layer and component has, from the bottom up; a tied one once."""
        found: dict[tuple[str, str], int] = {}
        seen: set[str] = set()
        for path, owner in sorted(self.owners.items(), key=lambda item: item[1].rank):
            for name in self.holders[path]:
                if (called := self.called(path, name)) not in seen:
                    seen.add(called)
                    key = owner.layer, owner.component
                    found[key] = found.get(key, 0) + self.parameter(path, name).numel()
        return found

    def parameter(self, path: str, name: str) -> Tensor:
        """A parameter of a module."""
        parameter = self.model.net.get_submodule(path)._parameters[name]
        assert parameter is not None
        return parameter

    def called(self, path: str, name: str) -> str:
        """The name that a parameter has in the net; a tied one goes by its first."""
        return self.names[id(self.parameter(path, name))]

    def _check_tied(self, paths: Sequence[str]) -> None:
        """A weight may have one lookup below and one linear map in the head, and no more."""
        kinds = {
            path: (self.owners[path].layer, _kind(self.model.net.get_submodule(path)))
            for path in paths
        }
        if sorted(kinds.values()) != [("embed", "lookup"), ("head", "linear")]:
            raise DriftlensError(
                "weights that are used once, or tied between embedding and unembedding",
                found=f"one weight of {self.model.name} used by {', '.join(paths)}",
                remedy="Leave it out of what is trained.",
            )


def gradient(
    model: HookedModel,
    trained: Mapping[str, Tensor],
    batch: Batch,
    score: Score,
) -> dict[str, Tensor]:
    """The gradient of a sum over scored tokens, whole: a number for every weight that is named.

    Args:
        model: A causal model.
        trained: Its parameters by the names that they have in the net; a tied one by its first.
        batch: Rows of any number.
        score: What is made of [row, vocab] logits of some of the scored tokens, [row].

    Returns:
        For each of `trained`, a tensor of its shape and dtype.
    """
    batch, chunk = batch.to(model.device), rows_of(model.vocabulary)
    leaves = {name: p.detach().requires_grad_() for name, p in trained.items()}
    found: dict[str, Tensor] = {}

    def back(what: Tensor, by: Tensor, more: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        wanted = [*leaves.values(), *more]
        gradients = torch.autograd.grad(what, wanted, by, allow_unused=True)
        for name, one in zip(leaves, gradients, strict=False):
            if one is not None:
                found[name] = found[name] + one if name in found else one
        return gradients[len(leaves) :]

    def read() -> None:
        predictors = _predictors(model, batch)
        upstream: list[Tensor] = []
        for start in range(0, len(predictors), chunk):
            some = slice(start, start + chunk)
            stream = predictors[some].detach().requires_grad_()
            scores = score(model.readout(stream), some)
            upstream += back(scores, torch.ones_like(scores), [stream])
        if upstream:
            back(predictors, torch.cat(upstream))

    with model._as_found(frozen=True), torch.enable_grad():
        _read_with(model.net, leaves, read)
    # Where no gradient came, nothing of it is used.
    return {
        name: found[name] if name in found else torch.zeros_like(leaf, requires_grad=False)
        for name, leaf in leaves.items()
    }


def _predictors(model: HookedModel, batch: Batch) -> Tensor:
    """[scored token, width] what the model's head reads, with all that hangs on it."""
    with model._tap(batch, {model._end}, {}) as seen:
        model.body(**model._inputs(batch))
    return model._predictors(batch, seen[model._end], {})


def by_row(
    model: HookedModel,
    trained: Mapping[str, Tensor],
    batch: Batch,
    rows: Sequence[int],
    score: Score,
) -> Iterator[dict[str, Tensor]]:
    """The gradient of each of some rows by itself; one of them is held at a time.

    Args:
        model: A causal model.
        trained: Its parameters, as for `gradient`.
        batch: What to read.
        rows: Which rows of it, each with something scored.
        score: What is made of logits of some of the batch's scored tokens.
    """
    for number in rows:
        first = int(torch.nonzero(batch.target[0] == number)[0])

        def of_row(logits: Tensor, some: slice, first: int = first) -> Tensor:
            return score(logits, slice(first + some.start, first + some.start + len(logits)))

        yield gradient(model, trained, batch.row(number), of_row)


def products(
    model: HookedModel,
    batch: Batch,
    trained: frozenset[Key],
    size: int = 2,
    by_token: bool = False,
) -> Products:
    """What `Gradients` says of one batch.

    Raises:
        DriftlensError: A parameter has no gradient of its own to be found.
    """
    return Gradients(model, trained).products(batch, size, by_token)


def by_scored_token(
    model: HookedModel, batch: Batch, trained: frozenset[Key], tokens: int = 4096
) -> list[Tensor]:
    """What every scored token of one answer has to do with every one of the other.

    With g^t the gradient of the log-likelihood of token t alone, ⟨g_w^t, g_l^u⟩ for each pair of
    rows; they add up to the pair's ⟨g_w, g_l⟩. Each token is scored in a copy of its text up to
    there, so that this costs as many times more as the answers have tokens.

    Args:
        model: A causal model.
        batch: Pairs of rows, a chosen one before a rejected one.
        trained: The parameters to look at, by `trainable`.
        tokens: About how many tokens are read at once; less memory takes more passes.

    Returns:
        For each pair, [chosen token, rejected token] inner products, float64.

    Raises:
        DriftlensError: A parameter has no gradient of its own to be found.
    """
    gradients = Gradients(model, trained)
    texts = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    # Places are counted without what pads on the left.
    places = (batch.mask.cumsum(1) - 1)[batch.target]
    scored = [places[batch.target[0] == row].tolist() for row in range(len(texts))]
    rows = [[text[: place + 1] for place in mine] for text, mine in zip(texts, scored, strict=True)]
    return [
        _blocks(gradients, chosen, rejected, max(1, tokens // (2 * len(longest))))
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)
        for longest in [max(chosen + rejected, key=len, default=())]
    ]


class _Holding(nn.Module):
    """A net that can be given other weights for a while, whatever is read of it meanwhile."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, read: Callable[[], Any]) -> Any:
        return read()


def _read_with(net: nn.Module, weights: Mapping[str, Tensor], read: Callable[[], Any]) -> Any:
    """What is read of a net that holds other weights; those that are tied stay so."""
    named = {f"net.{name}": weight for name, weight in weights.items()}
    return torch.func.functional_call(_Holding(net), named, (read,))


@contextmanager
def _in_parts(net: Any) -> Iterator[None]:
    """The net of operations that have a derivative forwards while inside.

    Fused attention and products of all experts at once have none.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    experts = net.get_experts_implementation() if hasattr(net, "get_experts_implementation") else {}
    attention = getattr(net.config, "_attn_implementation", None)
    try:
        if any(kind != "eager" for kind in experts.values()):
            net.set_experts_implementation("eager")
        if attention not in (None, "eager", "sdpa"):
            net.set_attn_implementation("sdpa")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if any(kind != "eager" for kind in experts.values()):
            net.set_experts_implementation(experts)
        if attention not in (None, "eager", "sdpa"):
            net.set_attn_implementation(attention)


def _moving(number: Tensor, rate: Tensor) -> Tensor:
    """A number with its rate of change."""
    with warnings.catch_warnings():
        # At the first, torch loads scripts of its own in a manner that is about to go.
        warnings.simplefilter("ignore", DeprecationWarning)
        return forward_ad.make_dual(number, rate)


def _gold(logits: Tensor, target: Tensor) -> Tensor:
    """[row] log-probability of the gold id, of operations that have a derivative forwards."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def _quantised(parameter: Tensor) -> bool:
    return not parameter.is_floating_point() or hasattr(parameter, "quant_state")


def _cuts(batch: Batch, size: int, most: int) -> list[slice]:
    """The scored tokens of whole groups, as many groups together as logits have room for."""
    counts = torch.bincount(batch.target[0], minlength=len(batch.ids)).reshape(-1, size).sum(1)
    cuts, start, end = [], 0, 0
    for count in counts.tolist():
        if end > start and end + count - start > most:
            cuts.append(slice(start, end))
            start = end
        end += count
    return [*cuts, slice(start, end)] if end > start else cuts


class _Texts:
    """Places what modules of the body give: for every row, its tokens."""

    def __init__(self, batch: Batch) -> None:
        self.rows, self.tokens = batch.ids.shape
        self.first = 0
        self.ids = batch.ids
        self.at: Tensor | None = None

    def widened(self, tensor: Tensor, axis: int | None) -> Tensor:
        """With a row for each text, where all texts have it in common."""
        if axis == 0:
            return tensor.expand(self.rows, *tensor.shape)
        alone = axis and len(tensor) == 1
        return tensor.expand(self.rows, *tensor.shape[1:]) if alone else tensor

    def placed(self, tensor: Tensor, axis: int | None) -> Tensor:
        """[row, token, feature], tokens several times over where a module runs on parts of them."""
        if axis is not None and axis > 1:
            tensor = tensor.movedim(axis, 1)
        if axis == 0 and len(tensor) == self.tokens:
            tensor = tensor.expand(self.rows, *tensor.shape)
        elif len(tensor) == 1 < self.rows:
            tensor = tensor.expand(self.rows, *tensor.shape[1:])
        return tensor.reshape(self.rows, -1, tensor.shape[-1])

    def alone(self, gradient: Tensor, row: int, like: Tensor, axis: int | None) -> Tensor:
        """The gradient by what a module gave, of one row's likelihood alone."""
        if gradient.shape != like.shape:
            return gradient[row].reshape(like.shape)
        only = torch.zeros_like(gradient)
        mine = (
            slice(row * self.tokens, (row + 1) * self.tokens)
            if axis is None
            else slice(row, row + 1)
        )
        only[mine] = gradient[mine]
        return only


class _Predictors:
    """Places what modules of the head give: for every row, the tokens that predict scored ones."""

    def __init__(self, batch: Batch, some: slice) -> None:
        text, token = (place[some] for place in batch.target)
        self.text, self.first = text, int(text[0])
        counts = torch.bincount(text - self.first)
        self.rows, self.tokens = len(counts), int(counts.max())
        order = torch.arange(len(text), device=text.device)
        self.place = text - self.first, order - (counts.cumsum(0) - counts)[text - self.first]
        self.even = bool((counts == self.tokens).all())
        self.ids = batch.ids
        self.at = torch.full((self.rows, self.tokens), batch.ids.shape[1], device=text.device)
        self.at[self.place] = token - 1

    def widened(self, tensor: Tensor, axis: int | None) -> Tensor:
        return tensor

    def placed(self, tensor: Tensor, axis: int | None) -> Tensor:
        """[row, token, feature], rows of fewer tokens filled up with zeros."""
        tensor = tensor.reshape(len(self.text), -1, tensor.shape[-1])
        if self.even:
            return tensor.reshape(self.rows, -1, tensor.shape[-1])
        whole = tensor.new_zeros(self.rows, self.tokens, *tensor.shape[1:])
        whole[self.place] = tensor
        return whole.flatten(1, 2)

    def alone(self, gradient: Tensor, row: int, like: Tensor, axis: int | None) -> Tensor:
        """The gradient by what a module gave, of one row's likelihood alone."""
        mine = (self.text == self.first + row).reshape(-1, *[1] * (gradient.dim() - 1))
        return gradient.where(mine, 0.0)


_Spread = _Texts | _Predictors


@dataclass
class _Call:
    """One run of a module, and what came back of it."""

    inputs: tuple
    keywords: dict
    given: tuple[Tensor, ...]
    spread: _Spread
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Let go of all tensors; the graph, which still holds this, stands until its end."""
        self.inputs, self.keywords, self.given = (), {}, ()
        self.gradients.clear()


@dataclass
class _Read:
    """What the head's use of a tied weight leaves for the embedding's."""

    entered: Tensor
    """[group, row, predictor, width]"""

    gathered: Sequence[Sequence[Tensor]]
    """[group, predictor, token] for every two rows, the first's gradient at the second's ids."""

    first: int
    """The first group."""

    at: Tensor
    """[row, predictor] places of the predictors."""


class _Sums:
    """Adds up inner products, parameter by parameter, while gradients come back."""

    def __init__(self, of: Gradients, batch: Batch, size: int, by_token: bool) -> None:
        self.of, self.net, self.size = of, of.model.net, size
        self.groups, self.tokens = len(batch.ids) // size, batch.ids.shape[1]
        self.inner: dict[str, Tensor] = {}
        self.by: dict[str, Owner] = {}
        self.unplaced: set[str] = set()
        self.map = (
            torch.zeros(self.groups, self.tokens + 1, self.tokens + 1, device=batch.ids.device)
            if by_token
            else None
        )
        self.calls: dict[str, list[_Call]] = {}
        self.reads: dict[str, list[_Read]] = {}
        self.kernels: tuple[Tensor, list[list[Tensor]]] | None = None
        self.busy = False

    # What comes back

    def listener(self, path: str, spread: _Spread) -> Callable:
        """Hears a module, and the gradient by what it gave."""
        axes = self.of.heard[path].axes

        def listen(module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> Any:
            if self.busy:
                return None
            given = tensors(output)
            # What a linear map gave is wide, and never needed.
            kept = () if _kind(module) == "linear" else tuple(t.detach() for t in given)
            # Held without the graph, which holds what listens: neither would go away.
            call, count = _Call(_detached(inputs), _detached(keywords), kept, spread), len(given)
            self.calls.setdefault(path, []).append(call)

            def pulled(number: int) -> Callable[[Tensor], None]:
                def take(gradient: Tensor) -> None:
                    call.gradients[number] = gradient.detach()
                    waiting = self.calls.get(path, [])
                    if all(len(c.gradients) == count for c in waiting):
                        self._take(path)

                return take

            return hooked(output, given, lambda t, n: spread.widened(t, axes[n]), pulled)

        return listen

    def flush(self) -> None:
        """Take what came back of modules of which not all will."""
        for path in list(self.calls):
            # Some of what a module gives may have no say in what is scored.
            if any(call.gradients for call in self.calls[path]):
                self._take(path)

    def done(self, likelihood: Tensor) -> Products:
        """All that was added up."""
        self.flush()
        if self.reads:
            raise DriftlensError(
                "a tied embedding that is looked up by ids, once",
                found=f"{next(iter(self.reads))} of {self.of.model.name}, which is not",
                remedy="Leave it out of what is trained.",
            )
        for path, names in self.of.holders.items():
            for name in names:
                # Where no gradient came, nothing of it is used.
                self._add(path, name)
        by_token = None if self.map is None else self.map[:, :-1, :-1]
        order = sorted(self.inner, key=lambda name: self.by[name].rank)
        return Products(
            likelihood,
            {name: self.inner[name].cpu() for name in order},
            self.by,
            by_token,
            frozenset(self.unplaced),
        )

    def _take(self, path: str) -> None:
        """All gradients of a module are here: add up what its parameters have of them."""
        calls = [call for call in self.calls.pop(path) if call.gradients]
        module, names = self.net.get_submodule(path), self.of.holders[path]
        kind = _kind(module)
        with torch.no_grad():
            if kind == "linear":
                self._linear(path, module, names, calls)
            elif kind == "lookup" and (found := self._looked_up(path, module, calls)):
                self._lookup(path, found, calls[0].spread)
            else:
                self._other(path, module, names, calls)
        for call in calls:
            call.clear()

    def _gradient(self, path: str, call: _Call) -> Tensor:
        gradient = _wide(call.gradients[0])
        return call.spread.placed(gradient, self.of.heard[path].axes[0])

    # Linear maps

    def _linear(self, path: str, module: Any, names: Sequence[str], calls: Sequence[_Call]) -> None:
        gradient = _joined([self._gradient(path, call) for call in calls])
        spread = calls[0].spread
        if "weight" in names:
            axis = self.of.heard[path].axes[0]
            entered = _joined([c.spread.placed(_wide(c.inputs[0]), axis) for c in calls])
            alone = calls[0].inputs[0] if len(calls) == 1 else None
            self._weight(path, module, entered, gradient, spread, alone)
        if "bias" in names:
            self._by_vectors(path, "bias", gradient, spread, len(calls))

    def _weight(
        self,
        path: str,
        module: Any,
        entered: Tensor,
        gradient: Tensor,
        spread: _Spread,
        alone: Tensor | None,
    ) -> None:
        entered, gradient = self._grouped(entered), self._grouped(gradient)
        tokens, width, out = gradient.shape[2], entered.shape[-1], gradient.shape[-1]
        pairs = self.size * (self.size + 1) // 2
        by_tokens = pairs * tokens * tokens * (width + out)
        formed = (self.size * tokens + pairs) * width * out
        if self.map is not None or by_tokens <= formed:
            inner = self._by_tokens(entered, gradient, spread, alone)
        else:
            inner = _formed(entered, gradient)
        self._add(path, "weight", inner, spread.first // self.size)
        if id(module.weight) in self.of.shared:
            self._keep(path, entered, gradient, spread)

    def _by_tokens(
        self, entered: Tensor, gradient: Tensor, spread: _Spread, alone: Tensor | None
    ) -> Tensor:
        """[group, row, row] products of gradients, as sums over the tokens of two rows."""
        inner = entered.new_zeros(len(entered), self.size, self.size, dtype=torch.float64)
        kernels = self._kernels(entered, alone)
        for i, j in self._pairs():
            both = kernels[i][j - i] * (gradient[:, i] @ gradient[:, j].mT)
            inner[:, i, j] = inner[:, j, i] = both.sum((-1, -2), dtype=torch.float64)
            if (i, j) == (0, 1):
                self._spread_out(both, spread)
        return inner

    def _kernels(self, entered: Tensor, alone: Tensor | None) -> list[list[Tensor]]:
        """[group, token, token] for every two rows, products of what entered.

        Maps that read one tensor, as those of queries, keys and values do, share them.
        """
        if alone is not None and self.kernels and _same(self.kernels[0], alone):
            return self.kernels[1]
        found = [
            [entered[:, i] @ entered[:, j].mT for j in range(i, self.size)]
            for i in range(self.size)
        ]
        # Only what was read last can be read again. It is held, as its place in memory would be
        # given away otherwise.
        self.kernels = None if alone is None else (alone, found)
        return found

    def _keep(self, path: str, entered: Tensor, gradient: Tensor, spread: _Spread) -> None:
        """What the embedding will need of the head's gradient by the weight that both use."""
        first = spread.first // self.size
        ids = self._grouped(spread.ids[spread.first : spread.first + spread.rows, :, None])[..., 0]
        tokens = gradient.shape[2]
        gathered = [
            [
                gradient[:, i].gather(2, ids[:, j, None].expand(-1, tokens, -1))
                for j in range(self.size)
            ]
            for i in range(self.size)
        ]
        name = self.of.called(path, "weight")
        assert spread.at is not None, "only the head's weight is kept for the embedding"
        self.reads.setdefault(name, []).append(_Read(entered, gathered, first, spread.at))

    # Lookups

    def _looked_up(
        self, path: str, module: Any, calls: Sequence[_Call]
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """[row, token] ids, [row, token, width] gradients by what is read there; None if unclear.

        Which rows of the weight are read is asked of the module itself, which may shift or make
        up its ids.
        """
        if len(calls) > 1:
            return None
        call = calls[0]
        shape, device = module.weight.shape, module.weight.device
        self.busy = True
        try:
            ones = torch.ones((), device=device).expand(shape)
            numbers = torch.arange(float(shape[0]), device=device)[:, None].expand(shape)
            scale, found = (
                outcome(module, {"weight": weight}, call.inputs, call.keywords)[0]
                for weight in (ones, numbers)
            )
        finally:
            self.busy = False
        ids = (found / scale)[..., :1]
        if not bool(((ids - ids.round()).abs() < 0.1).all()):
            return None
        axis = self.of.heard[path].axes[0]
        spread = call.spread
        # Padding learns nothing.
        kept = ids.round() != (-1 if module.padding_idx is None else module.padding_idx)
        gradient = self._gradient(path, call)
        factors = spread.placed((scale * kept).to(gradient.dtype), axis)
        return spread.placed(ids, axis)[..., 0].round().long(), gradient * factors, factors

    def _lookup(self, path: str, found: tuple[Tensor, Tensor, Tensor], spread: _Spread) -> None:
        ids, gradient = self._grouped(found[0][..., None])[..., 0], self._grouped(found[1])
        inner = gradient.new_zeros(len(gradient), self.size, self.size, dtype=torch.float64)
        for i, j in self._pairs():
            alike = ids[:, i, :, None] == ids[:, j, None, :]
            both = (gradient[:, i] @ gradient[:, j].mT).where(alike, 0.0)
            inner[:, i, j] = inner[:, j, i] = both.sum((-1, -2), dtype=torch.float64)
            if (i, j) == (0, 1):
                self._spread_out(both, spread)
        for read in self.reads.pop(self.of.called(path, "weight"), []):
            self._cross(inner, gradient, read)
        self._add(path, "weight", inner)

    def _cross(self, inner: Tensor, gradient: Tensor, read: _Read) -> None:
        """What the embedding's gradient has in common with the head's, by the weight of both."""
        groups = slice(read.first, read.first + len(read.entered))
        for i in range(self.size):
            for j in range(self.size):
                # Row i looked up, row j read out.
                both = read.entered[:, j] @ gradient[groups, i].mT * read.gathered[j][i]
                found = both.sum((-1, -2), dtype=torch.float64)
                inner[groups, i, j] += found
                inner[groups, j, i] += found
                if self.map is not None and {i, j} == {0, 1}:
                    at = self._grouped(read.at[..., None])[:, j, :, 0]
                    self._scatter(read.first, both, at, turned=j == 1)

    # All other parameters

    def _other(
        self, path: str, module: nn.Module, names: Sequence[str], calls: Sequence[_Call]
    ) -> None:
        left = []
        for name in names:
            found = [self._of_features(path, module, name, call) for call in calls]
            if known := [gradient for gradient in found if gradient is not None]:
                self._by_vectors(path, name, _joined(known), calls[0].spread, len(calls))
            else:
                left.append(name)
        if left:
            self._by_rows(path, module, left, calls)

    def _of_features(self, path: str, module: nn.Module, name: str, call: _Call) -> Tensor | None:
        """[row, token, feature] gradients by a parameter that scales or shifts what leaves.

        None where it does something else.
        """
        parts, axis = self.of.parts, self.of.heard[path].axes[0]
        if (path, name) not in parts:
            parts[path, name] = self._part(module, name, call)
        part, own = parts[path, name], getattr(module, name)
        if part is None:
            return None
        gradient = self._gradient(path, call)
        if part == "shift":
            return gradient
        if part == "scale" and bool(own.all()):
            unit = _wide(call.given[0]) / own
        else:
            unit = self._with(module, name, torch.ones_like(own), call)
        if part == "either":
            unit = unit - self._with(module, name, torch.zeros_like(own), call)
        return gradient * call.spread.placed(unit, axis)

    def _part(self, module: nn.Module, name: str, call: _Call) -> Part | None:
        """What a parameter is to the module; None if not one number for each feature of it."""
        own = getattr(module, name)
        if own.dim() != 1 or len(call.gradients) > 1:
            return None
        waves = torch.arange(1.0, len(own) + 1, device=own.device, dtype=own.dtype).sin()
        none, one, some = (
            self._with(module, name, weight, call)
            for weight in (torch.zeros_like(own), torch.ones_like(own), waves)
        )
        if none.shape[-1] != len(own):
            return None
        # Many a norm computes in float32 whatever it is given.
        kinds = own.dtype, torch.float32
        unit, rounding = one - none, 64 * max(torch.finfo(kind).eps for kind in kinds)
        off = (some - none - unit * _wide(waves)).norm()
        if not bool(off <= rounding * (some.norm() + none.norm())):
            return None
        if bool(((unit - 1).abs() <= rounding * (1 + none.abs())).all()):
            return "shift"
        # Another parameter might be zero today and not tomorrow.
        single = sum(p is not None for p in module._parameters.values()) == 1
        return "scale" if single and not bool(none.any()) else "either"

    def _with(self, module: nn.Module, name: str, weight: Tensor, call: _Call) -> Tensor:
        """What a module would have given with another weight."""
        self.busy = True
        try:
            return _wide(outcome(module, {name: weight}, call.inputs, call.keywords)[0])
        finally:
            self.busy = False

    def _by_vectors(
        self, path: str, name: str, gradient: Tensor, spread: _Spread, calls: int
    ) -> None:
        """A parameter whose gradient is a sum over tokens of small vectors."""
        gradient = self._grouped(gradient)
        whole = gradient.sum(2).double()
        self._add(path, name, whole @ whole.mT, spread.first // self.size)
        if self.map is not None and self.size > 1:
            times = calls * spread.tokens
            mine = gradient.reshape(*gradient.shape[:2], -1, gradient.shape[-1])
            if mine.shape[2] != times:
                # Several parts of a token, such as its heads, share the parameter.
                mine = mine.reshape(*mine.shape[:2], times, -1, mine.shape[-1]).sum(3)
            self._spread_out(mine[:, 0] @ mine[:, 1].mT, spread)

    def _by_rows(
        self, path: str, module: nn.Module, names: Sequence[str], calls: Sequence[_Call]
    ) -> None:
        """Whatever a module does: its parameters' gradients are formed for one group at a time."""
        self.unplaced.update(self.of.called(path, name) for name in names)
        spread, axes = calls[0].spread, self.of.heard[path].axes
        own = [self.of.parameter(path, name) for name in names]
        groups = spread.rows // self.size
        found = own[0].new_zeros(len(own), groups, self.size, self.size, dtype=torch.float64)
        self.busy = True
        learns = [parameter.requires_grad for parameter in own]
        try:
            for parameter in own:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                given = [
                    tensors(module.forward(*_detached(call.inputs), **_detached(call.keywords)))
                    for call in calls
                ]
            live = [(c, n) for c, call in enumerate(calls) for n in sorted(call.gradients)]
            live = [(c, n) for c, n in live if given[c][n].requires_grad]
            for group in range(groups):
                rows = [
                    torch.autograd.grad(
                        [given[c][n] for c, n in live],
                        own,
                        [
                            spread.alone(
                                calls[c].gradients[n],
                                group * self.size + row,
                                given[c][n],
                                axes[n],
                            )
                            for c, n in live
                        ],
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                    for row in range(self.size)
                ]
                for i, j in self._pairs():
                    for number, (a, b) in enumerate(zip(rows[i], rows[j], strict=True)):
                        dot = (_wide(a) * _wide(b)).sum(dtype=torch.float64)
                        found[number, group, i, j] = found[number, group, j, i] = dot
        finally:
            self.busy = False
            for parameter, learnt in zip(own, learns, strict=True):
                parameter.requires_grad_(learnt)
        for name, mine in zip(names, found, strict=True):
            self._add(path, name, mine, spread.first // self.size)

    # Sums

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return ((i, j) for i in range(self.size) for j in range(i, self.size))

    def _grouped(self, tensor: Tensor) -> Tensor:
        """[group, row, …] of [row of the batch, …]."""
        return tensor.reshape(-1, self.size, *tensor.shape[1:])

    def _add(self, path: str, name: str, inner: Tensor | None = None, first: int = 0) -> None:
        called, owner = self.of.called(path, name), self.of.owners[path]
        if called not in self.inner:
            shape = self.groups, self.size, self.size
            device = None if inner is None else inner.device
            self.inner[called] = torch.zeros(shape, dtype=torch.float64, device=device)
        if inner is not None:
            self.inner[called][first : first + len(inner)] += inner.to(self.inner[called].device)
        if called not in self.by or owner.rank < self.by[called].rank:
            self.by[called] = owner

    def _spread_out(self, both: Tensor, spread: _Spread) -> None:
        """Put [group, token, token] products where these tokens stand in the text."""
        if self.map is None:
            return
        tokens = spread.tokens
        if both.shape[1] != tokens:
            # Tokens are met several times: in several calls, or in several parts of a token.
            parts = both.shape[1] // tokens
            both = both.reshape(len(both), tokens, parts, tokens, parts).sum((2, 4))
        if spread.at is None:
            self.map[:, :-1, :-1] += both
            return
        at = self._grouped(spread.at[..., None])[..., 0]
        place = (
            torch.arange(len(both), device=both.device)[:, None, None] + spread.first // self.size,
            at[:, 0, :, None],
            at[:, 1, None, :],
        )
        self.map.index_put_(place, both.to(self.map.dtype), accumulate=True)

    def _scatter(self, first: int, both: Tensor, at: Tensor, turned: bool) -> None:
        """[group, predictor, token] products, of one row's predictors and the other's tokens."""
        assert self.map is not None
        index = at[:, :, None].expand_as(both)
        wide = both.new_zeros(len(both), self.tokens + 1, both.shape[2]).scatter_add_(
            1, index, both
        )
        mine = self.map[first : first + len(both)]
        if turned:
            mine[:, :-1, :] += wide.mT
        else:
            mine[:, :, :-1] += wide


def _formed(entered: Tensor, gradient: Tensor) -> Tensor:
    """[group, row, row] products of gradients, which are formed for a few outputs at a time.

    Args:
        entered: [group, row, token, width]
        gradient: [group, row, token, out]
    """
    groups, size, _, width = entered.shape
    inner = entered.new_zeros(groups, size, size, dtype=torch.float64)
    for some in gradient.split(max(1, FORMED // (groups * size * width)), -1):
        rows = (some.mT @ entered).flatten(2)
        inner += rows @ rows.mT
    return inner


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """[row, token, …] of all calls of a module, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or views of it."""
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


def _kind(module: nn.Module) -> str:
    """How a module uses its weight: `linear`, `lookup`, or otherwise."""
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    if forward is nn.Linear.forward or forward is Conv1D.forward:
        return "linear"
    return "lookup" if isinstance(module, nn.Embedding) else "other"


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _detached(given: Any) -> Any:
    """The same arguments, cut off from the graph that they came from."""
    if isinstance(given, Tensor):
        return given.detach()
    if isinstance(given, dict):
        return {name: _detached(value) for name, value in given.items()}
    return type(given)(map(_detached, given)) if type(given) in (tuple, list) else given


def _blocks(
    gradients: Gradients, chosen: Sequence[Tensor], rejected: Sequence[Tensor], step: int
) -> Tensor:
    """[chosen, rejected] inner products of the gradients by texts' last tokens."""
    found = torch.zeros(len(chosen), len(rejected), dtype=torch.float64)
    for i in range(0, len(chosen), step):
        for j in range(0, len(rejected), step):
            mine, theirs = chosen[i : i + step], rejected[j : j + step]
            batch = _last_scored([*mine, *theirs])
            total = gradients.products(batch, len(batch.ids)).total[0]
            found[i : i + step, j : j + step] = total[: len(mine), len(mine) :]
    return found


def _last_scored(texts: Sequence[Tensor]) -> Batch:
    """Texts of which the last token alone is scored."""
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    lengths = torch.tensor([len(text) for text in texts], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    number = torch.arange(len(texts), device=ids.device)
    return Batch(ids, mask, (number[:0], number[:0]), (number, lengths - 1), number)
