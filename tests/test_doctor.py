"""The gates before any number, and the size below which a number says nothing."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from tokenizers import processors

import nets
from driftlens import doctor, suite
from driftlens.diagnostics import Forgetting
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.report import Report

PACK = nets.pack(nets.TEXTS)


def loaded(base, aligned, words=None, own=None):
    """A pair whose models know their weights' hash and dtype, as loaded ones do."""
    pair = ModelPair.load(base, aligned, tokenizer=words or nets.tokenizer())
    if own:
        pair.aligned.tokenizer = own
    return pair


def aligned(base, size=0.03):
    return nets.moved(deepcopy(base), size, 1)


def gates(pair, pack=PACK, **how):
    return {check.name: check for check in doctor.examine(pair, [pack], **how)}


def test_a_healthy_pair_passes_every_gate():
    base = nets.net("llama")
    checks = gates(loaded(base, aligned(base)))
    assert {check.status for check in checks.values()} == {"pass"}
    doctor.require([*checks.values()])
    assert doctor.resumable([*checks.values()])


def test_padding_and_batching_move_nothing_but_the_last_digits():
    base = nets.net("llama")
    checks = gates(loaded(base, aligned(base)))
    for name in ("padding", "batching", "residual stream"):
        assert "(tolerance 0.001)" in checks[name].detail
        assert float(checks[name].detail.split("at most ")[1].split()[0]) < 1e-4


# The models differ


def test_a_model_beside_its_copy_is_an_error_unless_it_is_allowed():
    base = nets.net("llama")
    pair = loaded(base, deepcopy(base))
    check = gates(pair)["the models differ"]
    assert check.status == "fail"
    with pytest.raises(DriftlensError, match="--allow-identical"):
        doctor.require([check])
    check = gates(pair, allow_identical=True)["the models differ"]
    assert check.status == "warn"
    doctor.require([check])


# Of peft, about a name that transformers will take away.
renamed = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def lora(net, size):
    torch.manual_seed(0)
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(net, adapter)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(size)
    return adapted


@renamed
def test_an_adapter_whose_second_factor_is_zero_is_an_error():
    pair = loaded(None, lora(nets.net("llama"), 0.0))
    check = gates(pair)["the models differ"]
    assert (check.status, check.detail) == ("fail", "the adapter changes nothing (is lora_B zero?)")


@renamed
def test_an_adapter_that_changes_something_passes():
    checks = gates(loaded(None, lora(nets.net("llama"), 0.1)))
    assert checks["the models differ"].status == "pass"


def test_weights_that_differ_where_no_text_reaches_are_told():
    base, other = nets.net("llama"), nets.net("llama")
    unread = nets.tokenizer().convert_tokens_to_ids("</s>")
    with torch.no_grad():
        other.model.embed_tokens.weight[unread] += 1
    check = gates(loaded(base, other))["the models differ"]
    assert check.status == "warn"
    assert "no activation on the first texts does" in check.detail


# Numbers that are none


def test_a_weight_that_is_not_finite_is_named_and_nothing_else_is_asked():
    base = nets.net("llama")
    broken = aligned(base)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    checks = doctor.examine(loaded(base, broken), [PACK])
    assert [check.name for check in checks] == ["finite weights"]
    assert "model.layers.1.mlp.up_proj.weight" in checks[0].detail
    with pytest.raises(DriftlensError, match="Check that checkpoint"):
        doctor.require(checks)


def test_a_stream_that_overflows_is_told_with_model_layer_and_document():
    base = nets.net("llama")
    broken = aligned(base)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(DriftlensError, match=r"the stream at 1\.out of .*, document 0"):
        doctor.examine(loaded(base, broken), [PACK])


@pytest.mark.parametrize("merges", [nets.WORDS - nets.BYTES - 4, 20])
def test_logits_that_overflow_are_told_whether_or_not_the_tokenizers_differ(merges):
    base = nets.net("llama")
    broken = aligned(base)
    with torch.no_grad():
        broken.lm_head.weight.fill_(3e38)
    with pytest.raises(DriftlensError, match="its logits of"):
        doctor.examine(loaded(base, broken, own=nets.tokenizer(merges=merges)), [PACK])


# Tokens and texts


def test_added_tokens_are_warned_of_with_the_probability_that_lies_on_them():
    base, more = nets.net("llama"), nets.net("llama", 1, vocab_size=nets.WORDS + 1)
    words = nets.tokenizer(specials="<s> </s> <pad> <mask> <tool>")
    checks = gates(loaded(base, more, own=words))
    check = checks["vocabulary"]
    assert check.status == "warn"
    assert f"{nets.WORDS} and {nets.WORDS + 1} logits, {nets.WORDS} tokens shared" in check.detail
    shares = check.detail.split("lies ")[1].split("and ")
    ours, theirs = (float(share.split()[0]) for share in shares)
    assert ours == 0
    assert 0 < theirs < 0.1
    assert "cut every text of the packs alike" in checks["tokens"].detail


def test_tokenizers_that_cut_differently_are_warned_of_and_leave_things_out():
    base = nets.net("llama")
    pair = loaded(base, aligned(base), own=nets.tokenizer(merges=20))
    checks = gates(pair)
    assert checks["tokens"].status == "warn"
    assert "left out" in checks["tokens"].detail
    encoder = pair.encoder(PACK)
    taken = suite.applicable(pair, encoder, suite.Options())
    assert {type(m).__name__ for m in taken} >= {"Forgetting", "TokenKinds", "Drift"}
    assert not any(metric.wants.same_tokens for metric in taken)


def test_another_chat_template_is_warned_of():
    base, words = nets.net("llama"), deepcopy(nets.tokenizer())
    words.chat_template = "{{ messages }}"
    check = gates(loaded(base, aligned(base), own=words))["chat template"]
    assert check.status == "warn"
    assert "base none" in check.detail


def test_two_beginnings_of_text_are_warned_of():
    base, twice = nets.net("llama"), deepcopy(nets.tokenizer())
    twice.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 0)]
    )
    check = gates(loaded(base, aligned(base), twice))["beginning-of-text token"]
    assert (check.status, check.detail) == ("warn", "base adds two, aligned adds two")


def test_one_beginning_of_text_on_one_side_alone_is_warned_of():
    base = nets.net("llama")
    pair = loaded(base, aligned(base), own=nets.tokenizer(bos=False))
    check = gates(pair)["beginning-of-text token"]
    assert (check.status, check.detail) == ("warn", "base adds one, aligned adds none")


def test_documents_longer_than_the_context_are_told():
    base = nets.net("llama")
    check = gates(loaded(base, aligned(base)), nets.pack(["word " * 200, "a b"]))["documents"]
    assert check.status == "pass"
    assert "1 longer than 96 tokens, read in windows" in check.detail


def test_documents_with_nothing_to_score_are_told_and_do_not_stand_in_the_way():
    base, words = nets.net("llama"), nets.tokenizer(bos=False)
    pair = loaded(base, aligned(base), words)
    pack = nets.pack(["a"] * 30 + ["now there is something"])
    checks = gates(pair, pack)
    assert checks["documents"].status == "warn"
    assert "30 left out, with no token to score" in checks["documents"].detail
    assert list(suite.examine(pair, [pack]))


def test_half_precision_is_warned_of():
    base = nets.net("llama").to(torch.bfloat16)
    check = gates(loaded(base, aligned(base)))["dtype"]
    assert (check.status, check.detail) == ("warn", "both bfloat16; see the noise floor")


# What the layer sweep rests on


def sharing(net):
    """The net with a last block that reads what the first one left beside the stream."""
    shared = {}

    def begin(*_):
        shared.clear()

    def leave(_, __, output):
        shared["first"] = output

    def read(_, __, output):
        return output + 0.5 * shared.get("first", 0 * output)

    net.model.register_forward_pre_hook(begin)
    net.model.layers[0].mlp.register_forward_hook(leave)
    net.model.layers[-1].mlp.register_forward_hook(read)
    return net


def gemma4():
    """A real family whose upper blocks read keys and values that lower ones have left."""
    hf = pytest.importorskip("transformers", minversion="5.10")
    shape = nets.HEADS | nets.NARROW | {"num_hidden_layers": 4, "num_kv_shared_layers": 2}
    own = {"global_head_dim": 8, "hidden_size_per_layer_input": 8}
    config = hf.Gemma4TextConfig(**shape, **own, vocab_size_per_layer_input=nets.WORDS)
    net = hf.AutoModelForCausalLM.from_config(config)
    return nets.moved(net.eval(), 0.05, 0)


SHARING = {
    "through a hook": (lambda: sharing(nets.net("llama")), "moves a token by"),
    "through keys and values": (gemma4, "KeyError"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", nets.some(SHARING, ["through keys and values"]))
def test_no_map_over_layers_is_printed_of_blocks_that_share_more_than_the_stream(how, tmp_path):
    make, said = SHARING[how]
    pair = loaded(make(), aligned(make()))
    checks = doctor.examine(pair, [PACK])
    check = next(check for check in checks if check.name == "residual stream")
    assert check.status == "warn"
    assert said in check.detail
    assert "forgetting by layer is left out" in check.detail
    results = list(suite.examine(pair, [PACK], checks=checks))
    kinds = {result.kind for result in results}
    assert {"forgetting", "drift", "token_forgetting"} <= kinds
    assert not {"layer_forgetting", "token_layers"} & kinds
    page = Report("base → aligned", results[:1], checks).write(tmp_path / "report").read_text()
    assert "forgetting by layer is left out" in page


# Noise


BY_WEIGHTS = {"weight_path", "position_map", "graft", "restoration", "weight_change"}


def test_every_diagnostic_has_a_floor_that_is_noise_and_no_more():
    base = nets.net("llama")
    pair = loaded(base, aligned(base))
    results = {result.kind: result for result in suite.examine(pair, [PACK])}
    floor = results["noise_floor"]
    assert set(floor.diagnostic) == results.keys() - {"noise_floor", "token_layers"} - BY_WEIGHTS
    for kind in BY_WEIGHTS & results.keys() - {"weight_change"}:
        # Base is no other net than itself: the noise of their rise is that of the loss.
        assert results[kind].floor["total"] == results["forgetting"].floor["loss_rise"]
    # Logits of a few nats in float32, and the root of their rounding in KL and cosines.
    assert floor.measured == "forgetting.loss_rise"
    assert 0 < floor.noise.value < 1e-5
    assert (floor.floor_size < 2e-3).all()
    assert "as large" in floor.summary()
    for kind in results.keys() - {"weight_change"}:
        zeros = set(getattr(results[kind], "near_zero", ()))
        # Where no temperature helps either there is no change of it.
        zeros -= {"temperature_change"} if kind == "calibration" else set()
        assert set(results[kind].floor) == zeros, kind
    assert results["forgetting"].above_floor("loss_rise")
    assert results["drift"].above_floor("relative_l2").all()


def test_what_is_smaller_than_noise_is_said_to_be_nothing():
    base = nets.net("llama")
    pair = loaded(base, aligned(base, 1e-10))
    results = {result.kind: result for result in suite.examine(pair, [PACK])}
    assert not results["forgetting"].above_floor("loss_rise")
    assert results["forgetting"].headline() == "nothing was lost that can be told from noise"
    assert results["layer_forgetting"].headline() == ""
    assert results["token_kinds"].headline() == ""


def test_a_number_below_its_floor_is_grey_on_the_page(tmp_path):
    base = nets.net("llama")
    (result,) = measure(loaded(base, aligned(base)), PACK, [Forgetting()])
    grey, black = (
        Report("", [replace(result, floor={"loss_rise": size})]).write(tmp_path / str(size))
        for size in (9.0, 0.0)
    )
    assert 'class="below"' in grey.read_text()
    assert 'class="below"' not in black.read_text()


def test_the_noise_floor_reads_only_the_beginnings_of_long_documents(monkeypatch):
    base = nets.net("llama")
    pair = loaded(base, aligned(base))
    seen = []
    monkeypatch.setattr(
        "driftlens.doctor.measure", lambda _, pack, *__, **___: seen.append(pack) or []
    )
    encoder = pair.encoder(nets.pack(["word " * 3000] * 20))
    doctor.noise_floor(pair.base, encoder, [Forgetting()])
    assert [len(example.text) for example in seen[0].examples] == [doctor.LETTERS] * doctor.SAMPLE


# Masked models


def test_of_masked_models_what_cannot_be_taken_is_left_out_and_said_so(tmp_path):
    pair = nets.pair("bert")
    pack = nets.pack(nets.TEXTS[:3])
    checks = doctor.examine(pair, [pack])
    skipped = {check.name: check.detail for check in checks if check.status == "skip"}
    assert skipped.keys() == {"padding", "residual stream", "matching weights"}
    assert "forgetting by layer is left out" in skipped["residual stream"]
    results = list(suite.examine(pair, [pack], checks=checks))
    kinds = {result.kind for result in results}
    assert kinds >= {"forgetting", "token_kinds", "drift", "lens", "entropy", "noise_floor"}
    assert not kinds & {"layer_forgetting", "factorial", "symptom_layers", "weight_path"}
    assert all(np.isfinite(r.loss_rise.value) for r in results if r.kind == "forgetting")
    page = Report("base → aligned", results, checks).write(tmp_path / "report").read_text()
    assert "masked models are not resumed at a block" in page


def test_what_cannot_be_answered_is_left_out_and_said_so():
    asked = [
        Pack("mine", "choice", [Example("I", choices=(" do", " not"), wanted=(0,))]),
        Pack("told", "prompt", [Example("I")]),
    ]
    pair = nets.pair("bert")
    checks = {check.name: check for check in doctor.examine(pair, [PACK, *asked])}
    assert checks["answers"].status == "warn"
    assert "mine is left out, for answers are read where a text goes on" in checks["answers"].detail
    assert "told is left out, for a model cannot answer" in checks["answers"].detail
    assert list(suite.examine(pair, asked)) == []
    assert "answers" not in {check.name for check in doctor.examine(pair, [PACK])}


def test_answers_of_a_usual_pack_that_begin_alike_are_left_out_and_of_a_named_one_refused():
    alike = [Example("I", choices=(" one", " ones"), wanted=(0,))]
    pair = nets.pair("llama")
    usual = Pack("quiz", "choice", alike)
    (found,) = (c for c in doctor.examine(pair, [PACK, usual]) if c.name == "answers")
    assert found.status == "warn"
    assert "quiz is left out, for its answers are not told apart" in found.detail
    assert list(suite.examine(pair, [usual])) == []
    with pytest.raises(DriftlensError, match="answers that begin with different tokens"):
        list(suite.examine(pair, [Pack("mine", "choice", alike)]))


def test_masked_models_leave_out_the_sweep_even_without_the_gates():
    pair = nets.pair("bert")
    metrics = suite.applicable(pair, pair.encoder(PACK), suite.Options())
    assert not any(metric.wants.causal for metric in metrics)
    with pytest.raises(DriftlensError, match="models that continue text"):
        measure(pair, PACK, suite.PLAN["text"](suite.Options()))


def test_metrics_that_swap_activations_refuse_tokens_that_differ():
    net = nets.net("llama")
    words = nets.tokenizer(), nets.tokenizer(merges=20)
    pair = ModelPair(*(HookedModel(net, own, own.name_or_path) for own in words))
    with pytest.raises(DriftlensError, match="the same tokens"):
        measure(pair, PACK, suite.PLAN["text"](suite.Options()))
