"""Reinforcement learning by DiffusionNFT: edits are drawn by an old policy, scored, and learnt from by noising them."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..batch import EditBatch, PromptBatch
from ..draws import gaussian
from ..errors import UserError
from ..flow import sampler
from ..flow.path import interpolate
from ..flow.sampler import Solver
from ..flow.timesteps import Law, stratified_uniform, uniform
from ..losses.flow_matching import flow_matching_loss
from ..losses.nft import PolicyLoss, adaptive, group_optimality, old_policy_decay, policy_mask
from ..models.backbone import Backbone
from ..models.flops import forward_flops
from ..models.sampling import Preview
from ..models.shadow import Shadow
from ..models.shard import grad_norm
from ..optim import HALF, OptimizerFactory, ScheduleFactory
from ..rewards.collect import answered, ask, range_of, rewards_of
from ..rewards.mix import applies_to
from ..rewards.names import absent_tasks, check_scored
from ..rewards.protocol import Reward, Scores
from ..rewards.scale import refuse_outside
from ..rewards.statistics import Scored, statistics
from .base import Stage
from .guard import Guard
from .rollout import Clock, Points, Rollout, Verdicts, pieces, source_distance, to_bytes

log = logging.getLogger(__name__)


class NFT(Stage):
    """DiffusionNFT (2509.16117), algorithm 1. One `training_step` is one iteration; the optimizer is stepped by hand.

    group_size: edits drawn of each sample, in rollout_steps steps of `solver` (see `flow.sampler`) without guidance.
    points: sigmas at which each edit is learnt, drawn by `timesteps`; updates: optimizer steps of an iteration, which
    share the points.
    common_noise: the edits of a group are noised by the same eps at the same sigma, so that what they share cancels in
    the gradient, where their advantages add up to nothing; else each by its own.
    loss: form of the loss, see `losses.nft`. clip, std: see `group_optimality`. min_std, max_mean: see `policy_mask`.
    kl: weight of ||v - v_reference||^2 against the weights that the stage started from; 0 spends no forward on it.
    decay: of the old policy after so many optimizer steps. weights, routes: of the rewards, see `mix`.
    patience: seconds that rewards may take after the last edit is drawn; what is late is missing.
    capacity: visual tokens of one forward; None draws a whole group at once. gradient_clip: norm of the gradient.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        group_size: int = 12,
        rollout_steps: int = 6,
        solver: Solver = sampler.euler,
        points: int = 2,
        updates: int = 1,
        timesteps: Law = uniform,
        resolution_shift: bool = True,
        common_noise: bool = False,
        loss: PolicyLoss = adaptive,
        clip: float = 5.0,
        std: Literal["group", "batch"] = "group",
        min_std: float = 0.05,
        max_mean: float = 0.9,
        kl: float = 0.0,
        decay: Callable[[int], float] = old_policy_decay,
        weights: Mapping[str, float] | None = None,
        routes: Mapping[str, Collection[str]] | None = None,
        patience: float = 300.0,
        capacity: int | None = None,
        gradient_clip: float = 1.0,
        guard: Guard | None = None,
        preview: Preview | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, schedule, preview, seed, guard)
        self.automatic_optimization = False
        self.group_size, self.rollout_steps, self.points, self.updates = group_size, rollout_steps, points, updates
        self.solver = solver
        self.timesteps, self.resolution_shift, self.loss = timesteps, resolution_shift, loss
        self.common_noise = common_noise
        self.clip, self.std, self.filter = clip, std, {"min_std": min_std, "max_mean": max_mean}
        self.kl, self.decay, self.weights, self.routes = kl, decay, weights, routes
        self.patience, self.capacity, self.gradient_clip = patience, capacity, gradient_clip
        self.rewards: dict[str, Reward] = {}
        self.said: set[tuple[str, str]] = set()
        self.edits = self.scored = 0  # of this process's steps, over all processes: drawn, and with a reward
        self.missing: Counter[str] = Counter()  # edits without their score, by the reward's name, of this process
        self.reference: dict[str, Shadow] = {}  # in a dict: a new start has it again, so no checkpoint holds it
        self._check()

    def _check(self) -> None:
        if self.group_size < 2:
            raise UserError(f"stage.group_size={self.group_size}: at least 2, a reward is compared within its group")
        if self.points < 1 or self.updates < 1 or self.points % self.updates:
            raise UserError(f"stage.points={self.points}: must be a multiple of stage.updates={self.updates}")
        if self.rollout_steps < 1 or self.kl < 0 or self.clip <= 0:
            raise UserError("stage: rollout_steps is at least 1, kl at least 0 and clip above 0")
        if self.backbone.lora is not None and self.backbone.lora.dropout:
            raise UserError("stage.backbone.lora.dropout: must be 0, an edit is learnt by the network that drew it")
        if self.trained_dtype in HALF:
            raise UserError(
                f"stage.backbone.dtype={self.backbone.dtype}: the old policy is an average of the trained weights and"
                " would round their small steps away; set it to float32, or add a lora"
            )

    def setup(self, stage: str) -> None:
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            tasks = (getattr(data, "summary", None) or {}).get("tasks")
            self.rewards = rewards_of(self.trainer.callbacks, self.weights, self.routes, tasks)
            if tasks is not None:
                self._hold_routes_against(tasks, data)

    def _hold_routes_against(self, tasks: Collection[str], data: Any) -> None:
        """Refuse a task of the data that no reward scores; say which tasks are routed and not in the data."""
        routes = self.routes or {}
        every_task_is_drawn = not getattr(data, "weights", None) and not getattr(data, "mined", None)
        if every_task_is_drawn:
            check_scored(routes, self.rewards, tasks)
        absent = absent_tasks(routes, tasks)
        if absent:
            rank_zero_info(f"stage.routes: not among the data's tasks: {', '.join(absent)}")

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "old"):
            self.old = Shadow(self.transformer)
            if self.kl:
                self.reference["start"] = Shadow(self.transformer)

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        """With LoRA a checkpoint holds the adapter and the old policy's."""
        return super().kept(state) | {k: v for k, v in state.items() if k.startswith("old.")}

    def on_fit_start(self) -> None:
        for shadow in self.reference.values():
            shadow.to(self.device)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        if not isinstance(batch, PromptBatch):
            raise UserError("data: NFT edits prompts; set data._target_=datamodules.prompts.PromptDataModule")
        clock = Clock(self.device)
        with torch.no_grad(), self.old.swapped_into(self.transformer):
            with clock.on("rollout"):
                rollouts = [self.roll_out(sample) for sample in batch.groups]  # read while the next one is drawn
            with clock.on("update"):
                points = [p for place, rollout in enumerate(rollouts) for p in self.noised(rollout, place)]
                for p in [] if self.on_policy else points:
                    p.v_old = self.velocity_at(p)
        with clock.on("update"):
            self.compare_with_reference(points)
            verdicts = Verdicts(rollouts, self.scoring(), self.judge, clock, whole=self.std == "batch")
            numbers = self.learn(points, verdicts)
            decay = self.decay(self.global_step)
            self.old.follow(self.transformer, decay)
        everyone = Scored.join(verdicts.everyone())
        self.edits += len(everyone.valid)
        self.scored += int(everyone.valid.sum())
        refuse_outside(everyone.outside, {name: range_of(reward) for name, reward in self.rewards.items()})
        numbers |= statistics(everyone, *self.judge(everyone)) | clock.shares() | {"train/old_decay": decay}
        self.log_dict(numbers, rank_zero_only=True, batch_size=1)
        shown = {"reward": numbers.get("rollout/total/mean", float("nan")), "missing": numbers["rollout/missing"]}
        self.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True, batch_size=1)
        return {"rollouts": rollouts, "rewards": verdicts.rewards()}

    @property
    def on_policy(self) -> bool:
        """The old policy is the policy itself in this iteration, and needs no forward of its own."""
        return self.updates == 1 and self.decay(self.global_step) == 0

    def roll_out(self, sample: EditBatch) -> Rollout:
        """Draw a group's edits from noise keyed by (seed, step, slot, edit), and ask for their rewards."""
        shape, tokens = sample.target.shape[1:], sample.target.shape[-2] * sample.target.shape[-1] // 4
        key = (self.seed, "rollout", sample.step, sample.slots[0])
        noise = gaussian(shape, tuple(range(self.group_size)), *key).to(self.device)
        sigmas = sampler.schedule(self.rollout_steps, tokens, self.scheduler_config)
        latents, images = [], []
        for rows in self.split(sample):
            condition = sample.repeated(rows.stop - rows.start).condition
            latents.append(self.solver(lambda x, s, c=condition: self.velocity(x, s, c), noise[rows], sigmas))
            images.append(self.codec.decode(latents[-1]).float().clamp(-1, 1))
        x_0, pixels = torch.cat(latents), torch.cat(images)
        asked = ask(self.rewards, pixels, sample.repeated(self.group_size), self.routes)
        return Rollout(sample, x_0, to_bytes(pixels), source_distance(pixels, sample.source), asked)

    def flops(self, batch: PromptBatch) -> float:
        """Return the FLOPs of an iteration.

        They are those of drawing every edit, and of the old policy, the reference and the update at each of its points.
        """
        forwards = self.rollout_steps + self.points * ((not self.on_policy) + bool(self.kl))
        drawn = sum(forward_flops(*self.sample(group)) for group in batch.groups)
        return self.group_size * (forwards * drawn + self.points * sum(super(NFT, self).flops(g) for g in batch.groups))

    def split(self, sample: EditBatch) -> list[slice]:
        """A group's edits, as many at a time as the capacity holds."""
        return list(pieces(self.group_size, self.capacity and max(1, self.capacity // sample.tokens)))

    def noised(self, rollout: Rollout, place: int) -> list[Points]:
        """The points of the group at `place`: sigma stratified over all processes' draws, noise keyed by the draw."""
        sample, size = rollout.sample, self.group_size
        found, slot = [], sample.slots[0]
        draws = 1 if self.common_noise else size  # of sigma and eps, for each of the group's points
        for j in range(self.points):
            slots = [(slot * draws + k) * self.points + j for k in range(draws)]
            u = stratified_uniform(sample.step, slots, sample.num_slots * draws * self.points, seed=self.seed)
            sigma = self.timesteps(u)
            sigma = (self.shift(sigma, sample) if self.resolution_shift else sigma).to(rollout.latents)
            key = (self.seed, "noise", sample.step, slot, j)
            eps = gaussian(rollout.latents.shape[1:], tuple(range(draws)), *key).to(rollout.latents)
            sigma, eps = sigma.expand(size), eps.expand(size, *eps.shape[1:])
            for rows in self.split(sample):
                condition = sample.repeated(rows.stop - rows.start).condition
                x_0 = rollout.latents[rows]
                found.append(Points(place, rows, j % self.updates, condition, x_0, eps[rows], sigma[rows]))
        return found

    def velocity_at(self, points: Points) -> Tensor:
        return self.velocity(interpolate(points.x_0, points.eps, points.sigma), points.sigma, points.condition)

    def compare_with_reference(self, points: list[Points]) -> None:
        if self.kl:
            with torch.no_grad(), self.reference["start"].swapped_into(self.transformer):
                for p in points:
                    p.v_reference = self.velocity_at(p)

    def scoring(self) -> Callable[[Rollout], Scored]:
        """Return the function that waits for a group's rewards; the patience for all groups begins now."""
        weights = self.weights or dict.fromkeys(self.rewards, 1.0)
        until = time.monotonic() + self.patience

        def score(rollout: Rollout) -> Scored:
            scores = answered(rollout.asked, weights, self.routes, until)
            self.say(rollout.asked.failures)
            self.count_missing(rollout, scores, weights)
            groups = torch.zeros(len(scores), dtype=torch.long)
            given = (scores.value, scores.valid, scores.terms, rollout.distance, rollout.asked.outside)
            return Scored(rollout.asked.tasks, groups, *given)

        return score

    def count_missing(self, rollout: Rollout, scores: Scores, weights: Mapping[str, float]) -> None:
        """Count the edits of a group that a reward should have scored and has not, by the reward's name."""
        for name, weight in weights.items():
            due = applies_to(name, rollout.asked.tasks, self.routes, rollout.asked.able) & (weight > 0)
            self.missing[name] += int((due & scores.terms[name].isnan()).sum())

    def on_train_end(self) -> None:
        if self.trainer.world_size > 1:
            everyone: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(everyone, self.missing)
            self.missing = sum(everyone, Counter())

    def learnt_nothing(self) -> str | None:
        if self.edits and not self.scored:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.said)[:3])
            return f"none of {self.edits} edits got a reward ({reasons or 'no reason was given'})"
        return super().learnt_nothing()

    def remarks(self) -> list[str]:
        if self.guard.taken and not self.guard.moved:
            why = "within each group their rewards were equal, or above stage.max_mean"
            return [f"nothing was learnt from {self.edits} edits: {why}"]
        return super().remarks()

    def say(self, failures: Mapping[str, str]) -> None:
        """Why rewards are missing, each reason once."""
        for failure in failures.items() - self.said:
            log.warning("reward %s: a group has no scores: %s", *failure)
        self.said |= set(failures.items())

    def judge(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Optimality (N,) of edits, and which of them (N,) the policy term learns from."""
        optimality = group_optimality(scored.reward, scored.groups, clip=self.clip, std=self.std, valid=scored.valid)
        return optimality, policy_mask(scored.reward, scored.groups, valid=scored.valid, **self.filter)

    def learn(self, points: list[Points], verdicts: Verdicts) -> dict[str, float]:
        """The optimizer steps of an iteration. As many forwards on every process: what is not used weighs zero."""
        sums = {name: torch.zeros((), device=self.device) for name in ("loss", "policy", "kl", "old_distance")}
        norms, count = [], sum(len(p.x_0) for p in points)
        rate = torch.as_tensor(float(self.optimizers().param_groups[0]["lr"]), device=self.device)
        for update in range(self.updates):
            own = [p for p in points if p.update == update]
            self.optimizers().zero_grad()
            for p in own:
                optimality, used = (part[p.rows].to(self.device) for part in verdicts.of(p.place))
                with self.unsynchronised() if p is not own[-1] else nullcontext():
                    self.manual_backward(self.losses(p, optimality, used, sums).sum() * self.updates / count)
            norms.append(self.step())
        total = {f"train/{name}": value / count for name, value in sums.items()}
        total["train/grad_norm"] = torch.stack(norms).mean()
        total["train/lr"] = rate
        total["train/skipped"] = torch.tensor(float(self.guard.skipped), device=self.device)
        if not self.kl:
            del total["train/kl"]
        return _averaged(total, self.trainer.world_size)

    def losses(self, p: Points, optimality: Tensor, used: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """The loss (B,) at some points; adds what is to be logged to `sums`."""
        v = self.velocity_at(p)
        v_old = v.detach() if p.v_old is None else p.v_old
        policy = self.loss(p.x_0, p.eps, p.sigma, v, v_old, optimality, clip=self.clip) * used
        kl = torch.zeros_like(policy) if p.v_reference is None else flow_matching_loss(v, p.v_reference)
        loss = policy + self.kl * kl
        parts = {"loss": loss, "policy": policy, "kl": kl, "old_distance": flow_matching_loss(v, v_old)}
        for name, part in parts.items():
            sums[name] += part.detach().sum()
        return loss

    def step(self) -> Tensor:
        """One optimizer step; the norm of the gradient before it is clipped."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        norm = grad_norm(self.transformer.parameters())
        if self.guard.admits(float(norm), self.global_step):
            self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
        else:
            optimizer.zero_grad()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        return norm

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """`step` has looked already, before it clipped."""

    def unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients only add up; the last backward before a step exchanges them."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def _averaged(numbers: dict[str, Tensor], world: int) -> dict[str, float]:
    """Means over processes."""
    values = torch.stack([value.float() for value in numbers.values()])
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist()))
