"""A net whose weights lie in pieces on several processes is used as it is, forwards."""

import json

import pytest

import nets
from launched import launched

MEASURE = """
import json, sys, warnings
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import nets
from driftlens import Drift, Forgetting, LayerForgetting, ModelPair, measure, ranks
from driftlens.errors import DriftlensError
from driftlens.models import anatomy

torch.set_num_threads(1)
warnings.simplefilter("ignore")
kind, *folders = sys.argv[1:]
dist.init_process_group("gloo")

def load(folder):
    if kind == "tensor parallel":
        return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    from torch.distributed.fsdp import fully_shard
    net = AutoModelForCausalLM.from_pretrained(folder)
    for block in anatomy.blocks(net):
        fully_shard(block)
    return fully_shard(net)

def values(pair):
    found = measure(pair, nets.pack(nets.TEXTS), [Forgetting(), Drift(), LayerForgetting()])
    return [[c.tolist() for c in r.columns().values() if c.dtype.kind == "f"] for r in found]

pieces = ModelPair.load(*map(load, folders))
before = [type(p).__name__ for p in pieces.base.net.parameters()]
seen = values(pieces)
after = [type(p).__name__ for p in pieces.base.net.parameters()]
try:
    pieces.hybrid
    refused = ""
except DriftlensError as error:
    refused = str(error)
with ranks.alone():
    whole = values(ModelPair.load(*folders))
print(json.dumps([seen, whole, before, after, refused]))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family"),
    [("sharded", "llama tied"), ("sharded", "gpt2"), ("tensor parallel", "llama")],
)
def test_weights_in_pieces_give_the_numbers_of_whole_ones(kind, family, tmp_path):
    folders = [nets.saved(nets.net(family, seed), tmp_path / str(seed)) for seed in (0, 1)]
    for code, said, error in launched(2, kind, *folders, code=MEASURE):
        assert code == 0, error
        seen, whole, before, after, refused = json.loads(said.splitlines()[-1])
        for ours, theirs in zip(seen, whole, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)
        assert before == after
        assert "DTensor" in before
        assert "pieces on several processes" in refused
