"""The index of a store: what stands in each row, as a table in Parquet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from driftlens.packs import Example
from driftlens.shards import Shards, ShardWriter

from .plan import PLACE, Plan

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = "index.parquet"


def write_index(plan: Plan, writer: ShardWriter) -> None:
    """Write the index of all shards, a row group for each."""
    from pyarrow import parquet

    shards = Shards.open(writer.folder, unfinished=True)
    schema = _schema(plan)
    with (
        writer.beside(INDEX) as draft,
        parquet.ParquetWriter(draft, schema, compression="zstd") as table,
    ):
        for number, key in enumerate(shards.keys):
            at = {name: shards.tensor(key, f"at.{name}").numpy() for name in PLACE}
            table.write_table(_table(plan, number, at, schema))


def _schema(plan: Plan) -> "pa.Schema":
    import pyarrow as pa

    examples = [one for texts in plan.texts for one in texts.pack.examples]
    return pa.schema(
        {
            "row": pa.int64(),
            "shard": pa.int32(),
            "row_in_shard": pa.int32(),
            "pack": pa.string(),
            "example": pa.int32(),
            "choice": pa.int32(),
            "group": _kind(examples, "group"),
            "family": _kind(examples, "family"),
            "cluster": pa.int32(),
            "role": pa.string(),
            "answer": pa.string(),
            "form": pa.string(),
            "topic": pa.string(),
            "label": pa.int8(),
            "position": pa.int32(),
            "token": pa.int32(),
            "text": pa.string(),
            "start": pa.int32(),
            "end": pa.int32(),
            "scored": pa.bool_(),
        }
    )


def _kind(examples: Sequence[Example], name: str) -> "pa.DataType":
    """Whole numbers if all are, else strings."""
    import pyarrow as pa

    found = {type(getattr(one, name)) for one in examples} - {type(None)}
    return pa.int64() if found == {int} else pa.string()


def _table(plan: Plan, number: int, at: dict[str, np.ndarray], schema: "pa.Schema") -> "pa.Table":
    """The index of a shard's rows."""
    import pyarrow as pa

    rows = np.arange(len(at["text"]))
    columns: dict[str, Any] = {
        "row": number * plan.shard_rows + rows,
        "shard": np.full(len(rows), number),
        "row_in_shard": rows,
        **{name: at[name] for name in ("position", "token", "start", "end")},
        "scored": at["scored"].astype(bool),
        "text": _texts(plan, at),
    }
    both = [*zip(at["pack"].tolist(), at["text"].tolist(), strict=True)]
    known = {two: _known(plan, *two, schema) for two in dict.fromkeys(both)}
    for name in schema.names:
        if name not in columns:
            columns[name] = [known[two][name] for two in both]
    return pa.table([pa.array(columns[n], schema.field(n).type) for n in schema.names], schema)


def _known(plan: Plan, pack: int, text: int, schema: "pa.Schema") -> dict[str, Any]:
    """What is known of a text; what is not said of it is None."""
    texts = plan.texts[pack]
    example = texts.pack.examples[text]
    named = {name: getattr(example, name) or None for name in ("role", "answer", "form", "topic")}
    for name in ("group", "family"):
        told = getattr(example, name)
        named[name] = (
            str(told) if told is not None and schema.field(name).type == "string" else told
        )
    return {
        **named,
        "pack": texts.pack.name,
        "example": texts.of[text],
        "choice": texts.choices[text],
        "cluster": texts.clusters[text],
        "label": texts.labels[text],
    }


def _texts(plan: Plan, at: dict[str, np.ndarray]) -> list[str | None]:
    """[row] text of each token; one that was added goes by its name in the vocabulary."""
    tokenizer = plan.model.tokenizer
    found = []
    for pack, text, token, start, end in zip(
        *(at[name].tolist() for name in ("pack", "text", "token", "start", "end")), strict=True
    ):
        if start < end:
            found.append(plan.texts[pack].pack.examples[text].text[start:end])
        else:
            found.append(tokenizer.convert_ids_to_tokens(token))
    return found
