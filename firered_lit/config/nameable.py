"""The classes and functions that a recipe may name, one full name a line; any other is refused.

A recipe can come from a stranger, so a name is listed only when nothing that a recipe may give it is run: no command,
no module, no path to code and no callable's name. A class or function of your own is listed here when it belongs to
this project, and is admitted by `--allow PACKAGE` when it does not.
"""

from typing import Any

# What a verb runs, and the verb. It stands at the top of a recipe and nowhere below.
ROOTS = {
    "firered_lit.training.fit": "fit",
    "datamodules.prepare.write.prepare": "prepare",
    "firered_lit.mine.run.mine": "mine",
    "firered_lit.evaluation.run.evaluate": "eval",
    "firered_lit.curation.run.curate": "curate",
}

OURS = (
    "callbacks.checkpoint.Checkpoint",
    "callbacks.rewards.consistency.ConsistencyReward",
    "callbacks.rewards.correctness.Correctness",
    "callbacks.ema.EMA",
    "callbacks.annotators.embeddings.Embeddings",
    "callbacks.annotators.embeddings.TextEmbeddings",
    "callbacks.evaluation.Evaluation",
    "callbacks.judge.local.LocalVLM",
    "callbacks.rewards.judge.JudgeReward",
    "callbacks.judge.server.Replay",
    "callbacks.judge.server.Server",
    "callbacks.ocr.reader.LayoutReader",
    "callbacks.ocr.reader.TextReader",
    "callbacks.rewards.ocr.OCRReward",
    "callbacks.rewards.pixel.PixelReward",
    "callbacks.plain_attention.PlainAttention",
    "callbacks.progress.Progress",
    "callbacks.prompts.Prompts",
    "callbacks.grids.reward_grid.RewardGrid",
    "callbacks.grids.sample_grid.SampleGrid",
    "callbacks.signals.Signals",
    "callbacks.throughput.Throughput",
    "callbacks.annotators.text_area.TextArea",
    "datamodules.sources.candidates.Candidates",
    "datamodules.sources.candidates.Requests",
    "datamodules.edits.EditDataModule",
    "datamodules.sources.evaluation_rows.EvaluationRows",
    "datamodules.preferences.PreferenceDataModule",
    "datamodules.prepared.Prepared",
    "datamodules.prompts.PromptDataModule",
    "datamodules.sources.raw.RawRows",
    "datamodules.world.benchmark.WorldRows",
    "datamodules.world.stream.WorldDataModule",
    "firered_lit.curation.borders.Borders",
    "firered_lit.curation.borders.Collage",
    "firered_lit.curation.codes.Codes",
    "firered_lit.curation.compression.Compression",
    "firered_lit.curation.fill.Fill",
    "firered_lit.curation.fit.Clusters",
    "firered_lit.curation.fit.Duplicates",
    "firered_lit.curation.hashes.Hashes",
    "firered_lit.curation.heads.Cosines",
    "firered_lit.curation.heads.Head",
    "firered_lit.curation.heads.Probe",
    "firered_lit.curation.label.label.Label",
    "firered_lit.curation.make.maker.Make",
    "firered_lit.curation.marks.GeneratedMarks",
    "firered_lit.curation.mlflow_summary.CurationRun",
    "firered_lit.curation.mosaic.Mosaic",
    "firered_lit.curation.niqe.NIQE",
    "firered_lit.curation.pairs.PairMeasures",
    "firered_lit.curation.photometric.Photometric",
    "firered_lit.curation.phrases.Phrases",
    "firered_lit.curation.select.Quota",
    "firered_lit.curation.words.Instructions",
    "firered_lit.curation.words.Words",
    "firered_lit.evaluation.arena.Arena",
    "firered_lit.evaluation.benchmarks.exact.Exact",
    "firered_lit.evaluation.benchmarks.gedit.GEdit",
    "firered_lit.evaluation.benchmarks.imgedit.ImgEdit",
    "firered_lit.evaluation.benchmarks.rededit.REDEdit",
    "firered_lit.evaluation.benchmarks.rubric.Rubric",
    "firered_lit.evaluation.judge_here.JudgeHere",
    "firered_lit.evaluation.judge_server.JudgeServer",
    "firered_lit.evaluation.models.local.Local",
    "firered_lit.evaluation.models.opening.Drawing",
    "firered_lit.evaluation.models.pictures.Pictures",
    "firered_lit.evaluation.models.pipeline.Pipeline",
    "firered_lit.evaluation.models.planted.Blank",
    "firered_lit.evaluation.models.planted.Copier",
    "firered_lit.evaluation.models.planted.RandomCrop",
    "firered_lit.evaluation.models.planted.RightAnswers",
    "firered_lit.evaluation.models.server.ServerModel",
    "firered_lit.evaluation.report.record.RunRecord",
    "firered_lit.evaluation.text_reading.TextReading",
    "firered_lit.training.Run",
    "firered_lit.flow.sampler.dpm_solver_2",
    "firered_lit.flow.sampler.euler",
    "firered_lit.flow.timesteps.logit_normal",
    "firered_lit.flow.timesteps.logit_normal_weight",
    "firered_lit.flow.timesteps.uniform",
    "firered_lit.judges.local.ReplayedLog",
    "firered_lit.losses.nft.adaptive",
    "firered_lit.losses.nft.as_written",
    "firered_lit.losses.nft.old_policy_decay",
    "firered_lit.mine.evolution.Evolution",
    "firered_lit.mine.pairs.MixPolicy",
    "firered_lit.mine.pairs.VisualEnhancement",
    "firered_lit.mine.preferences.Preferences",
    "firered_lit.mine.semi_hard.SemiHard",
    "firered_lit.mine.spread.Band",
    "firered_lit.models.backbone.Backbone",
    "firered_lit.models.lora.LoRA",
    "firered_lit.models.sampling.Preview",
    "firered_lit.models.sizes.Sizes",
    "firered_lit.optim.adamw8bit",
    "firered_lit.optim.stochastic_adamw8bit",
    "firered_lit.optim.constant",
    "firered_lit.optim.cosine",
    "firered_lit.optim.wsd",
    "firered_lit.stages.consistency.Consistency",
    "firered_lit.stages.dpo.DPO",
    "firered_lit.stages.guard.Guard",
    "firered_lit.stages.nft.NFT",
    "firered_lit.stages.pretrain.Pretrain",
    "firered_lit.stages.sft.SFT",
    "firered_lit.distributed.strategy.FSDP2",
    "firered_lit.run.tracking.MLflow",
)

_OPTIMIZERS = {
    "torch.optim": "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD",
    "bitsandbytes.optim": (
        "AdEMAMix AdEMAMix8bit AdEMAMix32bit Adagrad Adagrad8bit Adagrad32bit Adam Adam8bit Adam32bit"
        " AdamW AdamW8bit AdamW32bit LAMB LAMB8bit LAMB32bit LARS LARS8bit LARS32bit Lion Lion8bit Lion32bit"
        " PagedAdEMAMix PagedAdEMAMix8bit PagedAdEMAMix32bit PagedAdam PagedAdam8bit PagedAdam32bit"
        " PagedAdamW PagedAdamW8bit PagedAdamW32bit PagedLion PagedLion8bit PagedLion32bit"
        " RMSprop RMSprop8bit RMSprop32bit SGD SGD8bit SGD32bit"
    ),
    "torchao.optim": "Adam4bit Adam8bit AdamFp8 AdamW4bit AdamW8bit AdamWFp8",
}
_SCHEDULES = {
    "torch.optim.lr_scheduler": (
        "ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR"
        " MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR"
    ),
}
_LIGHTNING = {
    "lightning.pytorch": "Trainer",
    "lightning.pytorch.callbacks": (
        "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor ModelSummary"
        " RichModelSummary RichProgressBar TQDMProgressBar Timer"
    ),
    "lightning.pytorch.loggers": "CSVLogger TensorBoardLogger",
    "lightning.pytorch.profilers": "AdvancedProfiler PassThroughProfiler PyTorchProfiler SimpleProfiler",
    "lightning.pytorch.strategies": "DDPStrategy FSDPStrategy ModelParallelStrategy SingleDeviceStrategy",
}
_METRICS = {
    "torchmetrics": "MaxMetric MeanAbsoluteError MeanMetric MeanSquaredError MinMetric SumMetric",
    "torchmetrics.image": "PeakSignalNoiseRatio StructuralSimilarityIndexMeasure",
}
LIBRARIES = tuple(
    f"{module}.{name}"
    for group in (_OPTIMIZERS, _SCHEDULES, _LIGHTNING, _METRICS)
    for module, names in group.items()
    for name in names.split()
)

NAMES = frozenset((*ROOTS, *OURS, *LIBRARIES))

# Modules of earlier versions -> where what a recipe may name of them is now.
MOVED = {
    "callbacks.consistency_reward": "callbacks.rewards.consistency",
    "callbacks.correctness": "callbacks.rewards.correctness",
    "callbacks.embeddings": "callbacks.annotators.embeddings",
    "callbacks.judge_local": "callbacks.judge.local",
    "callbacks.judge_reward": "callbacks.rewards.judge",
    "callbacks.judge_server": "callbacks.judge.server",
    "callbacks.ocr_reader": "callbacks.ocr.reader",
    "callbacks.ocr_reward": "callbacks.rewards.ocr",
    "callbacks.pixel_reward": "callbacks.rewards.pixel",
    "callbacks.reward": "callbacks.rewards.base",
    "callbacks.reward_grid": "callbacks.grids.reward_grid",
    "callbacks.sample_grid": "callbacks.grids.sample_grid",
    "callbacks.text_area": "callbacks.annotators.text_area",
    "datamodules.candidates": "datamodules.sources.candidates",
    "datamodules.evaluation_rows": "datamodules.sources.evaluation_rows",
    "datamodules.raw": "datamodules.sources.raw",
    "datamodules.write": "datamodules.prepare.write",
    "firered_lit.fit": "firered_lit.training",
    "firered_lit.strategy": "firered_lit.distributed.strategy",
    "firered_lit.tracking": "firered_lit.run.tracking",
}


def _moved_names() -> dict[str, str]:
    """Return old name -> new name, of what a recipe may name of the modules that have moved."""
    homes: dict[str, list[str]] = {}
    for old, new in MOVED.items():
        homes.setdefault(new, []).append(old)
    names = {}
    for name in (*ROOTS, *OURS):
        module, _, thing = name.rpartition(".")
        for old in homes.get(module, ()):
            names[f"{old}.{thing}"] = name
    return names


# Names of earlier versions. A run's own recipe may have them still; any other is asked to take the new ones.
_MOVED_NAMES = _moved_names()
RENAMED = {
    **_MOVED_NAMES,
    "firered_lit.evaluation.report.record.Record": "firered_lit.evaluation.report.record.RunRecord",
    "firered_lit.judges.local.Replay": "firered_lit.judges.local.ReplayedLog",
    "firered_lit.evaluation.models.server.Server": "firered_lit.evaluation.models.server.ServerModel",
}

# The names that curations keep beside their scores stay those of the first version, so that nothing is computed again.
_FIRST_NAMES = {new: old for old, new in _MOVED_NAMES.items()}


def with_new_names(node: Any) -> Any:
    """Return what an earlier version wrote, a run's recipe or a folder's settings, with the names of this one.

    Args:
        node: Mappings, lists and plain values; what a `_target_` names is translated, at any depth.
    """
    if isinstance(node, list):
        return [with_new_names(item) for item in node]
    if not isinstance(node, dict):
        return node
    renamed = {key: with_new_names(value) for key, value in node.items()}
    target = renamed.get("_target_")
    if isinstance(target, str):
        renamed["_target_"] = RENAMED.get(target, target)
    return renamed


def first_name(name: str) -> str:
    """Return the name that a class or function had before its module moved; the same for any other."""
    return _FIRST_NAMES.get(name, name)


# Arguments of listed names that a recipe may not give: this one sends checkpoints to a service.
WITHHELD = {"lightning.pytorch.Trainer": ("model_registry",)}
