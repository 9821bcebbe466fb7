"""Engines and servers that fail while a policy learns: the run goes on, and what is missing is counted and told."""

import logging
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import faulty_engines
import lightning as L
import pytest
import torch
from faulty_engines import DIE, HANG, NONSENSE, RAISE
from moody_judge import Moody, fine, late, says, status
from toy_prompts import Prompts, trainer

from callbacks.judge.server import Server
from callbacks.ocr.worker import EngineProcess
from callbacks.rewards.judge import JudgeReward
from callbacks.rewards.ocr import OCRReward
from firered_lit.batch import PromptBatch
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.stages.nft import NFT


class Words(Prompts):
    """One group an iteration, whose target shows words; the sample `without` of them does not."""

    def __init__(self, without=None):
        super().__init__(1)
        self.without = without

    def batch(self, step):
        (sample,) = super().batch(step).groups
        facts = replace(sample.facts[0], target_text="" if step == self.without else "ok")
        return PromptBatch((replace(sample, facts=(facts,), pixels=None),), step)


class Watch(L.Callback):
    """Does what is due before an iteration; keeps how many rewards each of them missed."""

    def __init__(self, due=None):
        self.due, self.missing, self.dropped, self.shown = due or {}, [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.due.get(trainer.global_step, lambda: None)()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.missing.append(int(trainer.logged_metrics["rollout/missing"]))
        self.dropped.append(int(trainer.logged_metrics["groups/dropped"]))
        self.shown.append(int(trainer.progress_bar_metrics["missing"]))


def learn(folder, reward, steps, due=None, data=None, **options):
    """Iterations of a tiny policy with one reward; what was missing in each."""
    backbone = Backbone("tiny", lora=LoRA(4, 8))
    stage = NFT(backbone, partial(torch.optim.SGD, lr=0.0), group_size=3, rollout_steps=1, points=1, **options)
    watch = Watch(due)
    run = trainer(folder, [reward, watch], max_steps=steps)
    run.fit(stage, data or Words(), weights_only=True)
    assert run.global_step == steps
    assert watch.shown == watch.missing
    return watch


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3] / "support"))


def planned(folder, *deeds):
    """An OCR reward whose engine does one of these at each of its readings."""
    plan = folder / "plan"
    plan.write_text("\n".join(map(str, deeds)))
    reward = OCRReward()
    reward.engine = EngineProcess({"plan": str(plan)}, factory=faulty_engines.planned, limit=1.5, start_limit=60.0)
    return reward


def test_a_policy_learns_on_while_the_ocr_engine_is_killed_hangs_and_talks_nonsense(tmp_path, caplog):
    reward = planned(tmp_path, 0, DIE, HANG, NONSENSE, RAISE, 0, RAISE, 0)  # after one that raised, each edit alone
    with caplog.at_level(logging.WARNING):
        watch = learn(tmp_path, reward, 6)
    assert watch.missing == [0, 3, 3, 3, 1, 0]
    assert sum(reward.reasons.values()) == 10
    said = "\n".join(reward.reasons)
    for reason in ("its process ended (-9)", "no answer within 1.5 s", "MemoryError: no memory left"):
        assert reason in said
        assert reason in caplog.text
    assert "reward ocr: 10 scores were missing: 3 times the OCR engine: " in caplog.text
    assert watch.dropped == [0, 1, 1, 1, 0, 0]


def test_a_policy_learns_on_while_the_judge_fails_in_every_way_and_comes_back(tmp_path, caplog):
    servers = [Moody([fine])]
    port = servers[0].server_port
    moods = {1: status(500), 2: says(b"no answer at all"), 3: late(2.0)}
    due = {n: partial(lambda mood: setattr(servers[0], "moods", [mood]), mood) for n, mood in moods.items()}
    due |= {4: servers[0].stop, 5: lambda: servers.append(Moody([fine], port))}
    judge = Server(servers[0].url, "judge-7b", timeout=0.3, retries=1, backoff=0.02)
    reward = JudgeReward(judge, prompt="edit_direct")
    with caplog.at_level(logging.WARNING):
        watch = learn(tmp_path, reward, 6, due)
    servers[-1].stop()
    assert watch.missing == [0, 3, 3, 3, 3, 0], reward.reasons
    assert watch.dropped == [0, 1, 1, 1, 1, 0]
    for reason in ("HTTP 500", "an answer that is no JSON", "no answer within 0.3 s", "refused"):
        assert reason in caplog.text
        assert any(reason in told for told in reward.reasons)


@pytest.mark.slow
def test_a_judge_that_is_down_for_ten_seconds_costs_no_reward_at_the_usual_settings(tmp_path):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    servers = []
    timer = threading.Timer(10.0, lambda: servers.append(Moody([fine], port)))
    reward = JudgeReward(Server(f"http://127.0.0.1:{port}/v1", "judge-7b"), prompt="edit_direct")
    watch = learn(tmp_path, reward, 2, {0: timer.start})
    servers[0].stop()
    assert watch.missing == [0, 0]


def test_a_task_routed_to_ocr_without_a_target_text_is_counted_in_one_line(tmp_path, caplog):
    reward = planned(tmp_path)
    with caplog.at_level(logging.WARNING):
        watch = learn(tmp_path, reward, 2, data=Words(without=1), routes={"ocr": ["odd", "even"]})
    assert watch.missing == [0, 3]
    assert reward.reasons == {"no target text": 3}
    said = [r.getMessage() for r in caplog.records if "no target text" in r.getMessage()]
    assert said == [
        "reward ocr: a score is missing: no target text",
        "reward ocr: 3 scores were missing: 3 times no target text",
    ]


def test_words_that_the_ocr_model_lacks_are_counted_in_one_line(tmp_path, caplog):
    class Russian(Words):
        def batch(self, step):
            (sample,) = super().batch(step).groups
            facts = replace(sample.facts[0], target_text="да")
            return PromptBatch((replace(sample, facts=(facts,)),), step)

    reward = planned(tmp_path)
    watch = learn(tmp_path, reward, 1, data=Russian())
    assert watch.missing == [3]
    (reason,) = reward.reasons
    assert "choose a model of that language" in reason
    assert "\n" not in reason
