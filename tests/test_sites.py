"""A place has one name of ours, and those that its users know it by."""

import pytest

from driftlens.errors import DriftlensError
from driftlens.models import EMBED, Site

SAME = {
    Site(3): ("3.out", "blocks.3.hook_resid_post", "blocks.3.hook_out", "model.layers.3"),
    Site(12): ("transformer.h.12", "gpt_neox.layers.12", "encoder.layer.12", "h.12"),
    Site(3, "in"): ("3.in", "blocks.3.hook_resid_pre", "blocks.3.hook_in"),
    Site(3, "attn"): ("3.attn", "blocks.3.hook_attn_out", "blocks.3.attn.hook_out"),
    Site(3, "mlp"): ("3.mlp", "blocks.3.hook_mlp_out", "blocks.3.mlp.hook_out"),
    Site(3, "heads"): ("3.heads", "blocks.3.attn.hook_z", "blocks.3.attn.o.hook_in"),
    EMBED: ("embed", "0.in", "blocks.0.hook_resid_pre"),
}


@pytest.mark.parametrize(("site", "names"), SAME.items(), ids=str)
def test_every_name_of_a_site_is_the_same_place(site, names):
    assert [Site.of(name) for name in names] == [site] * len(names)


@pytest.mark.parametrize("layer", [0, 1, 31])
@pytest.mark.parametrize("part", ["in", "heads", "attn", "mlp", "out"])
def test_what_a_site_says_of_itself_is_read_as_itself(layer, part):
    site = Site(layer, part)
    assert Site.of(str(site)) == site
    assert Site.of(site) is site


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.3.hook_resid_pots", "blocks.3.hook_resid_post"),
        ("3.outt", "3.out"),
        ("blocks.7.hook_resid_mid", "blocks.7.hook_resid_p"),
        ("model.layers.2.self_attn", "model.layers.2"),
        ("hook_embed", "embed"),
        ("", "0.in"),
        ("-1.out", "1.out"),
        ("blocks.3", None),
        ("layers.3.hook_resid_post", "blocks.3.hook_resid_post"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_near(name, near):
    if near is None:
        assert Site.of(name) == Site(3)
        return
    with pytest.raises(DriftlensError, match="the name of a site") as told:
        Site.of(name)
    assert near in str(told.value)
