"""From a name, a folder or a live object to the two models of a pair."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from driftlens import demo
from driftlens.errors import DriftlensError, LoadError

from .hooks import HookedModel
from .model import Model

HASHED_WHOLE = 2**31
"""Bytes of weights up to which every one of them is hashed; of more, an even sample."""


def load_pair(
    base: object,
    aligned: object,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    aligned_revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = "sdpa",
    local_files_only: bool | None = None,
    tokenizer: object = None,
) -> tuple[Model, Model]:
    """Both models of a pair; an adapter shares the base's weights and is never merged.

    Args:
        base: A hub id, a local folder, `demo:base`, a live `transformers` model, or any object
            that already keeps the promises of `driftlens.models.Model`.
        aligned: The same, or the folder or hub id of a PEFT adapter, or a live `PeftModel`.
        device: Where to put what is loaded; `auto` is a GPU if there is one.
        dtype: What to load in; `auto` is what each checkpoint says.
        revision: Branch, tag or commit of the base model on the hub.
        aligned_revision: The same of the aligned model.
        trust_remote_code: Whether code that comes with a model may run.
        attn_implementation: Which attention of transformers to use; None is its own choice.
        local_files_only: Whether to look for nothing on the hub; None is what HF_HUB_OFFLINE says.
        tokenizer: That of live models; not needed for names.

    Raises:
        LoadError: A model is missing, has no safetensors, or lacks weights.
        DriftlensError: The two cannot be put beside each other.
    """
    if local_files_only is None:
        local_files_only = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes")
    hub = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    how = {"device": _device(device), "dtype": _dtype(dtype), "attention": attn_implementation}
    if _is_peft(aligned):
        ours, theirs = _live_adapter(base, aligned, tokenizer)
    elif isinstance(aligned, str | Path) and _holds_adapter(str(aligned), aligned_revision, hub):
        ours, theirs = _adapter(base, str(aligned), revision, aligned_revision, hub, how)
    else:
        ours = _load(base, tokenizer, revision, hub, how)
        theirs = ours
        if aligned is not base:
            theirs = _load(aligned, tokenizer, aligned_revision, hub, how)
    _check_dtypes(ours, theirs)
    return ours, theirs


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named weights; marked `sampled` where they are too many to read them all."""
    digest = hashlib.sha256()
    sampled = sum(t.numel() * t.element_size() for t in tensors.values()) > HASHED_WHOLE
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.reshape(-1)
        if sampled:
            flat = flat[:: max(1, len(flat) // 4096)]
        digest.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return ("sampled:" if sampled else "") + digest.hexdigest()


def _load(model: object, tokenizer: object, revision: str | None, hub: dict, how: dict) -> Model:
    if isinstance(model, str | Path):
        return _from_name(str(model), revision, hub, how)
    if hasattr(model, "trace") and hasattr(model, "readout"):
        return model  # type: ignore[return-value]
    if isinstance(model, nn.Module):
        loaded = HookedModel(model, _live_tokenizer(model, tokenizer))
        loaded.source = _source(model, fingerprint(dict(model.named_parameters())))
        return loaded
    raise DriftlensError(
        "a hub id, a folder or a transformers model",
        found=type(model).__name__,
        remedy="Give one of these.",
    )


def _from_name(name: str, revision: str | None, hub: dict, how: dict) -> HookedModel:
    place = _place(name)
    net = _net(name, place, revision, hub, how)
    model = HookedModel(net, _tokenizer(name, place, revision, hub), name)
    model.source = _source(net, fingerprint(dict(net.named_parameters())))
    return model


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


def _net(name: str, place: str, revision: str | None, hub: dict, how: dict) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, revision=revision, **hub)
        net, report = _auto(config).from_pretrained(
            place,
            revision=revision,
            dtype=how["dtype"],
            attn_implementation=how["attention"],
            use_safetensors=True,
            output_loading_info=True,
            **hub,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LoadError(
            f"a language model at {name}",
            found=_first_line(error),
            remedy="Check the name and revision, and that its files are whole.",
        ) from None
    absent = sorted(map(str, report["missing_keys"])) + sorted(
        str(key) for key in report.get("mismatched_keys", ())
    )
    if absent:
        raise LoadError(
            f"all weights of {name}",
            found=f"none of the right shape for {', '.join(absent[:3])}"
            + (f" and {len(absent) - 3} more" if len(absent) > 3 else ""),
            remedy="Load a whole checkpoint: missing weights would be random numbers.",
        )
    return net.to(how["device"])


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    names = getattr(config, "architectures", None) or []
    masked = any(name.endswith("MaskedLM") for name in names)
    known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked or (not names and known and not getattr(config, "is_decoder", False)):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM


def _tokenizer(name: str, place: str, revision: str | None, hub: dict) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, **hub)
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def _live_tokenizer(net: nn.Module, tokenizer: object) -> Any:
    if tokenizer is not None:
        return _fast(tokenizer, type(net).__name__)
    name = getattr(net.config, "name_or_path", "")
    if not name:
        raise DriftlensError(
            "the tokenizer of a live model",
            found=f"{type(net).__name__} without a name to load one by",
            remedy="Pass tokenizer=….",
        )
    return _tokenizer(name, name, None, {})


def _source(net: nn.Module, sha256: str) -> dict[str, Any]:
    parameters = list(net.parameters())
    return {
        "architecture": type(net).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "device": str(parameters[0].device),
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
            "the base of an adapter folder by its name or folder",
            found=f"a live {type(base).__name__}, which attaching the adapter would change",
            remedy="Give the base's name, or attach it yourself and pass the PeftModel.",
        )
    try:
        from peft import PeftModel
    except ImportError:
        raise DriftlensError(
            f"the package peft to read the adapter {name}",
            found="it is not installed",
            remedy="pip install 'driftlens[peft]'",
        ) from None
    from safetensors import SafetensorError

    local = Path(name).expanduser().exists()
    if local and not (Path(name).expanduser() / "adapter_model.safetensors").is_file():
        raise LoadError(
            f"adapter_model.safetensors in {name}",
            found="none",
            remedy="Save the adapter with save_pretrained(..., safe_serialization=True).",
        )
    ours = _from_name(str(base), revision, hub, how)
    names = {} if own is None else {"revision": own}
    try:
        place = str(Path(name).expanduser()) if local else name
        peft = PeftModel.from_pretrained(ours.net, place, use_safetensors=True, **names)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LoadError(
            f"an adapter at {name} that fits {base}",
            found=_first_line(error),
            remedy="Check that it was trained on this base model.",
        ) from None
    if local:
        _check_placed(peft, Path(name).expanduser() / "adapter_model.safetensors", name)
    tokenizer = ours.tokenizer
    if local and (Path(name).expanduser() / "tokenizer.json").is_file():
        tokenizer = _tokenizer(name, place, own, hub)
    return _share(peft, ours.tokenizer, tokenizer, ours.name, name, ours.source)


def _live_adapter(base: object, peft: Any, tokenizer: object) -> tuple[HookedModel, HookedModel]:
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
    tokenizer = _live_tokenizer(inner, tokenizer)
    source = _source(inner, fingerprint(weights))
    name = own or type(inner).__name__
    return _share(peft, tokenizer, tokenizer, name, f"{name} + adapter", source)


def _share(
    peft: Any, tokenizer: Any, own: Any, base: str, aligned: str, source: dict[str, Any]
) -> tuple[HookedModel, HookedModel]:
    """One net seen twice: with its adapter disabled, and with it."""
    from peft import get_peft_model_state_dict

    if any(config.is_prompt_learning for config in peft.peft_config.values()):
        raise DriftlensError(
            "an adapter that changes weights",
            found="one that learns a prompt",
            remedy="Compare LoRA and its relatives.",
        )
    placed = get_peft_model_state_dict(peft)
    inner = peft.get_base_model()
    ours = HookedModel(inner, tokenizer, base, peft.disable_adapter)
    theirs = HookedModel(inner, own, aligned, nullcontext)
    ours.source = source
    theirs.source = {**source, "adapter_of": source["sha256"], "sha256": fingerprint(placed)}
    return ours, theirs


def _check_placed(peft: Any, file: Path, name: str) -> None:
    """An adapter whose weights did not land would compare the base with itself."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    placed = get_peft_model_state_dict(peft)
    lost = [
        key
        for key, tensor in load_file(file).items()
        if key not in placed or not torch.equal(placed[key].cpu().to(tensor.dtype), tensor)
    ]
    if lost:
        raise LoadError(
            f"every weight of the adapter {name} to find its place",
            found=f"{len(lost)} that did not, such as {lost[0]}",
            remedy="Check that it was trained on this base model.",
        )


# What loads share


def _device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise DriftlensError(
            "a dtype such as auto, float32 or bfloat16", found=dtype, remedy="Give one of these."
        )
    return found


def _check_dtypes(base: Model, aligned: Model) -> None:
    ours, theirs = (getattr(m, "source", {}).get("dtype") for m in (base, aligned))
    if ours != theirs:
        raise DriftlensError(
            "two models in the same dtype",
            found=f"{base.name} in {ours}, {aligned.name} in {theirs}",
            remedy="Give --dtype float32 (or dtype='float32') to load both in one.",
        )


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
