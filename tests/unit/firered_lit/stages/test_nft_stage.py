"""The DiffusionNFT stage: what it draws and learns from, what it does with missing rewards, and that it resumes."""

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toy_prompts import PromptData, Prompts, sample, trainer

from callbacks.checkpoint import Checkpoint
from callbacks.ema import EMA
from callbacks.grids.reward_grid import RewardGrid
from callbacks.rewards.pixel import PixelReward
from firered_lit.batch import PromptBatch
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.flow.path import interpolate
from firered_lit.flow.sampler import dpm_solver_2, euler, schedule
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.losses.nft import adaptive, as_written, group_optimality, old_policy_decay, policy_mask
from firered_lit.models import qwen_image
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.models.sampling import sample as draw_an_edit
from firered_lit.models.weight_swap import WeightSwap
from firered_lit.rewards.protocol import Scores
from firered_lit.stages.nft import NFT

ADAM = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
LORA = Backbone("tiny", lora=LoRA(4, 8))


def stage(backbone=None, optimizer=ADAM, **options):
    defaults = {"group_size": 3, "rollout_steps": 2, "points": 1, "seed": 5}
    return NFT(backbone or Backbone("tiny"), optimizer, **defaults | options)


class Given(L.Callback):
    """A reward that answers what it is told: `answer(images, batch)` -> values (B,), valid (B,)."""

    def __init__(self, answer, name="given"):
        self.name, self.answer, self.asked = name, answer, []

    def submit(self, images, batch):
        self.asked.append((images.clone(), batch))
        future = Future()
        answer = self.answer(images, batch)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not None:
            value, valid = answer if isinstance(answer, tuple) else (answer, torch.ones(len(images), dtype=torch.bool))
            future.set_result(Scores(value, valid))
        return future


def ladder(images, batch):
    return torch.linspace(0.1, 0.6, len(images))


class Watch(L.Callback):
    """Keeps what every iteration returned and logged, and counts the transformer's forwards."""

    def __init__(self):
        self.outputs, self.numbers, self.forwards = [], [], 0

    def on_train_start(self, trainer, module):
        def count(*_):
            self.forwards += 1

        self.handle = module.transformer.register_forward_hook(count)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.outputs.append(outputs)
        self.numbers.append({k: float(v) for k, v in trainer.logged_metrics.items()})

    def on_train_end(self, trainer, module):
        self.handle.remove()


def fit(folder, module=None, reward=None, steps=1, resume=None, data=None, extra=(), **options):
    """Train; returns (module, what happened)."""
    module, watch = module or stage(), Watch()
    rewards = reward if isinstance(reward, list) else [reward or Given(ladder)]
    run = trainer(folder, [*rewards, watch, *extra], max_steps=steps, **options)
    run.fit(module, data or PromptData(), ckpt_path=resume, weights_only=True)
    return module, watch


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items() if k.startswith(("transformer.", "old."))}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fresh(**options):
    module = stage(**options)
    module.configure_model()
    return module


# --- what is drawn ---


def test_the_rollout_draws_what_the_sampler_draws_and_training_sees_the_same_velocity(tmp_path):
    """peers: "the rollout's velocity differs from the trainer's"."""
    module = stage(rollout_steps=3, optimizer=partial(torch.optim.SGD, lr=0.0), decay=lambda steps: 0.5)
    seen: list = []
    velocity = module.velocity
    module.velocity = lambda x, s, c: seen.append((x, s, c, velocity(x, s, c))) or seen[-1][-1]
    module, watch = fit(tmp_path, module)
    rollout = watch.outputs[0]["rollouts"][0]
    assert len(seen) == 2 * (3 + 1 + 1)
    for x, sigma, _, v in seen[:3]:  # the first group's rollout, against each edit alone
        for k in range(3):
            alone = rollout.sample.condition
            with torch.no_grad():
                again = qwen_image.velocity(module.transformer, x[k : k + 1], sigma[k : k + 1], alone)
            assert (again - v[k : k + 1]).abs().max() < 1e-6 * max(1.0, float(v.abs().max()))
    x_t, _, _, v_old = seen[6]  # learning: the same function, at noised edits
    policy = next(v for x, s, _, v in seen[8:] if torch.equal(x, x_t))
    assert (policy - v_old).abs().max() < 1e-6
    noise = gaussian((16, 8, 8), (0, 1, 2), 5, "rollout", 0, 0)
    expected = draw_an_edit(
        module.transformer, noise, schedule(3, 16, module.scheduler_config), rollout.sample.repeated(3).condition
    )
    torch.testing.assert_close(rollout.latents, expected, atol=1e-5, rtol=0)
    assert rollout.latents[0].ne(rollout.latents[1]).any()
    pixels = module.codec.decode(rollout.latents).clamp(-1, 1)
    assert (rollout.images.float() / 127.5 - 1 - pixels).abs().max() < 0.01


def test_an_average_follows_the_policy_once_an_iteration_and_not_the_old_policy(tmp_path):
    ema, seen = EMA(decay=0.9), []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.transformer.img_in.weight.detach().clone())

    module = fresh(optimizer=partial(torch.optim.SGD, lr=0.1))
    expected = module.transformer.img_in.weight.detach().clone()
    fit(tmp_path, module, steps=3, extra=[ema, Keep()])
    for weight in seen:
        expected = 0.9 * expected + 0.1 * weight
    assert ema.updates == len(seen) == 3
    assert not torch.equal(seen[0], seen[2])
    torch.testing.assert_close(ema.shadow["transformer.img_in.weight"], expected)
    assert all(name.startswith("transformer.") for name in ema.shadow)


def test_a_rollout_is_drawn_by_the_solver_of_the_recipe():
    """With as many forwards; the noise and the schedule are the same."""
    drawn = {}
    for solver in (euler, dpm_solver_2):
        module = fresh(rollout_steps=4, solver=solver)
        module.panel.rewards = {"given": Given(ladder)}
        with torch.no_grad():
            drawn[solver] = module.roll_out(sample(0)).latents
            noise = gaussian((16, 8, 8), (0, 1, 2), 5, "rollout", 0, 0)
            condition = sample(0).repeated(3).condition
            sigmas = schedule(4, 16, module.scheduler_config)
            expected = solver(lambda x, s, m=module, c=condition: m.velocity(x, s, c), noise, sigmas)
        torch.testing.assert_close(drawn[solver], expected, atol=1e-5, rtol=0)
    assert (drawn[euler] - drawn[dpm_solver_2]).abs().max() > 1e-4


def test_draws_are_keyed_by_sample_and_place_whatever_the_budget_of_a_forward(tmp_path):
    _, whole = fit(tmp_path, stage(points=2))
    _, split = fit(tmp_path, stage(points=2, capacity=64))  # two edits of 32 tokens at once
    for a, b in zip(whole.outputs[0]["rollouts"], split.outputs[0]["rollouts"]):
        torch.testing.assert_close(a.latents, b.latents, atol=1e-5, rtol=0)
    assert split.forwards == 2 * whole.forwards
    assert whole.numbers[0]["train/loss"] == pytest.approx(split.numbers[0]["train/loss"], abs=1e-4)


def test_noise_and_sigma_change_with_the_iteration_and_with_the_edit():
    module = fresh(points=2, group_size=4)
    module.panel.rewards = {"given": Given(ladder)}

    def points(step, slot):
        with torch.no_grad():
            return module.noised(module.roll_out(sample(0, step, slot, num_slots=2)), 0)

    a, again, later, other = points(0, 0), points(0, 0), points(1, 0), points(0, 1)
    assert all(torch.equal(p.sigma, q.sigma) and torch.equal(p.eps, q.eps) for p, q in zip(a, again))
    for b in (later, other):
        assert not any(torch.equal(p.sigma, q.sigma) or torch.equal(p.eps, q.eps) for p, q in zip(a, b))
    assert not torch.equal(a[0].eps, a[1].eps)
    assert not torch.equal(a[0].eps[0], a[0].eps[1])
    module.resolution_shift = False
    u = torch.cat([p.sigma for p in [*points(0, 0), *points(0, 1)]])
    assert (u * 16).long().sort().values.tolist() == list(range(16))  # one per stratum over both groups


def test_common_noise_is_one_draw_for_a_group(tmp_path):
    module = fresh(group_size=4, points=2, common_noise=True, resolution_shift=False)
    fit(tmp_path, module)
    with torch.no_grad():
        a, b = (module.noised(module.roll_out(sample(0, 0, slot, num_slots=2)), 0) for slot in (0, 1))
    for p in [*a, *b]:
        assert torch.equal(p.eps, p.eps[:1].expand_as(p.eps))
        assert torch.equal(p.sigma, p.sigma[:1].expand_as(p.sigma))
    assert not torch.equal(a[0].eps, a[1].eps)
    assert not torch.equal(a[0].eps, b[0].eps)
    assert (torch.stack([p.sigma[0] for p in [*a, *b]]) * 4).long().sort().values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("loss", [adaptive, as_written])
def test_what_a_group_s_edits_share_cancels_under_common_noise(tmp_path, loss):
    """Edits that are all the same teach nothing, whatever their rewards; under noise of their own, they do."""
    norms = {}
    for common in (False, True):
        module = fresh(common_noise=common, loss=loss)
        drawn = module.roll_out
        module.roll_out = lambda group, drawn=drawn: alike(drawn(group))
        _, watch = fit(tmp_path, module, Given(ladder))
        norms[common] = watch.numbers[0]["train/grad_norm"]
    assert norms[True] < 1e-4 * norms[False]


def alike(rollout):
    return replace(rollout, latents=rollout.latents[:1].expand_as(rollout.latents).contiguous())


def test_the_rollout_is_drawn_by_the_old_policy_and_the_new_one_learns(tmp_path):
    module = fresh(optimizer=partial(torch.optim.SGD, lr=0.0), decay=lambda steps: 1.0)
    with torch.no_grad():
        for p in module.transformer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    before = weights(module)
    module, watch = fit(tmp_path, module)
    assert same(before, weights(module))  # swapped in and out to the last bit
    assert watch.numbers[0]["train/old_distance"] > 1e-4
    rollout = watch.outputs[0]["rollouts"][0]
    noise = gaussian((16, 8, 8), (0, 1, 2), 5, "rollout", 0, 0)
    arguments = noise, schedule(2, 16, module.scheduler_config), rollout.sample.repeated(3).condition
    with module.old.swapped_into(module.transformer):
        by_the_old = draw_an_edit(module.transformer, *arguments)
    torch.testing.assert_close(rollout.latents, by_the_old, atol=1e-5, rtol=0)
    assert (draw_an_edit(module.transformer, *arguments) - by_the_old).abs().max() > 1e-3


# --- what is learnt from ---


@pytest.mark.parametrize("std", ["group", "batch"])
def test_equal_prompts_with_different_sources_are_two_groups(tmp_path, std):
    """Their levels differ: over one group of all edits, those of the poorer sample would all count as bad."""

    class Twins(Prompts):
        def batch(self, step):
            return PromptBatch((sample(0, 0, 0, text=9), sample(1, 0, 1, text=9)), step)

    def answer(images, batch):
        return torch.tensor([0.1, 0.2, 0.3]) + (0.5 if batch.ids[0] == "id1" else 0.0)

    module, seen = stage(std=std), []
    advantages = module.advantages
    module.advantages = lambda scored: seen.append(advantages(scored)) or seen[-1]
    fit(tmp_path, module, Given(answer), data=Twins())
    optimality, used = seen[-1]
    if std == "group":  # what was learnt, group by group, is what was logged
        assert torch.equal(torch.cat([o for o, _ in seen[:2]]), optimality)
    torch.testing.assert_close(optimality[:3], optimality[3:])
    assert optimality[0] < 0.5 < optimality[2]
    assert used.all()


@pytest.mark.parametrize("loss", [adaptive, as_written])
def test_groups_without_variance_add_nothing_but_kl(tmp_path, loss):
    flat = Given(lambda images, batch: torch.full((3,), 0.4))
    before = weights(fresh())
    module, watch = fit(tmp_path, stage(loss=loss), flat, steps=2)
    assert same(before, weights(module))
    assert watch.numbers[0]["groups/flat"] == 1
    assert watch.numbers[0]["train/grad_norm"] == 0
    module = fresh(loss=loss, kl=0.1)
    with torch.no_grad():
        for p in module.transformer.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    before = weights(module)
    module, watch = fit(tmp_path, module, flat, steps=4)
    assert not same(before, weights(module))
    assert watch.numbers[-1]["train/kl"] < watch.numbers[0]["train/kl"]
    assert watch.numbers[0]["train/policy"] == 0


def test_on_policy_a_forward_is_saved_and_nothing_else_changes(tmp_path):
    """A decay of 0, against one that is too small to keep anything of the old policy, which has its own forward."""
    ways = [fit(tmp_path, fresh(decay=lambda steps, d=d: d), Given(ladder), 3) for d in (0.0, 1e-30)]
    assert [watch.forwards for _, watch in ways] == [3 * 2 * (2 + 1), 3 * 2 * (2 + 1 + 1)]
    assert same(*(weights(module) for module, _ in ways))
    assert not same(weights(fresh()), weights(ways[0][0]))


def test_the_step_is_each_edits_own_optimality_times_its_flow_gradient_and_a_pull_to_the_start(tmp_path):
    """At v = v_old, where eq. 3 has this closed form, over two groups whose edits rank the other way round."""
    sgd = partial(torch.optim.SGD, lr=1.0)
    module = fresh(loss=as_written, kl=0.3, points=2, capacity=64, optimizer=sgd, gradient_clip=1e3)
    with torch.no_grad():
        for p in module.transformer.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    module.old.follow(module.transformer, 0.0)  # the policy is the old one, and not the reference
    begun = {k: v.clone() for k, v in module.transformer.state_dict().items()}
    ranks = {"id0": torch.tensor([0.1, 0.3, 0.9]), "id1": torch.tensor([0.8, 0.5, 0.2])}
    module, watch = fit(tmp_path, module, Given(lambda images, batch: ranks[batch.ids[0]]))
    after = {k: v.clone() for k, v in module.transformer.state_dict().items()}
    module.transformer.load_state_dict(begun)
    module.zero_grad()
    for place, rollout in enumerate(watch.outputs[0]["rollouts"]):
        optimality = group_optimality(ranks[rollout.sample.ids[0]], torch.zeros(3), clip=5.0)
        points = module.noised(rollout, place)
        module.compare_with_reference(points)
        for p in points:
            v, sign = module.velocity_at(p), 2 * optimality[p.rows] - 1
            loss = sign * flow_matching_loss(v, p.eps - p.x_0) + 0.3 * flow_matching_loss(v, p.v_reference)
            (loss.sum() / 12).backward()
    grads = {n: p.grad for n, p in module.transformer.named_parameters() if p.grad is not None}
    expected = torch.cat([grad.flatten() for grad in grads.values()])
    moved = torch.cat([(begun[name] - after[name]).flatten() for name in grads])
    assert expected.norm() > 1e-2
    assert (moved - expected).norm() < 1e-3 * expected.norm()


def test_the_reference_is_run_only_when_it_weighs_and_the_old_policy_only_when_it_is_another(tmp_path):
    for kl, old, forwards in ((0.0, 0.5, 2 + 2 + 2), (0.1, 0.5, 2 + 2 + 2 + 2), (0.1, 0.0, 2 + 2 + 2)):
        module, watch = fit(tmp_path, stage(kl=kl, points=2, decay=lambda steps, old=old: old))
        assert watch.forwards == 2 * forwards
        assert bool(module.reference) == bool(kl)
        assert ("train/kl" in watch.numbers[0]) == bool(kl)


def test_forwards_and_steps_do_not_depend_on_the_rewards(tmp_path):
    answers = [
        ladder,
        lambda images, batch: torch.full((3,), 0.95),  # good and flat
        lambda images, batch: (torch.zeros(3), torch.zeros(3, dtype=torch.bool)),
        lambda images, batch: RuntimeError("the engine fell over"),
    ]
    runs = [fit(tmp_path, stage(points=2, updates=2), Given(answer)) for answer in answers]
    assert {watch.forwards for _, watch in runs} == {2 * (2 + 2 + 2)}
    assert {module.trainer.global_step for module, _ in runs} == {2}


def test_the_old_policy_follows_once_an_iteration(tmp_path):
    steps = []
    module = stage(points=2, updates=2, decay=lambda n: steps.append(n) or 0.25)
    before = weights(fresh())
    module, _ = fit(tmp_path, module, steps=2)
    assert steps == [2]  # one iteration of two optimizer steps
    after = weights(module)
    for name, parameter in module.transformer.named_parameters():
        if parameter.requires_grad:
            expected = torch.lerp(before[f"transformer.{name}"], after[f"transformer.{name}"], 0.75)
            torch.testing.assert_close(after[f"old.values.{name.replace('.', '/')}"], expected)
    assert not same(before, after)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_update_computes_with_the_weights_that_the_one_before_has_left(tmp_path, precision):
    """The step is inside one autocast, which must not hold casts of weights over it."""
    module = stage(points=2, updates=2, optimizer=partial(torch.optim.SGD, lr=0.1), gradient_clip=1e3)
    losses, apart, moved = module.losses, [], []

    def watched(p, optimality, used, sums):
        with torch.no_grad():
            here = module.velocity_at(p)
            torch.clear_autocast_cache()
            apart.append(float((here - module.velocity_at(p)).abs().max()))
            moved.append(float((here - p.v_old).abs().max()))
            torch.clear_autocast_cache()
        return losses(p, optimality, used, sums)

    module.losses = watched
    module, watch = fit(tmp_path, module, data=PromptData(1), precision=precision)
    assert apart == [0.0, 0.0]
    assert moved[0] == 0.0 < moved[1]  # before any step the policy is the old one
    assert watch.numbers[0]["train/grad_norm"] > 0


def test_learning_rates_and_the_clip_are_the_stages(tmp_path):
    scheduled = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 / (step + 1))
    module, watch = fit(
        tmp_path, stage(schedule=scheduled, optimizer=partial(torch.optim.SGD, lr=1.0), gradient_clip=1e-4), steps=2
    )
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(1 / 3)
    moved = [(v - weights(fresh())[k]).norm() for k, v in weights(module).items() if k.startswith("transformer.")]
    assert 0 < torch.stack(moved).norm() <= 1.5e-4 * 1.01
    assert watch.numbers[0]["train/grad_norm"] > 1e-3  # as it was before the clip


# --- rewards ---


def test_several_groups_are_in_flight_before_the_first_answer_is_waited_for(tmp_path):
    """A reward that answers only once all groups have been asked about: waiting earlier would never end."""

    class Late(Given):
        def submit(self, images, batch):
            self.asked.append((len(self.asked), Future()))
            if len(self.asked) == 4:
                for _, future in self.asked:
                    future.set_result(Scores(torch.linspace(0, 1, 3), torch.ones(3, dtype=torch.bool)))
            return self.asked[-1][1]

    _, watch = fit(tmp_path, stage(patience=20.0), Late(None), data=PromptData(4))
    assert watch.numbers[0]["rollout/missing"] == 0


def test_a_group_is_learnt_while_the_next_ones_rewards_are_under_way(tmp_path):
    """The second group's reward comes only after the first one's backward."""
    module, futures = stage(patience=20.0), []
    losses = module.losses

    class Second(Given):
        def submit(self, images, batch):
            futures.append(Future())
            if len(futures) == 1:
                futures[0].set_result(Scores(torch.linspace(0, 1, 3), torch.ones(3, dtype=torch.bool)))
            return futures[-1]

    def watched(p, *rest):
        if p.place == 0:
            futures[1].set_result(Scores(torch.linspace(0, 1, 3), torch.ones(3, dtype=torch.bool)))
        return losses(p, *rest)

    module.losses = watched
    _, watch = fit(tmp_path, module, Second(None))
    assert watch.numbers[0]["rollout/missing"] == 0


MISSING = {
    "one of three": (lambda i, b: (torch.tensor([0.1, 9.0, 0.4]), torch.tensor([True, False, True])), 2, 0.0),
    "two of three": (lambda i, b: (torch.tensor([0.1, 0.2, 0.4]), torch.tensor([True, False, False])), 4, 1.0),
    "nonsense": (lambda i, b: torch.tensor([0.1, torch.nan, 0.4]), 2, 0.0),
    "rounding": (lambda i, b: torch.tensor([-0.004, 0.2, 1.004]), 0, 0.0),
    "it raises": (lambda i, b: RuntimeError("the engine fell over"), 6, 1.0),
    "it hangs": (lambda i, b: None, 6, 1.0),
    "too few": (lambda i, b: torch.tensor([0.5]), 6, 1.0),
}


@pytest.mark.parametrize("what", MISSING)
def test_missing_rewards_are_counted_and_the_rest_goes_on(tmp_path, what, caplog):
    answer, missing, dropped = MISSING[what]
    if what == "too few":

        def answer(images, batch):  # one score for three edits
            return torch.tensor([0.5]), torch.tensor([True])

    before = weights(fresh())
    module, watch = fit(tmp_path, stage(patience=0.2), Given(answer))
    assert ("a group has no scores" in caplog.text) == (what in ("it raises", "it hangs", "too few"))
    numbers = watch.numbers[0]
    assert numbers["rollout/missing"] == missing
    assert numbers["groups/dropped"] == dropped
    assert same(before, weights(module)) == bool(dropped)  # a dropped group teaches nothing


def test_a_missing_reward_moves_nobody(tmp_path):
    """The group of the others alone: whatever stands in the missing place changes no weight."""
    after = []
    for filler in (0.0, 1.0):
        values = torch.tensor([0.1, filler, 0.4])
        answer = lambda images, batch, v=values: (v, torch.tensor([True, False, True]))  # noqa: E731
        after.append(weights(fit(tmp_path, stage(), Given(answer))[0]))
    assert same(*after)


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ([], {}, "needs a reward"),
        ([Given(ladder), Given(ladder)], {}, "two rewards are named 'given'"),
        ([Given(ladder)], {"weights": {"ocr": 1.0}}, "name each reward once"),
        ([Given(ladder)], {"routes": {"given": ["odd"]}}, "no reward scores the task 'even'"),
        ([Given(lambda images, batch: torch.tensor([2.0, 3.0, 4.0]))], {}, "reward given: a score of 2 lies outside"),
        ([Given(lambda images, batch: torch.tensor([0.1, 0.2, 1.5]))], {}, "a score of 1.5 lies outside .*range: "),
        ([Given(lambda images, batch: torch.tensor([0.1, -0.2, 0.5]))], {}, "a score of -0.2 lies outside"),
        ([Given(lambda images, batch: UserError("no target text for id0"))], {}, "no target text"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, rewards, options, message):
    run, module = trainer(tmp_path, rewards, max_steps=1), stage(**options)
    with pytest.raises(UserError, match=message) as refused:
        run.fit(module, datamodule=PromptData(), weights_only=True)
    assert "\n" not in str(refused.value)


def test_edits_in_place_of_prompts_are_refused(tmp_path):
    class Edits(Prompts):
        def batch(self, step):
            return sample(step)

    with pytest.raises(UserError, match="PromptDataModule"):
        fit(tmp_path, data=Edits())


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 1},
        {"points": 3, "updates": 2},
        {"kl": -1.0},
        {"backbone": Backbone("tiny", lora=LoRA(4, 8, dropout=0.1))},
    ],
)
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError, match=r"stage[.:]"):
        stage(**options)


def test_rewards_are_mixed_by_weight_and_task(tmp_path):
    flat = Given(lambda images, batch: torch.full((3,), 0.2), "flat")
    routes = {"flat": ["odd"]}
    _, watch = fit(
        tmp_path, stage(weights={"given": 3.0, "flat": 1.0}, routes=routes), [Given(ladder), flat], data=PromptData()
    )
    numbers = watch.numbers[0]
    assert [batch.tasks[0] for _, batch in flat.asked] == ["odd"]
    assert numbers["rollout/total/even/mean"] == pytest.approx(0.35)
    assert numbers["rollout/total/odd/mean"] == pytest.approx((3 * 0.35 + 0.2) / 4)
    assert numbers["rollout/given/odd/p50"] == pytest.approx(0.35)
    assert "rollout/flat/even/mean" not in numbers


def test_a_reward_without_a_route_scores_what_it_is_able_to(tmp_path, caplog):
    """As OCR, that needs a target text. Where no reward is able to, the group is dropped, counted and told of once."""

    class Choosy(Given):
        def applies(self, batch):
            return [task == "odd" for task in batch.tasks]

    choosy = Choosy(lambda images, batch: torch.full((3,), 0.2), "choosy")
    _, watch = fit(tmp_path, stage(), [Given(ladder), choosy])
    assert [batch.tasks[0] for _, batch in choosy.asked] == ["odd"]
    assert watch.numbers[0]["rollout/total/even/mean"] == pytest.approx(0.35)
    assert watch.numbers[0]["rollout/total/odd/mean"] == pytest.approx((0.35 + 0.2) / 2)
    _, watch = fit(tmp_path, stage(), Choosy(ladder, "choosy"))
    assert watch.numbers[0]["rollout/missing"] == 3
    assert watch.numbers[0]["groups/dropped"] == 0.5
    assert "nothing to score samples like 'id0' by" in caplog.text


# --- what is shown and kept ---


def test_everything_of_the_list_is_logged_and_the_grid_drawn(tmp_path):
    reward = PixelReward()
    _, watch = fit(
        tmp_path, stage(kl=0.1), reward, steps=2, extra=[RewardGrid(every=2)], logger=CSVLogger(tmp_path, name="csv")
    )
    numbers = watch.numbers[1]
    for name in (
        *("rollout/total/mean", "rollout/total/std", "rollout/pixel/p10", "rollout/pixel/odd/p90", "rollout/missing"),
        *("groups/flat", "groups/dropped", "groups/settled", "groups/std", "optimality/p05", "optimality/p95"),
        *("rollout/source_distance/mean", "time/rollout_share", "time/reward_share", "time/update_share"),
        "time/iteration_s",
        *("train/loss", "train/policy", "train/kl", "train/old_distance", "train/grad_norm", "train/old_decay"),
    ):
        assert name in numbers, name
    histogram = [numbers[f"optimality/{i / 10:.1f}-{(i + 1) / 10:.1f}"] for i in range(10)]
    assert sum(histogram) == pytest.approx(1)
    assert min(histogram[:5]) < 0.2 < sum(histogram[:5]) < 0.8  # within a group some are worse and some are better
    assert sum(numbers[f"time/{part}_share"] for part in ("rollout", "reward", "update")) == pytest.approx(1)
    times = {name for name in numbers if name.startswith("time/")}
    assert all(name.endswith(("_s", "_share")) for name in times), "a time says its unit"
    page = (Path(__file__).resolve().parents[4] / "docs" / "mlflow.md").read_text(encoding="utf-8")
    assert not [name for name in times if f"`{name}`" not in page]
    rollout = watch.outputs[1]["rollouts"][0]
    pixels, source = rollout.images.float() / 255, (rollout.sample.sources[0] + 1) / 2
    assert rollout.distance.tolist() == pytest.approx((pixels - source).abs().mean((1, 2, 3)).tolist(), abs=5e-3)
    target = (rollout.sample.pixels + 1) / 2
    scores = watch.outputs[1]["rewards"][0].tolist()
    assert scores == pytest.approx((1 - (pixels - target).abs().mean((1, 2, 3))).tolist(), abs=5e-3)
    assert (tmp_path / "rollouts" / "step_00000002.png").exists()


@pytest.mark.parametrize("backbone", [Backbone("tiny"), LORA], ids=["full", "lora"])
def test_stopped_and_resumed_is_bit_exact_old_policy_and_counters_too(tmp_path, backbone):
    made = partial(stage, backbone, kl=0.01, decay=lambda steps: min(0.2 * steps, 0.9))

    def run(name, steps, resume=None):
        checkpoint = Checkpoint(every=1, dir=str(tmp_path / name))
        return fit(tmp_path, made(), PixelReward(), steps, resume, extra=[checkpoint])

    straight, watched = run("straight", 5)
    run("begun", 3)
    resumed, again = run("resumed", 5, tmp_path / "begun" / "step_00000003.ckpt")
    assert same(weights(straight), weights(resumed))
    for now, then in zip(again.numbers, watched.numbers[3:], strict=True):
        assert {k: v for k, v in now.items() if "time/" not in k} == {k: v for k, v in then.items() if "time/" not in k}
    assert len(again.numbers) == 2
    assert not same(weights(straight), weights(fresh(backbone=backbone)))
    saved = torch.load(tmp_path / "straight" / "step_00000005.ckpt", weights_only=True)["state_dict"]
    trained = [n for n, p in straight.transformer.named_parameters() if p.requires_grad]
    assert sum(k.startswith("old.") for k in saved) == len(trained)
    if backbone.lora:
        assert all("lora_" in k for k in saved)


def test_a_resumed_run_without_its_old_policy_would_differ(tmp_path):
    """The comparison above can fail: the old policy is not the policy."""
    module, _ = fit(tmp_path, stage(decay=lambda steps: 0.9), PixelReward(), 2)
    old = WeightSwap(module.transformer).values
    assert any(not torch.equal(old[k], v) for k, v in module.old.values.items())


# --- toy proof: the loss code alone ---


def toy_rewards(sign=1.0, loss=adaptive, steps=150, seed=0):
    """Mean reward before and after `steps` of DiffusionNFT: points of the plane, reward exp(-|x - goal|^2)."""
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    old, goal = WeightSwap(net), torch.tensor([1.2, -0.8])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def velocity(x, sigma):
        return net(torch.cat([x, sigma[:, None]], 1))

    for _ in range(400):  # a base that draws around the origin
        draws, sigma = torch.randn(2, 256, 2, generator=g), torch.rand(256, generator=g)
        x_0, eps = 0.5 * draws[0], draws[1]
        optimizer.zero_grad()
        (velocity(interpolate(x_0, eps, sigma), sigma) - (eps - x_0)).square().mean().backward()
        optimizer.step()
    old.follow(net, 0.0)
    means = []
    for step in range(steps):
        with torch.no_grad(), old.swapped_into(net):
            x_0 = euler(velocity, torch.randn(128, 2, generator=g), torch.linspace(1, 0, 9))
            reward = torch.exp(-(x_0 - goal).square().sum(1))
            eps, sigma = torch.randn(x_0.shape, generator=g), torch.rand(128, generator=g)
            v_old = velocity(interpolate(x_0, eps, sigma), sigma)
        groups = torch.arange(128) // 16
        optimality = group_optimality(sign * reward, groups, clip=5.0)
        used = policy_mask(reward, groups)
        means.append(float(reward.mean()))
        optimizer.zero_grad()
        v = velocity(interpolate(x_0, eps, sigma), sigma)
        (loss(x_0, eps, sigma, v, v_old, optimality, clip=5.0) * used).mean().backward()
        optimizer.step()
        old.follow(net, old_policy_decay(step + 1))
    return means[0], sum(means[-5:]) / 5


@pytest.mark.parametrize("loss", [adaptive, as_written])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_toy_policys_reward_rises_three_times_and_falls_when_the_sign_is_wrong(loss, seed):
    start, end = toy_rewards(1.0, loss, seed=seed)
    assert end > 3 * start
    start, end = toy_rewards(-1.0, loss, seed=seed)
    assert end < 0.7 * start
