"""Trackers of experiments: what they are told of a written report, and what becomes of it there."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from driftlens.errors import DriftlensError
from driftlens.integrations import trackers
from driftlens.report import Report
from driftlens.report.written import Written
from driftlens.results import Estimate, Result, column, fact, figures, value

RUN = {
    "seed": 7,
    "options": {"limit": None, "by": "layer"},
    "versions": {"driftlens": "0"},
    "models": {"base": {"name": "org/base", "sha256": "aa"}},
    "packs": [{"name": "p, q/r", "sha256": "bb"}],
}


@dataclass(frozen=True)
class Told(Result):
    """Numbers that are known and others that are not, over layers."""

    kind = "test_told"
    title = "Told"
    total: Estimate = value("nats/token")
    alone: Estimate = value("nats")
    undefined: Estimate = value("nats")
    endless: Estimate = value("×")
    seen: int = fact("tokens")
    layer: np.ndarray = column()
    component: np.ndarray = column()
    share: np.ndarray = column("nats/token")

    def figure(self):
        return figures.bars(["a", "b"], [1.0, 2.0], xlabel="letter", ylabel="height")


@dataclass(frozen=True)
class Rows(Result):
    """A table that is none of layers."""

    kind = "test_many"
    title = "Many"
    word: np.ndarray = column()
    number: np.ndarray = column()


LAYERS = ["embed", "0", "1", "head"]
SHARES = [0.1, 0.2, nan, 0.4, 0.5, 0.6, 0.7, 0.8]


def told(**given):
    return Told(
        **{
            "total": Estimate(0.31, 0.29, 0.33),
            "alone": Estimate(2.0),
            "undefined": nan,
            "endless": inf,
            "seen": 12,
            "layer": LAYERS * 2,
            "component": ["attn"] * 4 + ["mlp"] * 4,
            "share": SHARES,
            "pack": "p, q/r",
            **given,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "mine"
    many = trackers.ROWS + 1
    results = [
        told(),
        told(pack=""),
        told(),
        Rows(word=["|<b>x", "y"], number=[1.0, inf], pack="p"),
        Rows(word=["x"] * many, number=np.zeros(many), pack="q"),
    ]
    Report("base → aligned", results, (), RUN).write(out)
    return out


def needs(package):
    said = f"pip install 'driftlens[{package}]' to hold it to this"
    return pytest.mark.skipif(find_spec(package) is None, reason=said)


# What they are told


def test_figures_are_scalars_by_kind_pack_and_name_with_their_bounds_and_units(folder):
    said = trackers.told_of(Written.read(folder))
    scalars = said.scalars()
    mine = {name: number for name, number in scalars.items() if "p, q-r/" in name}
    assert mine == {
        "test_told/p, q-r/total": 0.31,
        "test_told/p, q-r/total_low": 0.29,
        "test_told/p, q-r/total_high": 0.33,
        "test_told/p, q-r/alone": 2.0,
        "test_told/p, q-r/seen": 12,
    }
    assert scalars["test_told/total"] == 0.31
    assert "test_told/p, q-r-2/total" in scalars
    numbers = [number for _, _, *bounds in said.figures for number in bounds if number == number]
    assert len(scalars) == len(numbers)
    listed = said.listed()
    assert listed.columns == ["name", "unit", "value", "low", "high"]
    assert ["test_told/total", "nats/token", 0.31, 0.29, 0.33] in listed.rows
    assert ["test_told/alone", "nats", 2.0, None, None] in listed.rows


def test_what_is_undefined_or_infinite_is_left_out_and_said(folder):
    said = trackers.told_of(Written.read(folder))
    assert all(np.isfinite(number) for number in said.scalars().values())
    assert "test_told/undefined, which is undefined" in said.left_out
    assert "test_told/endless, which is infinite" in said.left_out
    assert "1 undefined of the 4 points of test_told/by_layer/share/attn" in said.left_out
    assert all(cell == cell for table in said.tables for row in table.rows for cell in row)
    rows = next(table.rows for table in said.tables if table.name == "test_many-p")
    assert rows == [["|<b>x", 1.0], ["y", None]]


def test_columns_over_layers_are_curves_from_the_embedding_to_the_head(folder):
    said = trackers.told_of(Written.read(folder))
    curves = {curve.name: curve.points for curve in said.curves}
    assert curves["test_told/by_layer/share/mlp"] == {-1: 0.5, 0: 0.6, 1: 0.7, 2: 0.8}
    assert curves["test_told/by_layer/share/attn"] == {-1: 0.1, 0: 0.2, 2: 0.4}
    assert said.depth() == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(["head", "0", "embed", "1"] * 2, id="in another order"),
        pytest.param(["0", "0", "1", "1"] * 2, id="more than once"),
        pytest.param(["a", "b", "c", "d"] * 2, id="of other names"),
    ],
)
def test_rows_that_are_no_course_over_layers_are_no_curve(layers, tmp_path):
    Report("t", [told(layer=layers)]).write(tmp_path / "out", formats=("json", "parquet"))
    assert trackers.told_of(Written.read(tmp_path / "out")).curves == []


@dataclass(frozen=True)
class Course(Result):
    """Numbers of the stages of a training, which are no layers."""

    kind = "test_course"
    title = "Course"
    stage: np.ndarray = column()
    number: np.ndarray = column()


def test_stages_of_a_training_are_no_layers(tmp_path):
    course = Course(stage=[0, 1, 2], number=[0.1, 0.2, 0.3])
    Report("t", [course]).write(tmp_path / "out", formats=("json", "parquet"))
    assert trackers.told_of(Written.read(tmp_path / "out")).curves == []


def test_long_tables_and_what_was_not_written_are_left_out_and_said(folder, tmp_path):
    said = trackers.told_of(Written.read(folder))
    assert f"the {trackers.ROWS + 1} rows of tables/test_many-q.parquet" in said.left_out
    assert {table.name for table in said.tables} >= {"test_told", "test_many-p"}
    Report("t", [told()]).write(tmp_path / "few", formats=("json",))
    left = " ".join(trackers.told_of(Written.read(tmp_path / "few")).left_out)
    for part in ("tables and curves", "pictures", "the page"):
        assert f"{part}, which the report was written without" in left


def test_the_run_its_page_and_its_pictures_go_with_it(folder):
    said = trackers.told_of(Written.read(folder))
    flat = said.flat()
    assert flat["seed"] == 7
    assert flat["models/base/sha256"] == "aa"
    assert flat["packs/p, q-r/sha256"] == "bb"
    assert "options/limit" not in flat
    assert [file.name for file in said.files] == ["index.html", "results.json"]
    assert said.verdict == json.loads((folder / "results.json").read_text())["verdict"]
    assert len(said.pictures) == 3
    assert all(picture.suffix == ".png" for picture in said.pictures.values())


# Where it is then


@needs("tensorboard")
def test_tensorboard_gives_back_what_it_was_told(folder, driftlens, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "events")
    code, out, err = driftlens("log", folder, "--to", "tensorboard")
    assert (code, out) == (0, "")
    assert "tensorboard: " in err
    assert "events/mine" in err
    found = EventAccumulator("events/mine", size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    said = trackers.told_of(Written.read(folder))
    assert set(found.Tags()["scalars"]) == {*said.scalars(), *(c.name for c in said.curves)}
    for name, number in said.scalars().items():
        (event,) = found.Scalars(name)
        assert event.value == np.float32(number)
    for name, _, points in said.curves:
        course = {event.step: event.value for event in found.Scalars(name)}
        assert course == {at: np.float32(number) for at, number in points.items()}
    assert set(found.Tags()["images"]) == set(said.pictures)
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
    }
    assert "\\|\\<b\\>x" in texts["tables/test_many-p/text_summary"]
    assert "Total 0.310" in texts["verdict/text_summary"]
    driftlens("log", folder, "--to", "tensorboard", "--quiet")
    assert sorted(path.name for path in Path("events").iterdir()) == ["mine", "mine-2"]


@needs("wandb")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wandb_keeps_a_run_on_the_disk_where_its_mode_says_offline(folder, driftlens, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", ".")
    code, out, err = driftlens("log", folder, "--to", "wandb")
    assert (code, out) == (0, "")
    assert "wandb sync" in err
    wandb.teardown()
    (run,) = Path("wandb").glob("offline-run-*")
    (stored,) = run.glob("*.wandb")
    raw = stored.read_bytes()
    for part in (b"test_told/by_layer/share/mlp", b"base \xe2\x86\x92 aligned", b"org/base"):
        assert part in raw
    assert len(list((run / "files/media").rglob("*.png"))) == 3
    assert [path.name for path in (run / "files").iterdir()] == ["media"]


@needs("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_gives_back_what_it_was_told(folder, driftlens, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    code, out, err = driftlens("log", folder, "--to", "mlflow")
    assert (code, out) == (0, ""), err
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("driftlens")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert run.data.metrics["test_told/total_low"] == 0.29
    assert run.data.metrics["test_told/p_ q-r/total"] == 0.31
    points = client.get_metric_history(run.info.run_id, "test_told/by_layer/share/mlp")
    assert {point.step: point.value for point in points} == {-1: 0.5, 0: 0.6, 1: 0.7, 2: 0.8}
    assert run.data.params["models/base/sha256"] == "aa"
    assert "Total 0.310" in run.data.tags["mlflow.note.content"]
    held = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"index.html", "results.json", "tables", "figures", "left_out.txt"} <= held


@needs("trackio")
def test_trackio_keeps_a_run_on_this_machine(folder, driftlens, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    code, out, err = driftlens("log", folder, "--to", "trackio")
    assert (code, out) == (0, ""), err
    assert "trackio show --project driftlens" in err
    assert (tmp_path / "store/driftlens.db").is_file()


# What goes wrong


class Broken:
    """A tracker that is there, and fails when it is told."""

    @staticmethod
    def ready():
        """Nothing is asked for."""

    @staticmethod
    def send(told):
        print("talk of others")
        raise RuntimeError("the line is dead")


def test_a_tracker_that_fails_is_told_of_and_how_to_try_again(folder, driftlens, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setattr(trackers, "_module", lambda name: Broken)
    code, out, err = driftlens("log", folder, "--to", "mlflow", "--to", "wandb", "--to", "mlflow")
    assert (code, out) == (2, "")
    assert err.count("RuntimeError: the line is dead") == 2
    again = [f"driftlens log {folder} --to {name}" for name in ("mlflow", "wandb")]
    assert " and ".join(again) in err


def test_a_report_is_written_whether_or_not_it_can_be_told(tmp_path, driftlens, monkeypatch):
    toxicity = {"base_toxicity": 0.5, "aligned_toxicity": 0.2}
    row = json.dumps({**toxicity, "base_faithfulness": 0.9, "aligned_faithfulness": 0.7})
    Path("scores.jsonl").write_text(f"{row}\n" * 3)
    asked = ["evals", "scores", "scores.jsonl", "--out", "out", "--format", "json,parquet"]
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setattr(trackers, "_module", lambda name: Broken)
    code, out, err = driftlens(*asked, "--report-to", "mlflow")
    assert (code, out) == (2, "out/results.json\n"), err
    assert "driftlens log out --to mlflow" in err
    assert Path("out/results.json").is_file()
    bound = ["--fail-on", "faithfulness.faithfulness_change<1"]
    code, _, err = driftlens(*asked, "--overwrite", "--report-to", "mlflow", *bound)
    assert code == 1
    assert "threshold crossed" in err
    assert "driftlens log out --to mlflow" in err


@pytest.mark.parametrize(
    "command",
    [
        ["report", "demo:base", "demo:aligned"],
        ["attribute", "demo:base", "demo:aligned"],
        ["check", "demo:sft", "--preferences", "pairs.jsonl"],
        ["mitigate", "demo:base", "demo:aligned"],
        ["steer", "demo:base", "--contrast", "manners"],
        ["evals", "a", "b"],
        ["evals", "scores", "a.jsonl"],
        ["compare", "a", "b", "--out", "c"],
        ["log", "a"],
    ],
)
def test_what_is_missing_is_told_before_anything_is_done(command, driftlens, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    option = "--to" if command[0] == "log" else "--report-to"
    code, out, err = driftlens(*command, option, "trackio")
    assert (code, out) == (2, "")
    assert "pip install 'driftlens[trackio]'" in err
    code, _, err = driftlens(*command, option, "comet")
    assert code == 2
    assert "a tracker among wandb, tensorboard, mlflow, trackio" in err
    assert list(Path().iterdir()) == []


@needs("wandb")
@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_is_not_left_to_ask_for_a_login(mode, monkeypatch):
    import wandb

    settings = SimpleNamespace(settings=SimpleNamespace(mode=mode))
    monkeypatch.setattr(wandb, "setup", lambda: settings)
    monkeypatch.setattr(wandb, "login", lambda prompt: prompt)
    if mode != "online":
        trackers.ready("wandb")
        return
    with pytest.raises(DriftlensError, match="WANDB_MODE=offline"):
        trackers.ready("wandb")

    def refuse(prompt):
        raise wandb.Error("a wrong key")

    monkeypatch.setattr(wandb, "login", refuse)
    with pytest.raises(DriftlensError, match="a wrong key"):
        trackers.ready("wandb")
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    trackers.ready("wandb")


@needs("mlflow")
def test_mlflow_says_what_is_wrong_with_its_store(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:store")
    with pytest.raises(DriftlensError, match="MLFLOW_TRACKING_URI"):
        trackers.ready("mlflow")


def test_a_comparison_is_told_of_only_if_it_is_written(driftlens, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setattr(trackers, "_module", lambda name: Broken)
    code, _, err = driftlens("compare", "a", "b", "--report-to", "mlflow")
    assert code == 2
    assert "Name a folder with --out." in err
