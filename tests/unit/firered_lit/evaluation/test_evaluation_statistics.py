"""Statistics by their properties and by simulation: intervals cover, tests alarm as often as said, strengths return."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.errors import UserError
from firered_lit.evaluation.statistics import (
    Duel,
    Estimate,
    agreement,
    bradley_terry,
    compare_models,
    estimate_means,
    holm,
    items_needed,
    judge_noise,
    preference,
    settle,
    share_estimate,
    sign_flip_p,
    student_quantile,
)

# Scores as a judge gives them: thirds of 1 to 5, most of them high.
GRADES = np.array([1, 2, 3, 3.67, 4, 4.33, 4.67, 5])
CHANCES = np.array([0.08, 0.06, 0.08, 0.1, 0.18, 0.2, 0.15, 0.15])


def rows(values) -> dict[str, float]:
    return {str(index): float(value) for index, value in enumerate(values)}


def graded(rng, count: int, shift: float = 0.0) -> dict[str, float]:
    return rows(rng.choice(GRADES, count, p=CHANCES) + shift)


# Means


def test_the_estimate_is_the_mean_of_the_categories_and_of_the_items() -> None:
    means = estimate_means({"add": rows([1, 2, 3]), "text": rows([5, 5]), "none": {}}, seed=0, draws=50)
    assert set(means.categories) == {"add", "text"}
    assert means.categories["add"].value == 2
    assert means.macro.value == 3.5
    assert means.micro.value == pytest.approx(16 / 5)
    assert (means.macro.items, means.categories["text"].items) == (5, 2)
    assert means.categories["text"] == Estimate(5, 5, 5, 2)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([1.0, 2.0, 3.67, 4.33, 5.0]), min_size=2, max_size=30))
def test_an_interval_holds_the_mean_and_stays_within_the_scores(values) -> None:
    estimate = estimate_means({"add": rows(values)}, seed=1, draws=300).categories["add"]
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    if len(values) >= 10:
        assert estimate.low <= estimate.value + 1e-9
        assert estimate.value <= estimate.high + 1e-9


@pytest.mark.parametrize("categories", [1, 6, 14, 15, 49])
def test_means_and_intervals_of_equal_scores_are_that_score(categories) -> None:
    ones = {str(number): rows(np.ones(2 + number % 5)) for number in range(categories)}
    means = estimate_means(ones, seed=0, draws=20)
    for estimate in (*means.categories.values(), means.macro, means.micro):
        assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    zeros = {name: dict.fromkeys(column, 0.0) for name, column in ones.items()}
    (comparison,) = compare_models({"A": ones, "B": zeros}, seed=0, draws=20)
    assert comparison.overall.estimate == Estimate(1, 1, 1, means.macro.items)


def test_an_interval_depends_on_its_seed_and_on_its_own_category_alone() -> None:
    rng = np.random.default_rng(0)
    add, text = graded(rng, 40), graded(rng, 30)
    both = estimate_means({"add": add, "text": text}, seed=3)
    assert both == estimate_means({"add": add, "text": text}, seed=3)
    assert both.categories["text"] == estimate_means({"text": text}, seed=3).categories["text"]
    assert both.categories["add"] != estimate_means({"add": add}, seed=4).categories["add"]


def test_four_times_the_items_give_half_the_interval() -> None:
    rng = np.random.default_rng(0)
    few, many = (estimate_means({"a": graded(rng, count)}, seed=0, draws=4000).macro for count in (200, 800))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(2, rel=0.15)


def test_more_rows_than_are_held_at_a_time_give_the_interval_of_theory() -> None:
    values = np.random.default_rng(0).normal(size=300_000)
    estimate = estimate_means({"a": rows(values)}, seed=0, draws=100).macro
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 / math.sqrt(300_000), rel=0.3)


def test_one_item_has_no_interval() -> None:
    means = estimate_means({"add": rows([3]), "text": rows([1, 2])}, seed=0)
    assert means.categories["add"] == Estimate(3, None, None, 1)
    assert means.macro.low is None
    assert str(means.categories["add"]) == "3.000 (no interval)"


def test_nothing_to_estimate_is_refused_in_one_line() -> None:
    for scores in ({}, {"add": {}}):
        with pytest.raises(UserError, match="no item"):
            estimate_means(scores, seed=0)
    with pytest.raises(UserError, match="category add"):
        estimate_means({"add": {"1": math.nan}}, seed=0)
    with pytest.raises(UserError, match="draws 0"):
        estimate_means({"add": {"1": 1}}, seed=0, draws=0)
    with pytest.raises(UserError, match="level 95"):
        bradley_terry([Duel("1", "A", "B", "A")], seed=0, level=95)


@pytest.mark.parametrize("share", [0.9, 0.975, 0.995])
def test_students_quantiles_are_those_of_scipy(share) -> None:
    from scipy.special import stdtrit

    for freedom in (3, 5, 10.5, 30, 1000):
        assert student_quantile(share, freedom) == pytest.approx(stdtrit(freedom, share), rel=0.01)


def coverage(sizes, chances, draws: int) -> float:
    """The share of 2,000 repetitions whose interval of the macro mean holds the true mean."""
    rng = np.random.default_rng(7)
    mean = float(GRADES @ chances)
    covered = 0
    for repetition in range(2000):
        scores = {str(index): rows(rng.choice(GRADES, size, p=chances)) for index, size in enumerate(sizes)}
        estimate = estimate_means(scores, seed=repetition, draws=draws).macro
        covered += estimate.low <= mean <= estimate.high
    return covered / 2000


@pytest.mark.parametrize("sizes", [(25,), (15, 40)], ids=str)
def test_intervals_of_95_percent_cover_93_to_97_percent(sizes) -> None:
    assert 0.93 <= coverage(sizes, CHANCES, draws=300) <= 0.97


REDEDIT_SIZES = (143, 156, 91, 79, 99, 100, 95, 47, 78, 102, 147, 140, 92, 123, 50)
NEARLY_ALL_RIGHT = np.array([0.05, 0.02, 0.02, 0.02, 0.04, 0.05, 0.1, 0.7])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(47,), (100,), (20,) * 5, REDEDIT_SIZES], ids=str)
@pytest.mark.parametrize("chances", [CHANCES, NEARLY_ALL_RIGHT], ids=["spread", "nearly all right"])
def test_intervals_cover_at_the_sizes_of_the_benchmarks(sizes, chances) -> None:
    assert 0.93 <= coverage(sizes, chances, draws=1000) <= 0.97


# Comparisons


def test_a_comparison_counts_wins_ties_losses_and_what_only_one_has() -> None:
    first = {"add": {"a": 5, "b": 4, "c": 3}, "text": {"x": 1, "y": 2}, "tone": {"z": 1}}
    second = {"add": {"a": 4, "b": 4, "d": 3}, "text": {"x": 2, "y": 2}}
    (comparison,) = compare_models({"A": first, "B": second}, seed=0, draws=200)
    add = comparison.categories["add"]
    assert (add.wins, add.ties, add.losses, add.left_out, add.estimate.value) == (1, 1, 0, 2, 0.5)
    overall = comparison.overall
    assert (overall.wins, overall.ties, overall.losses, overall.left_out) == (1, 2, 1, 3)
    assert overall.estimate.value == 0
    assert overall.items_needed is None
    assert set(comparison.categories) == {"add", "text"}


def test_a_comparison_turned_around_says_the_same() -> None:
    rng = np.random.default_rng(2)
    first, second = ({"a": graded(rng, 50), "b": graded(rng, 20)} for _ in range(2))
    (there,) = compare_models({"A": first, "B": second}, seed=5)
    (back,) = compare_models({"B": second, "A": first}, seed=5)
    assert there.overall.estimate.value == pytest.approx(-back.overall.estimate.value)
    assert (there.overall.wins, there.overall.losses) == (back.overall.losses, back.overall.wins)
    assert there.overall.p == pytest.approx(back.overall.p, abs=0.02)


def test_a_planted_difference_is_seen_and_equal_models_are_not_distinguishable() -> None:
    rng = np.random.default_rng(0)
    base = {"add": graded(rng, 60), "text": graded(rng, 60)}
    noise = {category: rng.normal(0, 0.5, 60) for category in base}
    better, equal = {}, {}
    for category, scores in base.items():
        better[category] = {item: score + 0.4 + noise[category][int(item)] for item, score in scores.items()}
        equal[category] = {item: score - noise[category][int(item)] for item, score in scores.items()}
    pairs = compare_models({"base": base, "better": better, "equal": equal}, seed=0)
    assert [(pair.first, pair.second) for pair in pairs] == list(combinations(["base", "better", "equal"], 2))
    seen, unseen, _ = (pair.overall for pair in pairs)
    assert seen.verdict.startswith("better is better than base by 0.")
    assert seen.estimate.low < -0.4 < seen.estimate.high < 0
    assert unseen.verdict.startswith("base and equal are not distinguishable: ")
    assert unseen.verdict.endswith("items would show such a difference")


def test_p_values_are_corrected_over_the_categories_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    models = {name: {str(index): graded(rng, 12) for index in range(4)} for name in "ABC"}
    pairs = compare_models(models, seed=0, draws=500)
    raw = [difference.p for pair in pairs for difference in pair.categories.values()]
    adjusted = [difference.adjusted_p for pair in pairs for difference in pair.categories.values()]
    assert adjusted == holm(raw)
    assert [pair.overall.adjusted_p for pair in pairs] == holm([pair.overall.p for pair in pairs])


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values) -> None:
    adjusted = holm(p_values)
    assert all(0 <= raw <= new <= 1 for raw, new in zip(p_values, adjusted))
    for (raw, new), (other, other_new) in combinations(zip(p_values, adjusted), 2):
        assert (raw - other) * (new - other_new) >= 0


def test_a_clear_difference_survives_the_correction_however_much_is_tested():
    categories = [f"category {number}" for number in range(15)]
    items = [f"item {number}" for number in range(20)]
    models = {}
    for name, score in {"right": 1.0, "a copy": 0.0, "blank": 0.0, "a crop": 0.0, "half": 0.5}.items():
        models[name] = {category: dict.fromkeys(items, score) for category in categories}
    for comparison in compare_models(models, seed=0):
        equal = comparison.overall.wins + comparison.overall.losses == 0
        for difference in [comparison.overall, *comparison.categories.values()]:
            assert (difference.adjusted_p <= 0.05) == (not equal)
            assert ("not distinguishable" in difference.verdict) == equal


def test_models_that_share_nothing_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="at least two"):
        compare_models({"A": {"add": {"a": 1}}}, seed=0)
    with pytest.raises(UserError, match="A and B share no"):
        compare_models({"A": {"add": {"a": 1}}, "B": {"add": {"b": 1}}}, seed=0)


def test_differences_of_one_sign_have_the_p_value_of_a_coin() -> None:
    p = sign_flip_p([np.ones(5)], [1.0], 20_000, np.random.default_rng(0))
    assert p == pytest.approx(2 / 2**5, abs=0.006)
    assert sign_flip_p([np.zeros(5)], [1.0], 100, np.random.default_rng(0)) == 1


@pytest.mark.parametrize("sizes", [(30,), (12, 40)], ids=str)
def test_equal_models_raise_3_to_7_percent_of_alarms(sizes) -> None:
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(2000):
        columns = [np.diff(rng.choice(GRADES, (2, size), p=CHANCES), axis=0)[0] for size in sizes]
        weights = [1 / size for size in sizes]
        alarms += sign_flip_p(columns, weights, 400, rng) <= 0.05
    assert 0.03 <= alarms / 2000 <= 0.07


def test_the_number_of_items_needed_shows_the_difference_in_four_of_five_tries() -> None:
    needed = items_needed(0.25, 1 / math.sqrt(50), 50)
    assert needed == 126  # (1.96 + 0.84)^2 / 0.25^2
    rng = np.random.default_rng(3)
    samples = rng.normal(0.25, 1, (4000, needed))
    seen = np.abs(samples.mean(1)) > 1.96 / math.sqrt(needed)
    assert seen.mean() == pytest.approx(0.8, abs=0.025)
    assert items_needed(0.0, 0.1, 50) is None
    assert items_needed(0.5, 0.0, 50) is None


# The judge


def test_the_judges_noise_is_that_of_its_repeats() -> None:
    rng = np.random.default_rng(0)
    levels = rng.uniform(1, 5, 300)
    repeats = {str(index): level + rng.normal(0, 0.3, 4) for index, level in enumerate(levels)}
    repeats["once"] = [5.0]
    noise = judge_noise(repeats)
    assert noise.deviation == pytest.approx(0.3, abs=0.02)
    assert (noise.items, noise.identical) == (300, 0)
    steady = judge_noise({"a": [4, 4, 5], "b": [3, 3]})
    assert steady.identical == pytest.approx(2 / 3)
    assert steady.deviation == pytest.approx(math.sqrt((2 / 3) / 3))
    with pytest.raises(UserError, match="twice"):
        judge_noise({"a": [4]})


def test_the_noise_floor_holds_the_difference_of_two_judgings_of_the_same_pictures() -> None:
    rng = np.random.default_rng(0)
    noise = judge_noise({str(index): rng.normal(3, 0.5, 2) for index in range(500)})
    sizes = [20, 80]
    means = [rng.normal(0, 0.5, (4000, 2, size)).mean(2) for size in sizes]
    differences = np.mean(means, axis=0) @ [1, -1]
    assert (np.abs(differences) < noise.floor(sizes)).mean() == pytest.approx(0.95, abs=0.015)
    with pytest.raises(UserError, match="sizes"):
        noise.floor([])


# Duels


def fight(rng, strengths, ties: float, items: int) -> list[Duel]:
    """Duels of every pair of models on every item, by Davidson's chances."""
    duels = []
    for first, second in combinations(strengths, 2):
        half = (strengths[first] - strengths[second]) / 2
        odds = np.array([math.exp(half), ties, math.exp(-half)])
        outcomes = rng.choice(3, items, p=odds / odds.sum())
        for item, outcome in enumerate(outcomes):
            sides = (first, second) if item % 2 else (second, first)
            duels.append(Duel(str(item), *sides, (first, None, second)[outcome]))
    return duels


PLANTED = {"A": 1.0, "B": 0.3, "C": -0.2, "D": -1.1}


def test_planted_strengths_return() -> None:
    strengths = bradley_terry(fight(np.random.default_rng(0), PLANTED, 0.8, 3000), seed=0, draws=50)
    assert list(strengths.models) == list(PLANTED)
    for name, planted in PLANTED.items():
        assert strengths.models[name].value == pytest.approx(planted, abs=0.06)
    assert strengths.ties == pytest.approx(0.8, abs=0.06)
    assert sum(strengths.chances("A", "D")) == pytest.approx(1)
    assert strengths.chances("A", "D")[0] == pytest.approx(strengths.chances("D", "A")[2])
    assert strengths.left_share.low < 0.5 < strengths.left_share.high


def test_intervals_of_strengths_cover_what_was_planted() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for repetition in range(100):
        strengths = bradley_terry(fight(rng, PLANTED, 0.8, 40), seed=repetition, draws=150)
        for name, planted in PLANTED.items():
            covered += strengths.models[name].low <= planted <= strengths.models[name].high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_strengths_of_two_models_are_the_closed_form() -> None:
    duels = [Duel(str(index), "A", "B", winner) for index, winner in enumerate(["A"] * 60 + ["B"] * 20 + [None] * 20)]
    strengths = bradley_terry(duels, seed=0, draws=20)
    # The most likely parameters repeat the seen shares; the prior is too weak to matter at three digits.
    assert strengths.chances("A", "B") == pytest.approx((0.6, 0.2, 0.2), abs=1e-3)
    assert strengths.models["A"].value == pytest.approx(math.log(3) / 2, abs=1e-3)
    assert strengths.left_share.value == 0.75


def test_the_order_of_duels_and_their_sides_do_not_matter() -> None:
    duels = fight(np.random.default_rng(4), PLANTED, 0.5, 30)
    turned = [Duel(duel.item, duel.right, duel.left, duel.winner) for duel in duels]
    first, second = (bradley_terry(each, seed=0, draws=20) for each in (duels, turned))
    for name in PLANTED:
        assert first.models[name].value == pytest.approx(second.models[name].value, abs=1e-6)


def test_a_model_that_always_wins_is_first_and_finite() -> None:
    duels = [Duel(str(item), "A", other, "A") for item in range(50) for other in ("B", "C")]
    duels += [Duel(str(item), "B", "C", ("B", "C")[item % 2]) for item in range(50)]
    strengths = bradley_terry(duels, seed=0, draws=50)
    assert next(iter(strengths.models)) == "A"
    assert all(math.isfinite(end) for each in strengths.models.values() for end in (each.value, each.low, each.high))
    assert strengths.models["B"].value == pytest.approx(strengths.models["C"].value, abs=0.01)


def test_duels_that_say_nothing_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="no duel"):
        bradley_terry([], seed=0)
    with pytest.raises(UserError, match="winner"):
        bradley_terry([Duel("1", "A", "B", "C")], seed=0)
    with pytest.raises(UserError, match="C and A never met"):
        bradley_terry([Duel("1", "A", "B", "A"), Duel("1", "C", "D", "C")], seed=0)


def test_a_duel_in_both_orders_is_won_by_who_wins_both() -> None:
    assert settle(Duel("1", "A", "B", "A"), Duel("1", "B", "A", "A")).winner == "A"
    assert settle(Duel("1", "A", "B", "A"), Duel("1", "B", "A", "B")).winner is None
    assert settle(Duel("1", "A", "B", None), Duel("1", "B", "A", "B")).winner is None
    with pytest.raises(UserError, match="sides"):
        settle(Duel("1", "A", "B", "A"), Duel("2", "B", "A", "A"))


# Agreement


def test_agreement_counts_all_pairs_decided_pairs_and_chance() -> None:
    people = [1, 1, 1, 1, -1, -1, -1, -1, 0, 0]
    judge = [1, 1, 1, -1, -1, -1, -1, 0, 0, 1]
    result = agreement(judge, people, seed=0)
    assert result.all_pairs.value == 0.7
    assert (result.decided.value, result.decided.items) == (6 / 7, 7)
    # by hand: by chance 0.4 * 0.4 + 0.4 * 0.4 + 0.2 * 0.2 = 0.36
    assert result.kappa.value == pytest.approx((0.7 - 0.36) / 0.64)
    assert result.kappa.low < result.kappa.value < result.kappa.high


def test_full_agreement_is_one_and_one_verdict_alone_has_no_kappa() -> None:
    full = agreement([1, -1, 0, 1], [1, -1, 0, 1], seed=0)
    assert (full.all_pairs.value, full.decided.value, full.kappa.value) == (1, 1, 1)
    assert full.all_pairs.low < 0.6
    assert agreement([1, 1], [1, 1], seed=0).kappa is None
    for ties in range(1, 50):
        verdicts = [1, -1, *[0] * ties]
        kappa = agreement(verdicts, verdicts, seed=0, draws=20).kappa
        assert (kappa.value, kappa.low, kappa.high) == (1, 1, 1)
    assert agreement([0, 0], [1, -1], seed=0).decided is None


def test_a_judge_that_guesses_agrees_by_chance() -> None:
    rng = np.random.default_rng(0)
    judge, people = rng.choice([-1, 0, 1], (2, 4000)).tolist()
    result = agreement(judge, people, seed=0, draws=500)
    assert result.kappa.low < 0 < result.kappa.high
    assert result.decided.low < 0.5 < result.decided.high


def test_preferences_are_signs_of_differences_beyond_the_margin() -> None:
    assert [preference(4, 3), preference(3, 4), preference(4, 4), preference(4, 3.8, 0.2)] == [1, -1, 0, 0]


@pytest.mark.parametrize(("judge", "people"), [([], []), ([1], [1, 0]), ([2], [1])])
def test_verdicts_that_cannot_be_paired_are_refused_in_one_line(judge, people) -> None:
    with pytest.raises(UserError):
        agreement(judge, people, seed=0)


def test_a_share_has_wilsons_interval() -> None:
    estimate = share_estimate(8, 10)
    assert (estimate.value, estimate.items) == (0.8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_estimate(0, 10).low == 0
    assert share_estimate(10, 10).high == 1
    with pytest.raises(UserError):
        share_estimate(0, 0)
