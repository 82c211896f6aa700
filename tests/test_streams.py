"""Any split and any order of a stream ends in the same; a checkpoint loses nothing."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftlens.formulas import similarity
from driftlens.formulas.streams import (
    Counts,
    CrossMoments,
    Mergeable,
    Moments,
    PerDocument,
    Rows,
)

N = 60
RANDOM = np.random.default_rng(0)
X = torch.tensor(RANDOM.normal(size=(N, 5))) @ torch.tensor(RANDOM.normal(size=(5, 5)))
Y = X[:, :4] + torch.tensor(RANDOM.normal(size=(N, 4)))
DOCUMENTS = RANDOM.integers(0, 9, N) * 7
VALUES = RANDOM.normal(size=(N, 3))
TABLE = {
    "document": DOCUMENTS,
    "position": RANDOM.permutation(N),
    "rise": np.where(np.arange(N) % 7 == 0, 0.5, RANDOM.normal(size=N)),
    "word": np.array(["", "naïve", "Ω" * 9])[np.arange(N) % 3],
}
KINDS = {"document": np.int32, "position": np.int64, "rise": np.float32, "word": str}


def rows_of(order, limit=10):
    return Rows(limit, order, KINDS)


STREAMS = {
    "moments": (Moments, lambda s, i: s.update(X[i])),
    "cross": (CrossMoments, lambda s, i: s.update(X[i], Y[i])),
    "documents": (lambda: PerDocument(3), lambda s, i: s.update(DOCUMENTS[i], VALUES[i])),
    "first": (
        lambda: rows_of(("document", "position")),
        lambda s, i: s.update(**{name: column[i] for name, column in TABLE.items()}),
    ),
    "largest": (
        lambda: rows_of(("-rise", "document", "position")),
        lambda s, i: s.update(**{name: column[i] for name, column in TABLE.items()}),
    ),
    "tied": (  # the order does not tell rows apart, and still it does not matter
        lambda: rows_of(("-document",)),
        lambda s, i: s.update(**{name: column[i] for name, column in TABLE.items()}),
    ),
    "counts": (lambda: Counts(64), lambda s, i: s.update(DOCUMENTS[i])),
}
every_stream = pytest.mark.parametrize(("make", "feed"), STREAMS.values(), ids=STREAMS.keys())


def assert_same(a, b, tolerance=0.0):
    """Equal states, to a share of the scale of each array."""
    a, b = a.state(), b.state()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.shape == b[name].shape
        assert value.dtype == b[name].dtype
        if value.size and tolerance:
            # Sums of 60 numbers of either sign cancel: at least their number is the scale.
            scale = max(N, abs(value).max())
            np.testing.assert_allclose(value, b[name], rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(value, b[name])


@every_stream
@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(0, N), max_size=6),
    owners=st.lists(st.integers(0, 2), min_size=7, max_size=7),
)
def test_any_split_and_any_order_end_in_the_same(make, feed, order, cuts, owners):
    whole = feed(make(), np.arange(N))
    parts = [whole.empty(), whole.empty(), whole.empty()]
    bounds = [0, *sorted(cuts), N]
    for owner, start, end in zip(owners, bounds, bounds[1:], strict=False):
        feed(parts[owner], np.array(order[start:end], dtype=int))
    merged = parts[0].merge(parts[1]).merge(parts[2])
    if isinstance(whole, CrossMoments):
        # Rows that wait to be summed wait in the order they came.
        merged, whole = merged.settled(), whole.settled()
    # Sums of 60 numbers in another order: 60 roundings of float64. Tables and counts: none.
    assert_same(merged, whole, 0.0 if isinstance(whole, Rows | Counts) else N * 2**-52)


@every_stream
def test_a_checkpoint_is_exact_and_holds_numbers_only(make, feed):
    for seen in (np.arange(0), np.arange(1), np.arange(25)):
        stream = feed(make(), seen)
        state = stream.state()
        assert all(array.dtype.kind in "iufb" for array in state.values())
        again = stream.empty().restore(state)
        assert_same(again, stream)
        feed(stream, np.arange(25, N))
        feed(again, np.arange(25, N))
        assert_same(again, stream)


def test_when_a_checkpoint_is_taken_does_not_move_a_bit():
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    often, never = CrossMoments(), CrossMoments()
    for some in rows.split(170):
        often.update(some, some.square())
        often = often.empty().restore(often.state())
        never.update(some, some.square())
    assert_same(often, never)
    assert often.cka() == never.cka()


@every_stream
def test_a_checkpoint_survives_safetensors(make, feed, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    stream = feed(make(), np.arange(N))
    safetensors.save_file(stream.state(), tmp_path / "state.safetensors")
    state = safetensors.load_file(tmp_path / "state.safetensors")
    assert_same(make().restore(state), stream)


@every_stream
def test_merging_leaves_the_other_as_it_is_and_shares_nothing_with_it(make, feed):
    other = feed(make(), np.arange(20))
    before = copy.deepcopy(other.state())
    for mine in (make(), feed(make(), np.arange(20, 40))):
        mine.merge(other)
        feed(mine, np.arange(40, N))
        np.testing.assert_equal(other.state(), before)


@every_stream
def test_an_empty_part_and_an_empty_batch_change_nothing(make, feed):
    stream, untouched = feed(make(), np.arange(20)), feed(make(), np.arange(20))
    feed(stream, np.arange(0)).merge(make()).merge(stream.empty())
    assert_same(stream, untouched)
    assert_same(make().merge(stream), untouched)
    assert_same(make().merge(make()), make())
    assert isinstance(stream, Mergeable)


def test_moments_are_those_of_numpy():
    moments = Moments().update(X[:7]).update(X[7:])
    np.testing.assert_allclose(moments.mean, X.numpy().mean(0), rtol=1e-12)
    error = X.numpy().std(0, ddof=1) / math.sqrt(N)
    np.testing.assert_allclose(moments.standard_error, error, rtol=1e-12)
    assert Moments().count == 0
    assert Moments().update(X[:1]).standard_error.isnan().all()


MASSIVE = torch.tensor([300.0, 0, 0, 0, 0, 0, 0, 0])


def rows(n=300, width=8, dtype=torch.float64, seed=0, massive=True):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, dtype=torch.float64, generator=random)
    y = x @ torch.randn(width, width, dtype=torch.float64, generator=random)
    y += torch.randn(n, width, dtype=torch.float64, generator=random)
    if massive:
        x, y = x + MASSIVE, y - MASSIVE.flip(0)
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("first", [1, 2, 50, 299])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # What is off is the product of rows about the shift, formed in the dtype: its rounding
    # (2^-53 and 2^-24), times how far a first batch of one row may lie from the mean.
    [(torch.float64, 1e-13), (torch.float32, 1e-6)],
)
def test_sums_about_different_shifts_merge_into_those_about_one(dtype, tolerance, first):
    x, y = rows(dtype=dtype)
    merged = CrossMoments().update(x[:first], y[:first])
    shift = dict(merged.shift)
    merged.merge(CrossMoments().update(x[first:], y[first:]))
    exact = similarity.sums(x.double(), y.double(), shift)
    assert merged.shift == shift
    assert merged.sums.keys() == exact.keys()
    for name, value in exact.items():
        scale = max(value.abs().max(), len(x) ** 0.5)  # sums about the mean cancel
        assert (merged.sums[name] - value).abs().max() <= tolerance * scale
    wide = x.double(), y.double()
    assert merged.cka() == pytest.approx(similarity.cka(*wide), abs=tolerance)
    assert merged.biased_cka() == pytest.approx(similarity.biased_cka(*wide), abs=tolerance)
    assert merged.procrustes() == pytest.approx(similarity.procrustes(*wide), abs=tolerance)


def test_sums_moved_far_and_back_are_the_sums():
    x, y = rows(massive=False)
    about = similarity.centres(x, y)
    near = similarity.sums(x, y, about)
    by = {"x": MASSIVE.double(), "y": -2 * MASSIVE.flip(0).double()}
    by["d"] = by["y"] - by["x"]
    there = similarity.moved(len(x), near, by)
    exact = similarity.sums(x, y, {side: at - by[side] for side, at in about.items()})
    for name, value in exact.items():
        torch.testing.assert_close(there[name], value, rtol=1e-11, atol=1e-9)


def test_float32_with_a_massive_coordinate_keeps_the_digits_of_one_minus_cka():
    x, _ = rows(4000, dtype=torch.float32)
    y = x + 0.3 * rows(4000, seed=1, dtype=torch.float32, massive=False)[0]
    stream = CrossMoments()
    for some_x, some_y in zip(x.split(500), y.split(500), strict=True):
        stream.update(some_x, some_y)
    exact = CrossMoments().update(x.double(), y.double())
    # 1.6e-5 of 1 − CKA was measured with products in float32 about the first batch's mean.
    assert 1 - stream.cka() == pytest.approx(1 - exact.cka(), rel=2e-5)
    # Without a shift (about 0) the same products lose ten times and more of it.
    raw = similarity.sums(x, y, {side: torch.zeros(8) for side in "xyd"})
    assert abs(similarity.cka_of(4000, raw) - exact.cka()) > abs(stream.cka() - exact.cka())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_that_are_the_same_bit_by_bit_are_exactly_alike(dtype):
    x, _ = rows(dtype=dtype)
    stream = CrossMoments().update(x[:100], x[:100].clone())
    stream.merge(CrossMoments().update(x[100:], x[100:].clone()))
    assert (stream.cka(), stream.biased_cka(), stream.procrustes()) == (1.0, 1.0, 0.0)
    assert (stream.mean_shift == 0).all()


def test_a_difference_below_rounding_is_no_angle_to_speak_of():
    x, _ = rows()
    y = x.clone()
    y[17, 3] += 1e-9
    # What rotation gains is a difference of float64 numbers: its root is good to 1e-7.
    assert 0 <= CrossMoments().update(x, y).procrustes() < 1e-7


def test_a_small_angle_keeps_its_digits_in_float32():
    x, _ = rows(dtype=torch.float32)
    y = x + 1e-4 * rows(seed=1, dtype=torch.float32, massive=False)[0]
    exact = similarity.procrustes(x.double(), y.double())
    # arccos of a cosine with float32's 1e-7 would be off by 4e-4, four times the angle.
    assert CrossMoments().update(x, y).procrustes() == pytest.approx(exact, rel=1e-4)


def test_the_mean_shift_is_the_mean_difference():
    x, y = rows()
    stream = CrossMoments().update(x[:9], y[:9]).update(x[9:], y[9:])
    torch.testing.assert_close(stream.mean_shift, (y - x).mean(0), rtol=1e-12, atol=1e-12)
    assert len(CrossMoments().update(X, Y).mean_shift) == 0
    assert CrossMoments().mean_shift.numel() == 0
    assert stream.empty().mean_shift.isnan().all()


def test_what_is_undefined_is_nan():
    x, y = rows()
    constant = torch.full_like(x, 0.1)
    broken = x.clone()
    broken[5, 2] = torch.nan
    cases = [
        CrossMoments(),
        CrossMoments().update(x[:3], y[:3]),
        CrossMoments().update(x, constant),
        CrossMoments().update(constant.float(), constant.float()),
        CrossMoments()
        .update(x[:1].float(), constant[:1].float() * 9)
        .merge(CrossMoments().update(x.float(), constant.float() * 9)),
        CrossMoments().update(broken, y),
        CrossMoments().update(broken, broken),
        CrossMoments().update(x, y).update(x / 0, y),
    ]
    for stream in cases:
        assert math.isnan(stream.cka())
        assert math.isnan(stream.biased_cka())
        assert math.isnan(stream.procrustes())


def test_empty_keeps_the_shift_and_nothing_else():
    x, y = rows()
    stream = CrossMoments().update(x[:20], y[:20])
    empty = stream.empty()
    assert empty.count == 0
    assert not empty.sums
    later = empty.update(x[20:], y[20:])
    assert all((later.shift[side] == stream.shift[side]).all() for side in "xyd")


def test_the_two_models_may_differ_in_dtype():
    x, y = rows()
    mixed = CrossMoments().update(x.float(), y).cka()
    assert mixed == pytest.approx(CrossMoments().update(x.float().double(), y).cka(), abs=1e-12)
    mixed = CrossMoments().update(x.bfloat16(), y.float()).cka()
    assert mixed == pytest.approx(similarity.cka(x.bfloat16().double(), y), abs=1e-6)


def test_an_update_never_writes_into_the_rows():
    x, y = rows()
    before = x.clone(), y.clone()
    CrossMoments().update(x, y).update(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_sums_by_document_are_those_of_a_loop():
    documents = torch.tensor(DOCUMENTS)
    table = PerDocument(3)
    for start in range(0, N, 7):
        some = slice(start, start + 7)
        table.update(documents[some], torch.tensor(VALUES[some], dtype=torch.bfloat16))
    exact = {}
    for document, row in zip(DOCUMENTS, torch.tensor(VALUES).bfloat16().double(), strict=True):
        exact[document] = exact.get(document, 0) + row.numpy()
    assert table.documents.tolist() == sorted(exact)
    np.testing.assert_allclose(table.sums, [exact[d] for d in table.documents], rtol=1e-12)


def test_many_documents_are_settled_in_passing():
    table = PerDocument(1)
    for start in range(0, 20_000, 500):
        ids = np.arange(start, start + 500) // 2
        table.update(ids, np.ones(500))
    assert len(table._fresh) < 40
    assert len(table.documents) == 10_000
    assert (table.sums == 2).all()


def test_rows_keep_what_a_sort_of_the_whole_keeps():
    table = rows_of(("-rise", "document", "position"), limit=12)
    for start in range(0, N, 5):
        table.update(**{name: column[start : start + 5] for name, column in TABLE.items()})
    rise = TABLE["rise"].astype(np.float32)
    best = np.lexsort((TABLE["position"], TABLE["document"], -rise))[:12]
    assert table.seen == N
    for name, column in table.table().items():
        np.testing.assert_array_equal(column, TABLE[name][best].astype(column.dtype))


def test_fewer_rows_than_the_limit_are_all_kept_and_sorted():
    table = rows_of(("document", "position"), limit=1000)
    table.update(**TABLE)
    order = np.lexsort((TABLE["position"], TABLE["document"]))
    np.testing.assert_array_equal(table.table()["position"], TABLE["position"][order])


@pytest.mark.parametrize("order", ["value", "-value"])
def test_nan_comes_last_in_either_direction(order):
    values = np.array([np.nan, 2.0, -1.0, np.nan, 3.0])
    table = Rows(3, (order,), {"value": np.float64}).update(value=values[:3])
    kept = table.update(value=values[3:]).table()["value"]
    np.testing.assert_array_equal(kept, [-1, 2, 3] if order == "value" else [3, 2, -1])


def test_whole_numbers_descend_without_overflow():
    least = np.iinfo(np.int64).min
    table = Rows(2, ("-value",), {"value": np.int64}).update(value=np.array([least, 0, 5]))
    assert table.table()["value"].tolist() == [5, 0]


def test_rows_from_tensors_and_with_a_missing_column():
    table = Rows(2, ("value",), {"value": np.float32})
    table.update(value=torch.tensor([3.0, 1.0, 2.0], dtype=torch.bfloat16))
    assert table.table()["value"].tolist() == [1, 2]
    with pytest.raises(KeyError):
        table.update(other=[1.0])
    with pytest.raises(AssertionError):
        table.update(value=[1.0], other=[1.0])


def test_counts_are_whole_and_stay_in_their_bins():
    counts = Counts(4).update(torch.tensor([[0, 3], [3, 1]]))
    assert counts.counts.tolist() == [1, 1, 0, 2]
    with pytest.raises(ValueError, match="broadcast"):
        counts.update([4])
    with pytest.raises(ValueError, match="negative"):
        counts.update([-1])
