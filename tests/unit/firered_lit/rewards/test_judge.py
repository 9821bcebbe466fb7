"""The judge's soft score: softmax over score tokens alone, where the score stands, and no number out of nothing."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.rewards.judge import (
    expected_from_logprobs,
    expected_score,
    mean_of_passes,
    score_logprobs,
    to_unit,
)

VALUES = {str(v): float(v) for v in range(6)}


def test_the_softmax_is_over_the_score_tokens_alone():
    logits = torch.tensor([[0.0, 1, 2, 3, 2, 1], [5.0, 0, 0, 0, 0, 0]])
    weights = [[math.exp(x) for x in row] for row in logits.tolist()]
    expected = [sum(v * w for v, w in enumerate(row)) / sum(row) for row in weights]
    assert expected_score(logits, torch.arange(6)).tolist() == pytest.approx(expected)
    assert expected_score(logits + 100, torch.arange(6)).tolist() == pytest.approx(expected)


def test_certainty_uncertainty_and_direction():
    values = torch.arange(6)
    assert float(expected_score(torch.zeros(6), values)) == pytest.approx(2.5)
    assert float(expected_score(torch.tensor([0, 0, 0, 0, 0, 50.0]), values)) == pytest.approx(5)
    logits = torch.zeros(6, requires_grad=True)
    (gradient,) = torch.autograd.grad(expected_score(logits, values), logits)
    assert (gradient.diff() > 0).all()


def test_log_probabilities_agree_with_logits_whatever_other_tokens_take():
    logits = torch.tensor([0.1, -1, 0.5, 2, 1.5, 0])
    for other in (-5.0, 0.0, 4.0):
        full = torch.log_softmax(torch.cat([logits, torch.tensor([other])]).double(), 0).tolist()
        listed = dict(zip([*VALUES, "\n"], full))
        assert expected_from_logprobs(listed, VALUES) == pytest.approx(float(expected_score(logits, torch.arange(6))))


def test_tokens_that_differ_by_white_space_count_together():
    listed = {
        " 5": math.log(0.3),
        "5": math.log(0.3),
        "4": math.log(0.3),
        **{str(v): math.log(0.025) for v in range(4)},
    }
    assert expected_from_logprobs(listed, VALUES) == pytest.approx((0.6 * 5 + 0.3 * 4 + 0.025 * 6) / 1.0)


def test_an_unlisted_score_token_is_left_out_only_where_it_cannot_matter():
    sure = {"4": math.log(0.7), "5": math.log(0.299), "the": math.log(0.0005)}
    assert expected_from_logprobs(sure, VALUES) == pytest.approx((0.7 * 4 + 0.299 * 5) / 0.999)
    unsure = {"4": math.log(0.4), "5": math.log(0.3), "the": math.log(0.1)}
    assert expected_from_logprobs(unsure, VALUES) is None
    assert expected_from_logprobs(unsure, VALUES, tolerance=1.0) is not None
    assert expected_from_logprobs({"4": math.log(0.9)}, VALUES) is None  # one listed: any other may have as much


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-6, 6), min_size=6, max_size=6), st.integers(1, 6), st.floats(0.001, 0.3))
def test_a_truncated_list_is_within_the_tolerance_or_refused(logits, kept, tolerance):
    logprobs = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0).tolist()
    top = sorted(zip(logprobs, VALUES), reverse=True)[:kept]
    got = expected_from_logprobs({token: logprob for logprob, token in top}, VALUES, tolerance=tolerance)
    truth = sum(float(v) * math.exp(p) for v, p in zip(VALUES, logprobs))
    if kept == 6:
        assert got == pytest.approx(truth)
    if got is not None:
        assert abs(got - truth) <= tolerance * 5 + 1e-9


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from([*VALUES]), st.floats(-5, 0), min_size=1), st.floats(0, 0.5))
def test_the_bound_is_the_brute_force_one(listed, tolerance):
    cap, hidden = math.exp(min(listed.values())), [v for token, v in VALUES.items() if token not in listed]
    means = []
    for shares in itertools.product((0.0, cap), repeat=len(hidden)):
        pairs = [(VALUES[t], math.exp(p)) for t, p in listed.items()] + list(zip(hidden, shares))
        means.append(sum(v * w for v, w in pairs) / sum(w for _, w in pairs))
    spread = (max(means) - min(means)) / 5
    if abs(spread - tolerance) > 1e-9:
        assert (expected_from_logprobs(listed, VALUES, tolerance=tolerance) is None) == (spread > tolerance)


@pytest.mark.parametrize("listed", [{}, {"good": -0.1}, {"5": float("nan")}, {"5": 3.0}, {"5": float("-inf")}])
def test_nonsense_gives_no_number(listed):
    assert expected_from_logprobs(listed, VALUES, tolerance=1.0) is None


def entry(token, **top):
    return {"token": token, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}


def test_the_score_is_read_after_the_last_marker():
    content = [
        *map(entry, ("Score", ":", " 1", " at", " first", ".", "\n", "Score:", " ")),
        entry("4", **{"4": -0.2, "3": -2.0}),
        entry("/"),
        entry("5"),
    ]
    assert score_logprobs(content, VALUES) == {"4": -0.2, "3": -2.0}
    assert score_logprobs(content[:3], VALUES) is None  # a score without log-probabilities
    assert score_logprobs(content[:2], VALUES) is None
    assert score_logprobs(content[9:], VALUES) is None  # no marker
    assert score_logprobs(content, VALUES, marker="Mark:") is None
    assert score_logprobs([], VALUES) is None


@pytest.mark.parametrize("rest", [["1", "0"], ["4", ".5"], ["4", ".", "5"], ["good"], ["7"]])
def test_what_is_not_one_of_the_scores_is_none(rest):
    content = [entry("Score:"), *(entry(t, **{"1": -0.1, "4": -0.2}) for t in rest)]
    assert score_logprobs(content, VALUES) is None
    assert score_logprobs([entry("Score:"), entry("4", **{"4": -0.2}), entry("."), entry("\n")], VALUES) == {"4": -0.2}


def test_passes_average_over_those_that_gave_a_score():
    assert mean_of_passes([5.0, None, 3.0], VALUES) == pytest.approx(0.8)
    assert mean_of_passes([5.0, None, None], VALUES, least=2) is None
    assert mean_of_passes([None, None], VALUES) is None
    assert mean_of_passes([], VALUES, least=0) is None


def test_the_scale_is_laid_on_the_unit_interval():
    one_to_five = {str(v): float(v) for v in range(1, 6)}
    assert [to_unit(v, one_to_five) for v in (1.0, 3.0, 5.0)] == [0, 0.5, 1]


def test_a_space_in_the_marker_s_own_token_is_no_score():
    content = [
        {"token": "Score: ", "logprob": 0.0, "top_logprobs": [{"token": "Score: ", "logprob": 0.0}]},
        {"token": "4", "logprob": -0.1, "top_logprobs": [{"token": "4", "logprob": -0.1}]},
    ]
    assert score_logprobs(content, {str(n): float(n) for n in range(6)}) == {"4": -0.1}


SENTINELS = [float("-inf"), -9999.0, -1e9, -3.4e38]


@pytest.mark.parametrize("sentinel", SENTINELS)
def test_a_sentinel_is_no_log_probability(sentinel):
    """A token that a server cut from its list may be as likely as the least that it lists."""
    assert expected_from_logprobs({"4": 0.0, "#": sentinel}, VALUES) is None
    unsure = {"4": math.log(0.7), "5": math.log(0.2), "3": math.log(0.1), "#": sentinel, "2": sentinel}
    assert expected_from_logprobs(unsure, VALUES) is None
    sure = {"4": math.log(0.99), "5": math.log(0.0099), "the": math.log(0.0001), "2": sentinel}
    assert expected_from_logprobs(sure, VALUES) == pytest.approx((0.99 * 4 + 0.0099 * 5) / 0.9999)
    assert expected_from_logprobs({"4": sentinel}, VALUES) is None


def test_a_complete_list_settles_the_score_whatever_else_is_a_sentinel():
    full = {str(v): math.log(1 / 6) for v in range(6)}
    assert expected_from_logprobs(full | {"x": float("-inf")}, VALUES) == pytest.approx(2.5)


@pytest.mark.parametrize("scale", [range(11), (0, 5, 50), (1, 12)])
def test_a_scale_whose_scores_begin_others_is_refused(scale):
    values = {str(v): float(v) for v in scale}
    with pytest.raises(ValueError, match="begins"):
        expected_from_logprobs({"9": math.log(0.55), "1": math.log(0.40), "8": math.log(0.05)}, values)


def tokens(*parts, score="4"):
    return [entry(part, **({score: -0.2, "3": -2.0} if part.strip("* ") in (score, "４") else {})) for part in parts]


WRITTEN = {
    "bold line": ("**", "Score", ":", "**", " ", "4"),
    "bold name": ("**", "Score", "**", ":", " ", "4"),
    "bold score": ("Score", ":", " **", "4", "**"),
    "bold in one token": ("Score:", " **", "4", "**", "\n"),
    "full-width colon": ("Score", "：", "4"),
    "full-width score": ("Score：", "４"),
    "other capitals": ("SCORE", ":", " ", "4"),
    "a space before the colon": ("Score", " :", " 4"),
    "brackets": ("Score:", " [", "4", "]"),
    "a heading": ("### ", "Score", ":\n", "4"),
    "out of five": ("Score:", " ", "4", "/", "5"),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_a_score_is_read_however_it_is_emphasised(way):
    assert score_logprobs(tokens(*WRITTEN[way]), VALUES) == {"4": -0.2, "3": -2.0}


@pytest.mark.parametrize(
    "parts", [("Score", ":", " **", "4", ".", "5", "**"), ("Score:", " 4", "-", "5"), ("Underscore:", " ", "4")]
)
def test_a_number_that_only_begins_with_a_score_is_none(parts):
    assert score_logprobs(tokens(*parts), VALUES) is None


THOUGHTS = ("I", " think", " Score: ", "1", ", no.", "</think>", "\n\n")


def test_no_score_comes_out_of_the_thoughts():
    thoughts = [entry(part, **({"1": -0.1} if part == "1" else {})) for part in THOUGHTS]
    for words in ("", "  "):
        assert score_logprobs(thoughts, VALUES, words=words) is None
    answer = tokens("It is fine.", " Score: ", "4")
    assert score_logprobs([*thoughts, *answer], VALUES, words="It is fine. Score: 4") == {"4": -0.2, "3": -2.0}
    wordy = [*thoughts, entry("It is fine.")]
    assert score_logprobs(wordy, VALUES, words="It is fine.") is None
    odd = [*thoughts, entry("\ufffd"), entry("\ufffd"), *answer]  # a character that spans tokens
    assert score_logprobs(odd, VALUES, words="好It is fine. Score: 4") == {"4": -0.2, "3": -2.0}
    assert score_logprobs(thoughts[:5], VALUES, words="words that are nowhere among the tokens") is None


def test_a_score_at_the_end_of_a_cut_answer_may_go_on():
    cut = tokens("Score: ", "4")
    assert score_logprobs(cut, VALUES, ended=False) is None
    assert score_logprobs([*cut, entry("\n")], VALUES, ended=False) == {"4": -0.2, "3": -2.0}
