"""Gradient entanglement while a trainer of TRL is at work; TRL itself is never imported."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any
from warnings import warn

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from driftlens import ranks
from driftlens.diagnostics import Entanglement, EntanglementResult
from driftlens.errors import DriftlensError
from driftlens.formulas.preferences import (
    CPO,
    DPO,
    IPO,
    LNDPO,
    NCA,
    SPPO,
    Answers,
    Loss,
    SimPO,
)
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.gradients import trainable
from driftlens.models.hybrid import plain
from driftlens.packs import Pack
from driftlens.preferences import Preferences, _preference

Pairs = Preferences | str | Path | Iterable[Mapping[str, Any]]
"""Pairs of answers: as read, a file of them, or rows with `prompt`, `chosen` and `rejected`."""

LOGGED = (
    *("cosine", "case_ideal", "case_both_down", "case_both_up", "case_reversed"),
    *("predicted_chosen", "predicted_rejected"),
)
"""Values of an `EntanglementResult` that are logged."""


class EntanglementCallback(TrainerCallback):
    """Logs what the next small steps would do to some fixed pairs of answers.

    ```python
    trainer = DPOTrainer(...)
    trainer.add_callback(EntanglementCallback(trainer, every=50))
    ```

    It looks before the first step and after every `every` of them, and logs the mean cosine of
    the gradients, the shares of the cases, the predicted mean changes in nats for a step of
    plain SGD of rate 1, and the mean log-probabilities of the answers, as `entanglement/cosine`
    and so on. The model is looked at in evaluation mode, in the precision of its weights and not
    under autocast, without gradient checkpointing, and is left as it was: training goes on to the
    same bits as without the callback. One look costs about a step on as many pairs, and the
    memory of one without gradient checkpointing; where memory is short, pairs are halved.

    The reference is the trainer's own: its reference model, a `ref` adapter, or the model without
    its adapter. Where it keeps none (`precompute_ref_log_probs`), it is the model as training
    begins.

    Only the main process looks; the others wait for it at their next exchange of gradients.

    Args:
        trainer: A `DPOTrainer`, a `CPOTrainer`, or with `pairs` and `loss` given any other trainer
            of transformers.
        pairs: What to look at; None takes the trainer's evaluation set. They are shown as TRL
            would show them, with the end of text after answers that are strings.
        every: Steps between two looks.
        loss: What is trained with; None takes it from the trainer's arguments (`loss_of`).
        trained: Patterns that name the weights to be trained; None is all that learn.
        limit: The most pairs, the first of the set.

    Raises:
        DriftlensError: There are no pairs to look at, the loss is none of ours, or when training
            begins: the weights are spread over processes, or a loss needs a reference that is
            gone. After that nothing is raised: a look that fails warns, and training goes on.
    """

    def __init__(
        self,
        trainer: Trainer,
        pairs: Pairs | None = None,
        *,
        every: int = 50,
        loss: Loss | None = None,
        trained: Sequence[str] | None = None,
        limit: int = 32,
    ) -> None:
        if every < 1:
            raise DriftlensError(
                "at least 1 step between two looks",
                found=str(every),
                remedy="Give every=1 or more.",
            )
        self.trainer, self.every, self.trained = trainer, every, trained
        self.loss = loss_of(trainer.args) if loss is None else loss
        given = trainer.processing_class
        self.tokenizer = getattr(given, "tokenizer", given)
        self.pack = self._shown(pairs, limit)
        self.look: _Look | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the model as training begins."""
        if not state.is_world_process_zero:
            return
        self.look = _Look(self._pair(), self.pack, self.loss, self._patterns)
        if self.look.bare and state.global_step:
            raise DriftlensError(
                f"the reference of a run that goes on at step {state.global_step}",
                found="a trainer that keeps none",
                remedy="Let it keep a reference model: precompute_ref_log_probs=False.",
            )
        self._log(self.look.figures(), control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the model once in a while."""
        if self.look is None or state.global_step % self.every:
            return
        try:
            self._log(self.look.figures(), control)
        except DriftlensError as error:
            # Days of training are worth more than a figure.
            warn(f"No entanglement at step {state.global_step}: {error}", stacklevel=2)

    def _log(self, figures: Mapping[str, float], control: Any) -> None:
        due = control.should_log
        # TRL's own `log` would also close the means that its trainers keep between two logs.
        Trainer.log(self.trainer, {f"entanglement/{name}": z for name, z in figures.items()})
        # Any log counts as the one that is due, which has the loss and is still to come.
        control.should_log = due

    def _shown(self, pairs: Pairs | None, limit: int) -> Pack:
        if pairs is None:
            pairs = getattr(self.trainer, "eval_dataset", None)
        if pairs is None or hasattr(pairs, "keys"):
            raise DriftlensError(
                "pairs of answers to look at",
                found="no evaluation set" if pairs is None else "several evaluation sets",
                remedy="Give pairs=, a file or rows with prompt, chosen and rejected.",
            )
        length = getattr(self.trainer.args, "max_length", None)
        found = _read(pairs, limit).pack(self.tokenizer, length=length, append_eos=True)
        return found[0]

    def _pair(self) -> ModelPair:
        """The trainer's reference beside the model that it trains."""
        net, reference = self._net(self.trainer.model), getattr(self.trainer, "ref_model", None)
        words = {"tokenizer": self.tokenizer}
        if hasattr(net, "get_base_model"):
            pair = ModelPair.load(None, net, **words)
            if "ref" in net.peft_config:
                # TRL's copy of an adapter that was there before.
                plain(pair.base).around = partial(_wearing, net, "ref")
        else:
            pair = ModelPair.alone(net, **words)
            plain(pair.aligned).around = _unwrapped(net)
        if reference is None:
            return pair
        kept = self._net(reference)
        base = ModelPair.alone(kept, **words).base
        plain(base).around = _unwrapped(kept)
        return ModelPair(base, pair.aligned)

    def _net(self, model: Any) -> Any:
        """A model out of what trainers wrap around it."""
        net = self.trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
        if parted := next((name for name, p in net.named_parameters() if _parted(p)), None):
            raise DriftlensError(
                "weights that each process has whole",
                found=f"{parted}, which is spread over processes",
                remedy="Train without FSDP and ZeRO-3, or leave the callback out.",
            )
        return net

    def _patterns(self, pair: ModelPair) -> tuple[str, ...]:
        """Patterns that name what is trained."""
        model = plain(pair.aligned)
        if self.trained is None:
            learns = {name: p.requires_grad for name, p in model.net.named_parameters()}
            if not any(learns.values()):
                raise DriftlensError(
                    "weights that learn", found="none", remedy="Give trained=, patterns of names."
                )
            return ("*",) if all(learns.values()) else tuple(escape(n) for n in learns if learns[n])
        trainable(model, self.trained)
        return tuple(self.trained)


class _Look:
    """Fixed pairs, as a model sees them time and again."""

    def __init__(
        self,
        pair: ModelPair,
        pack: Pack,
        loss: Loss,
        trained: Callable[[ModelPair], tuple[str, ...]],
    ) -> None:
        self.pair, self.pack = pair, pack
        self.metric = _Remembering(loss, trained(pair))
        self.bare = pair.base is pair.aligned and getattr(loss, "needs_reference", True)
        """Whether the loss needs a reference, and the model at its start is the only one."""

    def figures(self) -> dict[str, float]:
        """What is logged."""
        # Only the first process of a trainer looks.
        with ranks.alone():
            (result,) = measure(self.pair, self.pack, [self.metric])
        if self.bare and self.metric.first is None:
            self.metric.first = self.metric.answers()
        assert isinstance(result, EntanglementResult)
        return {
            **{name: getattr(result, name).value for name in LOGGED},
            "chosen_logp": float(result.chosen_logp.mean()),
            "rejected_logp": float(result.rejected_logp.mean()),
            "pairs": float(result.rows()),
        }


class _Remembering(Entanglement):
    """Entanglement of pairs whose reference may be what they once were."""

    first: Answers | None = None

    def answers(self) -> Answers:
        """The pairs as losses see them."""
        now = super().answers()
        if self.first is None:
            return now
        return now._replace(
            reference_chosen=self.first.reference_chosen,
            reference_rejected=self.first.reference_rejected,
        )


def _read(pairs: Pairs, limit: int) -> Preferences:
    if isinstance(pairs, str | Path):
        pairs = Preferences.read(pairs)
    if isinstance(pairs, Preferences):
        return pairs.limit(limit)
    rows = enumerate(islice(pairs, limit))
    return Preferences("probe", tuple(_preference(n, f"row {n}", dict(row)) for n, row in rows))


def _parted(parameter: nn.Parameter) -> bool:
    """Whether it is one process's part of a weight: by ZeRO-3, by FSDP, or as a DTensor."""
    named = hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh")
    return named or type(parameter).__name__ == "FlatParameter"


def _unwrapped(net: Any) -> Callable[[], AbstractContextManager]:
    """Gives a context in which a net runs without the autocast that accelerate put around it."""

    @contextmanager
    def bare() -> Iterator[None]:
        own, inner = vars(net).get("forward"), getattr(net, "_original_forward", None)
        if own is None or inner is None:
            yield
            return
        net.forward = inner
        try:
            yield
        finally:
            net.forward = own

    return bare


@contextmanager
def _wearing(net: Any, adapter: str) -> Iterator[None]:
    """The net with another of its adapters while inside."""
    own = net.active_adapter
    net.set_adapter(adapter)
    try:
        yield
    finally:
        net.set_adapter(own)


# What trainers train with


@dataclass(frozen=True)
class PerToken:
    """A loss of log-probabilities per token, as TRL has that of IPO."""

    loss: Loss

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at a reference model."""
        return getattr(self.loss, "needs_reference", True)

    def __call__(self, answers: Answers) -> Tensor:
        """[pair] losses."""
        w, r = answers.chosen_length, answers.rejected_length
        means = [
            None if z is None else z / length
            for z, length in (
                (answers.chosen, w),
                (answers.rejected, r),
                (answers.reference_chosen, w),
                (answers.reference_rejected, r),
            )
        ]
        return self.loss(Answers(means[0], means[1], w, r, means[2], means[3]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Mixed:
    """A sum of losses, as trainers mix them."""

    parts: tuple[tuple[float, Loss], ...]
    """Weights and losses."""

    @property
    def needs_reference(self) -> bool:
        """Whether one of them looks at a reference model."""
        return any(getattr(loss, "needs_reference", True) for _, loss in self.parts)

    def __call__(self, answers: Answers) -> Tensor:
        """[pair] losses."""
        first, *rest = (weight * loss(answers) for weight, loss in self.parts)
        return sum(rest, first)


@dataclass(frozen=True)
class Imitation:
    r"""Negative log-likelihood of the chosen answer per token, :math:`-\bar s_w`.

    Trainers divide the batch's sum by the batch's tokens; of answers of one length it is the same.
    """

    needs_reference = False

    def __call__(self, answers: Answers) -> Tensor:
        """[pair] losses."""
        return -answers.means()[0]


OF_DPO: Mapping[str, Callable[[float], Loss]] = {
    "sigmoid": lambda beta: DPO(beta=beta),
    "sigmoid_norm": lambda beta: LNDPO(beta=beta),
    "ipo": lambda beta: PerToken(IPO(tau=beta)),
    "bco_pair": lambda beta: NCA(beta=beta),
    "sppo_hard": lambda beta: SPPO(beta=beta),
    "sft": lambda beta: Imitation(),
}
"""Losses of TRL's `DPOTrainer` that are also ours, by its names."""

ALTERED = {"f_divergence_type": "reverse_kl", "ld_alpha": None, "use_weighting": False}
"""What must be left as it is for them to be so."""


def loss_of(args: Any) -> Loss:
    """The loss that the arguments of a trainer of TRL ask for.

    Of a `DPOConfig`: `sigmoid`, `sigmoid_norm`, `ipo` (per token, as TRL has it), `bco_pair`,
    `sppo_hard`, `sft`, and weighted sums of them. Of a `CPOConfig`: `sigmoid` and `simpo`, with
    their `cpo_alpha`.

    Raises:
        DriftlensError: They ask for another loss, or alter it.
    """
    kinds = getattr(args, "loss_type", None)
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if hasattr(args, "cpo_alpha"):
        return _of_cpo(args, kinds)
    changed = [name for name, usual in ALTERED.items() if _given(args, name, usual) != usual]
    if not kinds or changed or not set(kinds) <= OF_DPO.keys():
        raise _unknown([f"{name}={getattr(args, name)!r}" for name in changed] or kinds, OF_DPO)
    parts = [OF_DPO[kind](args.beta) for kind in kinds]
    weights = getattr(args, "loss_weights", None) or [1.0] * len(parts)
    whole = tuple(zip(map(float, weights), parts, strict=True))
    return parts[0] if whole == ((1.0, parts[0]),) else Mixed(whole)


def _given(args: Any, name: str, usual: Any) -> Any:
    """What an argument is; of a choice, what it stands for."""
    found = getattr(args, name, usual)
    return getattr(found, "value", found)


def _of_cpo(args: Any, kinds: Sequence[str]) -> Loss:
    known: dict[str, Callable[[], Loss]] = {
        "sigmoid": lambda: CPO(beta=args.beta, lambda_=0.0),
        "simpo": lambda: SimPO(beta=args.beta, gamma=args.simpo_gamma),
    }
    changed = [n for n in ("label_smoothing", "alpha") if getattr(args, n, 0.0)]
    if changed or not set(kinds) <= known.keys():
        raise _unknown([f"{name}={getattr(args, name)!r}" for name in changed] or kinds, known)
    loss = known[kinds[0]]()
    return Mixed(((1.0, loss), (args.cpo_alpha, Imitation()))) if args.cpo_alpha else loss


def _unknown(found: Sequence[str], known: Iterable[str]) -> DriftlensError:
    return DriftlensError(
        f"a loss of the trainer that is one of {', '.join(known)}, unaltered",
        found=", ".join(found) or "none",
        remedy="Give loss=, one of driftlens.formulas.preferences or a function of Answers.",
    )
