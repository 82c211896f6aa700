"""Captured activations are what the model holds, at the tokens that the index says."""

import json
import os
import shutil
import signal
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score

import nets
from driftlens.activations import ActivationStore, Plan, capture, capturing, plan
from driftlens.errors import DriftlensError, LoadError
from driftlens.estimators import LogisticProbe, PolarityCCS, grouped_folds
from driftlens.models import EMBED, ModelPair, Site
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.shards import MANIFEST
from launched import Process

FAMILIES = ("llama", "gpt2", "bert")
SITES = ["embed", "0.out", "1.out", "2.out", "1.attn", "2.mlp"]
SMALL = 2**12
"""What a shard holds in these tests, so that there are many."""


@pytest.fixture(autouse=True)
def many_shards(monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", SMALL)


@pytest.fixture
def llama() -> HookedModel:
    return nets.model("llama")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


# What is captured


def plain(model: HookedModel, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """[layer + 1] [token, width] what transformers itself hands out of a text alone."""
    with torch.no_grad():
        found = model.net(torch.tensor([ids]), output_hidden_states=True)
    return tuple(states[0] for states in found.hidden_states)


def last_norm(model: HookedModel, stream: torch.Tensor) -> torch.Tensor:
    """The last stream as transformers hands it out: where there is a last norm, normed by it."""
    norm = getattr(model.body, "norm", getattr(model.body, "ln_f", torch.nn.Identity()))
    with torch.no_grad():
        return norm(stream)


@pytest.mark.parametrize("rows", [None, 1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_what_a_plain_forward_pass_gives(tmp_path, family, rows):
    model, pack = nets.model(family), nets.pack(nets.TEXTS)
    store = capture(model, [pack], SITES, tmp_path / "s", positions="all", rows=rows)
    index = store.index
    assert len(store.shards.keys) > 3
    total = 0
    for number, text in enumerate(nets.TEXTS):
        ids = model.tokenizer(text).input_ids
        mine = store.where(example=number)
        assert index["token"][mine].tolist() == ids
        assert index["position"][mine].tolist() == [*range(len(ids))]
        states = plain(model, ids)
        near = {"rtol": 1e-5, "atol": 1e-5}
        for site, expected in (("embed", 0), ("0.out", 1), ("1.out", 2)):
            np.testing.assert_allclose(store.site(site)[mine], states[expected], **near)
        found = last_norm(model, torch.from_numpy(store.site("2.out")[mine]))
        np.testing.assert_allclose(found, states[3], **near)
        total += len(ids)
    assert len(store) == len(index) == total


def test_what_attention_and_mlp_add_is_what_the_stream_gains(tmp_path, llama):
    pack = nets.pack(nets.TEXTS)
    sites = ["1.out", "2.attn", "2.mlp", "2.out"]
    store = capture(llama, [pack], sites, tmp_path / "s", positions="all")
    before, attention, mlp, after = (store.site(site)[:] for site in sites)
    np.testing.assert_allclose(before + attention + mlp, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_closing_token_has_read_all_of_the_text(tmp_path, family):
    model, pack = nets.model(family), nets.pack(nets.TEXTS)
    store = capture(model, [pack], ["1.out"], tmp_path / "s")
    last = capture(model, [pack], ["1.out"], tmp_path / "last", positions="last")
    assert len(store) == len(last) == len(nets.TEXTS)
    for number, text in enumerate(nets.TEXTS):
        row = store.index.loc[store.where(example=number)[0]]
        end = last.index.loc[last.where(example=number)[0]]
        ids = model.tokenizer(text).input_ids
        assert end["position"] == len(ids) - 1 - (family == "bert")
        assert end["end"] == len(text)
        assert row["position"] == (0 if family == "bert" else end["position"])
        assert row["text"] == ("<s>" if family == "bert" else end["text"])
        states = plain(model, ids)[2][row["position"]]
        found = store.site("1.out")[store.where(example=number)[0]]
        np.testing.assert_allclose(found, states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_scored_tokens_are_those_that_end_within_what_counts(tmp_path, family):
    model = nets.model(family)
    texts = ["The clock of Tolmar strikes nine.", "Mira sells cheese."]
    pack = nets.pack(texts, scored=(4, 14))
    store = capture(model, [pack], ["0.out"], tmp_path / "s", positions="scored")
    for number, text in enumerate(texts):
        spans = model.tokenizer(text, return_offsets_mapping=True).offset_mapping
        expected = [n for n, (first, last) in enumerate(spans) if first < last and 4 < last <= 14]
        assert store.index["position"][store.where(example=number)].tolist() == expected
    assert store.index["scored"].all()


def test_a_masked_model_is_run_once_for_all_that_it_could_predict(tmp_path, monkeypatch):
    model, calls = nets.model("bert"), []
    run = type(model.body).forward
    monkeypatch.setattr(
        type(model.body), "forward", lambda self, *a, **k: calls.append(1) or run(self, *a, **k)
    )
    Plan.of(model, [nets.pack(nets.TEXTS)], SITES)
    asked = len(calls)
    capture(model, [nets.pack(nets.TEXTS)], SITES, tmp_path / "s", rows=len(nets.TEXTS))
    assert len(calls) - asked <= len(list((tmp_path / "s").glob("*.safetensors"))) + 1


def test_tokens_of_a_text_longer_than_a_window_are_kept_once_with_most_context(tmp_path, llama):
    text = " ".join(nets.TEXTS[2:8])
    ids = llama.tokenizer(text).input_ids
    assert len(ids) > 40
    pack = nets.pack([text])
    store = capture(llama, [pack], ["1.out"], tmp_path / "s", positions="all", length=24)
    assert store.index["token"].tolist() == ids
    assert store.index["position"].tolist() == [*range(len(ids))]
    # What continues a text has read the first window as a text of its own.
    states = plain(llama, ids[:24])[2]
    np.testing.assert_allclose(store.site("1.out")[:24], states, rtol=1e-5, atol=1e-5)
    # The next begins at its half, after the token that begins all texts.
    after = plain(llama, [ids[0], *ids[12:35]])[2]
    np.testing.assert_allclose(store.site("1.out")[24:35], after[13:], rtol=1e-5, atol=1e-5)


def test_rows_stand_in_the_order_of_packs_texts_and_tokens_whatever_the_batch(tmp_path, llama):
    one, two = nets.pack(nets.TEXTS), replace(nets.pack(nets.TEXTS[::-1]), name="other")
    stores = [
        capture(llama, [one, two], ["0.out"], tmp_path / f"{n}", positions="all", rows=n)
        for n in (1, 3, 50)
    ]
    index = stores[0].index
    assert index["pack"].tolist() == sorted(index["pack"], key=["texts", "other"].index)
    order = index[["pack", "example", "position"]].to_numpy().tolist()
    assert order == sorted(order, key=lambda row: (["texts", "other"].index(row[0]), *row[1:]))
    for store in stores[1:]:
        assert store.index.equals(index)
        near = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(store.site("0.out"), stores[0].site("0.out"), **near)


def test_a_text_of_one_token_is_left_out_and_counted(tmp_path):
    net = nets.net("llama")
    model = HookedModel(net, nets.tokenizer(bos=False), "no bos")
    pack = nets.pack(["Mira sells cheese.", "a", "I do."])
    store = capture(model, [pack], ["0.out"], tmp_path / "s")
    assert store.index["example"].tolist() == [0, 2]
    assert store.about["packs"]["texts"]["left_out"] == 1


def test_memory_does_not_grow_with_the_number_of_texts(tmp_path, llama, monkeypatch):
    most = []

    class Watched(capturing._Filling):
        def put(self, rows, columns):
            super().put(rows, columns)
            most.append(sum(map(len, (s["at.pack"] for s in self.open.values()))))

    monkeypatch.setattr(capturing, "_Filling", Watched)
    found = []
    for count in (20, 160):
        pack = nets.pack([nets.TEXTS[n % 7] for n in range(count)])
        store = capture(llama, [pack], ["0.out"], tmp_path / f"{count}", positions="all", rows=2)
        found.append(max(most))
        most.clear()
    longest = max(len(llama.tokenizer(text).input_ids) for text in nets.TEXTS)
    # A shard that is not full yet, and those that one chunk of windows may touch.
    assert max(found) <= 3 * store.about["shard_rows"] + 2 * longest < len(store) / 10


# Precision


def test_bfloat16_is_kept_as_it_is(tmp_path):
    net = nets.net("llama").bfloat16()
    model, pack = HookedModel(net, nets.tokenizer(), "half"), nets.pack(nets.TEXTS)
    store = capture(model, [pack], ["1.out"], tmp_path / "s", positions="all", rows=1)
    assert store.about["dtype"] == "bfloat16"
    assert store.site("1.out").dtype == np.float32
    for number, text in enumerate(nets.TEXTS):
        states = plain(model, model.tokenizer(text).input_ids)[2]
        np.testing.assert_array_equal(
            store.site("1.out")[store.where(example=number)], states.float()
        )
    wide = capture(
        model, [pack], ["1.out"], tmp_path / "w", positions="all", rows=1, dtype="float32"
    )
    np.testing.assert_array_equal(wide.site("1.out"), store.site("1.out"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrower_numbers_are_the_nearest_ones(tmp_path, llama, dtype):
    pack = nets.pack(nets.TEXTS)
    wide = capture(llama, [pack], ["1.out"], tmp_path / "w", positions="all")
    store = capture(llama, [pack], ["1.out"], tmp_path / "s", positions="all", dtype=dtype)
    rounded = torch.from_numpy(np.asarray(wide.site("1.out"))).to(getattr(torch, dtype))
    np.testing.assert_array_equal(store.site("1.out"), rounded.float().numpy())
    assert store.site("1.out").dtype == ("float16" if dtype == "float16" else "float32")
    assert store.shards.bytes < wide.shards.bytes * 0.7


def test_a_state_that_the_dtype_cannot_hold_is_refused(tmp_path, llama):
    with torch.no_grad():
        llama.net.get_input_embeddings().weight[0] *= 1e7
    pack = nets.pack(nets.TEXTS)
    with pytest.raises(
        DriftlensError, match=r"float16 can hold, found larger ones at embed of llama"
    ):
        capture(llama, [pack], ["embed"], tmp_path / "s", positions="all", dtype="float16")
    capture(llama, [pack], ["embed"], tmp_path / "b", positions="all", dtype="bfloat16")


def test_states_that_are_not_finite_are_refused_and_located(tmp_path, llama):
    word = llama.tokenizer(" cheese").input_ids[1]
    with torch.no_grad():
        llama.net.get_input_embeddings().weight[word] = torch.nan
    spoilt = [n for n, t in enumerate(nets.TEXTS) if word in llama.tokenizer(t).input_ids]
    assert 0 < len(spoilt) < len(nets.TEXTS)
    with pytest.raises(DriftlensError, match=r"NaN or infinity at 0\.out of llama") as caught:
        capture(llama, [nets.pack(nets.TEXTS)], ["0.out"], tmp_path / "s", rows=1)
    assert int(caught.value.found.split("example ")[1].split()[0]) in spoilt


# The index


HOSTILE = (
    "a\x00b \x1b[31mred\x1b[0m",
    "<script>alert('x')</script> & \"quotes\"",
    "\u202eright to left\u202c \u200b zero \ufeff width",
    "=cmd|' /C calc'!A0\r\n\ttab",
    "🚣🏽‍♀️ e\u0301 日本 \U0010ffff",
)


def test_hostile_text_comes_back_as_it_was(tmp_path, llama):
    store = capture(llama, [nets.pack(HOSTILE)], ["0.out"], tmp_path / "s", positions="all")
    for number, text in enumerate(HOSTILE):
        rows = store.index.loc[store.where(example=number)]
        for _, row in rows[rows["start"] < rows["end"]].iterrows():
            assert row["text"] == text[row["start"] : row["end"]]
        assert rows["text"].iloc[0] == "<s>"
        assert rows["end"].iloc[-1] == len(text)


def test_the_index_tells_all_that_is_known_of_an_example(tmp_path, llama):
    pack = Pack(
        "mixed",
        "text",
        [
            Example("The river Alder runs.", None, 7, "", "water", family="f"),
            Example("Mira sells cheese.", (5, 18)),
        ],
    )
    index = capture(llama, [pack], ["0.out"], tmp_path / "s").index
    assert index["group"].tolist()[0] == 7
    assert index["group"].isna().tolist() == [False, True]
    assert index["family"].tolist()[0] == "f"
    assert index["topic"].tolist()[0] == "water"
    for name in ("role", "answer", "form", "label", "choice"):
        assert index[name].isna().all()
    assert index["cluster"].tolist() == [0, 1]


def test_groups_of_both_kinds_are_told_as_strings(tmp_path, llama):
    pack = Pack("mixed", "text", [Example("I do.", group=7), Example("A bell, a bell!", group="b")])
    assert capture(llama, [pack], ["0.out"], tmp_path / "s").index["group"].tolist() == ["7", "b"]


def test_of_choices_every_answer_is_read_and_labelled(tmp_path, llama):
    items = [
        Example("Mira sells", choices=(" cheese.", " a bell.", " nine."), wanted=(0, 2)),
        Example("The clock strikes", choices=(" nine.", " cheese."), wanted=(0,)),
    ]
    pack = Pack("asked", "choice", items)
    store = capture(llama, [pack], ["1.out"], tmp_path / "s", positions="scored")
    ends = store.index.groupby(["example", "choice"]).last()
    assert ends.index.tolist() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert ends["label"].tolist() == [1, 0, 1, 1, 0]
    for number, item in enumerate(items):
        for choice, answer in enumerate(item.choices):
            mine = store.where(example=number, choice=choice)
            assert "".join(store.index["text"][mine]) == answer
            ids = llama.tokenizer(item.text + answer).input_ids
            states = plain(llama, ids)[2][-1]
            found = store.site("1.out")[mine[-1]]
            np.testing.assert_allclose(found, states, rtol=1e-5, atol=1e-5)
    X, y, groups = store.labelled("1.out")
    assert len(X) == len(y) == len(store)
    assert groups.tolist() == store.index["example"].tolist()


def test_rows_are_found_by_what_the_index_says(tmp_path, llama):
    store = capture(llama, [Pack.load("deeds").limit(20)], ["0.out"], tmp_path / "s")
    index = store.index
    found = store.where(role="positive", answer=["yes"])
    expected = index[(index["role"] == "positive") & (index["answer"] == "yes")].index
    assert found.tolist() == expected.tolist()
    assert store.where(pack="none").tolist() == []
    with pytest.raises(DriftlensError, match=r"a column of the index: .* found 'colour'"):
        store.where(colour="red")


# Reading


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> tuple[ActivationStore, np.ndarray]:
    """A store of many shards, and all of its rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_BYTES", SMALL)
        folder = tmp_path_factory.mktemp("captured") / "s"
        pack = nets.pack(nets.TEXTS)
        store = capture(nets.model("llama"), [pack], ["0.out"], folder, positions="all")
    whole = np.concatenate([store.shards.tensor(key, "0.out").numpy() for key in store.shards.keys])
    assert len(store.shards.keys) > 3
    return store, whole


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rows_are_indexed_as_an_array_is(captured, data):
    store, whole = captured
    rows, size = store.site("0.out"), len(whole)
    assert rows.shape == whole.shape
    assert len(rows) == size
    numbers = st.integers(-size, size - 1)
    asked = data.draw(
        st.one_of(
            numbers,
            st.slices(size),
            st.lists(numbers, max_size=9),
            st.lists(st.booleans(), min_size=size, max_size=size).map(np.array),
        )
    )
    expected = whole[np.array(asked, int) if isinstance(asked, list) else asked]
    np.testing.assert_array_equal(rows[asked], expected)


def test_all_rows_are_an_array_if_asked_for_and_come_in_pieces(captured):
    store, whole = captured
    rows = store.site("0.out")
    np.testing.assert_array_equal(np.asarray(rows), whole)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.concatenate([*rows.pieces(7)]), whole)
    np.testing.assert_array_equal(rows[np.array([[0, 1], [2, -1]])], whole[[[0, 1], [2, -1]]])
    np.testing.assert_array_equal(
        rows[store.index["position"] == 0], whole[store.where(position=0)]
    )
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(rows, copy=False)


def test_rows_that_are_not_there_are_refused(captured):
    rows = captured[0].site("0.out")
    for asked in (len(rows), -len(rows) - 1, [0, len(rows)], np.ones(3, bool), [0.5], "a"):
        with pytest.raises(IndexError):
            rows[asked]


def test_only_shards_in_which_rows_lie_are_read(captured, tmp_path):
    store, whole = captured
    shutil.copytree(store.shards.folder, tmp_path / "s")
    copy, size = ActivationStore.open(tmp_path / "s"), store.about["shard_rows"]
    for path in (tmp_path / "s").glob("*.safetensors"):
        if path.name != "000001.safetensors":
            path.write_bytes(b"ruined")
    (tmp_path / "s" / "index.parquet").write_bytes(b"ruined")
    rows = copy.site("0.out")
    np.testing.assert_array_equal(rows[size : 2 * size], whole[size : 2 * size])
    np.testing.assert_array_equal(rows[[size + 3]], whole[[size + 3]])
    with pytest.raises(LoadError, match=r"000000\.safetensors"):
        rows[: size + 1]
    with pytest.raises(LoadError, match=r"an index at .*index\.parquet"):
        _ = copy.index
    with pytest.raises(LoadError, match=r"000000.*index\.parquet \(changed\)"):
        copy.verify()


@pytest.mark.parametrize("name", ["0.out", "blocks.0.hook_resid_post", "model.layers.0", "1.in"])
def test_a_site_goes_by_all_of_its_names(captured, name):
    store, whole = captured
    np.testing.assert_array_equal(store.site(name)[:5], whole[:5])
    np.testing.assert_array_equal(store.site(Site(0))[:5], whole[:5])


def test_what_was_not_captured_is_answered_with_what_was(captured):
    with pytest.raises(DriftlensError, match=r"captured: 0\.out, found 1\.mlp"):
        captured[0].site("1.mlp")


# For probes


def test_contrasts_are_as_estimators_take_them(tmp_path, llama):
    pack = Pack.load("deeds").limit(30)
    store = capture(llama, [pack, nets.pack(nets.TEXTS)], ["1.out"], tmp_path / "s")
    X, y, groups = store.contrasts("1.out", "deeds")
    form = pack.examples[0].form
    assert X.shape == (len(set(pack.groups)) * 2, 2, 32)
    assert y.tolist() == [1, 0] * (len(y) // 2)
    for place, (role, answer) in {
        (0, 0): ("positive", "no"),
        (0, 1): ("positive", "yes"),
        (1, 0): ("negative", "no"),
        (1, 1): ("negative", "yes"),
    }.items():
        first = [e for e in pack.examples if (e.role, e.answer, e.form) == (role, answer, form)]
        ids = llama.tokenizer(first[3].text).input_ids
        states = plain(llama, ids)[2][-1]
        np.testing.assert_allclose(X[2 * 3 + place[0], place[1]], states, rtol=1e-5, atol=1e-5)
    families = {}
    for example, cluster in zip(pack.examples, pack.clusters, strict=True):
        families[example.group] = cluster
    assert len(set(groups.tolist())) == len(set(families.values()))
    LogisticProbe().fit(X, y).predict_proba(X)
    PolarityCCS(n_restarts=1, steps=5).fit(X.reshape(-1, 2, 2, 32))
    assert len(grouped_folds(groups, seed=0, count=2)) == len(groups)


def test_labelled_rows_go_straight_into_scikit_learn(tmp_path, llama):
    store = capture(llama, [Pack.load("deeds").limit(30)], ["1.out"], tmp_path / "s")
    X, y, groups = store.labelled("1.out", form=store.index["form"][0])
    assert set(y.tolist()) == {0, 1}
    index = store.index.loc[store.where(form=store.index["form"][0])]
    says = (index["role"] == "positive") == (index["answer"] == "yes")
    assert y.tolist() == says.astype(int).tolist()
    scores = cross_val_score(
        LogisticRegression(max_iter=2000), X, y, groups=groups, cv=GroupKFold(3)
    )
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


def test_labels_that_are_not_there_are_not_made_up(tmp_path, llama):
    packs = [nets.pack(nets.TEXTS), Pack.load("deeds").limit(20)]
    store = capture(llama, packs, ["1.out"], tmp_path / "s", positions="all")
    with pytest.raises(DriftlensError, match="rows of both labels, found 0 rows"):
        store.labelled("1.out", pack="texts")
    with pytest.raises(DriftlensError, match="all of label 1"):
        store.labelled("1.out", role="positive", answer="yes")
    with pytest.raises(DriftlensError, match=r"one row of each text.* found --positions all"):
        store.contrasts("1.out")
    with pytest.raises(DriftlensError, match="captured: deeds, found 'texts'"):
        store.contrasts("1.out", "texts")
    with pytest.raises(DriftlensError, match=r"a form of deeds: .* found 'sung'"):
        store.contrasts("1.out", form="sung")


# What is refused


def test_a_store_is_known_by_what_it_was_made_from(tmp_path, llama):
    pack = nets.pack(nets.TEXTS)
    store = capture(llama, [pack], ["0.out"], tmp_path / "s")
    store.check(llama, [pack], ["0.out", "blocks.0.hook_out"])
    store.check(ModelPair(llama, llama))
    other = HookedModel(nets.moved(deepcopy(llama.net), 1e-6, 1), llama.tokenizer, "llama")
    words = deepcopy(llama.tokenizer)
    words.chat_template = "{{ messages }}"
    asked = {
        r"weights \(": {"model": other},
        r"tokenizer \(": {"model": HookedModel(llama.net, nets.tokenizer(merges=20), "llama")},
        r"chat_template \(nothing there": {"model": HookedModel(llama.net, words, "llama")},
        r"pack texts \(": {"packs": [nets.pack(nets.TEXTS[:-1])]},
        r"pack deeds \(nothing there": {"packs": [pack, Pack.load("deeds")]},
        r"site 1\.mlp \(nothing there, captured here": {"sites": ["0.out", "1.mlp"]},
    }
    for told, one in asked.items():
        with pytest.raises(DriftlensError, match=rf"something else: {told}"):
            store.check(**one)
    with pytest.raises(DriftlensError, match=r"weights .*pack texts"):
        store.check(other, [nets.pack(nets.TEXTS[:2])])


def test_a_store_is_not_gone_on_with_for_another_model_pack_or_site(tmp_path, llama):
    pack, sites, folder = nets.pack(nets.TEXTS), ["0.out"], tmp_path / "s"
    capture(llama, [pack], sites, folder)
    before = contents(folder)
    other = HookedModel(nets.moved(deepcopy(llama.net), 1e-6, 1), llama.tokenizer, "llama")
    for told, asked, how in (
        (r"model\.sha256", (other, [pack], sites), {}),
        (r"packs\.texts\.sha256", (llama, [nets.pack(nets.TEXTS[::-1])], sites), {}),
        (r"sites\.1", (llama, [pack], ["0.out", "1.mlp"]), {}),
        ("positions", (llama, [pack], sites), {"positions": "all"}),
        ("dtype", (llama, [pack], sites), {"dtype": "float16"}),
        ("length", (llama, [pack], sites), {"length": 30}),
        (r"batch\.windows", (llama, [pack], sites), {"rows": 1}),
    ):
        with pytest.raises(DriftlensError, match=rf"something else: .*{told}"):
            capture(*asked, folder, resume=True, **how)
    assert contents(folder) == before
    renamed = HookedModel(llama.net, llama.tokenizer, "./llama")
    capture(renamed, [pack], sites, folder, resume=True)
    assert contents(folder) == before


def test_a_store_that_stands_there_is_replaced_only_if_asked_for(tmp_path, llama):
    pack, folder = nets.pack(nets.TEXTS), tmp_path / "s"
    capture(llama, [pack], ["0.out"], folder, positions="all")
    before = contents(folder)
    with pytest.raises(DriftlensError, match="--resume to go on with it, --overwrite"):
        capture(llama, [pack], ["1.out"], folder)
    assert contents(folder) == before
    store = capture(llama, [pack], ["1.out"], folder, overwrite=True)
    assert store.sites == ["1.out"]
    assert len(contents(folder)) == len(store.shards.keys) + 2


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"sites": ["0.output"]}, "the name of a site.*found '0.output'.*Near are"),
        ({"sites": ["3.out"]}, "whose blocks are 0 to 2, found 3.out"),
        ({"sites": []}, "a site to capture, found none"),
        ({"positions": "first"}, "--positions among closing, last, scored, all, found 'first'"),
        ({"dtype": "int8"}, "--dtype-store among as-is, .* found 'int8'"),
        ({"packs": []}, "a pack to show, found none"),
        ({"packs": [nets.pack(["I do."])] * 2}, "different names, found texts more than once"),
    ],
)
def test_what_cannot_be_captured_is_refused_before_anything_is_written(
    tmp_path, llama, asked, told
):
    how = {"packs": [nets.pack(nets.TEXTS)], "sites": ["0.out"], **asked}
    with pytest.raises(DriftlensError, match=told):
        capture(llama, out=tmp_path / "s", **how)
    assert not (tmp_path / "s").exists()


def test_only_one_model_can_be_captured(tmp_path, pair, llama):
    with pytest.raises(DriftlensError, match="found a pair of base and aligned"):
        capture(pair, [nets.pack(nets.TEXTS)], ["0.out"], tmp_path / "s")
    store = capture(ModelPair(llama, llama), [nets.pack(nets.TEXTS)], ["0.out"], tmp_path / "s")
    assert len(store) == len(nets.TEXTS)


def test_a_block_without_an_mlp_of_its_own_has_none_to_capture(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(HookedModel, "has", lambda self, site: site.part != "mlp")
    with pytest.raises(DriftlensError, match=r"a place 1\.mlp in llama, found a block without mlp"):
        capture(llama, [nets.pack(nets.TEXTS)], ["1.mlp"], tmp_path / "s")


def test_a_folder_of_other_shards_is_no_store_of_activations(tmp_path, llama):
    from driftlens.shards import ShardWriter

    ShardWriter(tmp_path / "s", {"kind": "streams"}).finish()
    with pytest.raises(LoadError, match="found shards of something else"):
        ActivationStore.open(tmp_path / "s")
    with pytest.raises(DriftlensError, match="something else: kind"):
        capture(llama, [nets.pack(nets.TEXTS)], ["0.out"], tmp_path / "s", resume=True)


def test_room_is_asked_for_before_anything_is_run(tmp_path, llama, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(HookedModel, "trace", None)
    with pytest.raises(
        DriftlensError, match=r"kB for 172 rows at .*, found 5 kB free.*--dtype-store"
    ):
        capture(llama, [nets.pack(nets.TEXTS)], ["0.out"], tmp_path / "a" / "s", positions="all")
    assert not (tmp_path / "a").exists()


def test_the_estimate_is_about_what_is_written(tmp_path, llama, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 2**18)
    pack = nets.pack(nets.TEXTS * 20)
    told = Plan.of(llama, [pack], SITES, positions="all").bytes()
    capture(llama, [pack], SITES, tmp_path / "s", positions="all")
    written = sum(path.stat().st_size for path in (tmp_path / "s").glob("*"))
    assert 0.9 < told / written < 1.2


# What ends a run


class Abort(Exception):
    """What stops a run in the middle."""


def aborting(after: int):
    """Progress that stops the run when it has been told so often."""
    left = [after]

    def progress(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Abort

    return progress


@pytest.mark.parametrize("positions", ["all", "closing"])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_that_was_taken_up_leaves_the_same_bytes(
    tmp_path, llama, after, positions, monkeypatch
):
    if positions == "closing":
        monkeypatch.setattr(plan, "SHARD_BYTES", 500)
    packs = [nets.pack(nets.TEXTS), Pack.load("deeds").limit(20)]
    how = {"positions": positions, "rows": 2}
    capture(llama, packs, ["0.out", "1.mlp"], tmp_path / "whole", **how)
    with pytest.raises(Abort):
        capture(llama, packs, ["0.out", "1.mlp"], tmp_path / "s", **how, progress=aborting(after))
    left = contents(tmp_path / "s")
    assert "index.parquet" not in left
    with pytest.raises(DriftlensError, match="a finished store"):
        ActivationStore.open(tmp_path / "s")
    capture(llama, packs, ["0.out", "1.mlp"], tmp_path / "s", **how, resume=True)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_what_is_finished_is_not_run_again(tmp_path, llama, monkeypatch):
    pack, how = nets.pack(nets.TEXTS * 3), {"positions": "all", "rows": 1}
    seen, trace = [], HookedModel.trace
    monkeypatch.setattr(
        HookedModel, "trace", lambda self, *a, **k: seen.append(1) or trace(self, *a, **k)
    )
    with pytest.raises(Abort):
        capture(llama, [pack], ["0.out"], tmp_path / "s", **how, progress=aborting(3))
    first = len(seen)
    seen.clear()
    capture(llama, [pack], ["0.out"], tmp_path / "s", **how, resume=True)
    # Of what was run before, the windows that reach into the shard in hand alone.
    assert 0 < first < len(pack.examples)
    assert len(pack.examples) - first <= len(seen) < len(pack.examples)
    seen.clear()
    capture(llama, [pack], ["0.out"], tmp_path / "s", **how, resume=True)
    assert not seen


def test_a_shard_or_an_index_that_was_lost_is_made_again(tmp_path, llama):
    pack, folder = nets.pack(nets.TEXTS), tmp_path / "s"
    capture(llama, [pack], ["0.out"], folder, positions="all")
    before = contents(folder)
    (folder / "000002.safetensors").unlink()
    capture(llama, [pack], ["0.out"], folder, positions="all", resume=True)
    assert contents(folder) == before
    (folder / "index.parquet").write_bytes(b"")
    capture(llama, [pack], ["0.out"], folder, positions="all", resume=True)
    assert contents(folder) == before


def test_another_plan_of_memory_does_not_keep_a_run_from_being_taken_up(
    tmp_path, llama, monkeypatch
):
    pack = nets.pack(nets.TEXTS)
    monkeypatch.setattr(plan, "affordable", lambda *_: 40)
    capture(llama, [pack], ["0.out"], tmp_path / "whole", positions="all")
    with pytest.raises(Abort):
        capture(llama, [pack], ["0.out"], tmp_path / "s", positions="all", progress=aborting(2))
    monkeypatch.setattr(plan, "affordable", lambda *_: 900)
    capture(llama, [pack], ["0.out"], tmp_path / "s", positions="all", resume=True)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_where_memory_runs_out_a_batch_is_halved(tmp_path, llama, monkeypatch):
    pack, trace = nets.pack(nets.TEXTS), HookedModel.trace

    def narrow(self, batch, *args, **options):
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return trace(self, batch, *args, **options)

    whole = capture(llama, [pack], ["0.out"], tmp_path / "whole", positions="all")
    monkeypatch.setattr(HookedModel, "trace", narrow)
    store = capture(llama, [pack], ["0.out"], tmp_path / "s", positions="all")
    np.testing.assert_allclose(store.site("0.out"), whole.site("0.out"), rtol=1e-5, atol=1e-5)
    assert store.index.equals(whole.index)

    def none(self, batch, *args, **options):
        raise torch.OutOfMemoryError("out of memory")

    def broken(self, batch, *args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(HookedModel, "trace", none)
    with pytest.raises(DriftlensError, match="memory for one window of"):
        capture(llama, [pack], ["0.out"], tmp_path / "n")
    monkeypatch.setattr(HookedModel, "trace", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        capture(llama, [pack], ["0.out"], tmp_path / "b")


def test_the_net_is_left_as_it_was_found(tmp_path, llama):
    llama.net.train()
    with pytest.raises(Abort):
        capture(
            llama,
            [nets.pack(nets.TEXTS)],
            SITES,
            tmp_path / "s",
            positions="all",
            rows=1,
            progress=aborting(1),
        )
    assert llama.net.training
    assert all(p.requires_grad for p in llama.net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.net.modules())


RUN = """
import sys
import nets
from driftlens.activations import capture, plan
plan.SHARD_BYTES = int(sys.argv[3])
model, pack = nets.model("llama"), nets.pack(nets.TEXTS * 12)
print("ready", flush=True)
capture(model, [pack], ["0.out", "2.out"], sys.argv[1], positions="all", rows=2,
        resume=sys.argv[2] == "resume")
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path, llama):
    pack, sites = nets.pack(nets.TEXTS * 12), ["0.out", "2.out"]
    capture(llama, [pack], sites, tmp_path / "whole", positions="all", rows=2)
    folder = tmp_path / "s"
    draw, before, killed = np.random.default_rng(0), 0, 0
    for _ in range(8):
        how = "resume" if (folder / MANIFEST).exists() else "begin"
        process = Process(RUN, folder, how, SMALL, known=["nets"])
        process.heard("ready\n")
        time.sleep(draw.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        killed += process.left()[0] == -signal.SIGKILL
        if not (folder / MANIFEST).exists():
            continue
        record = json.loads((folder / MANIFEST).read_text())
        known = {shard["file"] for shard in record["shards"].values()}
        assert len(known) >= before
        assert len({path.name for path in folder.glob("*.safetensors")} - known) <= 1
        before = len(known)
    assert killed >= 2
    capture(llama, [pack], sites, folder, positions="all", rows=2, resume=True)
    assert contents(folder) == contents(tmp_path / "whole")


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    nets.saved(nets.net("llama"), folder / "base")
    nets.saved(nets.net("llama", 1), folder / "other")
    (folder / "text.txt").write_text("\n\n".join(nets.TEXTS))
    return folder


@pytest.fixture
def driftlens(driftlens, place, tmp_path):
    """The command line where models and packs are: exit code, both streams."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return driftlens


ASKED = (
    "capture",
    "base",
    "--text",
    "text.txt",
    "--pack",
    "deeds",
    "--limit",
    20,
    "--device",
    "cpu",
)


def test_the_command_writes_what_it_told(driftlens):
    code, out, err = driftlens(*ASKED, "--sites", "1.out,blocks.0.hook_mlp_out", "--out", "s")
    assert (code, out) == (0, "s\n")
    store = ActivationStore.open("s")
    assert err.startswith(f"{len(store)} rows of 0.mlp [32], 1.out [32] in float32: about ")
    assert store.packs == ["text", "deeds"]
    assert store.about["model"]["architecture"] == "LlamaForCausalLM"
    store.verify()
    code, out, _ = driftlens(
        *ASKED, "--sites", "all", "-o", "t", "--json", "-q", "--max-length", 50
    )
    assert json.loads(out)["sites"] == ["0.out", "1.out", "2.out"]
    assert json.loads(out)["length"] == 50


def test_the_command_takes_a_run_up(driftlens):
    args = (*ASKED, "--sites", "1.out", "-o", "s", "--positions", "all", "--batch-size", 2)
    assert driftlens(*args)[0] == 0
    before = contents(Path("s"))
    Path("s/000003.safetensors").unlink()
    assert driftlens(*args, "--resume")[0] == 0
    assert contents(Path("s")) == before
    # By another way to the same folder.
    here = (args[0], str(Path("base").resolve()), *args[2:])
    assert driftlens(*here, "--resume")[0] == 0
    code, _, err = driftlens("capture", "other", *args[2:], "--resume")
    assert code == 2
    assert "model.sha256" in err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--pack", "deeds", "--sites", "1.outt"], "the name of a site"),
        (["--pack", "deeds", "--sites", "9.out"], "whose blocks are 0 to 2"),
        (["--sites", "1.out"], "neither --pack nor --text"),
        (["--pack", "deeds", "--sites", "1.out", "--resume"], "an unfinished store to resume"),
        (["--pack", "deeds", "--sites", "1.out", "-o", "base"], "a folder for shards alone"),
        (["--pack", "deeds", "--sites", "1.out", "--positions", "some"], "--positions among"),
        (["--pack", "deeds", "--sites", "1.out", "--batch-size", "some"], "--batch-size as auto"),
        (["--pack", "deeds", "--sites", ","], "a site to capture"),
    ],
)
def test_the_command_refuses_in_a_line(driftlens, args, told):
    before = sorted(Path().rglob("*"))
    code, out, err = driftlens("capture", "base", "--device", "cpu", *args)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
    assert sorted(Path().rglob("*")) == before


def test_an_interrupted_command_says_how_to_go_on(driftlens, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(HookedModel, "trace", stop)
    code, _, err = driftlens(*ASKED, "--sites", "1.out", "-o", "s")
    assert code == 130
    assert "--resume to go on with s" in err
    monkeypatch.undo()


def test_the_embedding_is_a_site_of_its_own(tmp_path, llama):
    store = capture(llama, [nets.pack(nets.TEXTS)], [EMBED], tmp_path / "s", positions="all")
    table = llama.net.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(store.site("embed"), table[store.index["token"].to_numpy()])
