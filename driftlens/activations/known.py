"""By what a model and its tokenizer are known again, and what a run was made with."""

import json
from hashlib import sha256
from typing import Any

from driftlens.models import Model
from driftlens.models.fingerprint import known_by
from driftlens.versions import versions


def about_model(model: Model) -> dict[str, Any]:
    """Whose states they are; all weights are read once."""
    source = dict(getattr(model, "source", {}))
    # Its own hash is of a sample where weights are many; that of `known_by` is of all.
    names = ("architecture", "parameters", "device", "attention", "backend", "commit", "adapter_of")
    return {**known_by(model), **{name: source[name] for name in names if name in source}}


def about_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Hashes of how it cuts texts, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    # How texts are cut off and filled up is set anew by every call.
    kept = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer": _hash(kept),
        "chat_template": None if template is None else _hash(template),
    }


def of_states() -> dict[str, str]:
    """Versions on which a state may depend."""
    known = versions()
    return {name: known[name] for name in ("driftlens", "torch", "transformers", "platform")}


def _hash(what: Any) -> str:
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
