"""The pure rules of mining: how rewards spread, which instructions are semi-hard, which pictures make a pair."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.errors import UserError
from firered_lit.mine.pairs import Candidate, MixPolicy, VisualEnhancement
from firered_lit.mine.spread import MARKS, Band, Spread

REWARD = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 3))
MARKS_ST = st.lists(st.one_of(st.none(), REWARD), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(MARKS_ST)
def test_statistics_are_numpys_over_what_is_there(values):
    line = Spread(tuple(values)).as_line()
    there = np.array([value for value in values if value is not None])
    assert line["values"] == values
    assert line["valid"] == len(there)
    if not len(there):
        assert line["mean"] is line["std"] is line["quantiles"] is None
        return
    assert line["mean"] == pytest.approx(there.mean(), abs=1e-12)
    assert line["std"] == pytest.approx(there.std(), abs=1e-12)
    for name, q in MARKS.items():
        assert line["quantiles"][name] == pytest.approx(np.quantile(there, q), abs=1e-12)
    assert Spread.of_line(line).as_line() == line


def test_equal_rewards_do_not_spread_at_all():
    assert Spread((0.1, 0.1, 0.1)).std == 0.0
    assert math.isnan(Spread((None,)).mean)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.1, 0.2, 0.9, 0.8), ""),
        ((0.0, 0.1, 0.0, 0.3), "too hard"),
        ((0.9, 0.9, 1.0, 0.8), "too easy"),
        ((0.5, 0.5, 0.51, 0.5), "too alike"),
        ((0.1, None, None, None), "too few rewards"),
        ((None,) * 4, "too few rewards"),
        ((0.2, 0.8, None, None), ""),
    ],
)
def test_verdicts(values, verdict):
    assert Band().verdict(Spread(values)) == verdict


@settings(max_examples=300, deadline=None)
@given(MARKS_ST, REWARD, REWARD, st.floats(0, 0.4), st.floats(0, 1))
def test_kept_is_what_the_three_bounds_say(values, least_mean, most_low, least_std, q):
    there = np.array([value for value in values if value is not None])
    band = Band(least_mean, most_low, least_std, q)
    kept = not band.verdict(Spread(tuple(values)))
    if len(there) < 2:
        assert not kept
        return
    numbers = there.mean() - least_mean, most_low - np.quantile(there, q), there.std() - least_std
    if all(abs(number) > 1e-9 for number in numbers):  # on the edge, rounding decides
        assert kept == all(number >= 0 for number in numbers)


@settings(max_examples=200, deadline=None)
@given(MARKS_ST, st.permutations(range(12)), st.integers(0, 3))
def test_the_order_of_edits_and_missing_ones_do_not_matter(values, order, missing):
    mixed = [values[i] for i in order if i < len(values)] + [None] * missing
    assert Band().verdict(Spread(tuple(mixed))) == Band().verdict(Spread(tuple(values)))


@settings(max_examples=200, deadline=None)
@given(MARKS_ST, st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_narrower_band_keeps_no_more(values, harder, lower, wider):
    loose, spread = Band(0.3, 0.6, 0.05), Spread(tuple(values))
    tight = Band(0.3 + harder, 0.6 - lower, 0.05 + wider)
    assert loose.verdict(spread) == "" or tight.verdict(spread) != ""


@pytest.mark.parametrize("wrong", [{"least_mean": 1.1}, {"quantile": -0.1}, {"least_std": -1.0}, {"least_valid": 1}])
def test_a_band_that_means_nothing_is_refused(wrong):
    with pytest.raises(UserError, match="band"):
        Band(**wrong)


CANDIDATES = st.lists(
    st.builds(
        lambda i, expert, reward, looks: Candidate(f"m{i % 3}", expert, f"{i}.png", reward, {"looks": looks}),
        st.integers(0, 30), st.booleans(), st.one_of(st.none(), REWARD), st.one_of(st.none(), REWARD),
    ), max_size=8, unique_by=lambda candidate: candidate.image,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(CANDIDATES, REWARD, REWARD, st.floats(0.05, 0.5), st.integers(1, 3))
def test_a_winner_is_an_experts_and_a_loser_the_bases(candidates, win, lose, margin, most):
    pairs = MixPolicy(win, lose, margin, most).pairs(candidates)
    assert len(pairs) <= most
    assert [pair.gap for pair in pairs] == sorted((pair.gap for pair in pairs), reverse=True)
    for pair in pairs:
        assert pair.winner.expert
        assert not pair.loser.expert
        assert pair.winner.reward >= win
        assert pair.loser.reward <= lose
        assert pair.gap == pair.winner.reward - pair.loser.reward >= margin
    images = [side.image for pair in pairs for side in (pair.winner, pair.loser)]
    assert len(images) == len(set(images))
    could = [
        (w, x) for w in candidates for x in candidates
        if w.expert and not x.expert and None not in (w.reward, x.reward)
        and w.reward >= win and x.reward <= lose and w.reward - x.reward >= margin
    ]  # fmt: skip
    assert bool(pairs) == bool(could)
    if pairs:
        assert pairs[0].gap == max(w.reward - x.reward for w, x in could)
    assert MixPolicy(win, lose, margin, most).pairs(candidates[::-1]) == pairs


def test_no_picture_is_in_two_pairs():
    winner, second = (Candidate("a", True, f"w{reward}.png", reward, {}) for reward in (0.9, 0.8))
    losers = [Candidate("b", False, f"l{reward}.png", reward, {}) for reward in (0.1, 0.2, 0.3)]
    pairs = MixPolicy(most=3).pairs([second, *losers, winner])
    assert [(pair.winner, pair.loser) for pair in pairs] == [(winner, losers[0]), (second, losers[1])]
    assert len(MixPolicy(most=1).pairs([second, *losers, winner])) == 1


@settings(max_examples=300, deadline=None)
@given(CANDIDATES, REWARD, REWARD, st.floats(0.05, 0.5))
def test_looks_decide_only_between_pictures_that_both_do_what_was_asked(candidates, least, win, margin):
    for pair in VisualEnhancement("looks", least, win, margin, most=2).pairs(candidates):
        assert min(pair.winner.reward, pair.loser.reward) >= least
        assert pair.winner.rewards["looks"] >= win
        assert pair.winner.rewards["looks"] - pair.loser.rewards["looks"] == pair.gap >= margin


def test_looks_pair_two_experts_and_mix_policy_does_not():
    good = Candidate("a", True, "a.png", 0.9, {"looks": 0.9})
    dull = dataclasses.replace(good, model="b", image="b.png", rewards={"looks": 0.2})
    assert [pair.winner for pair in VisualEnhancement("looks").pairs([dull, good])] == [good]
    assert MixPolicy().pairs([dull, good]) == []


def test_rules_that_mean_nothing_are_refused():
    for wrong in ({"win": 2.0}, {"margin": 0.0}, {"most": 0}):
        with pytest.raises(UserError, match=r"task\.rule"):
            MixPolicy(**wrong)
    with pytest.raises(UserError, match="no such reward"):
        VisualEnhancement("beauty").pairs([Candidate("a", True, "a.png", 0.9, {"looks": 0.9})])
