"""A store of activations as it is read: by row and by site, without the model."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from driftlens.errors import DriftlensError, LoadError
from driftlens.models import EMBED, Model, ModelPair, Site
from driftlens.models.fingerprint import fingerprint
from driftlens.packs import REPLIES, TWINS, Pack
from driftlens.shards import Shards, differences

from .known import about_tokenizer

if TYPE_CHECKING:
    import pandas as pd

INDEX = "index.parquet"


class Labelled(NamedTuple):
    """What an estimator learns from."""

    X: np.ndarray
    """[row, width] states; of contrasts [statement, side, width]."""

    y: np.ndarray
    """[row] or [statement] 1 of what is true, safe, wanted or chosen; 0 of its opposite."""

    groups: np.ndarray
    """[row] or [statement] numbers of what must not be parted, as `GroupKFold` wants them."""


class Rows:
    """The states at one site, [row, width]: sliced and masked like an array, and read lazily.

    Only the shards, and the part of them, in which the rows lie are read. `numpy.asarray` reads
    all. bfloat16, which numpy does not have, is given as float32.

    Args:
        shards: The store.
        site: The site's name.
        shape: Rows and width.
        size: Rows of each shard but the last.
    """

    ndim = 2

    def __init__(self, shards: Shards, site: str, shape: tuple[int, int], size: int) -> None:
        self._shards, self._size = shards, size
        self.site, self.shape = site, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows({self.site!r}, shape={self.shape}, dtype={self.dtype})"

    @cached_property
    def dtype(self) -> np.dtype:
        """Of the arrays that are given."""
        stored = getattr(torch, self._shards.about["dtype"])
        return (
            np.dtype("float32")
            if stored == torch.bfloat16
            else _numpy(torch.empty(0, dtype=stored)).dtype
        )

    def __getitem__(self, rows: int | slice | ArrayLike) -> np.ndarray:
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            return self._taken(np.arange(first, last, step))
        asked = np.asarray(rows)
        if asked.dtype == bool:
            if asked.shape != (len(self),):
                raise IndexError(f"a mask of {len(self)} rows, not of shape {asked.shape}")
            return self._taken(np.flatnonzero(asked))
        if asked.size and asked.dtype.kind not in "iu":
            raise IndexError("rows are asked for by whole numbers, slices or masks")
        numbers = asked.astype(np.int64)
        if numbers.size and not (-len(self) <= numbers.min() and numbers.max() < len(self)):
            raise IndexError(f"rows from 0 to {len(self) - 1}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        return self._taken(numbers.ravel()).reshape(*asked.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows on a disk cannot be an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def pieces(self, rows: int = 65536) -> Iterator[np.ndarray]:
        """All rows in order, some at a time, for what learns with `partial_fit`."""
        for first in range(0, len(self), rows):
            yield self[first : first + rows]

    def _taken(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((len(numbers), self.shape[1]), self.dtype)
        shards = numbers // self._size
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            places = numbers[mine] - shard * self._size
            low = int(places.min())
            key, some = self._shards.keys[shard], slice(low, int(places.max()) + 1)
            found[mine] = _numpy(self._shards.rows(key, self.site, some))[places - low]
        return found


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class ActivationStore:
    """What `capture` left in a folder.

    Example:
        store = ActivationStore.open("states")
        rows = store.where(pack="deeds", role="positive")
        store.site("3.out")[rows]
        X, y, groups = store.labelled("3.out", pack="deeds")
        cross_val_score(LogisticRegression(), X, y, groups=groups, cv=GroupKFold())
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    @classmethod
    def open(cls, folder: str | Path) -> "ActivationStore":
        """The store in a folder; neither shards nor index are read yet.

        Raises:
            LoadError: There is none, or it holds something else.
            DriftlensError: It is not finished, or another version wrote it.
        """
        shards = Shards.open(folder)
        about = shards.about
        if not isinstance(about, dict) or about.get("kind") != "activations":
            raise LoadError(
                f"a store of activations at {shards.folder}",
                found="shards of something else",
                remedy="Give the folder that `driftlens capture` wrote.",
            )
        return cls(shards)

    @property
    def about(self) -> dict[str, Any]:
        """What it was made from: model, tokenizer, sites, positions, packs and versions."""
        return self.shards.about

    @property
    def sites(self) -> list[str]:
        """Names of the sites, in order."""
        return list(self.about["sites"])

    @property
    def packs(self) -> list[str]:
        """Names of the packs, in order."""
        return list(self.about["packs"])

    def __len__(self) -> int:
        return self.about["rows"]

    def __repr__(self) -> str:
        return (
            f"ActivationStore({len(self)} rows, sites {', '.join(self.sites)}, "
            f"packs {', '.join(self.packs)}, of {self.about['model']['name']})"
        )

    def site(self, name: str | Site) -> Rows:
        """[row, width] states at a site, by any of its names.

        Raises:
            DriftlensError: It was not captured.
        """
        site = Site.of(name)
        if site.part == "in" and site != EMBED:
            site = Site(site.layer - 1)
        if str(site) not in self.sites:
            raise DriftlensError(
                f"a site that was captured: {', '.join(self.sites)}",
                found=str(name),
                remedy="Name one of these, or capture it with --sites.",
            )
        shape = (len(self), self.about["widths"][str(site)])
        return Rows(self.shards, str(site), shape, self.about["shard_rows"])

    @cached_property
    def index(self) -> "pd.DataFrame":
        """What stands in each row; the frame's own index is the number of the row.

        `pack`, `example` (its number there), `choice` (of its answers), `group`, `family`,
        `cluster` (what must not be parted), `role`, `answer`, `form`, `topic`, `label` (1 of what
        is true, safe, wanted or chosen), `position` (of the token in its text), `token` (its id),
        `text`, `start` and `end` (its characters), `scored`, `shard` and `row_in_shard`.

        Raises:
            LoadError: The file is missing or broken.
        """
        import pandas as pd
        import pyarrow as pa
        from pyarrow import parquet

        path = self.shards.folder / INDEX
        try:
            table = parquet.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            raise LoadError(
                f"an index at {path}",
                found=str(error).splitlines()[0],
                remedy="Restore it, or delete it and give the same command with --resume.",
            ) from None
        # These alone may lack a number; without a type of their own they would become floats.
        lacking = {"choice": "Int32", "label": "Int8", "group": "Int64", "family": "Int64"}
        frame = table.to_pandas(ignore_metadata=True, integer_object_nulls=True).set_index("row")
        for name, kind in lacking.items():
            if pa.types.is_integer(table.schema.field(name).type):
                frame[name] = pd.array(frame[name].tolist(), dtype=kind)
        return frame

    def where(self, **wanted: Any) -> np.ndarray:
        """[found] numbers of the rows whose columns of the index have the values that are named.

        Args:
            **wanted: For each column a value, or a list of values.

        Raises:
            DriftlensError: There is no such column.
        """
        found = np.ones(len(self), bool)
        for name, values in wanted.items():
            if name not in self.index.columns:
                raise DriftlensError(
                    f"a column of the index: {', '.join(self.index.columns)}",
                    found=repr(name),
                    remedy="Name one of these.",
                )
            several = [values] if isinstance(values, str) or not np.iterable(values) else [*values]
            found &= self.index[name].isin(several).to_numpy(bool)
        return np.flatnonzero(found)

    def labelled(self, site: str | Site, **wanted: Any) -> Labelled:
        """Rows that have a label, for an estimator of scikit-learn.

        Of contrasts each row is a statement with an answer, and its label is whether what it says
        is so; see `contrasts` for the two answers side by side.

        Args:
            site: Where.
            **wanted: Which rows, as in `where`.

        Raises:
            DriftlensError: No such row has a label, or they all have the same one.
        """
        rows = self.where(**wanted)
        rows = rows[self.index["label"].notna().to_numpy(bool)[rows]]
        labels = self.index["label"].to_numpy()[rows].astype(np.int64)
        if len(set(labels.tolist())) < 2:
            raise DriftlensError(
                "rows of both labels",
                found=f"{len(rows)} rows" + (f", all of label {labels[0]}" if len(rows) else ""),
                remedy="Capture a pack of contrasts, roles or choices, or ask for more rows.",
            )
        return Labelled(self.site(site)[rows], labels, self._clusters(rows))

    def contrasts(
        self, site: str | Site, pack: str | None = None, form: str | None = None
    ) -> Labelled:
        """Statements of a pack of contrasts with both answers, as `driftlens.estimators` take them.

        Statements and their opposites take turns, the positive one first, so that
        ``X.reshape(-1, 2, *X.shape[1:])`` are pairs.

        Args:
            site: Where; at the closing token of each text.
            pack: Its name; the only one if None.
            form: In which form they are answered; the pack's first if None.

        Returns:
            X [statement, side, width] with "No" before "Yes", y and groups [statement].

        Raises:
            DriftlensError: There is no such pack or form, or not one row to a text.
        """
        pack = self._contrast(pack)
        index = self.index.loc[self.where(pack=pack)]
        forms = [*dict.fromkeys(index["form"])]
        form = forms[0] if form is None else form
        if form not in forms:
            raise DriftlensError(
                f"a form of {pack}: {', '.join(forms)}",
                found=repr(form),
                remedy="Leave it out for the first.",
            )
        index = index[index["form"] == form]
        if index["example"].duplicated().any():
            raise DriftlensError(
                "one row of each text, at its closing token",
                found=f"--positions {self.about['positions']}",
                remedy="Capture with --positions closing.",
            )
        places: dict[Any, np.ndarray] = {}
        for row, group, role, answer in zip(
            index.index, index["group"], index["role"], index["answer"], strict=True
        ):
            cell = places.setdefault(group, np.full((len(TWINS), len(REPLIES)), -1))
            cell[TWINS.index(role), int(answer == REPLIES[0])] = row
        rows = np.array([cell for cell in places.values() if (cell >= 0).all()]).reshape(-1, 2)
        labels = np.tile([1, 0], len(rows) // 2)
        return Labelled(self.site(site)[rows], labels, self._clusters(rows[:, 0]))

    def check(
        self,
        model: Model | ModelPair | None = None,
        packs: Sequence[Pack] = (),
        sites: Sequence[str | Site] = (),
    ) -> None:
        """Raise unless the store was made from these.

        Args:
            model: Whose weights, tokenizer and chat template must be those of then.
            packs: Each must have been captured, with the same examples.
            sites: Each must have been captured.

        Raises:
            DriftlensError: Something differs; names all that does, as it was and as it is.
        """
        kept: dict[str, Any] = {}
        asked: dict[str, Any] = {}
        if model is not None:
            one = model.aligned if isinstance(model, ModelPair) else model
            kept |= {"weights": self.about["model"]["sha256"]}
            asked |= {"weights": fingerprint(one), **about_tokenizer(one.tokenizer)}
            kept |= {name: self.about[name] for name in about_tokenizer(one.tokenizer)}
        for pack in packs:
            name = f"pack {pack.name}"
            kept[name] = self.about["packs"].get(pack.name, {}).get("sha256")
            asked[name] = pack.sha256
        for site in sites:
            kept[f"site {site}"] = "captured" if self._has(site) else None
            asked[f"site {site}"] = "captured"
        if found := differences(kept, asked):
            raise DriftlensError(
                f"what the store at {self.shards.folder} was made from",
                found="something else: " + ", ".join(found),
                remedy="Give what it was made from, or capture again.",
            )

    def verify(self) -> None:
        """Read all files, and compare each with its hash.

        Raises:
            LoadError: One is missing or is not what was written; names all such.
        """
        self.shards.verify()

    def _has(self, site: str | Site) -> bool:
        try:
            return bool(self.site(site))
        except DriftlensError:
            return False

    def _clusters(self, rows: np.ndarray) -> np.ndarray:
        """[row] numbers of clusters, told apart over packs."""
        two = self.index.loc[rows, ["pack", "cluster"]]
        return two.groupby(["pack", "cluster"], sort=False).ngroup().to_numpy()

    def _contrast(self, pack: str | None) -> str:
        known = [name for name, of in self.about["packs"].items() if of["kind"] == "contrast"]
        if (pack is None and len(known) == 1) or pack in known:
            return pack or known[0]
        raise DriftlensError(
            f"a pack of contrasts that was captured: {', '.join(known) or 'none'}",
            found=repr(pack) if pack else "none named",
            remedy="Name one of these.",
        )
