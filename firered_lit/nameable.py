"""The classes and functions that a recipe may name, one full name a line; any other is refused.

A recipe can come from a stranger, so a name is listed only when nothing that a recipe may give it is run: no command,
no module, no path to code and no callable's name. A class or function of your own is listed here when it belongs to
this project, and is admitted by `--allow PACKAGE` when it does not.
"""

# What a verb runs, and the verb. It stands at the top of a recipe and nowhere below.
ROOTS = {
    "firered_lit.training.fit": "fit",
    "datamodules.write.prepare": "prepare",
    "firered_lit.mine.run.mine": "mine",
    "firered_lit.evaluation.run.evaluate": "eval",
    "firered_lit.curation.run.curate": "curate",
}

OURS = (
    "callbacks.checkpoint.Checkpoint",
    "callbacks.consistency_reward.ConsistencyReward",
    "callbacks.correctness.Correctness",
    "callbacks.ema.EMA",
    "callbacks.embeddings.Embeddings",
    "callbacks.embeddings.TextEmbeddings",
    "callbacks.evaluation.Evaluation",
    "callbacks.judge_local.LocalVLM",
    "callbacks.judge_reward.JudgeReward",
    "callbacks.judge_server.Replay",
    "callbacks.judge_server.Server",
    "callbacks.ocr_reader.LayoutReader",
    "callbacks.ocr_reader.TextReader",
    "callbacks.ocr_reward.OCRReward",
    "callbacks.pixel_reward.PixelReward",
    "callbacks.plain_attention.PlainAttention",
    "callbacks.progress.Progress",
    "callbacks.prompts.Prompts",
    "callbacks.reward_grid.RewardGrid",
    "callbacks.sample_grid.SampleGrid",
    "callbacks.signals.Signals",
    "callbacks.throughput.Throughput",
    "callbacks.text_area.TextArea",
    "datamodules.candidates.Candidates",
    "datamodules.candidates.Requests",
    "datamodules.edits.EditDataModule",
    "datamodules.evaluation_rows.EvaluationRows",
    "datamodules.preferences.PreferenceDataModule",
    "datamodules.prepared.Prepared",
    "datamodules.prompts.PromptDataModule",
    "datamodules.raw.RawRows",
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
    "firered_lit.strategy.FSDP2",
    "firered_lit.tracking.MLflow",
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

# Names of earlier versions. A run's own recipe may have them still; any other is asked to take the new ones.
RENAMED = {
    "firered_lit.fit.fit": "firered_lit.training.fit",
    "firered_lit.fit.Run": "firered_lit.training.Run",
    "firered_lit.evaluation.report.record.Record": "firered_lit.evaluation.report.record.RunRecord",
    "firered_lit.judges.local.Replay": "firered_lit.judges.local.ReplayedLog",
    "firered_lit.evaluation.models.server.Server": "firered_lit.evaluation.models.server.ServerModel",
}

# Arguments of listed names that a recipe may not give: this one sends checkpoints to a service.
WITHHELD = {"lightning.pytorch.Trainer": ("model_registry",)}
