"""On resume the recipe's values hold: rates, decays, schedules, settings. What changed is said; the rest is exact."""

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from toy_edits import same, train, weights

from firered_lit.checkpoints.resume import SavedOptimizer, refuse_other_optimizer, schedule_at
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.optim import constant, cosine
from firered_lit.stages.sft import SFT
from firered_lit.training import _other_precision

SMALL = Backbone("tiny", lora=LoRA(2, 2, ["to_q", "img_mlp.net.2"]))
ADAMW = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)


def stage(optimizer=ADAMW, schedule=None, **options):
    return SFT(SMALL, optimizer, schedule, seed=3, **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two steps with a schedule: (the run's checkpoint, the same run without one)."""
    folder = tmp_path_factory.mktemp("begun")
    train(folder / "scheduled", stage(schedule=partial(constant, warmup=10)), 2)
    train(folder / "plain", stage(), 2)
    return {name: folder / name / "step_00000002.ckpt" for name in ("scheduled", "plain")}


def resumed(folder, checkpoint, made, steps=3, **options):
    """Go on to `steps`; (the stage, its optimizer, the rates that were logged)."""
    module, engine = train(folder, made, steps, checkpoint, **options)
    return module, engine.optimizers[0], engine.logged_metrics


@pytest.mark.parametrize("kind", ["scheduled", "plain"])
def test_a_resumed_run_takes_the_rate_the_decay_and_the_betas_of_its_recipe(kind, begun, tmp_path, caplog):
    changed = partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-6)
    schedule = partial(constant, warmup=10) if kind == "scheduled" else None
    with caplog.at_level(logging.INFO):
        _, optimizer, logged = resumed(tmp_path, begun[kind], stage(changed, schedule))
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], tuple(group["betas"]), group["eps"]) == (0.5, (0.8, 0.9), 1e-6)
    assert float(logged["train/lr"]) == pytest.approx(1e-5 * (0.3 if schedule else 1.0))
    if schedule:
        assert group["initial_lr"] == 1e-5
        assert group["lr"] == pytest.approx(1e-5 * 0.4)  # of the step after
    (line,) = [r.getMessage() for r in caplog.records if "the recipe's values replace" in r.getMessage()]
    for text in ("stage.optimizer.lr 0.001 -> 1e-05", "weight_decay 0.01 -> 0.5", "betas [0.9, 0.999] -> [0.8, 0.9]"):
        assert text in line


def test_a_resumed_run_takes_the_schedule_of_its_recipe(begun, tmp_path, caplog):
    """Another rise, another kind, one where there was none, and none where there was one."""
    shorter, fall = partial(constant, warmup=4), partial(cosine, steps=4)
    steps_down = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    cases = [
        ("scheduled", shorter, 0.75),
        ("plain", fall, 0.5),
        ("scheduled", None, 1.0),
        ("scheduled", steps_down, 0.01),
    ]
    for number, (kind, schedule, share) in enumerate(cases):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            _, _, logged = resumed(tmp_path / str(number), begun[kind], stage(schedule=schedule))
        assert float(logged["train/lr"]) == pytest.approx(1e-3 * share)
        assert "the schedule's rate at step 2" in caplog.text or schedule is None


def test_an_unchanged_recipe_goes_on_bit_for_bit_and_says_nothing(begun, tmp_path, caplog):
    schedule = partial(constant, warmup=10)
    straight, _ = train(tmp_path / "straight", stage(schedule=schedule), 4)
    with caplog.at_level(logging.INFO):
        again, _, _ = resumed(tmp_path / "resumed", begun["scheduled"], stage(schedule=schedule), 4)
    assert same(weights(straight), weights(again))
    assert "the recipe's values replace" not in caplog.text
    whole = torch.load(tmp_path / "straight" / "step_00000004.ckpt", weights_only=True)
    parts = torch.load(tmp_path / "resumed" / "step_00000004.ckpt", weights_only=True)
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    assert whole["optimizer_states"][0]["param_groups"] == parts["optimizer_states"][0]["param_groups"]


def test_settings_of_callbacks_are_the_recipe_s(tmp_path):
    """Lightning's own bring theirs along in their state."""
    patient, strict = (EarlyStopping("train/loss", patience=p, check_on_train_epoch_end=False) for p in (7, 3))
    train(tmp_path, stage(), 1, callbacks=[patient])
    _, engine = train(tmp_path, stage(), 2, tmp_path / "step_00000001.ckpt", callbacks=[strict])
    assert strict.patience == 3
    assert engine.global_step == 2


@pytest.mark.parametrize(
    "other", [partial(torch.optim.SGD, lr=1e-3, momentum=0.9), partial(torch.optim.Adagrad, lr=1e-3)]
)
def test_another_kind_of_optimizer_is_refused_in_one_line(other, begun, tmp_path):
    with pytest.raises(
        UserError, match=r"trained by torch.optim.adamw.AdamW, whose state torch.optim.*run.start_from"
    ) as e:
        resumed(tmp_path, begun["plain"], stage(other))
    assert "\n" not in str(e.value)


def test_optimizers_of_one_family_go_on_from_each_other(begun, tmp_path):
    _, optimizer, _ = resumed(tmp_path, begun["plain"], stage(partial(torch.optim.Adam, lr=1e-3)))
    assert {int(held["step"]) for held in optimizer.state.values()} == {3}


def test_a_checkpoint_that_does_not_name_its_optimizer_is_known_by_its_options():
    """As those of earlier versions."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    makes = {
        "adamw": partial(torch.optim.AdamW, lr=1.0),
        "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
        "adagrad": partial(torch.optim.Adagrad, lr=1.0),
        "radam": partial(torch.optim.RAdam, lr=1.0),
    }
    states = {}
    for name, make in makes.items():
        optimizer = make([parameter])
        parameter.grad = torch.ones(3)
        optimizer.step()
        states[name] = SavedOptimizer.of({}, optimizer.state_dict())
    for name, saved in states.items():
        refuse_other_optimizer(saved, makes[name]([parameter]))
        if name != "sgd":
            with pytest.raises(UserError, match="another one"):
                refuse_other_optimizer(saved, makes["sgd"]([parameter]))


def test_a_checkpoint_of_weights_alone_is_started_from(begun, tmp_path):
    content = torch.load(begun["plain"], weights_only=True)
    del content["optimizer_states"]
    torch.save(content, tmp_path / "mean.ckpt")
    with pytest.raises(UserError, match="weights alone; begin a new run with run"):
        resumed(tmp_path, tmp_path / "mean.ckpt", stage())


@pytest.mark.parametrize(
    "factory",
    [
        partial(constant, warmup=5),
        partial(cosine, steps=9, warmup=2, floor=0.1),
        partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=9),
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=20),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_schedule_stands_after_some_steps_where_stepping_takes_it(factory, steps):
    def optimizer():
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3, momentum=0.9)

    stepped, jumped = optimizer(), optimizer()
    slow = factory(stepped)
    for _ in range(steps):
        stepped.step()
        slow.step()
    fast = schedule_at(factory, jumped, steps)
    for _ in range(3):
        assert jumped.param_groups[0]["lr"] == stepped.param_groups[0]["lr"]
        for own, schedule in ((stepped, slow), (jumped, fast)):
            own.step()
            schedule.step()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("trainer: {precision: bf16-mixed}", "trainer.precision=bf16-mixed until here, 32-true from now on"),
        ("trainer: {precision: 32-true}", None),
        ("trainer: {}", None),
        ("[broken", None),
    ],
)
def test_a_run_that_goes_on_in_another_precision_says_so(recipe, said, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe)
    line = _other_precision(tmp_path, "32-true")
    assert line is None if said is None else line.startswith(said)
