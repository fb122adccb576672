"""Spikes are told from what was known at the time, as a plain twin tells them, and a fall is never cleaned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import spikes_oracle

from yieldlab import sample
from yieldlab.causality import assert_causal
from yieldlab.errors import CausalityError, DataError, UsageError
from yieldlab.panel import Panel
from yieldlab.quality import HOW, clean_spikes

NAN = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def wild(seed: int) -> np.ndarray:
    """Yields with gaps, spikes up and down, steps, flat stretches and pools never seen."""
    g = np.random.default_rng(seed)
    rows, pools = int(g.integers(0, 130)), int(g.integers(0, 6))
    apy = np.abs(g.normal(0.05, g.choice([0.0, 0.001, 0.02]), (rows, pools)))
    apy = np.where(g.random((rows, pools)) < 0.3, np.round(apy, 2), apy)
    if rows > 10:
        apy[int(g.integers(0, rows)) :] += g.choice([0.0, 0.01, 0.3])
    hit = g.random((rows, pools)) < 0.06
    apy[hit] = g.choice([-0.5, 0.0, 0.06, 0.4, 10_000.0, 500.0], int(hit.sum()))
    apy[g.random((rows, pools)) < g.choice([0.0, 0.1, 0.7])] = NAN
    if pools:
        apy[:, g.random(pools) < 0.1] = NAN
    return apy


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), how=st.sampled_from(HOW))
def test_cleaning_agrees_with_its_plain_twin(seed: int, how: str) -> None:
    apy = wild(seed)
    cleaned = clean_spikes(apy, how)
    values, changed = spikes_oracle.clean(apy, how)
    np.testing.assert_array_equal(cleaned.changed, changed)
    np.testing.assert_allclose(cleaned.values, values, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(cleaned.values[~changed], apy[~changed])


def test_a_spike_is_masked_or_lowered_to_the_bound_and_counted() -> None:
    calm = [0.05] * 10
    masked = clean_spikes(column(*calm, 5.0, 0.05), "mask")
    assert np.isnan(masked.values[10, 0])
    assert np.flatnonzero(masked.changed).tolist() == [10]
    lowered = clean_spikes(column(*calm, 5.0, 0.05), "winsorize")
    assert lowered.values[10, 0] == pytest.approx(0.06)
    assert lowered.values[11, 0] == 0.05


def test_what_was_observed_stays_as_it_was_given() -> None:
    apy = column(*[0.05] * 10, 5.0)
    before = apy.copy()
    cleaned = clean_spikes(apy, "winsorize")
    np.testing.assert_array_equal(apy, before)
    with pytest.raises(ValueError, match="read-only"):
        cleaned.values[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        cleaned.changed[0, 0] = True


def test_a_fall_is_believed_at_once() -> None:
    assert not clean_spikes(column(*[0.5] * 40, 0.0, -0.9, 0.0), "mask").changed.any()


def test_nothing_is_judged_before_the_eighth_observation() -> None:
    assert not clean_spikes(column(*[0.05] * 6, 9.0), "mask").changed.any()
    assert clean_spikes(column(*[0.05] * 7, 9.0), "mask").changed[7, 0]
    gaps = column(*[0.05, NAN] * 6, 9.0)  # the seventh observation, thirteen rows in
    assert not clean_spikes(gaps, "mask").changed.any()


def test_the_window_counts_observations_and_not_rows() -> None:
    dense = clean_spikes(column(*[0.05] * 20, 9.0, *[0.05] * 5), "mask")
    sparse = np.full((26 * 7, 1), NAN)
    sparse[::7] = column(*[0.05] * 20, 9.0, *[0.05] * 5)
    np.testing.assert_array_equal(clean_spikes(sparse, "mask").changed[::7], dense.changed)


def test_a_level_that_stays_is_believed_after_sixteen_observations() -> None:
    changed = clean_spikes(column(*[0.05] * 60, *[0.50] * 40), "mask").changed[:, 0]
    assert np.flatnonzero(changed).tolist() == list(range(60, 75))


def test_less_than_a_percentage_point_above_the_median_is_no_spike() -> None:
    assert not clean_spikes(column(*[0.0] * 30, 0.01), "mask").changed.any()
    assert clean_spikes(column(*[0.0] * 30, 0.0101), "mask").changed.any()


def test_pools_do_not_see_each_other() -> None:
    apy = wild(7)
    alone = [clean_spikes(apy[:, i : i + 1], "winsorize").values for i in range(apy.shape[1])]
    np.testing.assert_array_equal(clean_spikes(apy, "winsorize").values, np.hstack(alone))


def study() -> Panel:
    metrics, assets = sample.synthetic(6, 200, seed=3)
    panel = Panel.from_long(metrics, assets)
    apy = panel.raw("apy").copy()
    g = np.random.default_rng(1)
    apy[g.random(apy.shape) < 0.05] *= 400.0
    apy[g.random(apy.shape) < 0.1] = NAN
    return panel.with_fields({"apy": apy})


@pytest.mark.parametrize("how", HOW)
def test_cleaning_reads_no_later_row(how: str) -> None:
    panel = study()
    assert clean_spikes(panel.raw("apy"), how).changed.sum() > 20
    assert_causal(lambda seen: clean_spikes(seen.raw("apy"), how).values, panel, rows=range(1, panel.shape[0], 3))


def test_a_centred_window_would_be_caught() -> None:
    def centred(seen: Panel) -> np.ndarray:
        return clean_spikes(seen.raw("apy")[::-1], "mask").values[::-1]

    with pytest.raises(CausalityError):
        assert_causal(centred, study())


def test_another_way_and_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="spikes are cleaned by mask or winsorize, not 'winsorise'; did you mean"):
        clean_spikes(np.zeros((2, 2)), "winsorise")
    with pytest.raises(DataError, match=r"\(times, pools\), not an array of shape \(3,\)"):
        clean_spikes(np.zeros(3), "mask")
