"""Statistics of scores: intervals, paired comparisons, the judge's noise, strengths from duels, agreement.

Everything is a pure function of scores and a seed. Items are drawn anew within their categories, as the categories of a
benchmark are fixed. An interval of `level` 0.95 is meant to hold the true value in 95 of 100 repetitions with other
items of the same kind.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError

CategoryScores = Mapping[str, Mapping[str, float]]  # category -> item -> score
Array = NDArray[np.float64]

NORMAL = NormalDist()
MARGIN = 4  # times below the level that the smallest possible p value of random signs must be after its correction
CHUNK = 2_000_000  # drawn items that are held at a time
SAME = 1e-9  # scores nearer than this are a tie


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The number as measured.
        low: Lower end of the interval; None where the data cannot tell, such as for a single item.
        high: Upper end.
        items: How many items it rests on.
    """

    value: float
    low: float | None
    high: float | None
    items: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


# Means


@dataclass(frozen=True)
class MeanEstimates:
    """Mean scores with intervals: of each category, of all by the macro mean, of all by the micro mean."""

    categories: dict[str, Estimate]
    macro: Estimate
    micro: Estimate


@dataclass(frozen=True)
class _Resampled:
    """The mean of one category and its bootstrap.

    Attributes:
        mean: Of the values.
        variance: Estimated variance of the mean; 0 for one value, which tells nothing of it.
        third: Estimated third central moment of the mean.
        replicates: Means of drawn items, (draws,).
        items: How many values.
    """

    mean: float
    variance: float
    third: float
    replicates: Array
    items: int


def estimate_means(scores: CategoryScores, *, seed: int, draws: int = 2000, level: float = 0.95) -> MeanEstimates:
    """Return the mean of each category and of all, with bootstrap intervals.

    Percentiles of the bootstrap are corrected for skew (Efron, 1987, "Better bootstrap confidence intervals"; for a
    mean the bias equals the acceleration) and for small samples (Hesterberg, 2015, "What teachers should know about
    the bootstrap": the factor sqrt(n / (n - 1)) and Student's quantile). They never leave the range of the scores.
    Below some 20 items of nearly equal scores they are still too narrow.

    Args:
        scores: Category -> item -> score; a category without items is left out.
        seed: Of the drawn items; those of a category do not depend on other categories.
        draws: Number of resamples.
        level: Share of repetitions in which the interval holds the true mean.

    Raises:
        UserError: There is no score, or one is not finite.
    """
    _check_settings(draws, level)
    columns = _columns(scores)
    resampled = {}
    for category, values in columns.items():
        rng = _generator("means", category, seed)
        resampled[category] = _resample(values, draws, rng)
    parts = list(resampled.values())
    return MeanEstimates(
        categories={category: _combine([part], [1], level) for category, part in resampled.items()},
        macro=_combine(parts, [1] * len(parts), level),
        micro=_combine(parts, [part.items for part in parts], level),
    )


def _columns(scores: CategoryScores) -> dict[str, Array]:
    columns = {}
    for category, rows in scores.items():
        values = np.array(list(rows.values()), dtype=np.float64)
        if not np.isfinite(values).all():
            raise UserError(f"category {category}: a score is not a finite number; leave its item out")
        if len(values):
            columns[category] = values
    if not columns:
        raise UserError("no item has a score: nothing can be estimated")
    return columns


def _check_settings(draws: int, level: float) -> None:
    if draws < 1:
        raise UserError(f"draws {draws}: at least 1 is needed, 1000 or more are useful")
    if not 0 < level < 1:
        raise UserError(f"level {level}: a share between 0 and 1 is needed, such as 0.95")


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(seed_of("evaluation", *key))


def _resample(values: Array, draws: int, rng: np.random.Generator) -> _Resampled:
    count = len(values)
    replicates = np.empty(draws)
    rows = max(1, CHUNK // count)
    for start in range(0, draws, rows):
        stop = min(start + rows, draws)
        indices = rng.integers(0, count, (stop - start, count), dtype=np.int32)
        replicates[start:stop] = values[indices].mean(axis=1)
    mean = float(values.mean())
    variance = float(values.var(ddof=1)) / count if count > 1 else 0.0
    third = float(((values - mean) ** 3).mean()) / count**2
    return _Resampled(mean, variance, third, replicates, count)


def _combine(parts: Sequence[_Resampled], weights: Sequence[int], level: float) -> Estimate:
    """Return the weighted mean of independent means with its interval.

    Whole weights are divided by their sum at the end: the mean of ones is 1, and not the 0.9999999999999999 to which
    as many rounded shares may add up.
    """
    total = sum(weights)
    value = sum(weight * part.mean for weight, part in zip(weights, parts)) / total
    items = sum(part.items for part in parts)
    if any(part.items < 2 for part in parts):
        return Estimate(value, None, None, items)
    shares = [weight / total for weight in weights]
    variances = [share**2 * part.variance for share, part in zip(shares, parts)]
    variance = sum(variances)
    if variance == 0:
        return Estimate(value, value, value, items)

    # The bootstrap's variance is too small by (n - 1) / n, and its tails are those of the normal distribution.
    drawn_variance = sum(own * (part.items - 1) / part.items for own, part in zip(variances, parts))
    freedom = variance**2 / sum(own**2 / (part.items - 1) for own, part in zip(variances, parts))
    width = math.sqrt(variance / drawn_variance) * student_quantile((1 + level) / 2, freedom)
    third = sum(share**3 * part.third for share, part in zip(shares, parts))
    acceleration = third / (6 * variance**1.5)
    ends = [_accelerated(acceleration, end) for end in (-width, width)]
    replicates = sum(weight * part.replicates for weight, part in zip(weights, parts)) / total
    low, high = np.quantile(replicates, ends)
    return Estimate(value, float(low), float(high), items)


def _accelerated(acceleration: float, z: float) -> float:
    """Return the share of the bootstrap at which an end of the interval lies, z standard deviations out."""
    shifted = acceleration + z
    scale = 1 - acceleration * shifted
    if scale <= 0:  # beyond every replicate
        return 1.0 if z > 0 else 0.0
    return NORMAL.cdf(acceleration + shifted / scale)


def student_quantile(share: float, freedom: float) -> float:
    """Return a quantile of Student's t, by its expansion around the normal quantile; exact to 1 % from 3 degrees on."""
    z = NORMAL.inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


# Two or more models on the same items


@dataclass(frozen=True)
class Difference:
    """The margin of the first model over the second, on the items that both have.

    Attributes:
        estimate: Mean difference with its interval.
        wins: Items on which the first scores higher.
        ties: Items on which both score the same.
        losses: Items on which the first scores lower.
        left_out: Items that only one of them has.
        p: Two-sided p value of the sign-flip test: how often a difference as large appears if both are equally good.
        adjusted_p: The same after Holm's correction over everything that was tested beside it.
        items_needed: How many items would show a difference of this size (80 % of the time at this level), spread over
            the categories as here; None where there is no difference or no spread.
        verdict: The result in words.
    """

    estimate: Estimate
    wins: int
    ties: int
    losses: int
    left_out: int
    p: float
    adjusted_p: float
    items_needed: int | None
    verdict: str = ""


@dataclass(frozen=True)
class _Settings:
    """The settings of a call of `compare_models`."""

    seed: int
    draws: int
    flips: int
    level: float
    power: float


@dataclass(frozen=True)
class Comparison:
    """Two models, over all (macro mean) and in each category."""

    first: str
    second: str
    overall: Difference
    categories: dict[str, Difference]


def compare_models(
    models: Mapping[str, CategoryScores],
    *,
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
    power: float = 0.8,
) -> list[Comparison]:
    """Compare every two models on the items that both have.

    Args:
        models: Name -> category -> item -> score, at least two.
        seed: Of drawn items and flipped signs.
        draws: Number of resamples, and of sign flips. Of the latter there are more where so much is tested that a p
            value of that few could not survive the correction.
        level: Of intervals; a difference is called one when its adjusted p value is at most 1 - level.
        power: The share of repetitions in which `items_needed` items show the difference.

    Returns:
        A comparison per pair, in the order of `models`. Holm's correction is over the categories of all pairs, and
        apart from these over the pairs.

    Raises:
        UserError: There are fewer than two models, or two of them share no item.
    """
    if len(models) < 2:
        raise UserError(f"{len(models)} model to compare: at least two are needed")
    _check_settings(draws, level)
    tests = math.comb(len(models), 2) * max(len(rows) for rows in models.values())
    flips = max(draws, math.ceil(MARGIN * tests / (1 - level)))
    settings = _Settings(seed, draws, flips, level, power)
    comparisons = []
    for first, second in combinations(models, 2):
        paired = _paired(models[first], models[second])
        if not any(paired.values()):
            raise UserError(f"models {first} and {second} share no scored item: they cannot be compared")
        comparisons.append(_compare((first, second), models, paired, settings))
    return _corrected(comparisons, level)


def _paired(first: CategoryScores, second: CategoryScores) -> dict[str, dict[str, float]]:
    """Return category -> item -> difference, of the items that both have."""
    paired = {}
    for category, rows in first.items():
        others = second.get(category, {})
        paired[category] = {item: score - others[item] for item, score in rows.items() if item in others}
    return paired


def _compare(
    pair: tuple[str, str],
    models: Mapping[str, CategoryScores],
    paired: Mapping[str, Mapping[str, float]],
    settings: _Settings,
) -> Comparison:
    # Each category by itself.
    columns = _columns(paired)
    parts = {}
    differences = {}
    for category, values in columns.items():
        rng = _generator("differences", category, settings.seed)
        parts[category] = _resample(values, settings.draws, rng)
        p = sign_flip_p([values], [1.0], settings.flips, _generator("flips", category, settings.seed))
        sizes = [len(models[name].get(category, {})) for name in pair]
        left_out = sum(sizes) - 2 * len(values)
        differences[category] = _difference([parts[category]], [values], p, left_out, settings)

    # All categories with the same weight.
    item_weights = [1 / len(values) for values in columns.values()]
    p = sign_flip_p(list(columns.values()), item_weights, settings.flips, _generator("flips", settings.seed))
    sizes = [len(rows) for name in pair for rows in models[name].values()]
    left_out = sum(sizes) - 2 * sum(len(values) for values in columns.values())
    overall = _difference(list(parts.values()), list(columns.values()), p, left_out, settings)
    return Comparison(*pair, overall, differences)


def _difference(
    parts: Sequence[_Resampled], columns: Sequence[Array], p: float, left_out: int, settings: _Settings
) -> Difference:
    estimate = _combine(parts, [1] * len(parts), settings.level)
    error = math.sqrt(sum(part.variance for part in parts)) / len(parts)
    needed = items_needed(estimate.value, error, estimate.items, level=settings.level, power=settings.power)
    values = np.concatenate(columns)
    return Difference(
        estimate=estimate,
        wins=int((values > SAME).sum()),
        ties=int((np.abs(values) <= SAME).sum()),
        losses=int((values < -SAME).sum()),
        left_out=left_out,
        p=p,
        adjusted_p=p,
        items_needed=needed,
    )


def sign_flip_p(columns: Sequence[Array], weights: Sequence[float], draws: int, rng: np.random.Generator) -> float:
    """Return the two-sided p value of a weighted sum of differences under random signs.

    If two models are equally good, each item's difference is as likely with the other sign.

    Args:
        columns: Differences per category, (n,) each.
        weights: The weight of an item, per category.
        draws: Number of random sign patterns; the seen one counts as one more.
        rng: Of the signs.
    """
    weighted = np.concatenate([weight * values for weight, values in zip(weights, columns)])
    weighted = weighted[np.abs(weighted) > 0]
    if len(weighted) == 0:
        return 1.0
    seen = abs(weighted.sum())
    tolerance = SAME * np.abs(weighted).sum()
    as_large = 0
    rows = max(1, CHUNK // len(weighted))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        signs = rng.integers(0, 2, (count, len(weighted)), dtype=np.int8)
        flipped = 2 * (signs @ weighted) - weighted.sum()
        as_large += int((np.abs(flipped) >= seen - tolerance).sum())
    return (1 + as_large) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for having tested them all (Holm, 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        corrected = min(1.0, (len(p_values) - rank) * p_values[index])
        largest = max(largest, corrected)
        adjusted[index] = largest
    return adjusted


def items_needed(
    difference: float, standard_error: float, items: int, *, level: float = 0.95, power: float = 0.8
) -> int | None:
    """Return how many items would show a difference of the seen size.

    Args:
        difference: As seen.
        standard_error: Of the difference.
        items: On which both rest.
        level: 1 - the share of false alarms.
        power: The share of repetitions in which the difference is shown.

    Returns:
        A number of items; None where there is no difference or no spread.
    """
    if abs(difference) <= SAME or standard_error <= SAME:
        return None
    quantiles = NORMAL.inv_cdf((1 + level) / 2) + NORMAL.inv_cdf(power)
    return math.ceil(items * (quantiles * standard_error / difference) ** 2)


def _corrected(comparisons: Sequence[Comparison], level: float) -> list[Comparison]:
    """Correct the p values, and put every result into words."""
    overall = iter(holm([comparison.overall.p for comparison in comparisons]))
    tested = [difference.p for comparison in comparisons for difference in comparison.categories.values()]
    by_category = iter(holm(tested))
    corrected = []
    for comparison in comparisons:
        names = (comparison.first, comparison.second)
        categories = {}
        for category, difference in comparison.categories.items():
            categories[category] = _worded(difference, next(by_category), names, level)
        whole = _worded(comparison.overall, next(overall), names, level)
        corrected.append(replace(comparison, overall=whole, categories=categories))
    return corrected


def _worded(difference: Difference, adjusted_p: float, names: tuple[str, str], level: float) -> Difference:
    estimate = difference.estimate
    first, second = names
    size = Estimate(abs(estimate.value), estimate.low, estimate.high, estimate.items)
    if estimate.value < 0:
        first, second = second, first
        if estimate.low is not None and estimate.high is not None:
            size = Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.items)
    if adjusted_p <= 1 - level + SAME:
        verdict = f"{first} is better than {second} by {size}"
    else:
        verdict = f"{names[0]} and {names[1]} are not distinguishable: {estimate}"
        if difference.items_needed is not None:
            verdict += f"; about {difference.items_needed} items would show such a difference"
    return replace(difference, adjusted_p=adjusted_p, verdict=verdict)


# The judge itself


@dataclass(frozen=True)
class JudgeNoise:
    """The distance that a judge moves when it is asked the same again.

    Attributes:
        deviation: Standard deviation of one score around its item's mean, pooled over items.
        identical: The share of repeated scores that equal their item's first one.
        items: Items with at least two scores.
    """

    deviation: float
    identical: float
    items: int

    def floor(self, sizes: Sequence[int], *, level: float = 0.95) -> float:
        """Return how far two macro means of the same pictures may lie apart by the judge's noise alone.

        Args:
            sizes: Items of each category.
            level: The share of repetitions that stay within.
        """
        if not sizes or min(sizes) < 1:
            raise UserError(f"sizes {list(sizes)}: every category needs an item")
        variance = sum(2 * self.deviation**2 / size for size in sizes) / len(sizes) ** 2
        return NORMAL.inv_cdf((1 + level) / 2) * math.sqrt(variance)


def judge_noise(repeats: Mapping[str, Sequence[float]]) -> JudgeNoise:
    """Estimate the judge's own noise from repeated scores of the same pictures.

    Args:
        repeats: Item -> its scores, in the order in which they were given; items with one score are left out.

    Raises:
        UserError: No item has two scores.
    """
    squares = 0.0
    freedom = 0
    identical = 0
    items = 0
    for scores in repeats.values():
        if len(scores) < 2:
            continue
        values = np.array(scores, dtype=np.float64)
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
        identical += int((np.abs(values[1:] - values[0]) <= SAME).sum())
        items += 1
    if not items:
        raise UserError("no item was judged twice: the judge's noise cannot be estimated")
    return JudgeNoise(math.sqrt(squares / freedom), identical / freedom, items)


# Duels


@dataclass(frozen=True)
class Duel:
    """Two pictures of one item side by side.

    Attributes:
        item: The item; its duels are drawn together in the bootstrap.
        left: The model shown first.
        right: The model shown second.
        winner: One of the two; None for a tie.
    """

    item: str
    left: str
    right: str
    winner: str | None


def settle(duel: Duel, mirrored: Duel) -> Duel:
    """Return one duel for two in both orders: a winner only if it won both.

    Raises:
        UserError: The second is not the first with its sides changed.
    """
    if (duel.item, duel.left, duel.right) != (mirrored.item, mirrored.right, mirrored.left):
        raise UserError(f"duels {duel} and {mirrored}: the second must be the first with its sides changed")
    winner = duel.winner if duel.winner == mirrored.winner else None
    return replace(duel, winner=winner)


@dataclass(frozen=True)
class Strengths:
    """Strengths from duels, in natural log-odds around 0; times 400 / ln 10 they are Elo points.

    Attributes:
        models: Name -> strength with its interval, strongest first; `items` counts the model's duels.
        ties: How readily the judge calls a tie: the share of ties between equals is ties / (2 + ties).
        left_share: How often the first shown wins, of duels with a winner; 0.5 without a bias of position.
    """

    models: dict[str, Estimate]
    ties: float
    left_share: Estimate | None

    def chances(self, first: str, second: str) -> tuple[float, float, float]:
        """Return how likely `first` wins, ties with and loses against `second`."""
        difference = self.models[first].value - self.models[second].value
        win = math.exp(difference / 2)
        loss = math.exp(-difference / 2)
        total = win + self.ties + loss
        return win / total, self.ties / total, loss / total


PULL = 0.01  # precision of the normal prior (standard deviation 10) that keeps the unbeaten finite


def bradley_terry(duels: Iterable[Duel], *, seed: int, draws: int = 500, level: float = 0.95) -> Strengths:
    """Estimate strengths from duels, ties included, with bootstrap intervals over items.

    P(win) : P(tie) : P(loss) = exp(d / 2) : ties : exp(-d / 2) for a difference of strengths d (Davidson, 1970, "On
    extending the Bradley-Terry model to accommodate ties in paired comparison experiments"). A weak prior of standard
    deviation 10 keeps a model finite that wins or loses everything.

    Args:
        duels: At least one; every model must be linked to every other by duels.
        seed: Of the drawn items.
        draws: Number of resamples.
        level: Share of repetitions in which an interval holds the true strength.

    Raises:
        UserError: There is no duel, a winner took no part, or two groups of models never met.
    """
    _check_settings(draws, level)
    duels = list(duels)
    names = _linked_models(duels)
    pairs = list(combinations(range(len(names)), 2))
    item_counts = _item_counts(duels, names, pairs)

    # The data as they are, then with items drawn anew.
    seen = item_counts.sum(axis=0)
    drawn = _drawn_counts(item_counts, draws, _generator("duels", seed))
    parameters = _davidson(np.concatenate([seen[None], drawn]), pairs, len(names))

    # Percentiles widened for few items, as those of means.
    items = len(item_counts)
    widening = math.sqrt(items / (items - 1)) if items > 1 else 1.0
    tail = NORMAL.cdf(-widening * student_quantile((1 + level) / 2, max(items - 1, 1)))
    models = {}
    for index in np.argsort(-parameters[0, :-1], kind="stable"):
        low, high = np.quantile(parameters[1:, index], [tail, 1 - tail])
        fought = sum(names[index] in (duel.left, duel.right) for duel in duels)
        value = float(parameters[0, index])
        if items < 2:  # one item tells nothing of the spread between items
            models[names[index]] = Estimate(value, None, None, fought)
        else:
            models[names[index]] = Estimate(value, float(low), float(high), fought)

    # The bias of position.
    decided = [duel for duel in duels if duel.winner is not None]
    left_share = None
    if decided:
        left_share = share_estimate(sum(duel.winner == duel.left for duel in decided), len(decided), level=level)
    return Strengths(models, math.exp(parameters[0, -1]), left_share)


def _linked_models(duels: Sequence[Duel]) -> list[str]:
    """Return the models in the order in which they appear, after a check that all are linked."""
    if not duels:
        raise UserError("no duel: no strength can be estimated")
    neighbours: dict[str, set[str]] = {}
    for duel in duels:
        if duel.left == duel.right or duel.winner not in (duel.left, duel.right, None):
            raise UserError(f"{duel}: two models and a winner among them (or None) are needed")
        neighbours.setdefault(duel.left, set()).add(duel.right)
        neighbours.setdefault(duel.right, set()).add(duel.left)
    names = list(neighbours)
    linked = {names[0]}
    waiting = [names[0]]
    while waiting:
        found = neighbours[waiting.pop()] - linked
        linked |= found
        waiting.extend(found)
    apart = [name for name in names if name not in linked]
    if apart:
        raise UserError(f"models {apart[0]} and {names[0]} never met, not even through others: add duels between them")
    return names


def _item_counts(duels: Sequence[Duel], names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Array:
    """Count wins of the first, ties and wins of the second: (items, pairs, 3)."""
    index_of = {name: index for index, name in enumerate(names)}
    pair_of = {pair: index for index, pair in enumerate(pairs)}
    item_of: dict[str, int] = {}
    for duel in duels:
        item_of.setdefault(duel.item, len(item_of))
    counts = np.zeros((len(item_of), len(pairs), 3))
    for duel in duels:
        first, second = sorted((index_of[duel.left], index_of[duel.right]))
        outcome = 1
        if duel.winner is not None:
            outcome = 0 if index_of[duel.winner] == first else 2
        counts[item_of[duel.item], pair_of[first, second], outcome] += 1
    return counts


def _drawn_counts(item_counts: Array, draws: int, rng: np.random.Generator) -> Array:
    """Sum the counts of items drawn with replacement: (draws, pairs, 3)."""
    items = len(item_counts)
    flat = item_counts.reshape(items, -1)
    sums = np.empty((draws, flat.shape[1]))
    rows = max(1, CHUNK // items)
    for start in range(0, draws, rows):
        stop = min(start + rows, draws)
        multiplicity = rng.multinomial(items, np.full(items, 1 / items), size=stop - start)
        sums[start:stop] = multiplicity @ flat
    return sums.reshape(draws, *item_counts.shape[1:])


def _davidson(counts: Array, pairs: Sequence[tuple[int, int]], models: int) -> Array:
    """Fit strengths and the logarithm of `ties` to each table of counts by Newton's method.

    Args:
        counts: Wins of the first, ties, wins of the second: (tables, pairs, 3).
        pairs: The two models of each pair.
        models: How many there are.

    Returns:
        (tables, models + 1); the last is log(ties).
    """
    # The three outcomes of a pair as a softmax over linear features.
    features = np.zeros((len(pairs), 3, models + 1))
    for index, (first, second) in enumerate(pairs):
        features[index, 0, [first, second]] = 0.5, -0.5
        features[index, 2, [first, second]] = -0.5, 0.5
        features[index, 1, models] = 1.0
    fights = counts.sum(axis=2)
    observed = np.einsum("tpo,pof->tf", counts, features)
    prior = PULL * np.eye(models + 1)
    parameters = np.zeros((len(counts), models + 1))
    for _ in range(200):
        logits = np.einsum("pof,tf->tpo", features, parameters)
        chances = np.exp(logits - logits.max(axis=2, keepdims=True))
        chances /= chances.sum(axis=2, keepdims=True)
        expected = np.einsum("tpo,pof->tpf", chances, features)
        gradient = observed - np.einsum("tp,tpf->tf", fights, expected) - PULL * parameters
        second_moment = np.einsum("tp,tpo,pof,pog->tfg", fights, chances, features, features, optimize=True)
        curvature = second_moment - np.einsum("tp,tpf,tpg->tfg", fights, expected, expected, optimize=True) + prior
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        # Short steps: the first ones overshoot where one model wins everything.
        step = np.clip(step, -1.0, 1.0)
        parameters += step
        if np.abs(step).max() < 1e-8:
            break
    return parameters


# Agreement with people


@dataclass(frozen=True)
class Agreement:
    """The share of pairs in which a judge prefers what people prefer.

    Attributes:
        all_pairs: The share of pairs with the same verdict of three: first, tie, second.
        decided: The share of pairs with the same winner, of those where both the people and the judge name one.
        kappa: Cohen's kappa over the three verdicts: 0 is chance, 1 is full agreement; None where both always say the
            same one verdict.
    """

    all_pairs: Estimate
    decided: Estimate | None
    kappa: Estimate | None


def preference(first: float, second: float, margin: float = 0.0) -> int:
    """Return 1 where the first score is higher by more than `margin`, -1 where the second is, else 0."""
    if first - second > margin + SAME:
        return 1
    if second - first > margin + SAME:
        return -1
    return 0


def agreement(
    judge: Sequence[int], people: Sequence[int], *, seed: int, draws: int = 2000, level: float = 0.95
) -> Agreement:
    """Compare a judge's preferences with those of people on the same pairs.

    Args:
        judge: 1 (the first is better), 0 (tie) or -1 (the second is better) for each pair.
        people: The same, of people.
        seed: Of the drawn pairs.
        draws: Number of resamples, for kappa.
        level: Of the intervals; those of shares are Wilson's.

    Raises:
        UserError: There is no pair, the lengths differ, or a value is none of the three.
    """
    if not judge or len(judge) != len(people):
        raise UserError(f"{len(judge)} verdicts of the judge and {len(people)} of people: as many of both are needed")
    if not {*judge, *people} <= {-1, 0, 1}:
        raise UserError("a preference is 1 (first), 0 (tie) or -1 (second)")
    _check_settings(draws, level)
    judged = np.array(judge)
    wanted = np.array(people)
    same = judged == wanted
    decided = (judged != 0) & (wanted != 0)
    decided_share = None
    if decided.any():
        decided_share = share_estimate(int(same[decided].sum()), int(decided.sum()), level=level)
    return Agreement(
        all_pairs=share_estimate(int(same.sum()), len(same), level=level),
        decided=decided_share,
        kappa=_kappa_estimate(judged, wanted, _generator("agreement", seed), draws, level),
    )


def _kappa_estimate(
    judged: NDArray[np.int_], wanted: NDArray[np.int_], rng: np.random.Generator, draws: int, level: float
) -> Estimate | None:
    # Counts of the nine combinations are all that kappa needs.
    cells = np.bincount(3 * (judged + 1) + (wanted + 1), minlength=9)
    total = len(judged)
    value = _kappa(cells[None])[0]
    if not np.isfinite(value):
        return None
    replicates = _kappa(rng.multinomial(total, cells / total, size=draws))
    replicates = replicates[np.isfinite(replicates)]
    if total < 2 or len(replicates) == 0:
        return Estimate(float(value), None, None, total)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high), total)


def _kappa(cells: NDArray[np.int_]) -> Array:
    """Return Cohen's kappa of tables of counts (tables, 9), by whole numbers; NaN where both always say the same."""
    tables = cells.reshape(-1, 3, 3)
    total = cells.sum(axis=1)
    seen = np.trace(tables, axis1=1, axis2=2) * total
    by_chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (seen - by_chance) / (total**2 - by_chance)


def share_estimate(successes: int, total: int, *, level: float = 0.95) -> Estimate:
    """Return a share with Wilson's interval, which holds near 0 and 1 too."""
    if total < 1:
        raise UserError("a share of nothing: at least one case is needed")
    z = NORMAL.inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low = centre - half if successes else 0.0
    high = centre + half if successes < total else 1.0
    return Estimate(share, low, high, total)
