"""From a name, a folder or a live object to the two models of a pair."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from driftlens import demo, ranks
from driftlens.errors import DriftlensError, LoadError

from . import backends
from .fingerprint import digest
from .hooks import HookedModel
from .model import Model
from .placement import (
    Weights,
    check_live,
    check_room,
    contents,
    device_map_of,
    home,
    needed,
    present,
    quantised,
)

ADAPTER = "adapter_model.safetensors"

SAMPLED = 4096
"""Numbers of each weight that are hashed where there are too many to hash them all."""

HASHED_WHOLE = 2**31
"""Bytes of weights up to which every one of them is hashed; of more, an even sample."""

BESIDE = re.compile(
    r"(^|\.)(pooler|seq_relationship|sop_classifier)\.|\.(masked_bias|inv_freq|position_ids)$"
)
"""Weights that checkpoints carry and no language model reads.

They are heads of BERT's other task in pre-training, and constants that older versions saved.
"""


def load_pair(
    base: object,
    aligned: object,
    *,
    device: str = "auto",
    device_map: object = None,
    base_device: str | None = None,
    aligned_device: str | None = None,
    dtype: str | torch.dtype = "auto",
    allow_mixed_dtypes: bool = False,
    revision: str | None = None,
    aligned_revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = "sdpa",
    local_files_only: bool | None = None,
    tokenizer: object = None,
    backend: str = "hooks",
) -> tuple[Model, Model]:
    """Both models of a pair; an adapter shares the base's weights and is never merged.

    Args:
        base: A hub id, a local folder, `demo:base`, a live `transformers` model, a live
            `TransformerBridge` or nnsight model, which are used as they are, or any object that
            already keeps the promises of `driftlens.models.Model`.
        aligned: The same, or the folder or hub id of a PEFT adapter, or a live `PeftModel`.
        device: Where to put what is loaded; `auto` is a GPU if there is one.
        device_map: Where to put the parts of each model, instead of one device: `auto`, `balanced`
            or `sequential` as accelerate understands them, a JSON file, or a mapping from a part's
            path to a device, `cpu` or `disk`.
        base_device: Where to put the base model, if not at `device`.
        aligned_device: Where to put the aligned model, if not at `device`.
        dtype: What to load in; `auto` is what each checkpoint says.
        allow_mixed_dtypes: Whether the two may differ in dtype, or one alone be quantised: then
            what is measured holds what rounding does as well.
        revision: Branch, tag or commit of the base model on the hub.
        aligned_revision: The same of the aligned model.
        trust_remote_code: Whether code that comes with a model may run.
        attn_implementation: Which attention of transformers to use; None is its own choice.
        local_files_only: Whether to look for nothing on the hub; None is what HF_HUB_OFFLINE says.
        tokenizer: That of live models; not needed for names.
        backend: How to look into what is loaded, or into a live `transformers` model: `hooks`,
            `transformer_lens` (with eager attention) or `nnsight`.

    Raises:
        LoadError: A model is missing, has no safetensors, or lacks weights.
        Crowded: There is memory for either of the two, and not for both.
        DriftlensError: The two cannot be put beside each other, or there is no such back-end.

    Warns:
        UserWarning: A checkpoint holds weights for which the model has no place, or a back-end
            is put on a net that shares its weights with a live one.
    """
    backend = backends.named(backend)
    places = _places(device, device_map, base_device, aligned_device)
    hub, (how, how_aligned) = _settings(
        places, dtype, trust_remote_code, attn_implementation, local_files_only, backend
    )
    _check_backend(backend, device_map)
    ours: Model
    theirs: Model
    if _is_peft(aligned):
        ours, theirs = _live_adapter(base, aligned, tokenizer, hub, backend)
    elif isinstance(aligned, str | Path) and _holds_adapter(str(aligned), aligned_revision, hub):
        ours, theirs = _adapter(base, str(aligned), revision, aligned_revision, hub, how)
    else:
        _check_room(base, aligned, (revision, aligned_revision), hub, (how, how_aligned))
        ours = _load(base, tokenizer, revision, hub, how)
        theirs = ours
        if aligned is not base:
            theirs = _load(aligned, tokenizer, aligned_revision, hub, how_aligned)
    if not allow_mixed_dtypes:
        _check_dtypes(ours, theirs)
    _check_processed(ours, theirs)
    return ours, theirs


def _settings(
    places: tuple[Any, Any],
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    attn_implementation: str | None,
    local_files_only: bool | None,
    backend: str,
) -> tuple[dict[str, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """What is asked of the hub, and how base and aligned are loaded."""
    if local_files_only is None:
        local_files_only = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes")
    hub = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    how = {
        "dtype": _dtype(dtype),
        "attention": backends.attention(backend, attn_implementation),
        "backend": backend,
    }
    ours, theirs = ({**how, "place": place} for place in places)
    return hub, (ours, theirs)


@dataclass(frozen=True)
class Apart:
    """Two models that are loaded one after the other, so that memory holds one at a time."""

    base: Callable[[], HookedModel]
    """Loads the base model."""

    aligned: Callable[[HookedModel], HookedModel]
    """Loads the aligned model, to be put beside the base."""

    sketch: HookedModel
    """The aligned model without its weights: its tokenizer, and its shape."""

    why: str = ""
    """Why they are not loaded at once, if nobody asked for that."""

    @property
    def depth(self) -> int:
        """Number of blocks of either model."""
        return self.sketch.depth


def load_apart(
    base: str,
    aligned: str,
    *,
    device: str = "auto",
    device_map: object = None,
    base_device: str | None = None,
    aligned_device: str | None = None,
    dtype: str | torch.dtype = "auto",
    allow_mixed_dtypes: bool = False,
    revision: str | None = None,
    aligned_revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = "sdpa",
    local_files_only: bool | None = None,
    why: str = "",
) -> Apart:
    """What is needed to load two models one after the other, each by its name or folder.

    The options are those of `load_pair`, and why it is done, if nobody asked for it.

    Raises:
        LoadError: A model is missing.
        DriftlensError: One is an adapter, which shares its base's weights.
    """
    places = _places(device, device_map, base_device, aligned_device)
    hub, hows = _settings(
        places, dtype, trust_remote_code, attn_implementation, local_files_only, "hooks"
    )
    if _holds_adapter(aligned, aligned_revision, hub):
        raise DriftlensError(
            "two models with weights of their own, to run one after the other",
            found=f"the adapter {aligned}, which shares those of its base",
            remedy="Leave out --two-phase: both are held as one.",
        )
    revisions = (revision, aligned_revision)
    nets = [
        sketch(name, given, hub, how)
        for name, given, how in zip((base, aligned), revisions, hows, strict=True)
    ]
    ours, theirs = (_sizes(net, how) for net, how in zip(nets, hows, strict=True))
    tokenizer = _tokenizer(aligned, _place(aligned), aligned_revision, hub)

    def second(first: HookedModel) -> HookedModel:
        check_room([theirs], aligned)
        model = _from_name(aligned, aligned_revision, hub, hows[1])
        if not allow_mixed_dtypes:
            _check_dtypes(first, model)
        return model

    def one() -> HookedModel:
        check_room([ours], base)
        return _from_name(base, revision, hub, hows[0])

    return Apart(one, second, HookedModel(nets[1], tokenizer, aligned), why)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named weights; marked `sampled` where they are too many to read them all."""
    size = getattr(tensors, "bytes", None)
    if size is None:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
    sampled = size > HASHED_WHOLE
    return f"sampled:{digest(tensors, SAMPLED)}" if sampled else digest(tensors)


def _load(model: object, tokenizer: object, revision: str | None, hub: dict, how: dict) -> Model:
    if isinstance(model, str | Path):
        return _from_name(str(model), revision, hub, how)
    if hasattr(model, "trace") and hasattr(model, "readout"):
        return model  # type: ignore[return-value]
    if live := backends.of_live(model, tokenizer):
        live.tokenizer = _live_tokenizer(live.net, live.tokenizer, hub)
        weights, absent = live.weights, getattr(live, "absent", False)
        source = _source(live.net, "" if absent else fingerprint(weights))
        # A bridge keeps views of some weights beside them.
        counted = {"parameters": sum(weight.numel() for weight in weights.values())}
        live.source = {**source, **counted, "backend": live.backend}
        return live
    if _is_peft(model):
        raise DriftlensError(
            "an adapter as the aligned model, beside the base that it sits on",
            found=f"a {type(model).__name__} beside another model",
            remedy="Pass base=None and the PeftModel as aligned.",
        )
    if isinstance(model, nn.Module):
        check_live(model)
        source = _source(model, _known(model))
        own = _live_tokenizer(model, tokenizer, hub)
        net = backends.sharing(model, how["backend"])
        loaded = backends.one(how["backend"], net, own, getattr(model.config, "name_or_path", ""))
        loaded.source = {**source, "backend": loaded.backend}
        return loaded
    raise DriftlensError(
        "a hub id, a folder, a model of transformers or nnsight, or a TransformerBridge",
        found=type(model).__name__,
        remedy="Give one of these.",
    )


def _from_name(name: str, revision: str | None, hub: dict, how: dict) -> HookedModel:
    place = _place(name)
    net, unused = _net(name, place, revision, hub, how)
    source = _source(net, _known(net))
    tokenizer = _tokenizer(name, place, revision, hub)
    model = backends.one(how["backend"], net, tokenizer, name)
    model.source = {**source, "backend": model.backend, "unused_weights": unused}
    return model


def _known(net: nn.Module) -> str:
    return fingerprint(contents(net) if quantised(net) else Weights(net))


def _place(name: str) -> str:
    """Where to load `name` from, with the faults of a local folder told at once."""
    if name.startswith("demo:"):
        return str(demo.stage(name.removeprefix("demo:")))
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise LoadError(
                f"a model folder at {name}",
                found="nothing there",
                remedy="Check the path, or give a hub id such as org/model.",
            )
        return name
    if not (folder / "config.json").is_file():
        raise LoadError(
            f"a model in {name}",
            found="no config.json" if folder.is_dir() else "a file",
            remedy="Give the folder that save_pretrained wrote.",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        raise LoadError(
            f"safetensors weights in {name}",
            found=f"only {pickled[0].name}, a pickle" if pickled else "no weights",
            remedy="Load and save it once with save_pretrained(..., safe_serialization=True)."
            if pickled
            else "Copy model.safetensors into the folder.",
        )
    return str(folder)


def _net(
    name: str, place: str, revision: str | None, hub: dict, how: dict
) -> tuple[nn.Module, str | None]:
    """The net, and some of the weights that were left over, if any were."""
    from transformers import AutoConfig

    whole = isinstance(how["place"], torch.device)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, **hub)
        with _bars():
            net, report = _auto(config).from_pretrained(
                place,
                revision=revision,
                dtype=how["dtype"],
                device_map=_mapped(config, how["place"]),
                attn_implementation=how["attention"],
                use_safetensors=True,
                # Or else the error does not say which: the report of the load does.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **hub,
            )
    except _unreadable() as error:
        remedy = "Check the name and revision, and that its files are whole."
        if "trust_remote_code" in str(error):
            remedy = "Give --trust-remote-code (or trust_remote_code=True) if you trust that code."
        found = _first_line(error)
        raise LoadError(f"a language model at {name}", found=found, remedy=remedy) from None
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise LoadError(
            f"all weights of {name}",
            found=f"none of the right shape for {_some(absent)}",
            remedy="Load a whole checkpoint: missing weights would be random numbers.",
        )
    if whole and not quantised(net):
        net = net.to(how["place"])
    return net, _unused(name, type(net).__name__, report["unexpected_keys"])


@contextmanager
def _bars() -> Iterator[None]:
    """Transformers' bars where someone may watch them move, which no log nor notebook lets one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _mapped(config: Any, place: Any) -> Any:
    """The device map to load by; None where the whole net is moved afterwards."""
    if not isinstance(place, torch.device):
        return place
    # What is quantised is made where it is to be, and cannot be moved.
    return {"": place} if getattr(config, "quantization_config", None) else None


def sketch(name: str, revision: str | None, hub: dict, how: dict) -> nn.Module:
    """The net without its weights, on the meta device.

    Raises:
        LoadError: There is no such model.
    """
    from transformers import AutoConfig

    place = _place(name)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, **hub)
        dtype = config.dtype if how["dtype"] == "auto" else how["dtype"]
        with torch.device("meta"):
            return _auto(config).from_config(
                config, dtype=dtype, trust_remote_code=hub["trust_remote_code"]
            )
    except _unreadable() as error:
        remedy = "Check the name and revision, and that its files are whole."
        if "trust_remote_code" in str(error):
            remedy = "Give --trust-remote-code (or trust_remote_code=True) if you trust that code."
        found = _first_line(error)
        raise LoadError(f"a language model at {name}", found=found, remedy=remedy) from None


def _check_room(
    base: object, aligned: object, revisions: Sequence[str | None], hub: dict, hows: Sequence[dict]
) -> None:
    """Stop before anything is loaded if the models that are to be loaded would not fit."""
    both = list(zip((base, aligned), revisions, hows, strict=True))[: 1 if aligned is base else 2]
    named = [(str(m), revision, how) for m, revision, how in both if isinstance(m, str | Path)]
    sizes = [_sizes(sketch(name, given, hub, how), how) for name, given, how in named]
    check_room(sizes, " and ".join(name for name, *_ in named))


def _sizes(net: nn.Module, how: dict) -> dict[str, int]:
    """Bytes on each device; none of what is quantised, of which only its files would tell."""
    config: Any = net.config
    quantised = getattr(config, "quantization_config", None) is not None
    return {} if quantised else needed(net, how["place"])


def _unused(name: str, architecture: str, keys: Iterable[str]) -> str | None:
    """Warn of weights for which the net has no place, and name some of them.

    Many a good checkpoint has such; but a model cut short by its configuration has them too.
    """
    extra = sorted(key for key in keys if not BESIDE.search(key))
    if not extra:
        return None
    count = "1 weight" if len(extra) == 1 else f"{len(extra)} weights"
    warnings.warn(
        f"{count} in the checkpoint of {name} left unused, for which its {architecture} has no "
        f"place: {_some(extra)}",
        # Whoever called `ModelPair.load`.
        stacklevel=7,
    )
    return _some(extra)


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    names = getattr(config, "architectures", None) or []
    known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = any(name.endswith(("CausalLM", "LMHeadModel")) for name in names)
    if known and not causal and not getattr(config, "is_decoder", False):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM


def tokenizer_of(
    names: Sequence[str], revision: str | None = None, local_files_only: bool | None = None
) -> Any:
    """The tokenizer that the first of some models by name has with it, before any is loaded.

    Args:
        names: Hub ids, folders or demo models; an adapter's folder without one is passed over.
        revision: Branch, tag or commit of the first.
        local_files_only: Whether to ask nothing of the hub.

    Raises:
        LoadError: It is missing, or cannot be read.
        DriftlensError: It is not a fast one.
    """
    first = next((n for n in names if not _bare_adapter(Path(n).expanduser())), names[-1])
    hub = {"local_files_only": local_files_only} if local_files_only else {}
    return _tokenizer(first, _place(first), revision if first == names[0] else None, hub)


def _bare_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "tokenizer.json").is_file()


def _tokenizer(name: str, place: str, revision: str | None, hub: dict) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, **hub)
    # Over a broken file tokenizers raises an Exception and nothing finer.
    except Exception as error:
        raise LoadError(
            f"a tokenizer with {name}",
            found=_first_line(error),
            remedy="Save the tokenizer into the model's folder with save_pretrained.",
        ) from None
    return _fast(tokenizer, name)


def _fast(tokenizer: Any, name: str) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise DriftlensError(
            f"a fast tokenizer for {name}, which knows where its tokens stand in the text",
            found=type(tokenizer).__name__,
            remedy="Convert it to a tokenizer.json first.",
        )
    return tokenizer


def _live_tokenizer(net: nn.Module, tokenizer: object, hub: dict) -> Any:
    if tokenizer is not None:
        return _fast(tokenizer, type(net).__name__)
    name = getattr(net.config, "name_or_path", "")
    if not name:
        raise DriftlensError(
            "the tokenizer of a live model",
            found=f"{type(net).__name__} without a name to load one by",
            remedy="Pass tokenizer=….",
        )
    return _tokenizer(name, name, None, hub)


def _source(net: nn.Module, sha256: str) -> dict[str, Any]:
    parameters = list(net.parameters())
    computed = next(p.dtype for p in parameters if p.is_floating_point())
    inputs: nn.Module = net.get_input_embeddings()  # type: ignore[operator]
    spread = getattr(net, "hf_device_map", None)
    told: dict[str, Any] = {"quantised": by} if (by := quantised(net)) else {}
    if spread:
        told["device_map"] = {part: str(device) for part, device in spread.items()}
    return {
        **told,
        "architecture": type(net).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "dtype": str(computed).removeprefix("torch."),
        "device": str(home(inputs)),
        "attention": getattr(net.config, "_attn_implementation", None),
        "sha256": sha256,
        "commit": getattr(net.config, "_commit_hash", None),
    }


# Adapters


def _is_peft(model: object) -> bool:
    return hasattr(model, "disable_adapter") and hasattr(model, "get_base_model")


def _holds_adapter(name: str, revision: str | None, hub: dict) -> bool:
    folder = Path(name).expanduser()
    if name.startswith("demo:") or folder.exists():
        return (folder / "adapter_config.json").is_file()
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return False
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        local = hub["local_files_only"]
        return find_adapter_config_file(name, revision=revision, local_files_only=local) is not None
    except OSError:
        # Nothing can be asked of the hub: loading it as a model will say so in full.
        return False


def _adapter(
    base: object, name: str, revision: str | None, own: str | None, hub: dict, how: dict
) -> tuple[HookedModel, HookedModel]:
    if not isinstance(base, str | Path):
        raise DriftlensError(
            "the base of an adapter by its name or folder",
            found="none" if base is None else f"a live {type(base).__name__}, which would change",
            remedy="Give the base's name, or attach it yourself and pass the PeftModel.",
        )
    folder = _adapter_folder(name, own, hub)
    # The adapter is put on before the net is wrapped.
    ours = _from_name(str(base), revision, hub, {**how, "backend": "hooks"})
    peft = _attached(ours.net, folder, f"an adapter at {name} that fits {base}")
    _check_placed(peft, folder / ADAPTER, name)
    tokenizer = ours.tokenizer
    if (folder / "tokenizer.json").is_file():
        tokenizer = _tokenizer(name, str(folder), None, hub)
    names = ours.name, name
    return _share(peft, ours.tokenizer, tokenizer, names, ours.source, how["backend"])


def _adapter_folder(name: str, revision: str | None, hub: dict) -> Path:
    """Where an adapter's files lie, fetched if need be; peft itself would also read a pickle."""
    from transformers.utils import cached_file

    place = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    local = hub["local_files_only"]
    try:
        cached_file(place, "adapter_config.json", revision=revision, local_files_only=local)
        found = cached_file(place, ADAPTER, revision=revision, local_files_only=local)
    except OSError:
        raise LoadError(
            f"{ADAPTER} in {name}",
            found="none",
            remedy="Save the adapter with save_pretrained(..., safe_serialization=True).",
        ) from None
    return Path(str(found)).parent


def _attached(net: nn.Module, folder: Path, expected: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise DriftlensError(
            f"the package peft to read the adapter in {folder}",
            found="it is not installed",
            remedy="pip install 'driftlens[peft]'",
        ) from None
    try:
        with warnings.catch_warnings():
            # That weights are missing; `_check_placed` says so, and stops.
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            # That peft asks transformers by a name which is about to go.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return PeftModel.from_pretrained(net, str(folder))
    except _unreadable() as error:
        raise LoadError(
            expected,
            found=_first_line(error),
            remedy="Check that it was trained on this base model.",
        ) from None


def _live_adapter(
    base: object, peft: Any, tokenizer: object, hub: dict, backend: str
) -> tuple[HookedModel, HookedModel]:
    inner = peft.get_base_model()
    own = getattr(inner.config, "name_or_path", "")
    if not (base is None or base is peft or base is inner or str(base) == own):
        raise DriftlensError(
            "the base that the live adapter sits on",
            found=f"{base if isinstance(base, str | Path) else type(base).__name__}",
            remedy="Pass base=None to compare it with its own base, whose weights it shares.",
        )
    adapters = {f".{name}." for name in peft.peft_config}
    weights = {
        name: parameter
        for name, parameter in inner.named_parameters()
        if not any(mark in f".{name}." for mark in adapters)
    }
    tokenizer = _live_tokenizer(inner, tokenizer, hub)
    source = _source(inner, fingerprint(weights))
    name = own or type(inner).__name__
    names, own = (name, f"{name} + adapter"), backends.sharing(peft, backend)
    return _share(own, tokenizer, tokenizer, names, source, backend)


def with_lora(model: Model, *, r: int, targets: Sequence[str] | str, seed: int) -> Model:
    """The model with a fresh LoRA adapter, as a trainer would put it there: it adds nothing yet.

    Args:
        model: The model; its net takes the adapter in.
        r: Rank.
        targets: Names of the modules that take one, or `all-linear`.
        seed: Of the adapter's first half; the second begins at 0.

    Raises:
        DriftlensError: peft is not installed, or no module has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise DriftlensError(
            "peft, to put an adapter on the model",
            found="no such package",
            remedy="Type: pip install 'driftlens[peft]'.",
        ) from None
    if not isinstance(model, HookedModel):
        raise DriftlensError(
            "a transformers model, to put an adapter on",
            found=type(model).__name__,
            remedy="Load it from a name, a folder or a live transformers model.",
        )
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=0.0,
        target_modules=[*targets] if not isinstance(targets, str) else targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            live = get_peft_model(model.bare.net, config)
        except ValueError as error:
            raise DriftlensError(
                "names of modules that can take an adapter",
                found=str(error).splitlines()[0],
                remedy="Give --lora r=16,targets=all-linear, or names such as q_proj+v_proj.",
            ) from None
    # PEFT's own wrapper takes whatever it is given, and would not say that it takes positions.
    inner, name = live.eval().get_base_model(), f"{model.name} + LoRA of rank {r}"
    adapted = HookedModel(inner, model.tokenizer, name)
    adapted.source = dict(getattr(model, "source", {}))
    return adapted


def _share(
    peft: Any,
    tokenizer: Any,
    own: Any,
    names: tuple[str, str],
    source: dict[str, Any],
    backend: str,
) -> tuple[HookedModel, HookedModel]:
    """One net seen twice: with its adapter disabled, and with it."""
    from peft import get_peft_model_state_dict

    if any(c.is_prompt_learning or c.is_adaption_prompt for c in peft.peft_config.values()):
        raise DriftlensError(
            "an adapter that changes weights",
            found="one that learns a prompt",
            remedy="Compare LoRA and its relatives.",
        )
    if peft.get_model_status().merged_adapters:
        # Disabling it would take it out of the caller's weights for good.
        raise DriftlensError(
            "an adapter beside its base's weights",
            found="one that is merged into them",
            remedy="Call unmerge_adapter() on it first.",
        )
    sha256 = fingerprint(get_peft_model_state_dict(peft))
    seen = backends.viewer(backend, peft.get_base_model(), tokenizer, names[0])
    ours, theirs = seen(tokenizer, names[0], peft.disable_adapter), seen(own, names[1], nullcontext)
    ours.source = {**source, "backend": backend}
    theirs.source = {**ours.source, "adapter_of": source["sha256"], "sha256": sha256}
    return ours, theirs


def _check_placed(peft: Any, file: Path, name: str) -> None:
    """An adapter whose weights did not land would compare the base with itself."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    placed, kept = get_peft_model_state_dict(peft), load_file(file)
    lost = [
        key
        for key in sorted({*placed, *kept})
        if key not in placed
        or key not in kept
        or not torch.equal(placed[key].cpu().to(kept[key].dtype), kept[key])
    ]
    if lost:
        raise LoadError(
            f"weights of the adapter {name} for every place, and a place for every weight",
            found=f"none for {_some(lost)}",
            remedy="Check that it was trained on this base model.",
        )


# What loads share


def _places(
    device: str, device_map: object, base_device: str | None, aligned_device: str | None
) -> tuple[Any, Any]:
    """For base and for aligned a device, or a device map."""
    found = device_map_of(device_map)
    alone = {"--base-device": base_device, "--aligned-device": aligned_device}
    if found is not None and (given := [name for name, one in alone.items() if one]):
        raise DriftlensError(
            "either a device map or a device for each model",
            found=f"--device-map and {' and '.join(given)}",
            remedy="Leave one of them out.",
        )
    if found is not None:
        return found, found
    ours, theirs = (_device(one or device) for one in (base_device, aligned_device))
    return ours, theirs


def _check_backend(backend: str, device_map: object) -> None:
    if backend != "hooks" and device_map is not None:
        raise DriftlensError(
            "hooks as the back-end of a model that is spread over devices",
            found=f"--backend {backend} beside --device-map",
            remedy="Leave one of them out.",
        )


def _device(device: str) -> torch.device:
    return present(_own() if device == "auto" else device)


def _own() -> str:
    """A GPU if there is one; of processes that share a machine, each its own."""
    if not torch.cuda.is_available():
        return "cpu"
    number = ranks.local()
    return "cuda" if number is None else f"cuda:{number % torch.cuda.device_count()}"


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise DriftlensError(
            "a dtype such as auto, float32 or bfloat16", found=dtype, remedy="Give one of these."
        )
    return found


def _check_processed(base: Model, aligned: Model) -> None:
    """Folded norms and centred weights move every activation, and are no drift."""
    ours, theirs = (getattr(model, "processed", False) for model in (base, aligned))
    if ours != theirs:
        which = base if ours else aligned
        raise DriftlensError(
            "two bridges whose weights are processed alike",
            found=f"only {which.name} in compatibility mode, with folded norms",
            remedy="Boot both without enable_compatibility_mode(), or call it on both.",
        )


def _check_dtypes(base: Model, aligned: Model) -> None:
    sources = [getattr(model, "source", {}) for model in (base, aligned)]
    ours, theirs = (source.get("quantised", source.get("dtype")) for source in sources)
    if ours != theirs and any("quantised" in source for source in sources):
        raise DriftlensError(
            "two models that are quantised alike, or neither",
            found=f"{base.name} in {ours}, {aligned.name} in {theirs}",
            remedy="Load both in one way; with --allow-mixed-dtypes what rounding does is measured "
            "as drift.",
        )
    if ours != theirs:
        raise DriftlensError(
            "two models in the same dtype",
            found=f"{base.name} in {ours}, {aligned.name} in {theirs}",
            remedy="Give --dtype float32 (or dtype='float32') to load both in one.",
        )


def _unreadable() -> tuple[type[Exception], ...]:
    """What the libraries raise over files that are not what they should be."""
    from safetensors import SafetensorError

    known = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
    return (*known, SafetensorError)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A line that ends in a colon only announces what the next one says.
    told = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:told]).rstrip(".") or type(error).__name__
