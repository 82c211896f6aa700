"""Truths that take longer than a glance."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from driftlens import Forgetting, LayerForgetting, ModelPair, Pack, TokenForgetting, measure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        **options,
    )


def test_the_recipe_trains_every_stage_and_one_seed_gives_one_set_of_weights(tmp_path):
    for name in ("once", "again"):
        run("-m", "driftlens.demo.train", tmp_path / name, "--share", "0.004")
    for stage in ("base", "sft", "aligned"):
        once, again = (
            load_file(tmp_path / name / stage / "model.safetensors") for name in ("once", "again")
        )
        assert once.keys() == again.keys()
        assert all(torch.equal(once[key], again[key]) for key in once)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            load_file(tmp_path / "once/base/model.safetensors").values(),
            load_file(tmp_path / "once/aligned/model.safetensors").values(),
            strict=True,
        )
    ]
    assert any(moved)


def test_the_benchmark_runs_and_tells_its_ratios(tmp_path):
    sizes = "--width 64 --depth 2 --vocab 500 --tokens 32 --documents 60 --rounds 2 --batches 4"
    more = "--counts 100 300 --vocabularies 1000 4000"
    out = tmp_path / "overhead.json"
    said = run("benchmarks/overhead.py", *sizes.split(), *more.split(), "--out", out).stdout
    assert "drift + forgetting / two bare passes" in said
    assert json.loads(out.read_text())


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_real_pair_is_measured_as_a_naive_loop_measures_it(stage):
    if not (SHARED / "models/trio").is_dir():
        pytest.skip("the real models beside the checkout are not there")
    pair = ModelPair.load(str(SHARED / "models/trio/base"), str(SHARED / "models/trio" / stage))
    pack = Pack.read(SHARED / "data/text_tinystories/stories.jsonl.gz").limit(20)
    forgetting, layers, tokens = measure(
        pair, pack, [Forgetting(), LayerForgetting(), TokenForgetting()]
    )
    rises = []
    for example in pack.examples:
        ids = torch.tensor([pair.base.tokenizer(example.text)["input_ids"]])
        with torch.no_grad():
            base, aligned = (
                model.net(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
                for model in (pair.base, pair.aligned)
            )
        rises.append((base - aligned).double().numpy())
    # Float32 log-probabilities of 4,096 logits, averaged: each is good to about 1e-6.
    assert forgetting.loss_rise.value == pytest.approx(np.concatenate(rises).mean(), abs=1e-5)
    np.testing.assert_allclose(tokens.rise, np.concatenate(rises), atol=1e-4)
    assert layers.share.sum() == pytest.approx(forgetting.loss_rise.value, abs=1e-9)
    assert forgetting.loss_rise.low > 0
