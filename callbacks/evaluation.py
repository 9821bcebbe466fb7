"""Benchmarks scored while a model learns: `Evaluation`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.live import Encoded, draw, encode
from callbacks.signals import stopped_by_signal
from firered_lit.errors import UserError
from firered_lit.evaluation import judging, report, scoring
from firered_lit.evaluation.benchmarks.pictures import png
from firered_lit.evaluation.benchmarks.subset import Subset
from firered_lit.evaluation.drawing import source_picture
from firered_lit.evaluation.judge_here import JudgeHere
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.evaluation.protocols import Benchmark, EvaluationFolder, Item
from firered_lit.evaluation.report.record import numbers
from firered_lit.files import replacing
from firered_lit.textfiles import read_object

FOLDER = "evaluation"
PREFIX = "eval"  # of the curves; what the verb `eval` records beside them is under `evaluation/`
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]  # suite -> mode -> category or "overall" -> score and counts


class Evaluation(L.Callback):
    """Score a fixed part of benchmarks before the first step, every `every` optimizer steps, and at the end.

    The weights that are trained draw, with the noise and the sampler of the verb `eval`; never their average. Logged
    are `eval/SUITE/MODE/CATEGORY`, `eval/SUITE/MODE/overall` and `eval/SUITE/MODE/items/STATE`. Below the run's folder,
    `evaluation/` is the folder of an evaluation whose models are the steps, with a log of the judge's answers, from
    which a resumed run takes what was answered; at the end `evaluation/report/` shows the first step beside the last.
    Nothing of the training changes.

    Args:
        benchmarks: By name, a user's copy of a benchmark, or one with exact answers.
        every: Optimizer steps between two evaluations.
        each: Items of each category of each suite.
        judge: The judge; None where no benchmark needs one. If it fails at the first evaluation, the run is
            refused; later it costs a warning and a point of the curves.
        steps: Steps of the sampler.
        guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.
        seed: Seed of every picture's noise, set anew for each, and of the choice of items.

    Raises:
        UserError: a number out of range, or no benchmark.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark],
        every: int = 500,
        each: int = 2,
        judge: JudgeServer | JudgeHere | None = None,
        steps: int = 40,
        guidance: float = 4.0,
        seed: int = 43,
    ) -> None:
        super().__init__()
        if min(every, each, steps) < 1:
            raise UserError(f"callbacks.evaluation: every={every} each={each} steps={steps}: at least 1 each")
        if not benchmarks:
            raise UserError("callbacks.evaluation.benchmarks: name at least one")
        self.benchmarks = [Subset(benchmark, each, seed) for benchmark in benchmarks.values()]
        self.every = every
        self.judge = judge or JudgeServer()
        self.steps = steps
        self.guidance = guidance
        self.seed = seed
        self._encoded: dict[int, Encoded] = {}  # item's place -> what the model is shown
        self._evaluated = False
        self._seen_step = -1

    # When

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the benchmarks, before anything is trained.

        Raises:
            UserError: One cannot be used, or needs a judge.
        """
        for benchmark, item in self._items():
            if benchmark.suites()[item.suite].requests and self.judge.url is None:
                raise UserError(f"callbacks.evaluation.judge: {item.suite} is scored by a judge; name its url")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step
        if trainer.global_step % self.every == 0 and not self._log_known(trainer):
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # in the middle of an accumulation
            return
        self._seen_step = step
        if step % self.every == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if stopped_by_signal(trainer):  # whoever sent it does not wait
            return
        if trainer.global_step % self.every:
            self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            self._report(trainer)
        trainer.strategy.barrier()

    # How

    def _evaluate(self, trainer: L.Trainer, stage: Any) -> None:
        """Draw, judge, score and log. Called by all processes; the first one judges, and all learn how it ended."""
        step = trainer.global_step
        pictures = self._draw(trainer, stage)
        problem = None
        if trainer.is_global_zero:
            try:
                tables = self._score(self._folder(trainer), model_name(step), pictures)
                self._log(trainer, tables)
            except (UserError, OSError) as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is None:
            self._evaluated = True
        elif not self._evaluated:
            raise UserError(f"callbacks.evaluation: {problem}")
        else:
            rank_zero_warn(f"callbacks.evaluation: step {step} has no scores: {problem}")

    def _log_known(self, trainer: L.Trainer) -> bool:
        """Log the scores of the step that a resumed run goes on from, which it has had before; return whether it has.

        They may be missing in the logger if the run was killed at that moment.
        """
        path = self._folder(trainer).model_scores(model_name(trainer.global_step))
        known = trainer.strategy.broadcast(trainer.global_step > 0 and path.exists())
        if known:
            if trainer.is_global_zero:
                self._log(trainer, read_object(path))
            self._evaluated = True
        return known

    def _log(self, trainer: L.Trainer, tables: Tables) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(numbers(tables, PREFIX), step=trainer.global_step)

    def _draw(self, trainer: L.Trainer, stage: Any) -> dict[int, bytes]:
        """Return item's place -> PNG file, on the first process.

        Processes share the items, but for sharded weights, which they gather together for every picture.
        """
        items = self._items()
        sharded = hasattr(trainer.strategy, "sharding")
        places = range(len(items)) if sharded else range(trainer.global_rank, len(items), trainer.world_size)

        # The mode of the module is put back as it was.
        training = stage.training
        stage.eval()
        own = {}
        for place in places:
            if place not in self._encoded:
                self._encoded[place] = self._encode(*items[place], stage)
            own[place] = png(draw(stage, self._encoded[place], self.steps, self.guidance))
        stage.train(training)

        if trainer.world_size == 1 or sharded:
            return own
        everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        dist.gather_object(own, everyone)
        return {place: file for files in everyone or [] for place, file in files.items()}

    def _encode(self, benchmark: Subset, item: Item, stage: Any) -> Encoded:
        sources = zip(item.sources, benchmark.sources(item), strict=True)
        pictures = [source_picture(name, file) for name, file in sources]

        def noise(shape: tuple[int, int, int]) -> torch.Tensor:
            return torch.randn((1, *shape), generator=torch.Generator().manual_seed(self.seed))

        return encode(stage, item.instruction, pictures, noise, guided=self.guidance > 1)

    def _score(self, folder: EvaluationFolder, name: str, pictures: Mapping[int, bytes]) -> Tables:
        """Write the pictures of a step, ask about them what is not answered yet, and return the scores."""
        for place, (_, item) in enumerate(self._items()):
            with replacing(folder.picture(name, item), "wb") as file:
                file.write(pictures[place])
        if self.judge.url is not None:
            with self.judge.client(folder.responses) as client:
                judging.ask(folder, self.benchmarks, [name], client, self.judge.asking, attempts=self.judge.attempts)
        return scoring.score(folder, self.benchmarks, [name], self.judge.asking, self.seed)

    def _report(self, trainer: L.Trainer) -> None:
        """Write the page of the first step beside the last one."""
        folder = self._folder(trainer)
        names = sorted(path.parent.name for path in (folder.out / "models").glob("step_*/scores.json"))
        names = names[:1] + names[1:][-1:]
        try:
            scoring.score(folder, self.benchmarks, names, self.judge.asking, self.seed)
            report.write(folder, self.benchmarks, names, self.seed)
        except (UserError, OSError) as error:
            rank_zero_warn(f"callbacks.evaluation: no report: {error}")
            return
        rank_zero_info(f"evaluation  {folder.report / 'index.html'}")

    def _items(self) -> Sequence[tuple[Subset, Item]]:
        return [(benchmark, item) for benchmark in self.benchmarks for item in benchmark.items()]

    def _folder(self, trainer: L.Trainer) -> EvaluationFolder:
        return EvaluationFolder(Path(trainer.default_root_dir) / FOLDER)


def model_name(step: int) -> str:
    """Return the name under which the evaluation of a run's step has its pictures and scores."""
    return f"step_{step:08d}"
