"""What a model goes on to say, steered and not, from the same prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from driftlens.errors import DriftlensError
from driftlens.models import Model
from driftlens.models.hooks import HookedModel
from driftlens.models.steering import Positions, Steer, steered

from .kept import KeptDirections, Mode


class Applied(NamedTuple):
    """What comes after a prompt."""

    prompt: str

    unsteered: str
    """The model's own continuation, without special tokens."""

    steered: tuple[str, ...]
    """[strength] the same at each strength; of ablation and projection, one."""


class _Way(NamedTuple):
    """How prompts are gone on with."""

    tokens: int
    temperature: float | None
    seed: int
    rows: int


def applied(
    model: Model,
    kept: KeptDirections,
    prompts: Sequence[str],
    strengths: Sequence[float] | None = None,
    *,
    layers: int | Sequence[int] | None = None,
    mode: Mode = "add",
    relative: bool = False,
    positions: Positions | None = None,
    max_new_tokens: int = 40,
    temperature: float | None = None,
    seed: int = 0,
    apply_chat_template: bool = False,
    rows: int = 16,
    force: bool = False,
) -> list[Applied]:
    """Continuations of prompts by a model, unsteered and at each strength.

    The most likely token is taken each time, or one drawn at a temperature, from the same seed at
    every strength. All else is as the model's own generation config says.

    Args:
        model: The model that the directions are of; it is left as it was found.
        kept: The directions.
        prompts: Texts to go on with.
        strengths: As in `KeptDirections.steers`; None is what the card recommends to add, and
            must be left so where nothing has a strength.
        layers: As in `KeptDirections.steers`, as are `mode` and `relative`.
        mode: Likewise.
        relative: Likewise.
        positions: At which tokens; what the card says if None.
        max_new_tokens: How many tokens come after a prompt, at most.
        temperature: Above 0, to draw tokens from all of the distribution; None takes the likeliest.
        seed: Of these draws.
        apply_chat_template: Whether each prompt is a user's turn, as the tokenizer's template
            writes it.
        rows: Prompts that are gone on with together, padded on the left.
        force: Whether another model of the same shape will do.

    Returns:
        [prompt] in their order.

    Raises:
        DriftlensError: The model is another one or cannot generate, a prompt is empty or too
            long, an option is out of its range, or a strength makes logits that are not finite.
    """
    chosen: Positions = kept.card["positions"] if positions is None else positions
    check(max_new_tokens, temperature, rows, chosen)
    way = _Way(max_new_tokens, temperature, seed, rows)
    hooked = _generating(model)
    read = [_ids(hooked, prompt, apply_chat_template, max_new_tokens) for prompt in prompts]
    asked: list[float | None] = [None] if strengths is None else [*strengths]
    plans = [kept.steers(strength, layers, mode, relative) for strength in asked]
    kept.require(hooked, force)
    unsteered = _continued(hooked, read, way, "without steering")
    found = [
        # A step of nothing leaves the very bits.
        unsteered
        if mode == "add" and strength == 0
        else _steered(hooked, read, way, plan, chosen, _named(mode, strength))
        for strength, plan in zip(asked, plans, strict=True)
    ]
    return [
        Applied(prompt, unsteered[row], tuple(texts[row] for texts in found))
        for row, prompt in enumerate(prompts)
    ]


def check(
    max_new_tokens: int, temperature: float | None, rows: int, positions: Positions | None
) -> None:
    """Before anything is loaded: whether prompts can be gone on with so.

    Raises:
        DriftlensError: An option of `applied` is out of its range.
    """
    if max_new_tokens < 1 or rows < 1:
        raise DriftlensError(
            "at least one new token and one prompt at a time",
            found=f"{max_new_tokens} and {rows}",
            remedy="Give numbers from 1.",
        )
    # Written so that NaN fails it too.
    if temperature is not None and not 0 < temperature < float("inf"):
        raise DriftlensError(
            "a finite temperature above 0",
            found=f"{temperature:g}",
            remedy="Leave it out to take the likeliest token each time.",
        )
    if positions is not None and positions not in get_args(Positions):
        raise DriftlensError(
            f"positions among {', '.join(get_args(Positions))}",
            found=repr(positions),
            remedy="Choose one of these.",
        )


def _named(mode: str, strength: float | None) -> str:
    return f"by {mode}" if strength is None else f"by {mode} at strength {strength:g}"


def _steered(
    model: HookedModel,
    read: Sequence[list[int]],
    way: _Way,
    plan: Sequence[Steer],
    positions: Positions,
    said: str,
) -> list[str]:
    with steered(model, plan, positions=positions):
        return _continued(model, read, way, said)


def _continued(model: HookedModel, read: Sequence[list[int]], way: _Way, said: str) -> list[str]:
    """[prompt] what the model goes on to say."""
    ends, pad = _ends(model)
    how: dict[str, Any] = {"max_new_tokens": way.tokens, "num_beams": 1, "pad_token_id": pad}
    how |= (
        {"do_sample": False}
        if way.temperature is None
        else {"do_sample": True, "temperature": float(way.temperature), "top_k": 0, "top_p": 1.0}
    )
    texts: list[str] = []
    with ExitStack() as inside:
        inside.enter_context(model._as_found())
        inside.enter_context(_seeded(model.device, way.seed))
        # The net itself, at the root of its modules.
        inside.enter_context(model.listening({"": _finite(said)}))
        for start in range(0, len(read), way.rows):
            ids, mask = _padded(read[start : start + way.rows], pad)
            ids, mask = ids.to(model.device), mask.to(model.device)
            made = model.net.generate(input_ids=ids, attention_mask=mask, **how)
            texts += [_text(model, row, ends) for row in made[:, ids.shape[1] :].tolist()]
    return texts


def _finite(said: str) -> Any:
    """What hears of logits that are not finite, and says at which strength."""

    def hear(_: object, inputs: object, keywords: Mapping[str, Any], output: Any) -> None:
        if not bool(output.logits[:, -1].isfinite().all()):
            raise DriftlensError(
                "finite logits",
                found=f"NaN or infinity {said}",
                remedy="Give a smaller --strength, or load the model with --dtype float32.",
            )

    return hear


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draws of the given seed while inside; whoever draws after finds nothing changed."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _padded(read: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """[row, token] ids, padded on the left, and which of them are none."""
    width = max(map(len, read))
    ids = [[pad] * (width - len(row)) + row for row in read]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in read]
    return torch.tensor(ids), torch.tensor(mask)


def _ends(model: HookedModel) -> tuple[set[int], int]:
    """The ids after which nothing comes, and one to pad with."""
    own = model.net.generation_config
    told = own.eos_token_id
    ends = [] if told is None else [told] if isinstance(told, int) else list(told)
    pads = (own.pad_token_id, model.tokenizer.pad_token_id, *ends, 0)
    return {int(end) for end in ends}, int(next(pad for pad in pads if pad is not None))


def _text(model: HookedModel, row: Sequence[int], ends: set[int]) -> str:
    """What a row says, up to its end."""
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return model.tokenizer.decode(row[:stop], skip_special_tokens=True)


def _ids(model: HookedModel, prompt: str, turn: bool, tokens: int) -> list[int]:
    """The tokens of a prompt."""
    read = model.tokenizer(
        _turn(model.tokenizer, prompt) if turn else prompt, add_special_tokens=not turn
    )["input_ids"]
    if not read:
        raise DriftlensError(
            "a prompt of at least one token", found=repr(prompt), remedy="Write something."
        )
    if model.context is not None and len(read) + tokens > model.context:
        raise DriftlensError(
            f"a prompt of at most {model.context - tokens} tokens, so that {tokens} more fit into "
            f"the {model.context} that {model.name} reads",
            found=f"one of {len(read)}: {prompt[:40]!r}",
            remedy="Shorten it, or give a smaller --max-new-tokens.",
        )
    return read


def _turn(tokenizer: Any, prompt: str) -> str:
    """The prompt as a user's turn, and what opens the answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise DriftlensError(
            "a chat template to make a turn of a prompt",
            found="none in the tokenizer",
            remedy="Save one with it (tokenizer.chat_template), or leave --apply-chat-template "
            "out.",
        )
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _generating(model: Model) -> HookedModel:
    """The model, if it is one that generates."""
    if not isinstance(model, HookedModel):
        raise DriftlensError(
            "a transformers model, to let it generate",
            found=type(model).__name__,
            remedy="Load it from a name, a folder or a live transformers model.",
        )
    if not model.causal:
        raise DriftlensError(
            "a model that continues text",
            found=f"{model.name}, which fills in masked tokens",
            remedy="Give a causal language model.",
        )
    return model
