"""The base of every stage: the transformer, its optimizer, and validation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ..batch import Condition, EditBatch, Unencoded
from ..checkpoints import lineage
from ..checkpoints.checkpoint import check_architecture
from ..checkpoints.resume import RecipeWins, SavedOptimizer, dequantised, name_of, options_of, refuse_other_optimizer
from ..draws import gaussian, seed_of
from ..errors import UserError, naming
from ..flow.path import interpolate, velocity
from ..flow.sampler import resolution_shift, schedule
from ..losses.flow_matching import flow_matching_loss
from ..models import qwen_image
from ..models.backbone import Backbone
from ..models.codec import Codec
from ..models.cost.flops import training_flops
from ..models.family import Base
from ..models.lora import is_adapter
from ..models.online import encoded
from ..models.sampling import Preview, sample
from ..models.shard import accumulate_in_float32, grad_norm
from ..optim import OptimizerFactory, ScheduleFactory, parameter_groups, refuse_rounding, rounds_stochastically
from .guard import Guard

if TYPE_CHECKING:
    from ..models.transformer import Transformer


class Stage(L.LightningModule):
    """A stage without a loss: subclasses add `training_step`.

    Args:
        backbone: the transformer, and how it is loaded.
        optimizer: a factory, `optimizer(groups)`.
        schedule: a factory, `schedule(optimizer)`; None keeps the rate.
        preview: the drawing of validation's edits; None draws none.
        seed: the key of every draw.
        guard: the choice of optimizer steps that are left out; None: those without a finite gradient.
    """

    transformer: "Transformer"

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None,
        preview: Preview | None,
        seed: int,
        guard: Guard | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.preview = preview
        self.seed = seed
        self.guard = guard or Guard()
        self._ids: Sequence[str] = ()  # samples of the present micro-batch
        self.recipe_options: list[dict[str, Any]] = []  # of the optimizer, before a checkpoint is loaded
        self._saved_optimizer: SavedOptimizer | None = None
        self.strict_loading = backbone.lora is None  # an adapter's checkpoint has none of the frozen weights
        self.frozen: dict[str, Any] = {}  # VAE and text encoder, in a dict: no submodules, and in no checkpoint
        self.scores = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "psnr", "ssim")})

    def configure_model(self) -> None:
        if hasattr(self, "transformer"):
            return
        device: torch.device | str = "cpu"
        sharding = None
        if self._trainer is not None:
            device = self.trainer.strategy.root_device
            sharding = getattr(self.trainer.strategy, "sharding", None)
        self.transformer = self.backbone.load(self.seed, device, sharding)

    @property
    def base(self) -> Base:
        """The model that is trained over."""
        return self.backbone.base

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The base's."""
        return self.base.scheduler_config

    @cached_property
    def _base_facts(self) -> dict[str, Any]:
        """The facts of the base that every checkpoint records."""
        return lineage.facts_of(self.base)

    @property
    def trained_dtype(self) -> torch.dtype:
        """The precision of the trained weights; an adapter's is float32 over any base."""
        if self.backbone.lora is not None:
            return torch.float32
        return getattr(torch, self.backbone.dtype)

    def start_from(self, folder: Path) -> None:
        """Begin with the weights of a diffusers folder in place of the base's."""
        self.backbone = replace(self.backbone, name=str(folder))

    def go_on_in(self, run: Path) -> None:
        """Go on over the base that a run began with, even if its name means another one by now."""
        place = lineage.place_of(run, self.backbone.name)
        if place is not None:
            self.backbone = self.backbone.at(place)

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of a state dict that a checkpoint holds: all, or with LoRA the adapter alone."""
        if self.backbone.lora is None:
            return state
        return {name: value for name, value in state.items() if is_adapter(name)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.kept(checkpoint["state_dict"])
        checkpoint["guard"] = self.guard.state_dict()
        if self._trainer is not None and self.trainer.optimizers:
            checkpoint["optimizer"] = name_of(self.trainer.optimizers[0])
        checkpoint[lineage.KEY] = self._base_facts
        if self.backbone.lora is not None:
            checkpoint["lora"] = self.backbone.lora.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what would fit and yet be wrong: another base's weights, and an adapter of another scale."""
        if "state_dict" in checkpoint:  # a sharded one is read by its strategy
            check_architecture(self.kept(self.state_dict()), checkpoint["state_dict"])
        lineage.refuse_other_base(checkpoint.get(lineage.KEY), self.base, "run.resume")
        if "guard" in checkpoint:
            self.guard.load_state_dict(checkpoint["guard"])
        saved, lora = checkpoint.get("lora"), self.backbone.lora
        if lora is not None and saved is not None and saved["alpha"] != lora.alpha:
            raise UserError(f"the checkpoint's LoRA has alpha {saved['alpha']}, the recipe's {lora.alpha}")
        if self._trainer is not None:
            self._take_optimizer(checkpoint)

    def _take_optimizer(self, checkpoint: dict[str, Any]) -> None:
        """Look at the optimizer's state that Lightning is about to load, and leave the schedule's out.

        A schedule follows the number of steps, see `resume.schedule_at`.
        """
        checkpoint["lr_schedulers"] = []
        if not self.trainer.strategy.lightning_restore_optimizer:  # the strategy has loaded it
            return
        states = checkpoint.get("optimizer_states")
        if not states:
            raise UserError("run.resume: the checkpoint has weights alone; begin a new run with run.start_from=PATH")
        self._saved_optimizer = SavedOptimizer.of(checkpoint, states[0])
        if not rounds_stochastically(self.optimizer_factory):
            checkpoint["optimizer_states"] = [dequantised(state) for state in states]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Encode the prompts of a batch that the loader left to the text encoder."""
        if not isinstance(batch, EditBatch) or not isinstance(batch.condition.text, Unencoded):
            return batch
        if "conditioner" not in self.frozen:
            self.frozen["conditioner"] = self.base.conditioner(self.device, batch.condition.text.embeddings.dtype)
        text = encoded(self.frozen["conditioner"], batch.condition.text)
        return replace(batch, condition=replace(batch.condition, text=text))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key dropout as every draw: it knows no other source than the global random state."""
        self._ids = batch.ids
        if self.backbone.lora is not None and self.backbone.lora.dropout:
            torch.manual_seed(seed_of(self.seed, "dropout", batch.step, batch.slots))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Spread a loss that is not finite to all gradients, and so to the norm that every process sees."""
        self.guard.saw(self._ids, loss)
        super().backward(loss * (1 + 0 * loss.detach()), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm before it is clipped; take the gradient from a step that is left out."""
        norm = grad_norm(self.transformer.parameters())
        self.log("train/grad_norm", norm)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))
        if not self.guard.admits(float(norm), self.global_step):
            optimizer.zero_grad()
        self.log("train/skipped", float(self.guard.skipped))

    def configure_callbacks(self) -> list[L.Callback]:
        return [RecipeWins()]

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its schedule.

        Raises:
            UserError: it would round half-precision weights, or cannot go on from the checkpoint's state.
        """
        named = dict(self.transformer.named_parameters())
        trained = [parameter for parameter in named.values() if parameter.requires_grad]
        with naming("stage.optimizer"):
            optimizer = self.optimizer_factory(parameter_groups(named.items()))

        # What would be lost without a word.
        refuse_rounding(optimizer, (parameter.dtype for parameter in trained))
        if self._saved_optimizer is not None:
            refuse_other_optimizer(self._saved_optimizer, optimizer)
        self.recipe_options = options_of(optimizer)

        # Half-precision weights: keyed rounding, and gradients of several micro-batches that add up in float32.
        if rounds_stochastically(optimizer):
            seeded: Any = optimizer
            seeded.seed = self.seed
        if self._sums_gradients():
            accumulate_in_float32(trained)

        if self.schedule_factory is None:
            return optimizer
        with naming("stage.schedule"):
            schedule = self.schedule_factory(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _sums_gradients(self) -> bool:
        """Return whether a step's gradient is the sum of several backward passes."""
        accumulated = self._trainer is not None and self.trainer.accumulate_grad_batches > 1
        return accumulated or not self.automatic_optimization

    def learnt_nothing(self) -> str | None:
        """Return why the steps of this process have taught the model nothing at all; None when they have."""
        if self.guard.asked and not self.guard.taken:
            return f"none of {self.guard.asked} steps had a finite loss and gradient; look at the data and the rate"
        return None

    def remarks(self) -> list[str]:
        """Return what a user should know of the steps of this process, for the last lines of a run."""
        if self.guard.taken and not self.guard.moved:
            return [f"the gradient of all {self.guard.taken} steps was 0: nothing was learnt from them"]
        return []

    def flops(self, batch: Any) -> float:
        """Return the transformer's FLOPs of training on a batch; see `training_flops` for what counts."""
        return len(batch) * training_flops(*self.sample(batch), self.backbone.lora)

    def sample(self, batch: EditBatch) -> tuple[Any, int, int]:
        """Return the transformer's config, and the visual and text tokens of one sample of a batch."""
        images = (batch.target, *batch.condition.references)
        visual = sum(image.shape[-2] * image.shape[-1] // 4 for image in images)
        return self.transformer.config, visual, batch.condition.text.embeddings.shape[1]

    def velocity(self, x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the transformer's velocity, in float32. The same function trains, validates and samples."""
        return qwen_image.velocity(self.transformer, x_t, sigma, condition).float()

    def shift(self, sigma: Tensor, batch: EditBatch) -> Tensor:
        """Return sigma, shifted for the resolution of the batch's target."""
        tokens = batch.target.shape[-2] * batch.target.shape[-1] // 4
        return resolution_shift(sigma, tokens, self.scheduler_config)

    def validation_step(self, batch: EditBatch, batch_idx: int) -> dict[str, Tensor]:
        """Score a batch at fixed (sigma, eps), and draw its edits by the sampler that `edit` uses.

        A batch without known targets is only drawn, for the rewards.

        Returns:
            The edits as pixels (B, 3, H, W) under "output", where they are drawn.
        """
        weight = torch.ones(len(batch), device=self.device) if batch.weight is None else batch.weight

        # Loss and its terms.
        if batch.known:
            for name, value in self.fixed_scores(batch).items():
                self._score(name, value, weight)

        # Edits, and their likeness to the targets.
        target = batch.pixels
        if self.preview is None or (batch.known and target is None):
            return {}
        output = self.draw(batch)
        if target is None:
            return {"output": output}
        output = output.to(target)
        for i in range(len(batch)):
            pair = output[i : i + 1], target[i : i + 1]
            psnr = peak_signal_noise_ratio(*pair, data_range=(-1.0, 1.0))
            ssim: Any = structural_similarity_index_measure(*pair, data_range=(-1.0, 1.0))
            self._score("psnr", psnr, weight[i])
            self._score("ssim", ssim, weight[i])
        return {"output": output}

    def _score(self, name: str, value: Tensor, weight: Tensor) -> None:
        """Add values (B,) with their weights (B,) to a mean of this validation."""
        metric: Any = self.scores[name]
        metric.update(value, weight)

    def on_validation_epoch_end(self) -> None:
        metric: Any
        for name, metric in self.scores.items():
            was_updated = int(metric.update_count) > 0
            if was_updated:
                self.log(f"val/{name}", metric.compute(), prog_bar=name == "loss")
            metric.reset()

    def fixed_scores(self, batch: EditBatch) -> dict[str, Tensor]:
        """Return the validation scores (B,) of every sample that need no drawing."""
        return {"loss": self.fixed_loss(batch)}

    def fixed_points(self, batch: EditBatch, points: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the (eps, sigma) at which validation compares: fixed sigmas, noise keyed by the sample."""
        x_0 = batch.target.float()
        for k in range(points):
            eps = torch.cat([gaussian(x_0.shape[1:], (k,), "validation", name) for name in batch.ids]).to(x_0)
            sigma = torch.full((len(batch),), (k + 0.5) / points, device=x_0.device)
            yield eps, self.shift(sigma, batch)

    def fixed_loss(self, batch: EditBatch, points: int = 4) -> Tensor:
        """Return the flow matching loss (B,) over `points` fixed sigmas, comparable between steps."""
        x_0 = batch.target.float()
        total = torch.zeros(len(batch), device=x_0.device)
        for eps, sigma in self.fixed_points(batch, points):
            v = self.velocity(interpolate(x_0, eps, sigma), sigma, batch.condition)
            total += flow_matching_loss(v, velocity(x_0, eps)) / points
        return total

    @torch.no_grad()
    def draw(self, batch: EditBatch) -> Tensor:
        """Draw the edits of a batch as pixels (B, 3, H, W) in [-1, 1]; the noise is keyed by the sample."""
        preview = self.preview
        if preview is None:
            raise ValueError("Stage.draw: the stage has no preview")
        shape = batch.target.shape[1:]
        noise = torch.cat([gaussian(shape, (0,), "sample", name) for name in batch.ids]).to(batch.target.device)
        sigmas = schedule(preview.steps, shape[-2] * shape[-1] // 4, self.scheduler_config)

        # Guidance against the text " ", where the batch has it.
        negative = None
        guidance = 1.0
        if batch.unconditional is not None:
            negative = Condition(batch.unconditional, batch.condition.references)
            guidance = preview.guidance

        latents = sample(self.transformer, noise, sigmas, batch.condition, negative, guidance)
        return self.codec.decode(latents).float()

    @property
    def codec(self) -> Codec:
        """The frozen VAE, loaded when the first image is drawn."""
        if "codec" not in self.frozen:
            self.frozen["codec"] = self.base.codec(self.device)
        return self.frozen["codec"]
