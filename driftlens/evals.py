"""Capability that was measured elsewhere: what EleutherAI's lm-evaluation-harness has written.

Results and logs of single samples are read as versions 0.4.0 to 0.4.13 write them, and laid side
by side for two models. No model.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import DriftlensError, LoadError

LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of which less is better, where the results do not say so themselves."""

GUESSED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that guessing among choices scores one over their number in."""

LOGGED = ("perplexity", "word_perplexity", "byte_perplexity")
"""Metrics that are exp(−mean log-likelihood)."""

WEIGHED = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics whose samples are a log-likelihood and over how many words or bytes it is."""

STAMP = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl?$")
"""When results were written, at the end of a file's name."""


class Key(NamedTuple):
    """What a score is of."""

    task: str
    metric: str
    filter: str


class Score(NamedTuple):
    """A score as the results tell it."""

    value: float
    error: float
    """Its standard error; NaN where there is none."""


@dataclass(frozen=True)
class Task:
    """How a task was put to a model."""

    version: str = ""
    shots: int | None = None
    """Examples before each question; None where that is not told."""
    items: int | None = None
    """How many items were asked; None where that is not told."""
    kind: str = ""
    """As multiple_choice or generate_until; nothing of groups."""
    choices: int | None = None
    """How many choices every item has, if all have as many."""
    alias: str = ""
    higher: Mapping[str, bool | None] = field(default_factory=dict)
    """By metric, whether more is better."""
    members: tuple[str, ...] = ()
    """The tasks that a group is of."""


@dataclass(frozen=True)
class Items:
    """The items of a task that a model was asked, as one filter read its answers."""

    ids: np.ndarray
    """[item] number within its task."""
    documents: np.ndarray
    """[item] hash of the document; empty where versions before 0.4.3 tell none."""
    prompts: np.ndarray
    """[item] hash of what the model read; empty likewise."""
    targets: np.ndarray
    """[item] hash of the right answer; empty likewise."""
    choices: np.ndarray
    """[item] how many choices it has; 0 where there are none, or several are right."""
    scores: Mapping[str, np.ndarray]
    """By metric, [item] its score."""
    weights: Mapping[str, np.ndarray]
    """By metric that is told over words or bytes, [item] how many."""


@dataclass(frozen=True)
class Evaluation:
    """One model's results on the tasks of lm-evaluation-harness."""

    name: str
    """What the model is called there."""
    scores: Mapping[Key, Score]
    tasks: Mapping[str, Task]
    items: Mapping[tuple[str, str], Items] = field(default_factory=dict)
    """By task and filter, the single samples, where they were logged."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What all prompts have about them: chat template, system instruction."""
    version: str = ""
    """Of lm_eval; nothing where that is not told."""
    source: str = ""
    """The file it was read from."""
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> "Evaluation":
        """Read a results file, or the folder that `--output_path` names, with its sample logs.

        Of several results in a folder the newest is read, and the notes say so.

        Raises:
            LoadError: There is nothing there, or it cannot be read.
            DriftlensError: It is not of lm-evaluation-harness 0.4, or holds several models.
        """
        file, notes = _file(Path(path))
        results = _json(file)
        _check(results, str(file))
        found = cls._of(results, _logs(file, results), str(file), notes)
        if not found.items:
            said = "no samples were logged beside it (--log_samples), so flips are unknown"
            found = _with_note(found, f"{file.name} of {found.name}: {said}.")
        return found

    @classmethod
    def of(cls, results: Mapping[str, Any], name: str = "") -> "Evaluation":
        """What `lm_eval.simple_evaluate` returns.

        Args:
            results: Its results, with `samples` if they were logged.
            name: What to call the model; what the results call it if left out.
        """
        _check(results, "the results")
        logs = {
            task: [_row(f"sample {n} of {task}", row) for n, row in enumerate(rows)]
            for task, rows in (results.get("samples") or {}).items()
        }
        return cls._of({**results, **({"model_name": name} if name else {})}, logs)

    @classmethod
    def _of(
        cls,
        results: Mapping[str, Any],
        logs: Mapping[str, Sequence["_Row"]],
        source: str = "",
        notes: Sequence[str] = (),
    ) -> "Evaluation":
        scores, told = _scores(results)
        tasks = {task: _task(results, task, [k for k in scores if k.task == task]) for task in told}
        items = {
            (task, filter_): _items(rows)
            for task, every in logs.items()
            for filter_, rows in _by_filter(results, task, every, scores).items()
        }
        about = ("system_instruction_sha", "chat_template_sha")
        return cls(
            _name(results),
            scores,
            tasks,
            items,
            {name: results.get(name) for name in about},
            str(results.get("lm_eval_version") or ""),
            source,
            tuple(notes),
        )

    def members(self, task: str) -> tuple[str, ...]:
        """The tasks that a group is of in the end; the task itself if it is none."""
        below = self.tasks[task].members if task in self.tasks else ()
        return tuple(one for member in below for one in self.members(member)) or (task,)

    def higher(self, key: Key) -> bool:
        """Whether more of a metric is better."""
        said = self.tasks[key.task].higher.get(key.metric)
        return key.metric not in LOWER if said is None else bool(said)


# Files


def _file(path: Path) -> tuple[Path, list[str]]:
    """The results to read, and what is to be said of the choice."""
    if path.is_file():
        return path, []
    if not path.is_dir():
        raise LoadError(
            f"results of lm-evaluation-harness at {path}",
            found="nothing",
            remedy="Give its results_….json, or the folder that --output_path named.",
        )
    found = [file for file in path.rglob("*.json") if _is_results(file)]
    if not found:
        raise LoadError(
            f"results of lm-evaluation-harness in {path}",
            found="no results_….json",
            remedy="Give the folder that --output_path named.",
        )
    places = sorted({str(file.parent.relative_to(path)) for file in found})
    if len(places) > 1:
        raise DriftlensError(
            f"the results of one model in {path}",
            found=f"those of {', '.join(places)}",
            remedy="Give the folder of one of them.",
        )
    found.sort(key=_when)
    newest = found[-1]
    said = f"{newest.name} is the newest of {len(found)} results in its folder."
    return newest, [said] if len(found) > 1 else []


def _is_results(file: Path) -> bool:
    return file.name == "results.json" or bool(STAMP.search(file.name))


def _when(file: Path) -> tuple[str, str]:
    stamp = STAMP.search(file.name)
    return (stamp[1] if stamp else "", file.name)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"JSON at {file}",
            found=str(error),
            remedy="Give the results_….json of lm-evaluation-harness.",
        ) from None


def _check(results: Any, called: str) -> None:
    """Raise unless it is what lm-evaluation-harness 0.4 writes."""
    remedy = "Evaluate with lm-evaluation-harness 0.4, and give its results_….json."
    if not isinstance(results, Mapping) or not isinstance(results.get("results"), Mapping):
        raise DriftlensError(
            f"`results` of lm-evaluation-harness in {called}", found="none", remedy=remedy
        )
    names = [name for scores in results["results"].values() for name in scores]
    if names and not any("," in name for name in names):
        raise DriftlensError(
            f"scores named by metric and filter, as 'acc,none', in {called}",
            found=", ".join(map(repr, names[:3])),
            remedy=remedy,
        )


def _name(results: Mapping[str, Any]) -> str:
    """What the model is called, as all versions since 0.4.3 say; before, by its arguments."""
    if name := results.get("model_name"):
        return str(name)
    config = results.get("config") or {}
    told = config.get("model_args") or config.get("model") or "model"
    if isinstance(told, Mapping):
        told = told.get("pretrained") or told.get("model") or "model"
    named = re.search(r"(?:pretrained|model)=([^,]+)", str(told))
    return named[1] if named else str(told)


def _logs(file: Path, results: Mapping[str, Any]) -> dict[str, list["_Row"]]:
    """By task, the samples that were logged in the same run."""
    stamp = STAMP.search(file.name)
    found: dict[str, list[_Row]] = {}
    for task in results.get("configs") or results["results"]:
        if stamp:
            log = file.with_name(f"samples_{task}_{stamp[1]}.jsonl")
        else:
            # Before 0.4.3 a log was named after the model's arguments, and never by its time.
            told = (results.get("config") or {}).get("model_args")
            log = file.with_name(f"{re.sub('/|=', '__', str(told))}_{task}.jsonl")
        if log.is_file():
            found[task] = [_row(where, record) for where, record in _records(log)]
    return found


def _records(log: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The samples of a log: one a line, or before 0.4.3 all of them in one list."""
    try:
        with log.open(encoding="utf-8") as lines:
            first = lines.readline()
            lines.seek(0)
            if first.lstrip().startswith("["):
                for number, record in enumerate(json.load(lines)):
                    yield f"sample {number} of {log}", record
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number} of {log}", json.loads(line)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"samples of lm-evaluation-harness in {log}",
            found=str(error),
            remedy="Evaluate again with --log_samples, or take the file away.",
        ) from None


# Samples

KNOWN = frozenset(
    (
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash"),
    )
)
"""What a sample holds besides its scores."""


class _Row(NamedTuple):
    """What of a sample is kept."""

    id: int
    filter: str | None
    hashes: tuple[str, ...]
    """Of document, prompt and target."""
    choices: int
    scores: dict[str, tuple[float, float]]
    """By metric, a number and what it is over."""


def _row(where: str, record: Any) -> _Row:
    if not isinstance(record, Mapping) or "doc_id" not in record:
        raise DriftlensError(
            f"a sample with a doc_id on {where}",
            found=f"fields {', '.join(record)}" if isinstance(record, Mapping) else "none",
            remedy="Evaluate again with --log_samples.",
        )
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    scores = {name: _number(name, told) for name, told in record.items() if name not in KNOWN}
    kept = {name: told for name, told in scores.items() if told is not None}
    several = isinstance(record.get("target"), list) or str(record.get("target")).startswith("[")
    count = len(record.get("arguments") or ())
    if "acc_mutual_info" in kept:
        # Each choice is then also read without its question.
        count //= 2
    return _Row(
        int(record["doc_id"]),
        record.get("filter"),
        tuple(str(record.get(name) or "") for name in hashes),
        0 if several else count,
        kept,
    )


def _number(name: str, told: Any) -> tuple[float, float] | None:
    """A sample's score and what it is over; None of scores that are no numbers."""
    if isinstance(told, bool | int | float):
        return float(told), 1.0
    # Pairs of other metrics are answers beside right ones, of which F1 is made.
    if name in WEIGHED and isinstance(told, list | tuple) and len(told) == 2:
        return float(told[0]), float(told[1])
    return None


def _by_filter(
    results: Mapping[str, Any], task: str, rows: Sequence[_Row], scores: Mapping[Key, Score]
) -> dict[str, list[_Row]]:
    """The samples by the filter that read the answers.

    Up to 0.4.5 a sample did not tell its filter, but each document was logged once for every
    filter, in their order.
    """
    config = (results.get("configs") or {}).get(task) or {}
    named = [one["name"] for one in config.get("filter_list") or () if "name" in one]
    order = named or list(dict.fromkeys(key.filter for key in scores if key.task == task))
    times: Counter[int] = Counter()
    found: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        filter_ = row.filter
        if filter_ is None:
            number = times[row.id]
            times[row.id] += 1
            filter_ = order[number] if number < len(order) else f"unknown {number}"
        found[filter_].append(row)
    return found


def _items(rows: Sequence[_Row]) -> Items:
    rows = sorted(rows, key=lambda row: row.id)
    names = dict.fromkeys(name for row in rows for name in row.scores)
    told = {name: np.array([row.scores.get(name, (nan, 1)) for row in rows]) for name in names}
    hashes = np.array([row.hashes for row in rows], dtype=object).reshape(-1, 3)
    documents, prompts, targets = hashes.T
    return Items(
        np.array([row.id for row in rows]),
        documents,
        prompts,
        targets,
        np.array([row.choices for row in rows]),
        {name: both[:, 0] for name, both in told.items()},
        {name: both[:, 1] for name, both in told.items() if (both[:, 1] != 1).any()},
    )


# Results


def _scores(results: Mapping[str, Any]) -> tuple[dict[Key, Score], list[str]]:
    """Every score, and the tasks and groups they are of."""
    scores: dict[Key, Score] = {}
    for task, told in {**results["results"], **(results.get("groups") or {})}.items():
        for name, number in told.items():
            metric, comma, filter_ = name.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(number):
                continue
            error = told.get(f"{metric}_stderr,{filter_}")
            scores[Key(task, metric, filter_)] = Score(
                float(number), float(error) if _is_number(error) else nan
            )
    return scores, list(dict.fromkeys(key.task for key in scores))


def _is_number(told: Any) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool)


def _task(results: Mapping[str, Any], task: str, keys: Sequence[Key]) -> Task:
    def of(name: str) -> Any:
        return (results.get(name) or {}).get(task)

    config, told = of("configs") or {}, results["results"].get(task) or {}
    items = (of("n-samples") or {}).get("effective", told.get("sample_len", told.get("samples")))
    choices = config.get("doc_to_choice")
    listed = {
        one["metric"]: one["higher_is_better"]
        for one in config.get("metric_list") or ()
        if isinstance(one, Mapping) and "higher_is_better" in one and "metric" in one
    }
    higher = {**listed, **(of("higher_is_better") or {})}
    shots = of("n-shot")
    return Task(
        _version(of("versions")),
        _count(shots),
        _count(items),
        str(config.get("output_type") or ""),
        len(choices) if isinstance(choices, list) else None,
        str(told.get("alias") or task).strip(" -"),
        {key.metric: higher.get(key.metric) for key in keys},
        tuple((results.get("group_subtasks") or {}).get(task) or ()),
    )


def _count(told: Any) -> int | None:
    return int(told) if _is_number(told) else None


def _version(told: Any) -> str:
    """A task's version, the same whether it was written as 1 or 1.0."""
    if told in (None, "N/A", "Yaml"):
        return ""
    return f"{told:g}" if _is_number(told) else str(told)


def _with_note(found: Evaluation, note: str) -> Evaluation:
    from dataclasses import replace

    return replace(found, notes=(*found.notes, note))


# Two models


@dataclass(frozen=True)
class Compared:
    """One score of both models, over the same items."""

    key: Key
    higher: bool
    """Whether more is better."""
    base: Score
    aligned: Score
    """Both over the items in common, where these are known; as the results tell them if not."""
    items: int | None
    """How many; None where that is not told."""
    chance: float
    """What guessing scores; NaN where that is not known."""
    base_items: np.ndarray
    """[item] base's score of each item that both were asked; empty where they are not known."""
    aligned_items: np.ndarray
    """[item] aligned's score of it."""
    weights: np.ndarray
    """[item] what the scores are over."""
    group: bool
    """Whether it is the score of a group of tasks."""

    @property
    def paired(self) -> bool:
        """Whether single items are known of both models."""
        return len(self.base_items) > 0

    @property
    def binary(self) -> bool:
        """Whether every item is right or wrong."""
        both = np.concatenate([self.base_items, self.aligned_items])
        return self.paired and bool(np.isin(both, (0.0, 1.0)).all())

    @property
    def of(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """What makes a score of a mean over items; None if it is that mean."""
        if self.key.metric not in (*LOGGED, "bits_per_byte"):
            return None
        return partial(scored, self.key.metric)


def scored(metric: str, mean: np.ndarray) -> np.ndarray:
    """The score of a metric that a mean of its items makes, as the harness adds them up."""
    if metric in LOGGED:
        return np.exp(-mean)
    return -mean / np.log(2) if metric == "bits_per_byte" else mean


def compared(
    base: Evaluation,
    aligned: Evaluation,
    *,
    any_prompt: bool = False,
    chance: Mapping[str, float] | None = None,
) -> tuple[list[Compared], tuple[str, ...]]:
    """What both models were asked alike, and notes of what they were not.

    Items are paired by the hash of their document (by their number where no hash was logged). A
    task is left out, with a note, where its version, its number of examples, its prompts or its
    answers differ.

    Args:
        base: Results of the base model.
        aligned: Results of its aligned version.
        any_prompt: Whether to go on where the two read other prompts, as of a chat template.
        chance: By task, what guessing scores, where the results do not tell the choices.

    Raises:
        DriftlensError: They have no task in common that can be compared.
    """
    notes = [*base.notes, *aligned.notes]
    if base.version != aligned.version:
        versions = (one.version or "one that is not told" for one in (base, aligned))
        notes.append("The models were evaluated by lm_eval " + " and by ".join(versions) + ".")
    refused = _refused(base, aligned, any_prompt)
    pairs = _Pairs(base, aligned, any_prompt)
    found = []
    for key in base.scores:
        if key not in aligned.scores or refused.get(key.task):
            continue
        one = _compared(pairs, key, (chance or {}).get(key.task))
        if isinstance(one, str):
            refused.setdefault(key.task, one)
        else:
            found.append(one)
    notes += [f"{task} is left out: {why}." for task, why in refused.items() if why]
    notes += pairs.notes
    for mine, other in ((base, aligned), (aligned, base)):
        alone = sorted({key.task for key in mine.scores} - {key.task for key in other.scores})
        if alone:
            notes.append(f"Only {mine.name} was asked {', '.join(alone)}.")
    if not found:
        raise DriftlensError(
            f"a task on which {base.name} and {aligned.name} can be compared",
            found=" ".join(notes) or "no task in common",
            remedy="Evaluate both models on the same tasks in the same way.",
        )
    return found, tuple(dict.fromkeys(notes))


def _refused(base: Evaluation, aligned: Evaluation, any_prompt: bool) -> dict[str, str]:
    """By task, why it cannot be compared."""
    found: dict[str, str] = {}
    for task, ours in base.tasks.items():
        if task not in aligned.tasks:
            continue
        theirs = aligned.tasks[task]
        for what, one, other in (
            ("version", ours.version, theirs.version),
            ("number of examples in the prompt", ours.shots, theirs.shots),
        ):
            if one != other and not {None, ""} & {one, other}:
                found[task] = f"its {what} is {one} for base and {other} for aligned"
    for group in base.tasks:
        below = [one for one in base.members(group) if one in found]
        if below and group not in found:
            found[group] = f"so is its part {below[0]}"
    if any_prompt:
        return found
    for name, said in (
        ("chat_template_sha", "the chat template"),
        ("system_instruction_sha", "the system instruction"),
    ):
        if base.context.get(name) != aligned.context.get(name):
            why = f"{said} is not the same for both models (say so with --any-prompt)"
            found |= {task: why for task in base.tasks if task not in found}
    return found


@dataclass
class _Pairs:
    """The places of the same items in the logs of two models."""

    base: Evaluation
    aligned: Evaluation
    any_prompt: bool
    notes: list[str] = field(default_factory=list)
    found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray] | str | None] = field(
        default_factory=dict
    )

    def of(self, task: str, filter_: str) -> tuple[np.ndarray, np.ndarray] | str | None:
        """[item] places in either log; why there are none, or None where nothing was logged."""
        key = task, filter_
        if key not in self.found:
            self.found[key] = self._paired(task, filter_)
        return self.found[key]

    def _paired(self, task: str, filter_: str) -> tuple[np.ndarray, np.ndarray] | str | None:
        ours, theirs = (side.items.get((task, filter_)) for side in (self.base, self.aligned))
        if ours is None or theirs is None:
            return None
        hashed = all(side.documents.all() for side in (ours, theirs))
        if not hashed:
            self.notes.append(
                f"Items of {task} are paired by their numbers, for no hash of them was logged."
            )
        names = [_places(side, hashed) for side in (ours, theirs)]
        both = [name for name in names[0] if name in names[1]]
        if not both:
            return "no item was asked of both models"
        here, there = (np.array([places[name] for name in both]) for places in names)
        for what, mine, other in (
            ("right answers", ours.targets[here], theirs.targets[there]),
            ("prompts", ours.prompts[here], theirs.prompts[there]),
        ):
            told = (mine != "") & (other != "")
            unlike = int((told & (mine != other)).sum())
            if unlike and not (what == "prompts" and self.any_prompt):
                hint = " (say so with --any-prompt)" if what == "prompts" else ""
                return f"{unlike} of {len(both)} items have other {what}{hint}"
            if unlike:
                self.notes.append(f"The prompts of {unlike} items of {task} differ.")
        left = len(ours.ids) + len(theirs.ids) - 2 * len(both)
        if left:
            self.notes.append(
                f"{task} is compared on the {len(both)} items that both models were asked "
                f"({len(ours.ids)} and {len(theirs.ids)})."
            )
        return here, there


def _places(items: Items, hashed: bool) -> dict[tuple, int]:
    """Where each item stands; those of one hash are told apart by their order."""
    if not hashed:
        return {(int(number),): place for place, number in enumerate(items.ids)}
    times: Counter[str] = Counter()
    found = {}
    for place, name in enumerate(items.documents):
        found[name, times[name]] = place
        times[name] += 1
    return found


class _Taken(NamedTuple):
    """Scores of the same items, and the sums of all items of either model."""

    base: np.ndarray
    aligned: np.ndarray
    weights: np.ndarray
    choices: np.ndarray
    sums: np.ndarray
    """[1, model, 2] of scores, and of what they are over, of all that a model was asked."""


NOTHING = _Taken(np.empty(0), np.empty(0), np.empty(0), np.empty(0), np.empty((0, 2, 2)))


def _compared(pairs: _Pairs, key: Key, chance: float | None) -> Compared | str:
    """A score of both models; or why there is none."""
    base, aligned = pairs.base.scores[key], pairs.aligned.scores[key]
    members = pairs.base.members(key.task)
    parts = [_taken(pairs, Key(member, *key[1:])) for member in members]
    if refusal := next((part for part in parts if isinstance(part, str)), None):
        return refusal
    known = [part for part in parts if isinstance(part, _Taken)]
    taken = NOTHING
    if len(known) == len(members):
        taken = _Taken(*map(np.concatenate, zip(*known, strict=True)))
        told = [_mean(key.metric, *sums) for sums in taken.sums.sum(0)]
        if not np.allclose(told, [base.value, aligned.value], rtol=1e-6, atol=1e-9):
            # Not a mean over items, as of groups whose tasks count alike, or F1 of a whole set.
            taken = NOTHING
    if len(taken.base):
        base, aligned = (
            _over(score, _mean(key.metric, items.sum(), taken.weights.sum()))
            for score, items in zip((base, aligned), taken[:2], strict=True)
        )
    tasks = [side.tasks[key.task] for side in (pairs.base, pairs.aligned)]
    counts = {task.items for task in tasks}
    if not len(taken.base) and len(counts) > 1 and None not in counts:
        return f"it was asked {tasks[0].items} items of base and {tasks[1].items} of aligned"
    return Compared(
        key,
        pairs.base.higher(key),
        base,
        aligned,
        len(taken.base) or tasks[0].items,
        _chance(tasks[0], key, taken) if chance is None else chance,
        taken.base,
        taken.aligned,
        taken.weights,
        bool(tasks[0].members),
    )


def _taken(pairs: _Pairs, key: Key) -> _Taken | str | None:
    """The items of one task; why they cannot be had, or None where they were not logged."""
    places = pairs.of(key.task, key.filter)
    if places is None or isinstance(places, str):
        return places
    sides = [
        (side.items[key.task, key.filter], rows)
        for side, rows in zip((pairs.base, pairs.aligned), places, strict=True)
    ]
    if any(key.metric not in items.scores for items, _ in sides):
        return None
    ones = np.ones(len(places[0]))
    scores = [items.scores[key.metric][rows] for items, rows in sides]
    weights = [
        items.weights[key.metric][rows] if key.metric in items.weights else ones
        for items, rows in sides
    ]
    if not np.array_equal(weights[0], weights[1]) or not np.isfinite(scores).all():
        return None
    sums = [
        [
            items.scores[key.metric].sum(),
            items.weights.get(key.metric, np.ones(len(items.ids))).sum(),
        ]
        for items, _ in sides
    ]
    items, rows = sides[0]
    choices = items.choices[rows]
    return _Taken(scores[0], scores[1], weights[0], choices, np.array([sums]))


def _over(score: Score, found: float) -> Score:
    """A score over some of the items, whose error is not told unless they are all."""
    return score if np.isclose(found, score.value, rtol=1e-6) else Score(found, nan)


def _mean(metric: str, total: float, over: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return float(scored(metric, np.divide(total, over)))


def _chance(task: Task, key: Key, taken: _Taken) -> float:
    """What guessing among choices scores; NaN where they are not known."""
    if key.metric not in GUESSED or task.kind not in ("multiple_choice", ""):
        return nan
    if len(taken.choices) and (taken.choices > 1).all():
        return float((1 / taken.choices).mean())
    return 1 / task.choices if task.choices and not len(taken.choices) else nan
