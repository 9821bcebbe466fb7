"""The tiny recipes of each reward from end to end: what they log, what they draw, and that a record is played again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.prompts import PromptDataModule
from datamodules.synthetic import FAMILIES, reword, write
from firered_lit.cli import main

QUICK = ["stage.group_size=3", "stage.rollout_steps=2", "stage.points=1", "data.groups=3"]
QUICK += ["callbacks.reward_grid.every=2"]
SHORT = ["run.validate_first=false", "run.validate_every=2", "data.held_out_max=2", "stage.preview.steps=1"]
SHORT += ["callbacks.progress=null", "data.workers=0", "checkpoint.every=2", "trainer.max_steps=2"]
Logged = list[dict[str, float]]


@pytest.fixture(scope="module")
def lettered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve edits, every other one of words, whose places are read."""
    folder = tmp_path_factory.mktemp("lettered")
    write(folder / "source", 12, families=(reword, FAMILIES[0]))
    prepare = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={folder / 'source'}"]
    prepare += [f"out={folder / 'data'}", "held_out=0.2"]
    assert main([*prepare, "reader={_target_: callbacks.ocr.reader.LayoutReader}"]) == 0
    return folder / "data"


@pytest.fixture
def fit(lettered: Path, tmp_path: Path) -> Callable[..., tuple[Path, Logged]]:
    """Two iterations of a recipe; its run, and what it logged, the iterations first and the validation last."""

    def run(recipe: str, *settings: str, sft: bool = False) -> tuple[Path, Logged]:
        folder = tmp_path / f"{recipe}{len(settings)}"
        logger = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {folder}, name: log, version: ''}}"
        fit = ["fit", "--recipe", f"recipes/tiny/{recipe}.yaml", f"data.root={lettered}", f"run.dir={folder}", logger]
        assert main([*fit, *SHORT, *([] if sft else QUICK), *settings]) == 0
        with (folder / "log" / "metrics.csv").open() as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        assert sft or (folder / "rollouts" / "step_00000002.png").exists()
        return folder, sorted(rows, key=lambda row: "train/loss" not in row)

    return run


EVERYTHING = ["rollout/total/mean", "rollout/total/std", "rollout/total/p10", "rollout/total/p90", "rollout/missing"]
EVERYTHING += ["groups/flat", "train/kl", "rollout/source_distance/mean", "optimality/0.0-0.1", "optimality/0.9-1.0"]
EVERYTHING += ["time/rollout_share", "time/reward_share", "time/update_share"]


def test_prepare_keeps_where_the_words_stand(lettered: Path) -> None:
    data = PromptDataModule(str(lettered), groups=10, workers=0)
    samples = next(iter(data.train_dataloader())).groups
    seen = {sample.tasks[0]: sample.facts[0].layout for sample in samples}
    assert seen["color"] is None
    height, width = seen["text"]["size"]
    assert {"size", "place", "chars"} == seen["text"].keys()
    for _, x, y, w, h, _ in seen["text"]["chars"]:
        assert 0 <= x + w / 2 <= width
        assert abs(y + h / 2 - height / 2) < 0.1 * height, "they were drawn across the middle"


def test_ocr_scores_words_and_pixels_the_rest(fit: Callable[..., tuple[Path, Logged]]) -> None:
    _, rows = fit("nft_ocr")
    assert not [name for name in EVERYTHING if not any(name in row for row in rows[:2])]
    scored = rows[0] | rows[1]
    for name in (
        "ocr/text/mean",
        "ocr/text/std",
        "ocr.text/text/mean",
        "ocr.layout/text/mean",
        "ocr.dark/mean",
        "ocr.edges/mean",
    ):
        assert f"rollout/{name}" in scored, name
    assert "rollout/ocr/color/mean" not in scored
    assert "rollout/pixel/color/mean" in scored
    assert "rollout/pixel/text/mean" not in scored
    assert all(row["rollout/missing"] == 0 for row in rows[:2])
    assert any(row.get("reward/ocr/missing") == 0 for row in rows[2:]), "the held-out edit of words is read too"


def test_consistency_compares_the_edit_with_its_target(fit: Callable[..., tuple[Path, Logged]]) -> None:
    _, rows = fit("nft_consistency")
    assert not [name for name in EVERYTHING if not any(name in row for row in rows[:2])]
    assert 0 <= rows[0]["rollout/consistency.identity/mean"] <= 1
    assert 0 < rows[0]["rollout/consistency.source_distance/mean"] < 1
    assert any("reward/consistency" in row for row in rows[2:])


def test_a_judges_record_is_played_again_to_the_same_run(fit: Callable[..., tuple[Path, Logged]]) -> None:
    run, first = fit("nft_judge")
    answers = [json.loads(line) for line in (run / "judge.jsonl").read_text("utf-8").splitlines()]
    assert {"judge", "version", "temperature", "prompt", "prompt_version", "prompt_hash", "score"} <= answers[0].keys()
    assert len(answers) == 2 * 3 * 3 + 2  # two iterations of three groups of three, and the held-out edits
    _, again = fit("nft_judge_replay", f"callbacks.reward.judge.path={run / 'judge.jsonl'}")
    for name in ("rollout/judge/mean", "rollout/total/std", "train/loss", "train/grad_norm"):
        assert [row[name] for row in again[:2]] == [row[name] for row in first[:2]], name
    assert all(row["rollout/missing"] == 0 for row in again[:2])


def test_any_stage_scores_its_validation_images_by_every_reward(fit: Callable[..., tuple[Path, Logged]]) -> None:
    rewards = {"ocr": "rewards.ocr.OCRReward, threads: 1", "consistency": "rewards.consistency.ConsistencyReward"}
    rewards["consistency"] += ", encoder: tiny"
    rewards["judge"] = "rewards.judge.JudgeReward, prompt: edit_direct, "
    rewards["judge"] += "judge: {_target_: callbacks.judge.local.LocalVLM, model: tiny, area: 12544}"
    settings = [f"callbacks.{name}={{_target_: callbacks.{what}}}" for name, what in rewards.items()]
    _, rows = fit("sft", *settings, sft=True)
    scored = {key: value for row in rows for key, value in row.items() if key.startswith("reward/")}
    for name in rewards:
        assert 0 <= scored[f"reward/{name}"] <= 1, name
        assert scored[f"reward/{name}/missing"] == 0
    assert {"reward/ocr/text", "reward/ocr/dark", "reward/consistency/identity"} <= scored.keys()
