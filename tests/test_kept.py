"""Directions that are kept, against the directions that were found and against plain hooks."""

import json
from contextlib import ExitStack
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save, save_file

import nets
from driftlens.cli.shared import layers_of
from driftlens.errors import DriftlensError, LoadError
from driftlens.estimators import contrast_pca, mean_difference
from driftlens.models import ModelPair
from driftlens.models.alone import Alone
from driftlens.models.fingerprint import fingerprint
from driftlens.models.hooks import HookedModel
from driftlens.models.steering import Add
from driftlens.packs.twins import sha256_of
from driftlens.steer import Applied, KeptDirections, Strength, applied
from driftlens.steer.cards import said as said_of
from driftlens.steer.exchange import read_gguf, write_gguf, write_tensors
from test_adapters import adapted
from test_steering import state

WIDTH, DEPTH = 32, 3
PROMPTS = ["The clock of Tolmar", "A bell", "one two three four five six", "Mira"]
"""Of different lengths, so that all but one are padded."""

PACK = nets.pack(nets.TEXTS)
STRENGTH = Strength(6.0, 4.0, 8.0, 0.25, 0.125)


def states(seed, count=12):
    return np.random.default_rng(seed).standard_normal((count, WIDTH)) * 3 + seed


@cache
def model():
    """Shared by tests: nobody may change it."""
    return nets.model("llama")


@cache
def found(layers=(0, 1, 2), estimate=mean_difference):
    return {layer: estimate(states(layer + 1), states(layer + 7)) for layer in layers}


FIGURES = [
    {"layer": 2, "accuracy": 0.9, "split_half_cosine": 0.8, "p_value": float("nan"), "model": "b"},
    {"layer": 0, "accuracy": np.float64(0.7), "split_half_cosine": 0.1, "p_value": 0.004},
]


def kept(of=None, **changes):
    told = {
        "part": "out",
        "method": "mean-difference",
        "at": "last",
        "positions": "all",
        "pack": PACK,
        "figures": FIGURES,
        "layer": 1,
        "strength": STRENGTH,
    }
    directions = changes.pop("found", found())
    return KeptDirections.of(of or model(), directions, **told | changes)


# What is kept


def test_what_is_kept_is_what_was_found():
    mine = kept()
    assert (mine.layers, mine.layer, mine.strength) == ([0, 1, 2], 1, STRENGTH)
    for layer, direction in found().items():
        assert np.array_equal(mine.unit(layer), direction.unit)
        assert mine.norm(layer) == direction.norm
        np.testing.assert_allclose(mine.vector(layer), direction.vector, rtol=1e-15)
        np.testing.assert_array_equal(mine.vectors[layer], mine.vector(layer))
        row = mine.card["metrics"][layer]
        assert row["mean_length"] == direction.lengths.mean()
        assert row["relative_norm"] == direction.relative
        assert row["separation"] == direction.separation
    assert mine.card["pack"] == {"name": "texts", "sha256": PACK.sha256}
    assert mine.card["model"] == {
        "name": "llama",
        "sha256": fingerprint(model()),
        "width": WIDTH,
        "depth": DEPTH,
        "dtype": "float32",
        "causal": True,
        "type": "llama",
    }


def test_figures_go_with_their_layers_and_what_is_undefined_is_none():
    rows = kept().card["metrics"]
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert [row["accuracy"] for row in rows] == [0.7, None, 0.9]
    assert [row["split_half_cosine"] for row in rows] == [0.1, None, 0.8]
    assert [row["p_value"] for row in rows] == [0.004, None, None]


def test_a_direction_against_the_mean_is_kept_as_the_most_of_pairs_have_it():
    # Nine pairs lead one way a little, one leads the other way by far more: along the top
    # component the mean of all lies against most of them.
    along = np.eye(WIDTH)[0] * np.array([1.0] * 9 + [-20.0])[:, None]
    noise = np.random.default_rng(0).standard_normal((2, 10, WIDTH)) * 0.01
    direction = contrast_pca(along + noise[0], noise[1])
    mine = kept(found={1: direction}, figures=())
    assert np.array_equal(mine.unit(1), direction.unit)
    assert mine.norm(1) == direction.norm == abs(direction.gap)


def test_directions_come_back_from_their_folder_bit_for_bit(tmp_path):
    mine = kept()
    again = KeptDirections.load(mine.save(tmp_path / "a"))
    assert again.card == mine.card
    assert again.strength == STRENGTH
    assert again.tensors["unit"].tobytes() == mine.tensors["unit"].tobytes()
    assert all(np.array_equal(again.vector(n), mine.vector(n)) for n in (0, 1, 2))


def test_the_same_directions_make_the_same_bytes(tmp_path):
    kept().save(tmp_path / "a")
    kept(found=dict(reversed(found().items())), figures=FIGURES[::-1]).save(tmp_path / "b")
    KeptDirections.load(tmp_path / "a").save(tmp_path / "c")
    one, *others = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "abc"
    )
    assert sorted(one) == ["card.json", "directions.safetensors"]
    assert others == [one, one]


def test_a_folder_is_replaced_only_when_told(tmp_path):
    kept().save(tmp_path / "a")
    with pytest.raises(DriftlensError, match="--overwrite"):
        kept(layer=0).save(tmp_path / "a")
    assert KeptDirections.load(tmp_path / "a").layer == 1
    kept(layer=0).save(tmp_path / "a", overwrite=True)
    assert KeptDirections.load(tmp_path / "a").layer == 0
    (tmp_path / "a" / "mine.txt").touch()
    with pytest.raises(DriftlensError, match=r"holds mine\.txt"):
        kept().save(tmp_path / "a", overwrite=True)


def nowhere():
    same = states(1)
    return mean_difference(same, same)


UNKEPT = {
    "a direction that is not defined": ({"found": {0: nowhere()}}, "lead somewhere, .* block 0"),
    "another width": (
        {"found": {0: mean_difference(states(1)[:, :5], states(2)[:, :5])}},
        r"as wide as llama, found one of shape \[5\] for block 0",
    ),
    "another model's layer": ({"found": {3: found()[0]}}, "blocks from 0 to 2, .* one of block 3"),
    "a layer from the end": ({"found": {-1: found()[0]}}, "one of block -1"),
    "nothing": ({"found": {}}, "found none"),
    "a layer that is not kept": ({"found": found((0, 2))}, "recommended layer 1"),
    "no such part": ({"part": "heads"}, "part 'heads'"),
    "no such positions": ({"positions": "first"}, "positions 'first'"),
    "no strength": ({"strength": Strength(float("nan"))}, "strength .*'r': None"),
}


@pytest.mark.parametrize("what", UNKEPT)
def test_what_steers_nothing_is_not_kept(what):
    changes, said = UNKEPT[what]
    with pytest.raises(DriftlensError, match=said):
        kept(**changes)


# Broken folders


def card(folder, **changes):
    told = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(told | changes))


def rows(folder, **changes):
    told = json.loads((folder / "card.json").read_text())
    card(folder, metrics=[{**row, **changes} for row in told["metrics"]])


def tensors(folder, **changes):
    """Other tensors, which the card is told of."""
    file = folder / "directions.safetensors"
    save_file(load_file(file) | changes, file)
    card(folder, sha256=sha256_of(file.read_bytes()))


def cut(folder, name, by):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-by])


def turned(folder):
    file = folder / "directions.safetensors"
    body = bytearray(file.read_bytes())
    body[-1] ^= 128
    file.write_bytes(body)


def nameless(folder):
    (folder / "directions.safetensors").write_bytes(save({"units": np.eye(3, WIDTH)}))
    card(folder, sha256=sha256_of((folder / "directions.safetensors").read_bytes()))


def lacking(folder):
    told = json.loads((folder / "card.json").read_text())
    del told["positions"]
    (folder / "card.json").write_text(json.dumps(told))


UNIT = np.eye(3, WIDTH)
HALF = np.array([[1.0], [1.0], [0.5]])
BROKEN = {
    "no folder": (lambda f: f.rename(f.with_name("b")), LoadError, "folder of directions"),
    "no vectors": (lambda f: (f / "directions.safetensors").unlink(), LoadError, "folder of dir"),
    "half a card": (lambda f: cut(f, "card.json", 40), LoadError, "a card in JSON"),
    "a list": (lambda f: (f / "card.json").write_text("[]"), DriftlensError, "format None"),
    "a NaN": (lambda f: rows(f, norm=float("nan")), LoadError, "NaN is no number"),
    "half the vectors": (lambda f: cut(f, "directions.safetensors", 9), LoadError, "tensors at"),
    "a bit that turned": (turned, DriftlensError, "sha256 that its card names, found another"),
    "another's vectors": (lambda f: card(f, sha256="0"), DriftlensError, "found another"),
    "another format": (lambda f: card(f, format=2), DriftlensError, "found format 2"),
    "no model": (lambda f: card(f, model=None), DriftlensError, "found TypeError"),
    "no positions": (lacking, DriftlensError, "KeyError: 'positions'"),
    "a layer less": (lambda f: card(f, layers=[0, 1]), DriftlensError, r"rows of \[0, 1, 2\]"),
    "a layer too high": (lambda f: card(f, layers=[0, 1, 3]), DriftlensError, r"layers \[0, 1, 3"),
    "true layers": (lambda f: card(f, layers=[0, True, 2]), DriftlensError, r"layers \[0, True"),
    "a norm of words": (lambda f: rows(f, norm="1"), DriftlensError, "norm '1' of block 0"),
    "no length": (lambda f: rows(f, mean_length=0), DriftlensError, "mean_length 0 of block 0"),
    "no such layer": (lambda f: card(f, layer=5), DriftlensError, "recommended layer 5"),
    "no such part": (lambda f: card(f, part="heads"), DriftlensError, "part 'heads'"),
    "half a strength": (lambda f: card(f, strength={"r": 1}), DriftlensError, r"strength {'r': 1}"),
    "a nameless model": (
        lambda f: card(f, model={**kept().card["model"], "name": 3}),
        DriftlensError,
        r"3 for model\.name",
    ),
    "half a width": (
        lambda f: card(f, model={**kept().card["model"], "width": 32.5}),
        DriftlensError,
        r"32\.5 for model\.width",
    ),
    "another name": (nameless, DriftlensError, r"`unit` float64 .*`units` float64 \[3, 32\]"),
    "one more": (lambda f: tensors(f, more=UNIT), DriftlensError, r"`more` float64 \[3, 32\]"),
    "a row less": (lambda f: tensors(f, unit=UNIT[:2]), DriftlensError, r"`unit` float64 \[2, 32"),
    "fewer digits": (
        lambda f: tensors(f, unit=UNIT.astype(np.float32)),
        DriftlensError,
        "`unit` float32",
    ),
    "another length": (lambda f: tensors(f, unit=UNIT * HALF), DriftlensError, "of length 1"),
    "undefined vectors": (lambda f: tensors(f, unit=UNIT * np.nan), DriftlensError, "of length 1"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_told_of(what, tmp_path):
    breaks, kind, said = BROKEN[what]
    breaks(kept().save(tmp_path / "a"))
    with pytest.raises(kind, match=said) as told:
        KeptDirections.load(tmp_path / "a")
    assert type(told.value) is kind


def test_of_a_folder_of_two_models_one_is_to_be_named(tmp_path):
    for name in ("base", "aligned"):
        kept().save(tmp_path / name)
    with pytest.raises(LoadError, match="holds base and aligned") as told:
        KeptDirections.load(tmp_path)
    assert f"Give {tmp_path / 'base'} or {tmp_path / 'aligned'}." in str(told.value)
    (tmp_path / "aligned" / "card.json").unlink()
    with pytest.raises(LoadError, match=r"Give .*base\.$"):
        KeptDirections.load(tmp_path)
    # A card of its own is what a folder is read by.
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(LoadError, match="a card in JSON"):
        KeptDirections.load(tmp_path)


# Whose they are


def test_another_model_is_steered_only_when_forced():
    other = HookedModel(nets.moved(nets.net("llama"), 0.05, 1), nets.tokenizer(), "other")
    mine, theirs = fingerprint(model())[:12], fingerprint(other)[:12]
    kept().require(model())
    with pytest.raises(DriftlensError, match=f"{mine} in float32, found other.*{theirs}.*--force"):
        kept().require(other)
    with pytest.raises(DriftlensError, match=f"found LlamaForCausalLM .*{theirs}"):
        kept().steering(other.net, 1.0).__enter__()
    kept().require(other, force=True)
    with kept().steering(other.net, 1.0, force=True) as same:
        assert same is other.net


def test_the_same_weights_in_another_dtype_are_another_model():
    half = HookedModel(nets.net("llama").bfloat16(), nets.tokenizer())
    with pytest.raises(DriftlensError, match=r"in float32, found .* in bfloat16"):
        kept().require(half)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "width 32 with 3 blocks, found llama of width 64"),
        ({"num_hidden_layers": 2}, "with 3 blocks, found llama of width 32 with 2"),
    ],
)
def test_another_shape_is_refused_even_if_forced(changes, said):
    other = nets.model("llama", **changes)
    with pytest.raises(DriftlensError, match=said):
        kept().require(other, force=True)
    with pytest.raises(DriftlensError):
        kept().steering(other.net, 1.0, force=True).__enter__()


def test_a_deeper_model_is_steered_when_forced():
    deeper = nets.model("llama", num_hidden_layers=4)
    with pytest.raises(DriftlensError, match="--force"):
        kept().require(deeper)
    kept().require(deeper, force=True)


# What they do to a stream

STREAM = torch.tensor(np.random.default_rng(5).standard_normal((2, 4, WIDTH)))


def changed(layer, strength=None, **how):
    (steer,) = kept().steers(strength, layer, **how)
    assert (steer.layers, steer.part) == (layer, "out")
    return steer.change(STREAM)


def test_each_mode_is_its_formula_along_the_layers_own_direction():
    v = torch.tensor(found()[2].unit)
    along = (STREAM @ v)[..., None] * v
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(changed(2, 4.0), STREAM + 4 * v, **exact)
    torch.testing.assert_close(changed(2, mode="ablate"), STREAM - along, **exact)
    torch.testing.assert_close(changed(2, mode="project"), along, **exact)
    torch.testing.assert_close(changed(2, -1.5, mode="clamp"), STREAM - along - 1.5 * v, **exact)


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_a_relative_strength_counts_in_the_mean_length_of_a_state(mode):
    length = found()[1].lengths.mean()
    torch.testing.assert_close(
        changed(1, 0.5, mode=mode, relative=True), changed(1, 0.5 * length, mode=mode)
    )


def test_of_all_layers_the_recommended_one_is_steered_and_by_the_recommended_strength():
    (steer,) = kept().steers()
    assert steer.layers == 1
    torch.testing.assert_close(steer.change(STREAM), changed(1, 6.0))
    # What the card recommends is in the stream's own units, whatever a caller's numbers are in.
    (steer,) = kept().steers(relative=True)
    torch.testing.assert_close(steer.change(STREAM), changed(1, 6.0))
    assert [steer.layers for steer in kept(layer=None).steers(1.0)] == [0, 1, 2]
    assert [steer.layers for steer in kept().steers(1.0, range(1, 3))] == [1, 2]
    assert kept(part="mlp").steers(1.0)[0].part == "mlp"


UNSTEERED = {
    "no such layer": ({"strength": 1.0, "layers": 3}, "a direction of: 0, 1, 2, found 3"),
    "no layer": ({"strength": 1.0, "layers": []}, "none at all"),
    "no such mode": ({"strength": 1.0, "mode": "push"}, "add, ablate, clamp, project, found 'push"),
    "no strength": ({"mode": "clamp"}, "a strength to clamp"),
    "a strength too many": ({"strength": 2.0, "mode": "ablate"}, "no strength beside ablate"),
    "a strength too many too": ({"strength": 0.0, "mode": "project"}, "no strength beside project"),
    "not a number": ({"strength": float("nan")}, "finite strength"),
}


@pytest.mark.parametrize("what", UNSTEERED)
def test_what_cannot_be_steered_is_refused(what):
    how, said = UNSTEERED[what]
    with pytest.raises(DriftlensError, match=said):
        kept().steers(**how)


def test_without_a_recommendation_a_strength_must_be_given():
    with pytest.raises(DriftlensError, match="none that the card recommends"):
        kept(strength=None).steers()


# Live models


def prompt_of(text="The clock of Tolmar"):
    return nets.tokenizer()(text, return_tensors="pt")


def plain(net, text, tokens=6):
    """Ids of the likeliest continuation, by transformers alone."""
    how = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 2}
    made = net.generate(**prompt_of(text), **how)
    return made[0, prompt_of(text)["input_ids"].shape[1] :].tolist()


def by_hand(net, text, change, positions="all", layers=(1,), tokens=6):
    """The same by a loop that reads all again, with a forward hook on each block."""
    ids = prompt_of(text)["input_ids"]
    begun = ids.shape[1]

    def hook(_, __, output):
        stream = output[0] if isinstance(output, tuple) else output
        number = torch.arange(stream.shape[1])
        here = {
            "all": number >= 0,
            "prompt": number < begun,
            "response": number >= begun,
            # Each token is the last one when it is read first.
            "last": number >= begun - 1,
        }[positions]
        after = torch.where(here[None, :, None], change(stream), stream)
        return (after, *output[1:]) if isinstance(output, tuple) else after

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(net.model.layers[layer].register_forward_hook(hook).remove)
        for _ in range(tokens):
            with torch.no_grad():
                best = net(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, best.reshape(1, 1)], 1)
    return ids[0, begun:].tolist()


def pushed(r, layer=1):
    v = torch.tensor(found()[layer].unit, dtype=torch.float32)
    return lambda stream: stream + r * v


def ablated(stream, layer=1):
    v = torch.tensor(found()[layer].unit, dtype=torch.float32)
    return stream - (stream @ v)[..., None] * v


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("positions", ["all", "prompt", "response", "last"])
def test_generating_inside_is_a_loop_with_plain_hooks_and_outside_it_is_as_before(text, positions):
    net = model().net
    before = plain(net, text)
    with kept().steering(net, 40.0, positions=positions):
        inside = plain(net, text)
    assert inside == by_hand(net, text, pushed(40.0), positions)
    assert inside != before
    assert plain(net, text) == before


def test_a_strength_of_nothing_changes_no_bit():
    net, text = model().net, prompt_of()
    with torch.no_grad():
        logits = net(**text).logits
        with kept().steering(net, 0.0, layers=[0, 1, 2]):
            assert torch.equal(net(**text).logits, logits)
        with kept().steering(net, mode="ablate"):
            assert not torch.equal(net(**text).logits, logits)
            once = net(**text).logits
            with kept().steering(net, mode="ablate"):
                torch.testing.assert_close(net(**text).logits, once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_the_net_is_left_as_it_was_found(error):
    net = nets.net("llama").train()
    net.model.layers[1].eval()
    before = state(net)
    with ExitStack() as inside:
        if error:
            inside.enter_context(pytest.raises(error))
        inside.enter_context(kept().steering(net, 3.0))
        assert state(net)[0] != before[0]
        if error:
            raise error
    assert state(net) == before


def test_a_net_that_is_refused_is_left_as_it_was_found():
    other = nets.moved(nets.net("llama"), 0.05, 1)
    before = state(other)
    with pytest.raises(DriftlensError, match="--force"):
        kept().steering(other, 3.0).__enter__()
    assert state(other) == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_directions_of_an_adapter_steer_it_where_it_is_on():
    live = adapted()
    pair = ModelPair.load(None, live, tokenizer=nets.tokenizer())
    mine = kept(pair.aligned)
    inner = live.get_base_model()
    with mine.steering(live, 30.0) as same:
        assert same is live
        inside = plain(live, PROMPTS[0])
    assert inside == by_hand(inner, PROMPTS[0], pushed(30.0))
    with live.disable_adapter(), pytest.raises(DriftlensError, match="--force"):
        mine.steering(live, 30.0).__enter__()
    with pytest.raises(DriftlensError, match="--force"):
        mine.require(pair.base)
    texts = applied(pair.aligned, mine, PROMPTS[:1], [30.0], max_new_tokens=6)
    assert texts[0].steered == (said(inside),)
    of_base = kept(pair.base)
    off = applied(pair.base, of_base, PROMPTS[:1], [30.0], max_new_tokens=6)
    assert off[0].unsteered == said(plain(nets.net("llama"), PROMPTS[0]))


# What a model says


def said(ids):
    return nets.tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_prompts_in_a_padded_batch_are_gone_on_with_as_each_alone(rows):
    net = model().net
    texts = applied(model(), kept(), PROMPTS, [-40.0, 0.0, 40.0], max_new_tokens=6, rows=rows)
    assert texts == [
        Applied(
            text,
            said(plain(net, text)),
            (
                said(by_hand(net, text, pushed(-40.0))),
                said(plain(net, text)),
                said(by_hand(net, text, pushed(40.0))),
            ),
        )
        for text in PROMPTS
    ]


@pytest.mark.parametrize("family", nets.some(nets.CAUSAL))
@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_every_family_says_in_a_batch_what_it_says_alone_inside_a_steered_net(family, positions):
    of = nets.model(family)
    mine = kept(of, positions=positions)
    texts = applied(of, mine, PROMPTS, [25.0], max_new_tokens=4)
    with mine.steering(of.net, 25.0):
        alone = [(said(plain(of.net, text, 4)),) for text in PROMPTS]
    assert [one.steered for one in texts] == alone
    assert [one.unsteered for one in texts] == [said(plain(of.net, t, 4)) for t in PROMPTS]
    assert [one.steered[0] for one in texts] != [one.unsteered for one in texts]


@pytest.mark.parametrize("positions", ["prompt", "response", "last"])
def test_positions_are_those_of_each_prompt(positions):
    net, mine = model().net, kept(positions=positions)
    for how in ({}, {"positions": positions}):
        texts = applied(model(), mine if not how else kept(), PROMPTS, max_new_tokens=6, **how)
        expected = [(said(by_hand(net, text, pushed(6.0), positions)),) for text in PROMPTS]
        assert [one.steered for one in texts] == expected


def test_modes_and_layers_are_passed_on():
    net = model().net
    texts = applied(model(), kept(), PROMPTS, mode="ablate", max_new_tokens=6)
    assert [one.steered for one in texts] == [(said(by_hand(net, t, ablated)),) for t in PROMPTS]
    how = {"layers": 2, "relative": True, "max_new_tokens": 6}
    length = found()[2].lengths.mean()
    push = pushed(2 * length, 2)
    texts = applied(model(), kept(), PROMPTS, [2.0], **how)
    assert [one.steered for one in texts] == [
        (said(by_hand(net, t, push, layers=(2,))),) for t in PROMPTS
    ]


def test_a_component_that_is_clamped_to_nothing_is_ablated():
    how = {"layers": [0, 1, 2], "max_new_tokens": 8}
    none = applied(model(), kept(), PROMPTS, mode="ablate", **how)
    assert applied(model(), kept(), PROMPTS, [0.0], mode="clamp", **how) == none
    assert [one.steered[0] for one in none] != [one.unsteered for one in none]


def test_what_follows_the_end_is_not_said():
    net = nets.net("llama")
    ids = plain(net, PROMPTS[0])
    net.generation_config.eos_token_id = [ids[2], 1]
    texts = applied(HookedModel(net, nets.tokenizer()), kept(), PROMPTS[:2], [0], max_new_tokens=6)
    assert texts[0].unsteered == said(ids[: ids.index(ids[2])])
    assert texts[1].unsteered == said(plain(net, PROMPTS[1]))


def test_draws_are_of_the_seed_and_of_nothing_else():
    def drawn(seed, temperature=1.0):
        how = {"temperature": temperature, "seed": seed, "max_new_tokens": 8}
        return applied(model(), kept(), PROMPTS, [2.0, 1e-6], **how)

    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = drawn(0)
    assert torch.equal(torch.rand(4), expected)
    assert drawn(0) == one
    assert drawn(1) != one
    # A step that rounding swallows draws the same tokens: only the step can make a difference.
    assert all(text.steered[1] == text.unsteered for text in one)
    greedy = applied(model(), kept(), PROMPTS, [2.0, 1e-6], max_new_tokens=8)
    assert one != greedy
    assert drawn(5, 1e-4) == greedy


def test_a_seed_draws_what_transformers_draws():
    how = {"max_new_tokens": 8, "pad_token_id": 2, "do_sample": True, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        ids = model().net.generate(**prompt_of(PROMPTS[0]), temperature=1.5, **how)
    (text,) = applied(model(), kept(), PROMPTS[:1], [0], max_new_tokens=8, temperature=1.5, seed=11)
    assert text.unsteered == said(ids[0, prompt_of(PROMPTS[0])["input_ids"].shape[1] :])


def test_a_prompt_is_a_users_turn_if_that_is_asked_for():
    words = deepcopy(nets.tokenizer())
    words.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
        "{{ ' [bot]' if add_generation_prompt }}"
    )
    chat = HookedModel(model().net, words)
    (turn,) = applied(chat, kept(), ["A bell"], [9.0], max_new_tokens=6, apply_chat_template=True)
    # The tokenizer puts <s> before a text by itself, and the template's is not doubled.
    (text,) = applied(model(), kept(), ["[user] A bell [bot]"], [9.0], max_new_tokens=6)
    assert turn[1:] == text[1:]
    with pytest.raises(DriftlensError, match=r"a chat template .*found none"):
        applied(model(), kept(), ["A bell"], [9.0], apply_chat_template=True)


def test_logits_that_are_not_finite_are_told_of_with_their_strength():
    # Half precision ends at 65504, and a coordinate of the direction is a part of its length.
    half = HookedModel(nets.net("llama").half(), nets.tokenizer())
    before, mine = state(half.net), kept(half)
    with pytest.raises(DriftlensError, match=r"finite logits, .*by add at strength 1e\+07"):
        applied(half, mine, PROMPTS, [1.0, 1e7])
    assert state(half.net) == before
    assert len(applied(half, mine, PROMPTS, [1.0])) == len(PROMPTS)
    broken = nets.moved(nets.net("llama"), float("nan"), 0, "norm.weight")
    with pytest.raises(DriftlensError, match="without steering"):
        applied(HookedModel(broken, nets.tokenizer()), kept(), PROMPTS, [1.0], force=True)


def test_a_net_that_learns_says_the_same_and_goes_on_to_learn():
    net = nets.net("llama", attention_dropout=0.5).train()
    mine, before = kept(HookedModel(net, None)), state(net)
    texts = applied(HookedModel(net, nets.tokenizer()), mine, PROMPTS, [40.0], max_new_tokens=6)
    assert texts == applied(model(), kept(), PROMPTS, [40.0], max_new_tokens=6)
    assert state(net) == before


UNSAID = {
    "a masked model": (lambda: nets.model("bert"), {}, "continues text, found bert"),
    "a model without a net": (lambda: Alone(model()), {}, "found Alone"),
    "another model": (lambda: nets.model("llama", seed=1), {}, "--force"),
    "no token": (model, {"max_new_tokens": 0}, "at least one new token"),
    "no rows": (model, {"rows": 0}, "one prompt at a time, found 40 and 0"),
    "no heat": (model, {"temperature": 0.0}, "temperature above 0, found 0"),
    "heat that is undefined": (model, {"temperature": float("nan")}, "found nan"),
    "no such positions": (model, {"positions": "first"}, "found 'first'"),
    "too long": (model, {"max_new_tokens": 95}, "at most 1 tokens, .* found one of"),
}


@pytest.mark.parametrize("what", UNSAID)
def test_what_cannot_be_gone_on_with_is_refused(what):
    make, how, wrong = UNSAID[what]
    with pytest.raises(DriftlensError, match=wrong):
        applied(make(), kept(), PROMPTS, [1.0], **how)


def test_an_empty_prompt_is_one_where_a_text_begins_with_a_token():
    (text,) = applied(model(), kept(), [""], [0], max_new_tokens=6)
    assert text.unsteered == said(plain(model().net, ""))
    silent = HookedModel(model().net, nets.tokenizer(bos=False))
    with pytest.raises(DriftlensError, match="at least one token, found ''"):
        applied(silent, kept(), [""], [1.0])


# Formats of others


@pytest.mark.parametrize("ending", ["gguf", "safetensors"])
def test_what_is_written_for_others_comes_back(ending, tmp_path):
    mine, file = kept(), tmp_path / f"a.{ending}"
    assert mine.export(file, layers=[1, 2]) == file
    again = KeptDirections.imported(file, model(), layer=2, positions="last")
    # A control vector holds float32.
    close = {"rtol": 0, "atol": 1e-6 if ending == "gguf" else 1e-15}
    assert again.layers == [1, 2]
    for layer in (1, 2):
        np.testing.assert_allclose(again.unit(layer), mine.unit(layer), **close)
        assert again.norm(layer) == pytest.approx(mine.norm(layer), rel=1e-6)
        assert abs(np.linalg.norm(again.unit(layer)) - 1) < 1e-15
    told = again.card
    assert told["model"] == mine.card["model"]
    assert (told["method"], told["pack"], told["layer"]) == ("imported", None, 2)
    assert told["file"] == {"name": file.name, "sha256": sha256_of(file.read_bytes())}
    assert told["positions"] == "last"
    assert KeptDirections.load(again.save(tmp_path / "a")).card == told
    with pytest.raises(DriftlensError, match="mean length of a state"):
        again.steers(1.0, relative=True)


def test_every_layer_is_written_where_the_format_has_a_place_for_it(tmp_path):
    kept().export(tmp_path / "a.safetensors")
    assert sorted(load_file(tmp_path / "a.safetensors")) == ["layer.0", "layer.1", "layer.2"]
    kept().export(tmp_path / "a.gguf")
    assert list(read_gguf(tmp_path / "a.gguf").vectors) == [1, 2]


@pytest.mark.parametrize(
    ("layers", "asked", "remedy"),
    [
        ((0, 1, 2), [0], "Give --layer 1-2 (layers=), or write .safetensors."),
        ((0, 1, 2), [0, 1], "Give --layer 1-2 (layers=), or write .safetensors."),
        ((0, 2), [0], "Give --layer 2 (layers=), or write .safetensors."),
        ((0,), [0], "Write .safetensors."),
        ((0,), None, "Write .safetensors."),
    ],
)
def test_a_control_vector_of_block_0_is_refused_with_what_can_be_had(
    layers, asked, remedy, tmp_path
):
    mine = kept(found=found(layers), layer=None, strength=None)
    with pytest.raises(DriftlensError, match=r"blocks from 1 on, .* of block 0") as told:
        mine.export(tmp_path / "a.gguf", layers=asked)
    assert str(told.value).endswith(remedy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [[3], [1, 2, 3], [0, 2, 4], [1, 4, 5, 6, 9], [0, 1, 3, 4]])
def test_blocks_are_said_as_the_command_line_reads_them(layers):
    assert sorted(layers_of(said_of(layers), 10)) == layers


def test_neighbouring_blocks_are_said_in_one():
    assert said_of([1, 2, 3, 5, 7, 8]) == "1-3,5,7-8"


def test_a_file_is_replaced_only_when_told(tmp_path):
    file = tmp_path / "a.safetensors"
    kept().export(file, layers=0)
    before = file.read_bytes()
    with pytest.raises(DriftlensError, match="--overwrite"):
        kept().export(file)
    assert file.read_bytes() == before
    kept().export(file, overwrite=True)
    assert file.read_bytes() != before


def test_what_others_cannot_hold_is_not_written(tmp_path):
    for file, mine, wrong in (
        (tmp_path / "a.pt", kept(), r"ends in \.gguf or \.safetensors"),
        (tmp_path / "a.safetensors", kept(part="mlp"), "what mlp adds"),
        (tmp_path / "none" / "a.safetensors", kept(), "can be written to"),
    ):
        with pytest.raises(DriftlensError, match=wrong):
            mine.export(file)
    with pytest.raises(DriftlensError, match="a direction of: 0, 1, 2, found 4"):
        kept().export(tmp_path / "a.safetensors", layers=4)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_not_imported(tmp_path):
    right = {1: np.ones(WIDTH)}
    write_tensors(right, tmp_path / "type.safetensors", "gpt2")
    write_gguf({1: np.ones(5)}, tmp_path / "width.gguf", "llama")
    write_tensors({7: np.ones(WIDTH)}, tmp_path / "depth.safetensors", "")
    write_tensors(right | {2: np.zeros(WIDTH)}, tmp_path / "zero.safetensors", "llama")
    write_tensors(right, tmp_path / "right.safetensors", "llama")
    for name, how, wrong in (
        ("type.safetensors", {}, "of type llama, .* of type gpt2 .*--force"),
        ("width.gguf", {}, r"shape \[5\] for block 1"),
        ("depth.safetensors", {}, "found one of block 7"),
        ("zero.safetensors", {}, "lead somewhere, found one of block 2"),
        ("right.safetensors", {"layer": 2}, "recommended layer 2"),
        ("right.bin", {}, "ends in"),
    ):
        with pytest.raises(DriftlensError, match=wrong):
            KeptDirections.imported(tmp_path / name, model(), **how)
    with pytest.raises(LoadError, match="readable file"):
        KeptDirections.imported(tmp_path / "none.gguf", model())
    forced = KeptDirections.imported(tmp_path / "type.safetensors", model(), force=True)
    assert forced.norm(1) == pytest.approx(WIDTH**0.5)


def test_an_imported_step_of_its_norm_adds_the_vector_of_the_file(tmp_path):
    vector = np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)
    write_gguf({2: vector}, tmp_path / "a.gguf", "llama")
    mine = KeptDirections.imported(Path(tmp_path / "a.gguf"), model())
    (steer,) = mine.steers(mine.norm(2))
    assert isinstance(steer.change, Add)
    moved = steer.change(torch.zeros(1, 1, WIDTH, dtype=torch.float64))[0, 0]
    np.testing.assert_allclose(moved.numpy(), vector, rtol=1e-12)
