"""What lm-evaluation-harness writes, laid side by side: planted flips, and every layout of it."""

import json
import re
import sys
import warnings
from copy import deepcopy
from hashlib import sha256
from inspect import signature
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics import CapabilityResult, capability
from driftlens.errors import DriftlensError, LoadError
from driftlens.evals import Evaluation, Key, compared
from driftlens.formulas.flips import mcnemar
from driftlens.models import ModelPair
from driftlens.models.harness import evaluated
from driftlens.models.hooks import HookedModel
from driftlens.results import load, same, save

VERSIONS = ("0.4.0", "0.4.3", "0.4.9", "0.4.13")
"""One of each way to write results: without hashes, without filters, with both, with names."""

WHEN = "2026-01-02T03-04-05.678901"


def digest(text):
    return sha256(text.encode()).hexdigest()


class Run:
    """A run of the harness, as its author's code would write it.

    Tasks are put in one by one; `write` gives the path that `--output_path` named.
    """

    def __init__(self, version="0.4.13", model="org/model", **context):
        self.version, self.model, self.context = version, model, context
        self.results, self.logs, self.configs = {}, {}, {}
        self.more = {name: {} for name in ("versions", "n-shot", "higher_is_better", "n-samples")}
        self.groups = {}

    @property
    def number(self):
        return int(self.version.split(".")[2])

    def put(self, task, scores, **how):
        """A task and what it scored: by metric and filter, [item] a number or a pair of them."""
        metrics = {name.split(",")[0] for name in scores}
        aggregate = how.get("aggregate") or {
            name: np.mean([np.ravel(score)[0] for score in items]) for name, items in scores.items()
        }
        count = len(next(iter(scores.values())))
        errors = {
            name: float(np.std(items, ddof=1) / np.sqrt(count))
            if np.ndim(items) == 1 and count > 1
            else "N/A"
            for name, items in scores.items()
        }
        told = {"alias": f" - {task}"}
        if self.number >= 13:
            told = {"name": task, "alias": task, "sample_len": count}
        for name, number in aggregate.items():
            metric, filter_ = name.split(",")
            told[name] = float(number)
            told[f"{metric}_stderr,{filter_}"] = errors.get(name, "N/A")
        self.results[task] = told
        self.configs[task] = {
            "task": task,
            "output_type": how.get("kind", "multiple_choice"),
            "num_fewshot": how.get("shots", 0),
            "metric_list": [{"metric": metric} for metric in sorted(metrics)],
            **({"doc_to_choice": how["listed"]} if "listed" in how else {}),
        }
        filters = list(dict.fromkeys(name.split(",")[1] for name in scores))
        if filters != ["none"]:
            self.configs[task]["filter_list"] = [{"name": name, "filter": []} for name in filters]
        self.more["versions"][task] = how.get("task_version", 1.0)
        self.more["n-shot"][task] = how.get("shots", 0)
        self.more["higher_is_better"][task] = {
            metric: "perplexity" not in metric and metric != "bits_per_byte" for metric in metrics
        }
        self.more["n-samples"][task] = {"original": 1000, "effective": count}
        self.logs[task] = [*self._samples(task, scores, filters, how)]
        return self

    def _samples(self, task, scores, filters, how):
        numbers = how.get("numbers") or range(len(next(iter(scores.values()))))
        for filter_ in filters:
            mine = {n.split(",")[0]: items for n, items in scores.items() if n.endswith(filter_)}
            for place, number in enumerate(numbers):
                doc = {"question": f"{task} {how.get('document', number)}?"}
                prompt = f"{how.get('prompt', '')}{doc['question']}"
                target = how.get("target", "0")
                arguments = [(prompt, f" {c}") for c in range(how.get("choices", 4))]
                if self.number >= 3:
                    arguments = {
                        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(one)}
                        for i, one in enumerate(arguments)
                    }
                yield {
                    "doc_id": number,
                    "doc": doc,
                    "target": target,
                    "arguments": arguments,
                    "resps": [[["-1.5", "False"]]],
                    "filtered_resps": [["-1.5", "False"]],
                    **({"filter": filter_, "metrics": [*mine]} if self.number >= 7 else {}),
                    **(
                        {
                            "doc_hash": digest(json.dumps(doc, indent=2)),
                            "prompt_hash": digest(prompt),
                            "target_hash": digest(target),
                        }
                        if self.number >= 3
                        else {}
                    ),
                    **{metric: items[place] for metric, items in mine.items()},
                }

    def group(self, name, members, score):
        self.results[name] = {"alias": name, "acc,none": score, "acc_stderr,none": 0.01}
        self.groups[name] = members
        self.more["versions"][name] = "0"
        self.more["n-shot"][name] = 0
        return self

    def record(self, logged=True):
        """What `simple_evaluate` gives."""
        record = {
            "results": self.results,
            "group_subtasks": self.groups,
            "configs": self.configs,
            **{k: v for k, v in self.more.items() if self.number >= 3 or k[0] in "vn"},
            "config": {"model": "hf", "model_args": f"pretrained={self.model}", "limit": None},
            "date": 1767322800.1,
        }
        if self.number < 3:
            del record["n-samples"]
        if self.number >= 3:
            record |= {"model_name": self.model, "model_source": "hf", "chat_template_sha": None}
            record |= {"system_instruction_sha": None, **self.context}
        if self.number >= 9:
            record["lm_eval_version"] = self.version
        return record | ({"samples": self.logs} if logged else {})

    def write(self, folder, logged=True, when=WHEN):
        record = self.record(logged=False)
        if self.number < 3:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(json.dumps(record, indent=2))
            called = re.sub("/|=", "__", record["config"]["model_args"])
            for task, rows in self.logs.items() if logged else ():
                (folder / f"{called}_{task}.jsonl").write_text(json.dumps(rows, indent=2))
            return folder
        place = folder / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", self.model)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"results_{when}.json").write_text(json.dumps(record, indent=2))
        for task, rows in self.logs.items() if logged else ():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (place / f"samples_{task}_{when}.jsonl").write_text(lines)
        return folder


BASE = [1.0] * 70 + [0.0] * 30
ALIGNED = [1.0] * 45 + [0.0] * 25 + [1.0] * 6 + [0.0] * 24
"""25 right answers became wrong, and 6 wrong ones right."""


def both(version="0.4.13", **how):
    return (
        Run(version, "org/base").put("arc", {"acc,none": BASE}, **how),
        Run(version, "org/aligned").put("arc", {"acc,none": ALIGNED}, **how),
    )


def evaluations(runs, logged=True):
    return [Evaluation.of(run.record(logged)) for run in runs]


def row(result, task="arc", metric=None):
    names = result.task == task
    mine = np.flatnonzero(names if metric is None else names & (result.metric == metric))
    return {name: cells[mine[0]] for name, cells in result.columns().items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_planted_flips_are_found_in_what_every_version_writes(version, tmp_path):
    base, aligned = both(version)
    found = capability(
        Evaluation.read(base.write(tmp_path / "base")),
        Evaluation.read(aligned.write(tmp_path / "aligned")),
    )
    told = row(found)
    assert (told["base"], told["aligned"]) == (0.7, pytest.approx(0.51))
    assert told["change"] == pytest.approx(-0.19)
    assert (told["right_to_wrong"], told["wrong_to_right"], told["items"]) == (25, 6, 100)
    assert told["p_value"] == pytest.approx(mcnemar(25, 6))
    assert told["chance"] == 0.25
    assert told["relative_loss"] == pytest.approx(0.19 / 0.45)
    assert (told["verdict"], told["interval"]) == ("lost", "paired")
    assert told["low"] < -0.19 < told["high"] < 0
    assert (found.base_name, found.aligned_name) == ("org/base", "org/aligned")
    assert found.right_to_wrong_share.value == pytest.approx(25 / 70)
    assert found.wrong_to_right_share.value == pytest.approx(6 / 30)
    assert found.headline().startswith("lost 19")
    assert found.headline().endswith("25 right answers became wrong and 6 wrong ones right")
    assert "25 right answers became wrong and 6 wrong ones right" in found.summary()


def test_identical_results_change_nothing():
    one, _ = both()
    found = capability(*evaluations([one, one]))
    told = row(found)
    assert (told["change"], told["low"], told["high"]) == (0, 0, 0)
    assert (told["p_value"], told["p_holm"], told["verdict"]) == (1, 1, "within noise")
    for name in CapabilityResult.near_zero:
        assert np.ravel(np.asarray(getattr(found, name)))[0] == 0, name
    assert "nothing was lost" in found.headline()


def test_what_is_returned_is_read_as_what_is_written(tmp_path):
    runs = both()
    written = [Evaluation.read(run.write(tmp_path / str(n))) for n, run in enumerate(runs)]
    assert same(capability(*written), capability(*evaluations(runs)))
    assert same(capability(tmp_path / "0", str(tmp_path / "1")), capability(*written))


def test_a_result_survives_the_store_and_is_drawn(tmp_path):
    found = capability(*evaluations(both()))
    assert same(load(save(found, tmp_path / "stored")), found)
    assert len(found.figure().axes) == 2


def test_items_are_paired_by_document_and_not_by_place(tmp_path):
    base, _ = both()
    order = np.random.default_rng(0).permutation(100)
    turned = Run().put(
        "arc", {"acc,none": [BASE[n] for n in order]}, numbers=[int(n) for n in order]
    )
    told = row(capability(*evaluations([base, turned])))
    assert (told["right_to_wrong"], told["wrong_to_right"]) == (0, 0)


def test_only_items_in_common_are_compared_and_the_notes_say_so():
    base, _ = both()
    part = Run().put("arc", {"acc,none": [0.0] * 10}, numbers=[*range(60, 70)])
    found = capability(*evaluations([base, part]))
    told = row(found)
    assert (told["items"], told["base"], told["aligned"]) == (10, 1, 0)
    assert any("the 10 items that both models were asked (100 and 10)" in n for n in found.notes)


def test_documents_that_are_alike_are_told_apart_by_their_order():
    alike = {"document": "same"}
    runs = [Run().put("arc", {"acc,none": scores}, **alike) for scores in ([1.0, 0.0], [0.0, 0.0])]
    told = row(capability(*evaluations(runs)))
    assert (told["right_to_wrong"], told["wrong_to_right"], told["items"]) == (1, 0, 2)


def test_without_hashes_items_are_paired_by_number_with_a_note():
    found = capability(*evaluations(both("0.4.0")))
    assert any("paired by their numbers" in note for note in found.notes)


@pytest.mark.parametrize("version", VERSIONS)
def test_filters_are_told_apart_even_where_samples_do_not_name_them(version, tmp_path):
    strict, loose = [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    base = Run(version, "b").put(
        "gsm8k",
        {"exact_match,strict-match": strict, "exact_match,flexible-extract": loose},
        kind="generate_until",
        choices=1,
    )
    aligned = Run(version, "a").put(
        "gsm8k",
        {"exact_match,strict-match": loose, "exact_match,flexible-extract": strict},
        kind="generate_until",
        choices=1,
    )
    read = [Evaluation.read(r.write(tmp_path / r.model)) for r in (base, aligned)]
    found = capability(*read)
    assert found.columns()["filter"].tolist() == ["strict-match", "flexible-extract"]
    assert found.right_to_wrong.tolist() == [0, 1]
    assert found.wrong_to_right.tolist() == [1, 0]
    assert found.main.tolist() == [True, False]
    assert np.isnan(found.chance).all()
    assert capability(*read, chance={"gsm8k": 0.0}).relative_loss.tolist() == [
        -0.5,
        pytest.approx(1 / 3),
    ]


def test_of_perplexities_less_is_better():
    def run(logs):
        words = [4, 6, 5]
        over = sum(words)
        return Run().put(
            "wiki",
            {name: [*zip(logs, words, strict=True)] for name in ("word_perplexity,none",)},
            kind="loglikelihood_rolling",
            choices=1,
            aggregate={"word_perplexity,none": np.exp(-sum(logs) / over)},
        )

    found = capability(*evaluations([run([-4.0, -6.0, -5.0]), run([-9.0, -13.0, -12.0])]))
    told = row(found, "wiki")
    assert told["base"] == pytest.approx(np.e)
    assert told["change"] == pytest.approx(np.exp(34 / 15) - np.e)
    assert (told["verdict"], told["interval"]) == ("lost", "paired")
    assert not told["higher_is_better"]
    assert np.isnan(told["p_value"])
    assert np.isnan(found.mean_change.value)
    assert found.headline().startswith("word_perplexity on wiki rose by")
    assert "none is scored in shares" in found.summary()
    assert len(found.figure().axes) == 2


def test_bits_are_what_the_harness_says_they_are():
    def run(logs):
        return Run().put(
            "wiki",
            {"bits_per_byte,none": [*zip(logs, [10, 20], strict=True)]},
            choices=1,
            aggregate={"bits_per_byte,none": -sum(logs) / 30 / np.log(2)},
        )

    told = row(capability(*evaluations([run([-7.0, -8.0]), run([-9.0, -12.0])])), "wiki")
    assert told["change"] == pytest.approx(6 / 30 / np.log(2))
    assert told["interval"] == "paired"


def test_scores_that_are_no_means_of_items_are_not_paired():
    runs = [
        Run(model=model).put("squad", {"f1,none": items}, aggregate={"f1,none": score})
        for model, items, score in (("b", [0.5, 0.7, 0.9], 0.8), ("a", [0.5, 0.6, 0.7], 0.6))
    ]
    told = row(capability(*evaluations(runs)), "squad")
    assert told["change"] == pytest.approx(-0.2)
    assert told["interval"] == "Wald"
    assert np.isnan(told["right_to_wrong"])


def test_answers_beside_right_ones_are_no_scores():
    runs = [Run().put("cola", {"mcc,none": [[0, 1], [1, 1]]}, aggregate={"mcc,none": 0.4})] * 2
    assert row(capability(*evaluations(runs)), "cola")["interval"] == "none"


def test_scores_alone_have_newcombes_interval_where_items_are_right_or_wrong(tmp_path):
    read = [Evaluation.read(run.write(tmp_path / run.model, logged=False)) for run in both("0.4.9")]
    found = capability(*read)
    told = row(found)
    assert told["interval"] == "Newcombe"
    # Of the same items a change is surer than of others, for their answers go together.
    paired = row(capability(*evaluations(both("0.4.9"))))
    assert told["low"] < paired["low"] < paired["high"] < told["high"] < 0
    assert np.isnan([told["p_value"], told["right_to_wrong"]]).all()
    assert found.tested == 0
    assert told["verdict"] == "lost"
    assert sum("no samples were logged" in note for note in found.notes) == 2


def test_scores_alone_have_the_normal_interval_where_no_count_is_told(tmp_path):
    read = [Evaluation.read(run.write(tmp_path / run.model, logged=False)) for run in both("0.4.0")]
    told = row(capability(*read))
    errors = [np.std(z, ddof=1) / 10 for z in (BASE, ALIGNED)]
    assert told["interval"] == "Wald"
    assert told["high"] - told["change"] == pytest.approx(1.959964 * np.hypot(*errors), rel=1e-5)


def test_the_chance_level_is_known_from_choices_that_are_listed():
    runs = both(listed=["A", "B", "C", "D", "E"])
    assert row(capability(*evaluations(runs, logged=False)))["chance"] == pytest.approx(0.2)


def test_the_chance_level_of_several_right_answers_is_not_known():
    assert np.isnan(row(capability(*evaluations(both(target="[0, 2]"))))["chance"])


def test_a_group_is_what_its_tasks_are_where_every_item_counts_alike():
    runs = [
        Run(model=model)
        .put("easy", {"acc,none": easy})
        .put("hard", {"acc,none": hard})
        .group("all", ["easy", "hard"], np.mean([*easy, *hard]))
        for model, easy, hard in (
            ("b", [1.0] * 8, [1.0, 0.0, 0.0, 0.0]),
            ("a", [1.0] * 6 + [0.0] * 2, [1.0, 1.0, 0.0, 0.0]),
        )
    ]
    found = capability(*evaluations(runs))
    told = row(found, "all")
    assert (told["right_to_wrong"], told["wrong_to_right"], told["items"]) == (2, 1, 12)
    assert told["group"]
    # The sentences speak of tasks and not of groups, so that nothing counts twice.
    assert found.tasks == 2
    assert found.right_to_wrong_share.value == pytest.approx(2 / 9)
    assert found.mean_change.value == pytest.approx((-2 / 8 + 1 / 4) / 2)


def test_a_group_whose_tasks_count_alike_is_not_paired():
    runs = [
        Run()
        .put("easy", {"acc,none": [1.0] * 8})
        .put("hard", {"acc,none": [0.0, 0.0]})
        .group("all", ["easy", "hard"], 0.5)
    ] * 2
    assert row(capability(*evaluations(runs)), "all")["interval"] == "Wald"


UNLIKE = {
    "version": ({"task_version": 1.0}, {"task_version": 2.0}, "its version is 1 for base and 2"),
    "examples": ({"shots": 0}, {"shots": 5}, "examples in the prompt is 0 for base and 5"),
    "prompts": ({}, {"prompt": "<user> "}, "100 of 100 items have other prompts"),
    "answers": ({}, {"target": "1"}, "100 of 100 items have other right answers"),
    "documents": ({}, {"document": "another"}, "no item was asked of both"),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_was_not_asked_alike_is_not_compared(what):
    ours, theirs, said = UNLIKE[what]
    runs = (
        Run().put("arc", {"acc,none": BASE}, **ours).put("same", {"acc,none": BASE}),
        Run().put("arc", {"acc,none": ALIGNED}, **theirs).put("same", {"acc,none": ALIGNED}),
    )
    found = capability(*evaluations(runs))
    assert found.task.tolist() == ["same"]
    (note,) = [note for note in found.notes if note.startswith("arc is left out")]
    assert said in note
    alone = (
        Run().put("arc", {"acc,none": BASE}, **ours),
        Run().put("arc", {"acc,none": ALIGNED}, **theirs),
    )
    with pytest.raises(DriftlensError, match=r"a task on which .* can be compared") as error:
        capability(*evaluations(alone))
    assert said in str(error.value)


def test_other_prompts_are_compared_where_that_is_asked_for():
    runs = (
        Run().put("arc", {"acc,none": BASE}),
        Run(chat_template_sha="ab12").put("arc", {"acc,none": ALIGNED}, prompt="<user> "),
    )
    with pytest.raises(DriftlensError, match="the chat template is not the same"):
        capability(*evaluations(runs))
    found = capability(*evaluations(runs), any_prompt=True)
    assert row(found)["right_to_wrong"] == 25
    assert "The prompts of 100 items of arc differ." in found.notes


def test_scores_alone_over_other_numbers_of_items_are_not_compared():
    runs = (Run().put("arc", {"acc,none": BASE}), Run().put("arc", {"acc,none": ALIGNED[:50]}))
    with pytest.raises(DriftlensError, match="asked 100 items of base and 50 of aligned"):
        capability(*evaluations(runs, logged=False))


def test_a_version_of_a_task_is_the_same_whether_it_is_written_as_1_or_as_1_0():
    runs = both()
    runs[1].more["versions"]["arc"] = 1
    assert row(capability(*evaluations(runs)))["right_to_wrong"] == 25


def test_the_newest_of_several_results_is_read_and_the_notes_say_so(tmp_path):
    old, new = both()
    old.model = new.model = "org/model"
    new.write(tmp_path, when="2026-03-01T00-00-00.000001")
    old.write(tmp_path, when="2026-02-01T00-00-00.000001")
    found = Evaluation.read(tmp_path)
    assert found.scores[Key("arc", "acc", "none")].value == pytest.approx(0.51)
    assert found.source.endswith("results_2026-03-01T00-00-00.000001.json")
    assert found.notes == (
        "results_2026-03-01T00-00-00.000001.json is the newest of 2 results in its folder.",
    )
    assert found.items["arc", "none"].scores["acc"].tolist() == ALIGNED
    (file,) = tmp_path.rglob("results_2026-02*.json")
    assert Evaluation.read(file).items["arc", "none"].scores["acc"].tolist() == BASE


def test_one_file_that_output_path_named_is_read_with_its_samples(tmp_path):
    # --output_path out.json writes out_<time>.json, and logs beside it.
    run, _ = both()
    run.write(tmp_path)
    (place,) = tmp_path.iterdir()
    (place / f"results_{WHEN}.json").rename(place / f"out_{WHEN}.json")
    assert ("arc", "none") in Evaluation.read(place / f"out_{WHEN}.json").items
    assert ("arc", "none") in Evaluation.read(place).items


def test_tasks_that_only_one_model_was_asked_are_named():
    base, aligned = both()
    aligned.put("extra", {"acc,none": [1.0, 0.0]})
    assert "Only org/aligned was asked extra." in capability(*evaluations([base, aligned])).notes


def test_versions_of_the_harness_that_differ_are_told():
    runs = both("0.4.9")[0], both("0.4.13")[1]
    notes = capability(*evaluations(runs)).notes
    assert "The models were evaluated by lm_eval 0.4.9 and by 0.4.13." in notes


def test_many_tasks_are_corrected_for_being_many():
    random = np.random.default_rng(5)
    runs = Run(model="b"), Run(model="a")
    for task in range(40):
        for run in runs:
            run.put(f"t{task:02}", {"acc,none": random.integers(0, 2, 60).astype(float).tolist()})
    found = capability(*evaluations(runs))
    assert found.tested == 40
    assert (found.p_value < 0.05).any()
    assert set(found.verdict) == {"within noise"}
    assert (found.p_holm >= found.p_value).all()


def test_many_tasks_tell_together_what_none_can_alone():
    runs = Run(model="b"), Run(model="a")
    for task in range(30):
        for run, scores in zip(runs, ([1.0] * 20, [1.0] * 17 + [0.0] * 3), strict=True):
            run.put(f"t{task}", {"acc,none": scores})
    found = capability(*evaluations(runs))
    assert set(found.verdict) == {"within noise"}
    assert found.headline().startswith("lost 15")
    assert "on average over 30 tasks, on none more than noise explains" in found.headline()
    assert found.headline().endswith("90 right answers became wrong and 0 wrong ones right")
    assert capability(*evaluations(runs[::-1])).headline().startswith("gained 15")


def test_scores_without_an_error_are_not_said_to_be_noise():
    runs = [
        Run(model=model).put("mt", {"bleu,none": [[0, 1], [1, 1]]}, aggregate={"bleu,none": score})
        for model, score in (("b", 30.0), ("a", 20.0))
    ]
    found = capability(*evaluations(runs))
    assert found.verdict.tolist() == ["not known"]
    assert found.headline() == ""
    assert found.summary().endswith("what of it is noise is not known.")
    assert found.notes == ("No error of the scores of mt is told, nor an interval.",)
    assert "not known" in found.figure().axes[1].get_legend_handles_labels()[1]


def test_exchanging_the_models_turns_every_change_round():
    base, aligned = evaluations(both())
    ours, theirs = capability(base, aligned), capability(aligned, base)
    np.testing.assert_allclose(theirs.change, -ours.change)
    np.testing.assert_allclose(theirs.low, -ours.high)
    np.testing.assert_array_equal(theirs.right_to_wrong, ours.wrong_to_right)
    assert theirs.verdict.tolist() == ["gained"]
    assert theirs.headline().startswith("gained 19")


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(LoadError, match="found nothing"):
        Evaluation.read(tmp_path / "none")
    with pytest.raises(LoadError, match=r"no results_….json"):
        Evaluation.read(tmp_path)
    broken = tmp_path / "results.json"
    broken.write_text("{")
    with pytest.raises(LoadError, match="JSON at"):
        Evaluation.read(broken)
    broken.write_text("[]")
    with pytest.raises(DriftlensError, match="`results` of lm-evaluation-harness in"):
        Evaluation.read(broken)
    # As versions before 0.4 wrote them.
    broken.write_text('{"results": {"arc": {"acc": 0.5, "acc_stderr": 0.1}}}')
    with pytest.raises(DriftlensError, match="named by metric and filter"):
        Evaluation.read(broken)


def test_results_of_two_models_in_one_folder_are_refused(tmp_path):
    for run in both():
        run.write(tmp_path)
    with pytest.raises(DriftlensError, match="those of org__aligned, org__base"):
        Evaluation.read(tmp_path)
    assert Evaluation.read(tmp_path / "org__base").name == "org/base"


def test_logs_that_are_broken_are_refused(tmp_path):
    run, _ = both()
    run.write(tmp_path)
    (log,) = tmp_path.rglob("samples_*")
    log.write_text(log.read_text()[:-20])
    with pytest.raises(LoadError, match="samples of lm-evaluation-harness"):
        Evaluation.read(tmp_path)
    log.write_text('{"acc": 1.0}\n')
    with pytest.raises(DriftlensError, match="a sample with a doc_id on line 1"):
        Evaluation.read(tmp_path)


def test_compared_scores_know_their_items():
    (one,), _ = compared(*evaluations(both()))
    assert one.paired
    assert one.binary
    assert not one.group
    assert one.base_items.tolist() == BASE
    assert one.aligned.value == pytest.approx(0.51)


# The command


def test_two_results_are_one_command_and_a_page(driftlens):
    base, aligned = both()
    base.write(Path("base"))
    aligned.write(Path("aligned"))
    code, out, err = driftlens("evals", "base", "aligned", "--out", "out")
    assert (code, out) == (0, "out/index.html\n")
    assert "25 right answers became wrong" in err
    record = json.loads(Path("out/results.json").read_text())
    assert [one["kind"] for one in record["results"]] == ["capability"]
    assert record["run"]["models"]["base"]["name"] == "org/base"
    assert record["results"][0]["figure"]
    assert driftlens("show", "out")[0] == 0
    assert driftlens("render", "out")[0] == 0


def test_a_loss_on_tasks_can_be_held_against_a_threshold(driftlens):
    for run, name in zip(both(), ("base", "aligned"), strict=True):
        run.write(Path(name))
    said = ["evals", "base", "aligned", "--format", "json", "--quiet"]
    assert driftlens(*said, "--fail-on", "capability.worst_change<-0.1")[0] == 1
    assert driftlens(*said, "--overwrite", "--fail-on", "capability.worst_change<-0.2")[0] == 0
    assert Path("reports/org-base-org-aligned-tasks/results.json").is_file()
    code, _, err = driftlens(*said, "--overwrite", "--fail-on", "forgetting.loss_rise>0")
    assert code == 2
    assert "a value that the page holds: capability.mean_change" in err


def test_what_guessing_scores_can_be_told(driftlens):
    for run, name in zip(both(choices=1), ("base", "aligned"), strict=True):
        run.write(Path(name))
    said = ["evals", "base", "aligned", "--out", "out", "--format", "json,parquet", "--json"]
    code, out, _ = driftlens(*said, "--chance", "arc=0.5")
    assert code == 0
    assert json.loads(out)["run"]["options"]["chance"] == {"arc": 0.5}
    code, _, err = driftlens(*said, "--overwrite", "--chance", "arc")
    assert code == 2
    assert "--chance as TASK=NUMBER" in err


# The harness itself

YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
{more}
metadata: {{version: 1.0}}
"""
DOCS = [
    {"q": "The clock of Tolmar", "choices": ["strikes nine.", "cheese cheese."], "gold": 0},
    {"q": "Mira", "choices": ["boats the the", "sells cheese."], "gold": 1},
    {"q": "A bell,", "choices": ["a bell!", "naive nobody"], "gold": 0},
    {"q": "one two three four", "choices": ["asked why", "five six seven"], "gold": 1},
]


def loglikelihoods(net, words, text, answers):
    """Of each answer after a text, as transformers alone gives it."""
    found = []
    for answer in answers:
        before = len(words(text)["input_ids"])
        ids = torch.tensor([words(text + answer)["input_ids"]])
        with torch.inference_mode():
            logs = net(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
        found.append(float(logs.gather(1, ids[0, 1:, None])[before - 1 :].sum()))
    return found


class FakeReader:
    """What reads transformers models, as `lm_eval.models.huggingface.HFLM` is called."""

    def __init__(self, pretrained, backend, tokenizer, batch_size, max_length):
        self.net, self.tokenizer = pretrained, tokenizer
        tokenizer.pad_token = "</s>"
        pretrained.eval()
        assert (backend, batch_size, max_length) == ("causal", 8, 96)


class FakeManager:
    """What knows the tasks, as `lm_eval.tasks.TaskManager` is called."""

    def __init__(self, include_path=None):
        self.all_tasks = ["choice"]


def fake_evaluate(
    model,
    tasks,
    num_fewshot,
    limit,
    bootstrap_iters,
    log_samples,
    apply_chat_template,
    task_manager,
    random_seed,
    numpy_random_seed,
    torch_random_seed,
    fewshot_random_seed,
):
    """What `lm_eval.simple_evaluate` does of a task of choices."""
    scores = []
    for doc in DOCS[:limit]:
        answers = [f" {choice}" for choice in doc["choices"]]
        logs = loglikelihoods(model.net, model.tokenizer, doc["q"], answers)
        scores.append(float(np.argmax(logs) == doc["gold"]))
    return Run().put(tasks[0], {"acc,none": scores}, choices=2).record()


@pytest.fixture
def fake_harness(monkeypatch):
    """A stand-in of lm-eval 0.4.13, called as it is and giving what it gives."""
    modules = {
        "lm_eval": {"simple_evaluate": fake_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": FakeReader},
        "lm_eval.tasks": {"TaskManager": FakeManager},
    }
    made = {name: ModuleType(name) for name in modules}
    made["lm_eval.models"].huggingface = made["lm_eval.models.huggingface"]
    for name, holds in modules.items():
        vars(made[name]).update(holds)
        monkeypatch.setitem(sys.modules, name, made[name])


def right_answers(net, words):
    return [
        np.argmax(loglikelihoods(net, words, doc["q"], [f" {c}" for c in doc["choices"]]))
        == doc["gold"]
        for doc in DOCS
    ]


def test_both_models_are_asked_as_they_are_loaded(fake_harness):
    pair = nets.pair("llama")
    pair.base.net.train()
    before = deepcopy(pair.base.tokenizer.pad_token)
    found = evaluated(pair, ["choice"])
    for one, model in zip(found, (pair.base, pair.aligned), strict=True):
        wanted = right_answers(model.net, model.tokenizer)
        assert one.items["choice", "none"].scores["acc"].tolist() == wanted
    assert [one.name for one in found] == ["base", "aligned"]
    # What the harness sets is set of a copy, or put back.
    assert pair.base.tokenizer.pad_token == before
    assert pair.base.net.training
    assert not pair.aligned.net.training
    assert capability(*found).tasks == 1


def test_a_model_beside_itself_is_asked_once(fake_harness):
    model = nets.model("llama")
    base, aligned = evaluated(ModelPair(model, model), ["choice"], limit=2)
    assert base is aligned
    assert len(base.items["choice", "none"].ids) == 2
    assert row(capability(base, aligned), "choice")["change"] == 0


def test_the_base_of_an_adapter_is_asked_without_it(fake_harness):
    from driftlens.models.load import with_lora

    plain = nets.model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        lora = with_lora(nets.model("llama"), r=2, targets="all-linear", seed=0)
    nets.moved(lora.net, 0.5, 3, only="lora_")
    pair = ModelPair.load(nets.net("llama"), lora.net, tokenizer=nets.tokenizer())
    found = evaluated(pair, ["choice"])
    answers = [one.items["choice", "none"].scores["acc"].tolist() for one in found]
    assert answers[0] == right_answers(plain.net, plain.tokenizer)
    assert answers[1] == right_answers(lora.net, plain.tokenizer)


def test_what_the_harness_cannot_be_asked_is_refused(fake_harness, monkeypatch):
    pair = nets.pair("llama")
    with pytest.raises(DriftlensError, match="tasks that lm-eval knows, found other"):
        evaluated(pair, ["choice", "other"])
    with pytest.raises(DriftlensError, match="tasks that lm-eval knows, found none"):
        evaluated(pair, [])
    with pytest.raises(DriftlensError, match="models that continue text"):
        evaluated(nets.pair("bert"), ["choice"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DriftlensError, match=r"pip install 'driftlens\[evals\]'"):
        evaluated(pair, ["choice"])


def test_the_harness_is_one_command(fake_harness, driftlens, tmp_path):
    base = nets.net("llama")
    folders = [
        nets.saved(base, tmp_path / "base"),
        nets.saved(nets.moved(deepcopy(base), 0.3, 1), tmp_path / "aligned"),
    ]
    said = ["evals", "run", *folders, "--tasks", "choice", "--out", "out"]
    code, _, err = driftlens(*said, "--format", "json,parquet", "--device", "cpu")
    assert code == 0, err
    record = json.loads(Path("out/results.json").read_text())
    assert record["run"]["options"]["tasks"] == ["choice"]
    assert record["results"][0]["facts"]["base_name"] == folders[0]


@pytest.fixture
def real_harness(tmp_path):
    """Tasks of the harness itself, on files that are here; where it is installed."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (driftlens[evals])")
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "tasks").mkdir()
    metrics = "metric_list: [{metric: acc}, {metric: acc_norm}]"
    kinds = {
        "choice": ("multiple_choice", "{{q}}", "{{gold}}", f"doc_to_choice: choices\n{metrics}"),
        "words": ("loglikelihood_rolling", "", "{{q}}", "metric_list: [{metric: bits_per_byte}]"),
    }
    for name, (kind, text, target, more) in kinds.items():
        told = YAML.format(
            name=name,
            file=tmp_path / "docs.jsonl",
            cache=tmp_path / "cache",
            kind=kind,
            text=text,
            target=target,
            more=more,
        )
        (tmp_path / "tasks" / f"{name}.yaml").write_text(told)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_harness_itself_says_what_transformers_says(real_harness):
    # A token that a tokenizer adds before a text by itself, the harness would score as text.
    words = nets.tokenizer(bos=False)
    net = nets.net("llama")
    pair = ModelPair(
        HookedModel(net, words, "base"), HookedModel(nets.moved(deepcopy(net), 0.03, 1), words)
    )
    found = evaluated(pair, ["choice", "words"], include=real_harness / "tasks")
    result = capability(*found)
    for one, model in zip(found, (pair.base, pair.aligned), strict=True):
        wanted = right_answers(model.net, model.tokenizer)
        assert one.items["choice", "none"].scores["acc"].tolist() == wanted
        texts = [doc["q"] for doc in DOCS]
        logs = [loglikelihoods(model.net, words, "<s>", [text])[0] for text in texts]
        size = sum(len(text.encode()) for text in texts)
        score = one.scores[Key("words", "bits_per_byte", "none")].value
        assert score == pytest.approx(-sum(logs) / size / np.log(2), rel=1e-4)
    assert row(result, "choice", "acc")["chance"] == 0.5
    assert set(result.interval) == {"paired"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_harness_itself_writes_is_what_it_returns(real_harness):
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(real_harness / "tasks"), include_defaults=False)
    net = HFLM(pretrained=nets.net("llama"), tokenizer=deepcopy(nets.tokenizer()), batch_size=2)
    tracker = EvaluationTracker(output_path=str(real_harness / "out"))
    results = simple_evaluate(
        net, tasks=["choice", "words"], task_manager=tasks, bootstrap_iters=0, log_samples=True
    )
    returned = Evaluation.of(deepcopy(results))
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    for task in samples:
        tracker.save_results_samples(task, samples[task])
    written = Evaluation.read(real_harness / "out")
    assert written.scores.keys() == returned.scores.keys()
    assert all(written.scores[key].value == returned.scores[key].value for key in written.scores)
    assert written.tasks == returned.tasks
    for key, items in written.items.items():
        assert items.documents.tolist() == returned.items[key].documents.tolist()
        assert items.choices.tolist() == returned.items[key].choices.tolist()
        assert items.scores.keys() == returned.items[key].scores.keys()
    assert row(capability(written, returned), "choice")["change"] == 0


def test_the_stand_in_is_called_as_the_harness_is():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (driftlens[evals])")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for fake, real in (
        (fake_evaluate, simple_evaluate),
        (FakeReader, HFLM),
        (FakeManager, TaskManager),
    ):
        assert set(signature(fake).parameters) <= set(signature(real).parameters)
