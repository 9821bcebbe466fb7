"""Reinforcement learning by DiffusionNFT: edits are drawn by an old policy, scored, and learnt from by noising them."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ..batch import Condition, EditBatch, PromptBatch
from ..draws import gaussian
from ..errors import UserError
from ..flow import sampler
from ..flow.path import interpolate
from ..flow.sampler import Solver
from ..flow.timesteps import TimestepDistribution, stratified_uniform, uniform
from ..losses.flow_matching import flow_matching_loss
from ..losses.nft import PolicyLoss, adaptive, old_policy_decay
from ..models.backbone import Backbone
from ..models.cost.flops import forward_flops
from ..models.sampling import Preview
from ..models.shard import grad_norm
from ..models.weight_swap import WeightSwap
from ..optim import HALF, OptimizerFactory, ScheduleFactory
from ..rewards.collect import range_of, rewards_of
from ..rewards.names import absent_tasks, check_scored
from ..rewards.panel import RewardPanel
from ..rewards.scale import refuse_outside
from ..rewards.statistics import ScoredEdits, statistics
from .base import Stage
from .guard import Guard
from .rollout import AdvantageRule, Clock, GroupAdvantages, Points, Rollout, slices, source_distance, to_bytes


class NFT(Stage):
    """DiffusionNFT (2509.16117), algorithm 1. One `training_step` is one iteration; the optimizer is stepped by hand.

    A `training_step` reads in this order: draw groups of edits by the old policy, ask for their rewards, noise the
    edits, compare policy, old policy and reference there, step the optimizer, and let the old policy follow.

    Args:
        backbone, optimizer, schedule, guard, preview, seed: see `Stage`.

        group_size: edits drawn of each sample, at least 2.
        rollout_steps: solver steps of an edit, without guidance.
        solver: see `flow.sampler`.

        points: sigmas at which each edit is learnt, a multiple of `updates`.
        updates: optimizer steps of an iteration, which share the points.
        timesteps: the law of the points' sigma, an inverse CDF on [0, 1).
        resolution_shift: shift sigma for the target's resolution.
        common_noise: the edits of a group are noised by the same eps at the same sigma, so that all that they share
            cancels in the gradient, as their advantages add up to nothing; else each by its own.
        capacity: visual tokens of one forward; None draws a whole group at once.

        loss: form of the loss, see `losses.nft`.
        kl: weight of ||v - v_reference||^2 against the weights that the stage started from; 0 spends no forward on it.
        decay: eta of the old policy after so many optimizer steps.
        gradient_clip: norm of the gradient.

        clip: advantages are cut at +-clip, see `group_optimality`.
        std: of the rewards by which advantages are divided, over the "group" or the whole "batch".
        min_std, max_mean: the policy term leaves out groups whose rewards have a mean above max_mean and a standard
            deviation below min_std, see `policy_mask`.

        weights: of each reward in the mixture; None where all weigh the same.
        routes: reward -> the tasks that it scores.
        patience: seconds that rewards may take after the last edit is drawn; a late one is missing.
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
        timesteps: TimestepDistribution = uniform,
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

        # Rollout.
        self.group_size = group_size
        self.rollout_steps = rollout_steps
        self.solver = solver

        # Points at which the edits are learnt.
        self.points = points
        self.updates = updates
        self.timesteps = timesteps
        self.resolution_shift = resolution_shift
        self.common_noise = common_noise
        self.capacity = capacity

        # Loss and optimizer step.
        self.loss = loss
        self.clip = clip
        self.kl = kl
        self.decay = decay
        self.gradient_clip = gradient_clip

        # Rewards and advantages.
        self.panel = RewardPanel({}, weights, routes, patience)  # its rewards are known in `setup`
        self.weights = weights
        self.routes = routes
        self.std = std
        self.advantages: Callable[[ScoredEdits], Any] = AdvantageRule(clip, std, min_std, max_mean)

        # Edits of this process's steps, over all processes.
        self.edits = 0
        self.scored = 0  # those with a reward

        # In a dict, so that no checkpoint holds it: a new start makes it again.
        self.reference: dict[str, WeightSwap] = {}
        self._check()

    @property
    def missing(self) -> Counter[str]:
        """Edits without a score that a reward should have given, by its name."""
        return self.panel.missing

    def _check(self) -> None:
        """Raise UserError for settings that contradict each other."""
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
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        summary = getattr(data, "summary", None) or {}
        tasks = summary.get("tasks")
        callbacks: list[L.Callback] = getattr(self.trainer, "callbacks", [])
        self.panel.rewards = rewards_of(callbacks, self.weights, self.routes, tasks)
        if tasks is not None:
            self._hold_routes_against(tasks, data)

    def _hold_routes_against(self, tasks: Collection[str], data: Any) -> None:
        """Refuse a task of the data that no reward scores; say which tasks are routed and not in the data."""
        routes = self.routes or {}
        every_task_is_drawn = not getattr(data, "weights", None) and not getattr(data, "mined", None)
        if every_task_is_drawn:
            check_scored(routes, self.panel.rewards, tasks)
        absent = absent_tasks(routes, tasks)
        if absent:
            rank_zero_info(f"stage.routes: not among the data's tasks: {', '.join(absent)}")

    def configure_model(self) -> None:
        super().configure_model()
        if not hasattr(self, "old"):
            self.old = WeightSwap(self.transformer)
            if self.kl:
                self.reference["start"] = WeightSwap(self.transformer)

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        """With LoRA a checkpoint holds the adapter and the old policy's."""
        old = {name: value for name, value in state.items() if name.startswith("old.")}
        return super().kept(state) | old

    def on_fit_start(self) -> None:
        for weights in self.reference.values():
            weights.to(self.device)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> dict[str, Any]:
        if not isinstance(batch, PromptBatch):
            raise UserError("data: NFT edits prompts; set data._target_=datamodules.prompts.PromptDataModule")
        clock = Clock(self.device)

        # Draw the groups by the old policy, and noise their edits. Its velocity there is kept for the loss.
        with torch.no_grad(), self.old.swapped_into(self.transformer):
            with clock.on("rollout"):
                rollouts = [self.roll_out(sample) for sample in batch.groups]
            with clock.on("update"):
                points: list[Points] = []
                for place, rollout in enumerate(rollouts):
                    points += self.noised(rollout, place)
                if not self.on_policy:
                    for p in points:
                        p.v_old = self.velocity_at(p)

        with clock.on("update"):
            # The reference's velocity, for the KL term.
            self.compare_with_reference(points)

            # Learn: a group's rewards are waited for when its first point is reached.
            over_all = self.std == "batch"
            groups = GroupAdvantages(rollouts, self.panel, self.advantages, clock, over_all)
            numbers = self.learn(points, groups)

            # theta_old <- eta theta_old + (1 - eta) theta.
            decay = self.decay(self.global_step)
            self.old.follow(self.transformer, decay)

        self.log_iteration(ScoredEdits.join(groups.everyone()), numbers | {"train/old_decay": decay}, clock)
        return {"rollouts": rollouts, "rewards": groups.rewards()}

    def log_iteration(self, scored: ScoredEdits, numbers: dict[str, float], clock: Clock) -> None:
        """Log an iteration, and count its edits.

        Args:
            scored: the edits of all processes.
            numbers: of the optimizer steps, by the names of their curves.
            clock: of this process.

        Raises:
            UserError: a score lies clearly outside of its reward's scale.
        """
        self.edits += len(scored.valid)
        self.scored += int(scored.valid.sum())
        ranges = {name: range_of(reward) for name, reward in self.panel.rewards.items()}
        refuse_outside(scored.outside, ranges)

        numbers = numbers | statistics(scored, *self.advantages(scored)) | clock.shares()
        self.log_dict(numbers, rank_zero_only=True, batch_size=1)

        # The progress bar.
        shown = {"reward": numbers.get("rollout/total/mean", float("nan")), "missing": numbers["rollout/missing"]}
        self.log_dict(shown, prog_bar=True, logger=False, rank_zero_only=True, batch_size=1)

    @property
    def on_policy(self) -> bool:
        """The old policy is the policy itself in this iteration, and needs no forward of its own."""
        return self.updates == 1 and self.decay(self.global_step) == 0

    def roll_out(self, sample: EditBatch) -> Rollout:
        """Draw a group's edits from noise keyed by (seed, step, slot, edit), and ask for their rewards."""
        shape = sample.target.shape[1:]
        tokens = shape[-2] * shape[-1] // 4
        edits = tuple(range(self.group_size))
        noise = gaussian(shape, edits, self.seed, "rollout", sample.step, sample.slots[0]).to(self.device)
        sigmas = sampler.schedule(self.rollout_steps, tokens, self.scheduler_config)

        # Solve the ODE from noise to edits, and decode them.
        latents, images = [], []
        for rows in self.split(sample):
            condition = sample.repeated(rows.stop - rows.start).condition

            def field(x: Tensor, sigma: Tensor, condition: Condition = condition) -> Tensor:
                return self.velocity(x, sigma, condition)

            latents.append(self.solver(field, noise[rows], sigmas))
            images.append(self.codec.decode(latents[-1]).float().clamp(-1, 1))
        x_0 = torch.cat(latents)
        pixels = torch.cat(images)

        asked = self.panel.ask(pixels, sample.repeated(self.group_size))
        return Rollout(sample, x_0, to_bytes(pixels), source_distance(pixels, sample.source), asked)

    def flops(self, batch: PromptBatch) -> float:
        """Return the FLOPs of an iteration: drawing, and at each point old policy, reference and update."""
        drawn = sum(forward_flops(*self.sample(group)) for group in batch.groups)
        learnt = sum(super(NFT, self).flops(group) for group in batch.groups)
        compared = int(not self.on_policy) + int(bool(self.kl))  # forwards at each point beside the policy's own
        forwards = self.rollout_steps + self.points * compared
        return self.group_size * (forwards * drawn + self.points * learnt)

    def split(self, sample: EditBatch) -> list[slice]:
        """Return a group's edits, as many at a time as the capacity holds."""
        if not self.capacity:
            return list(slices(self.group_size, None))
        return list(slices(self.group_size, max(1, self.capacity // sample.tokens)))

    def noised(self, rollout: Rollout, place: int) -> list[Points]:
        """Noise a group's edits at `points` sigmas.

        sigma is stratified over the draws of all processes, noise is keyed by (seed, step, slot, point, draw).

        Args:
            rollout: the group.
            place: its number among this process's groups.
        """
        sample, size = rollout.sample, self.group_size
        slot = sample.slots[0]
        draws = 1 if self.common_noise else size  # of sigma and eps, for each of the group's points
        points = []
        for j in range(self.points):
            # sigma (K,), shifted for the resolution.
            slots = [(slot * draws + k) * self.points + j for k in range(draws)]
            u = stratified_uniform(sample.step, slots, sample.num_slots * draws * self.points, seed=self.seed)
            sigma = self.timesteps(u)
            if self.resolution_shift:
                sigma = self.shift(sigma, sample)
            sigma = sigma.to(rollout.latents).expand(size)

            # eps (K, 16, h, w).
            key = (self.seed, "noise", sample.step, slot, j)
            eps = gaussian(rollout.latents.shape[1:], tuple(range(draws)), *key).to(rollout.latents)
            eps = eps.expand(size, *eps.shape[1:])

            for rows in self.split(sample):
                condition = sample.repeated(rows.stop - rows.start).condition
                points.append(
                    Points(
                        place=place,
                        rows=rows,
                        update=j % self.updates,
                        condition=condition,
                        x_0=rollout.latents[rows],
                        eps=eps[rows],
                        sigma=sigma[rows],
                    )
                )
        return points

    def velocity_at(self, points: Points) -> Tensor:
        """Return the present weights' velocity (B, 16, h, w) at noised edits."""
        return self.velocity(interpolate(points.x_0, points.eps, points.sigma), points.sigma, points.condition)

    def compare_with_reference(self, points: list[Points]) -> None:
        """Keep the reference's velocity at each point, when the loss has a KL term."""
        if not self.kl:
            return
        with torch.no_grad(), self.reference["start"].swapped_into(self.transformer):
            for p in points:
                p.v_reference = self.velocity_at(p)

    def on_train_end(self) -> None:
        if self.trainer.world_size > 1:
            everyone: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(everyone, self.panel.missing)
            self.panel.missing = sum(everyone, Counter())

    def learnt_nothing(self) -> str | None:
        if self.edits and not self.scored:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.panel.reasons)[:3])
            return f"none of {self.edits} edits got a reward ({reasons or 'no reason was given'})"
        return super().learnt_nothing()

    def remarks(self) -> list[str]:
        if self.guard.taken and not self.guard.moved:
            why = "within each group their rewards were equal, or above stage.max_mean"
            return [f"nothing was learnt from {self.edits} edits: {why}"]
        return super().remarks()

    def learn(self, points: list[Points], groups: GroupAdvantages) -> dict[str, float]:
        """Take the optimizer steps of an iteration, and return the numbers to log, averaged over processes.

        Every process does as many forwards as the others: what is not used weighs zero.
        """
        sums = {name: torch.zeros((), device=self.device) for name in ("loss", "policy", "kl", "old_distance")}
        count = sum(len(p.x_0) for p in points)
        optimizer: Any = self.optimizers()
        rate = torch.as_tensor(float(optimizer.param_groups[0]["lr"]), device=self.device)

        # One optimizer step on each share of the points; gradients are exchanged in the last backward alone.
        norms = []
        for update in range(self.updates):
            share = [p for p in points if p.update == update]
            optimizer.zero_grad()
            for p in share:
                optimality, used = (part[p.rows].to(self.device) for part in groups.of(p.place))
                last = p is share[-1]
                with nullcontext() if last else self.unsynchronised():
                    loss = self.losses(p, optimality, used, sums)
                    self.manual_backward(loss.sum() * self.updates / count)
            norms.append(self.step())

        # The numbers of the iteration.
        total = {f"train/{name}": value / count for name, value in sums.items()}
        total["train/grad_norm"] = torch.stack(norms).mean()
        total["train/lr"] = rate
        total["train/skipped"] = torch.tensor(float(self.guard.skipped), device=self.device)
        if not self.kl:
            del total["train/kl"]
        return _averaged(total, self.trainer.world_size)

    def losses(self, p: Points, optimality: Tensor, used: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """Return the loss (B,) at some points, and add its terms to `sums`, which are logged."""
        v = self.velocity_at(p)
        v_old = v.detach() if p.v_old is None else p.v_old
        policy = self.loss(p.x_0, p.eps, p.sigma, v, v_old, optimality, clip=self.clip) * used
        kl = torch.zeros_like(policy) if p.v_reference is None else flow_matching_loss(v, p.v_reference)
        loss = policy + self.kl * kl

        terms = {"loss": loss, "policy": policy, "kl": kl, "old_distance": flow_matching_loss(v, v_old)}
        for name, term in terms.items():
            sums[name] += term.detach().sum()
        return loss

    def step(self) -> Tensor:
        """Take one optimizer step, unless the guard leaves it out. Returns the gradient's norm before clipping."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
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
        """Return a context in which gradients are added up, and not exchanged between processes."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return nullcontext()


def _averaged(numbers: dict[str, Tensor], world: int) -> dict[str, float]:
    """Return the means of numbers over processes."""
    values = torch.stack([value.float() for value in numbers.values()])
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist()))
