"""A model with the weights of a what-if, and the card that tells what it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from driftlens.diagnostics.mitigation import MitigationResult
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair
from driftlens.results.store import read_json, staged, write_json
from driftlens.versions import own

from .study import Mitigation, WhatIf

CARD, README = "mitigation.json", "README.md"

FORMAT = "driftlens mitigation 1"


def save(
    found: Mitigation,
    pair: ModelPair,
    folder: str | Path,
    what_if: WhatIf | None = None,
    *,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model with the weights of a what-if, whole or not at all, and a card beside it.

    An adapter is written merged, as a whole model.

    Args:
        found: What `examine` gave.
        pair: The models that it was given.
        folder: Where to.
        what_if: Which weights; None takes what is recommended.
        overwrite: Whether to replace a model that was written here before.
        about: More for the card.

    Raises:
        DriftlensError: Nothing is recommended and nothing chosen, or the folder cannot be used.
    """
    what_if = what_if or found.recommended()
    if what_if is None:
        raise DriftlensError(
            "weights to save",
            found=f"no recommendation: {found.planes[0].why_not}",
            remedy="Name some with --choose, as 'interpolation 0.7'.",
        )
    card = _card(found, pair, what_if, about or {})
    with staged(folder, held_in(folder), overwrite=overwrite) as draft:
        with found.mixture.at(what_if.share, rest=what_if.rest, instead=what_if.instead):
            found.mixture.save(draft)
        card["files"] = sorted({path.name for path in draft.iterdir()} | {CARD, README})
        (draft / README).write_text(_readme(card), encoding="utf-8")
        write_json(card, draft / CARD)
    return Path(folder)


def held_in(folder: str | Path) -> set[str]:
    """What a folder holds that was written here before, so that it may be replaced."""
    path = Path(folder) / CARD
    if not path.is_file():
        return {CARD, README}
    told = read_json(path)
    return {*map(str, told.get("files", ()))} if told.get("format") == FORMAT else set()


def _card(
    found: Mitigation, pair: ModelPair, what_if: WhatIf, about: Mapping[str, Any]
) -> dict[str, Any]:
    number = next(n for n, z in enumerate(found.what_ifs) if z is what_if)
    recommended = found.recommended() is what_if
    adapter = found.mixture.merged
    return {
        "format": FORMAT,
        "driftlens": own(),
        "method": what_if.method,
        "setting": what_if.setting,
        "said": what_if.said,
        "recommended": recommended,
        "merged_adapter": adapter,
        "models": {
            side: {"name": model.name, "sha256": getattr(model, "source", {}).get("sha256")}
            for side, model in (("base", pair.base), ("aligned", pair.aligned))
        },
        "measured": [_measured(plane, number) for plane in found.planes],
        **about,
    }


def _measured(plane: MitigationResult, number: int) -> dict[str, Any]:
    columns = plane.columns()
    cells = {name: float(columns[name][number]) for name in _TOLD}
    return {
        **{name: getattr(plane, name) for name in _FACTS},
        **{name: cell if np.isfinite(cell) else None for name, cell in cells.items()},
    }


_TOLD = (
    *("cost", "low", "high", "alignment", "alignment_low", "alignment_high"),
    *("kept", "kept_low", "kept_high", "brought_back", "back_low", "back_high"),
)
_FACTS = (
    *("capability_pack", "capability_name", "capability_items"),
    *("alignment_pack", "alignment_name", "alignment_items"),
)


def _readme(card: Mapping[str, Any]) -> str:
    base, aligned = (card["models"][side] for side in ("base", "aligned"))
    rows = [
        f"| {m['capability_pack']} | {m['capability_name']} | {_number(m, 'cost', 'low', 'high')} "
        f"| {m['alignment_pack']} | {m['alignment_name']} "
        f"| {_number(m, 'alignment', 'alignment_low', 'alignment_high')} |"
        for m in card["measured"]
    ]
    whole = "An adapter was merged into its base: this is a whole model.\n" * card["merged_adapter"]
    why = "It was recommended." if card["recommended"] else "It was chosen by hand."
    return f"""# {aligned["name"]}, mitigated

A model whose weights were put together from two others, by {card["said"]} \
({card["method"]} {card["setting"]}); nothing was trained. {why}
{whole}
- base: {base["name"]}, weights {base["sha256"]}
- aligned: {aligned["name"]}, weights {aligned["sha256"]}
- made by driftlens {card["driftlens"]}

| capability | what it costs against base | cost | alignment | read as | alignment |
|---|---|---|---|---|---|
{chr(10).join(rows)}

In brackets are 95 % intervals, by resampling items. What was measured is in `{CARD}`; nothing is \
known of what was not.
"""


def _number(row: Mapping[str, Any], name: str, low: str, high: str) -> str:
    def told(cell: float | None) -> str:
        return "–" if cell is None else f"{cell:.4f}"

    return f"{told(row[name])} [{told(row[low])}, {told(row[high])}]"
