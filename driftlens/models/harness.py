"""EleutherAI's lm-evaluation-harness, run on both models of a pair as they are loaded."""

import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError
from driftlens.evals import Evaluation

from .hooks import HookedModel
from .hybrid import plain
from .pair import ModelPair

ROUNDS = 1000
"""Draws behind the errors of scores that are no means of items."""


def evaluated(
    pair: ModelPair,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    rows: int = 8,
    chat: bool = False,
    seed: int = 0,
    include: str | Path | None = None,
) -> tuple[Evaluation, Evaluation]:
    """What both models score on tasks of lm-evaluation-harness, item by item.

    The models are used as they are loaded: an adapter is not merged, and what is set of a tokenizer
    is set of a copy. Tasks fetch their data sets themselves.

    Args:
        pair: Two plain `transformers` models that continue text.
        tasks: Names of tasks or groups.
        shots: Examples before each question; None is as many as a task has by itself.
        limit: Ask only the first so many items of each task.
        rows: Requests at a time.
        chat: Whether to put prompts into each model's own chat template.
        seed: Of what the harness draws, such as examples.
        include: A folder of further tasks as YAML.

    Returns:
        Of base and of aligned.

    Raises:
        DriftlensError: lm-eval is not installed, does not know a task, or a model is no plain one
            that continues text.
    """
    lm_eval = _installed()
    models = [plain(model) for model in (pair.base, pair.aligned)]
    if not pair.base.causal:
        raise DriftlensError(
            "models that continue text",
            found=f"{pair.base.name}, which fills in masked tokens",
            remedy="Compare causal language models.",
        )
    manager = _manager(tasks, include)
    asked: dict[str, Any] = {
        "tasks": list(tasks),
        "task_manager": manager,
        "num_fewshot": shots,
        "limit": limit,
        "log_samples": True,
        "bootstrap_iters": ROUNDS,
        "apply_chat_template": chat,
        "random_seed": seed,
        "numpy_random_seed": seed,
        "torch_random_seed": seed,
        "fewshot_random_seed": seed,
    }

    def of(model: HookedModel, name: str) -> Evaluation:
        with _as_found(model), warnings.catch_warnings():
            # The harness and what it stands on warn of their own affairs.
            warnings.simplefilter("ignore")
            results = lm_eval.simple_evaluate(model=_reader(model, rows), **asked)
        return Evaluation.of(results, name)

    base = of(models[0], pair.base.name)
    if pair.aligned is pair.base:
        return base, base
    return base, of(models[1], pair.aligned.name)


def _installed() -> Any:
    try:
        import lm_eval
        from lm_eval.models import huggingface
    except ImportError as error:
        raise DriftlensError(
            "the package lm-eval, to ask the models its tasks",
            found=f"it is not installed ({error})",
            remedy="Type: pip install 'driftlens[evals]'.",
        ) from None
    assert huggingface, "what reads transformers models is there too"
    return lm_eval


def _manager(tasks: Sequence[str], include: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known] or ([] if tasks else ["none"]):
        raise DriftlensError(
            "tasks that lm-eval knows",
            found=", ".join(unknown),
            remedy="Choose among those of `lm-eval ls tasks`, or name a folder with --include.",
        )
    return manager


def _reader(model: HookedModel, rows: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model.net,
        # It may be given a token to pad with.
        tokenizer=deepcopy(model.tokenizer),
        backend="causal",
        batch_size=rows,
        max_length=model.context,
    )


@contextmanager
def _as_found(model: HookedModel) -> Any:
    """The model within what makes it itself, and its net put back into the mode it was in."""
    training = [module for module in model.net.modules() if module.training]
    with model.around():
        try:
            yield
        finally:
            for module in training:
                module.training = True
