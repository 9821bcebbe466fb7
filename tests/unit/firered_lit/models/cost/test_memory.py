"""The estimate against PyTorch's own memory trackers, and what the command says."""

import gc
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from pydoc import locate

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from firered_lit.batch import Condition, Text
from firered_lit.cli import main
from firered_lit.config.recipe import load
from firered_lit.models.cost.footprint import Forward, _built, _stand_in, footprint
from firered_lit.models.cost.memory import TEXT, Training, estimate, training_of
from firered_lit.models.family import FULL_SIZE, transformer_config
from firered_lit.models.lora import LoRA
from firered_lit.models.qwen_image import velocity
from firered_lit.models.shard import Sharding, shard
from firered_lit.models.sizes import Sizes, shape_table, tokens
from firered_lit.optim import rounds_stochastically

TOLERANCE = 0.15


@pytest.fixture(autouse=True)
def _no_garbage():
    """Checkpointed blocks leave cycles behind: a tracker would count them for as long as Python lets them lie."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what earlier tests left alive: full collections wait until a quarter as much is new
    gc.collect()
    gc.set_threshold(50, 2, 2)
    yield
    gc.set_threshold(*before)


STEP = ("weights", "gradients", "optimizer", "average", "activations", "gathered blocks", "optimizer's step")


def config(layers, heads, head_dim=32, text=64):
    axes = [head_dim // 4, 3 * head_dim // 8, 3 * head_dim // 8]
    small = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim}
    return {**FULL_SIZE, **small, "joint_attention_dim": text, "axes_dims_rope": axes}


def build(t):
    return _built(
        t.config,
        Forward(1, (16, 16), TEXT, dtype=getattr(torch, t.weights), checkpointing=t.checkpointing, lora=t.lora),
    )


def steps(model, t, tracker, optimizer):
    """Two steps as Lightning takes them: old gradients live through the forward."""
    height, width = t.shape
    text = Text(torch.zeros(t.batch, TEXT, t.config["joint_attention_dim"]), None)
    x = torch.zeros(t.batch, 16, height // 8, width // 8)
    for again in (False, True):
        if again:
            tracker.reset_mod_stats()
        with tracker:
            with torch.autocast("cpu", torch.bfloat16, enabled=t.autocast):
                v = velocity(model, x, torch.zeros(t.batch), Condition(text, ())).float()
                loss = ((v - x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del v, loss
    return max(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())


def estimated(t):
    return sum(part.size for part in estimate(t) if part.name in STEP)


def sized(**more):
    return Training(**{"sizes": Sizes(target_area=256 * 256), "capacity": 1024, **more})


SMALL = {
    "shallow": sized(config=config(2, 4), capacity=2048),
    "deep": sized(config=config(8, 8), capacity=512),
    "checkpointed": sized(config=config(3, 8), checkpointing=True),
    "products": sized(config=config(3, 8), checkpointing="products"),
    "mostly weights": sized(config=config(2, 16), capacity=256),
    "autocast": sized(config=config(4, 8), autocast=True),
    "half": sized(config=config(4, 8), weights="bfloat16"),
}


LONG = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=LONG if n in ("deep", "autocast", "half") else ()) for n in SMALL]
)
def test_one_device_against_the_tracker(name):
    """All weights are trained here, also those that no loss reaches: the tracker cannot follow frozen ones."""
    t = SMALL[name]
    model = build(t).requires_grad_(True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _stand_in(model)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        peak = steps(model, t, tracker, optimizer)
    print(f"{name}: tracker {peak / 2**20:.1f} MB, estimate {estimated(t) / 2**20:.1f} MB")
    assert estimated(t) == pytest.approx(peak, rel=TOLERANCE)


SHARDED = {
    "shallow": sized(config=config(2, 8), shards=8, sharded=True, compute="bfloat16"),
    "checkpointed": sized(config=config(4, 8), shards=4, sharded=True, compute="bfloat16", checkpointing=True),
    "products": sized(config=config(4, 8), shards=4, sharded=True, compute="bfloat16", checkpointing="products"),
    "lora": sized(config=config(4, 8), shards=2, sharded=True, compute="bfloat16", lora=LoRA(rank=4, alpha=4)),
    "full width": sized(
        config={**FULL_SIZE, "num_layers": 4}, shards=8, sharded=True, compute="bfloat16", checkpointing=True
    ),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=LONG if n == "full width" else ()) for n in SHARDED])
def test_shards_against_the_tracker(name):
    """A process group that sends nothing stands in for the other devices."""
    t = SHARDED[name]
    dist.init_process_group("fake", rank=0, world_size=t.shards, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (t.shards,))
        model = build(t)
        with FakeTensorMode(allow_non_fake_inputs=True):
            _stand_in(model)
            shard(model, Sharding(mesh, torch.device("cpu"), torch.bfloat16))
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
            peak = steps(model, t, FSDPMemTracker(model, optimizer), optimizer)
    finally:
        dist.destroy_process_group()
    print(f"{name}: tracker {peak / 2**20:.1f} MB, estimate {estimated(t) / 2**20:.1f} MB")
    assert estimated(t) == pytest.approx(peak, rel=TOLERANCE)


def test_parameters_are_those_of_the_model_at_any_depth():
    """One and two blocks tell of sixty: counted on the whole model, without memory too."""
    for lora in (None, LoRA(rank=8, alpha=8)):
        forward = Forward(1, (16, 16), 32, lora=lora)
        whole, found = _built(FULL_SIZE, forward), footprint(FULL_SIZE, forward)
        assert found.parameters == sum(p.numel() for p in whole.parameters())
        assert found.trained == sum(p.numel() for p in whole.parameters() if p.requires_grad)
        assert lora or 20.3e9 < found.parameters < 20.5e9
    assert transformer_config("someone/a-model") == FULL_SIZE
    assert transformer_config("tiny")["num_layers"] == 2


def parts(recipe, gpus, *overrides):
    return {part.name: part.size / 2**30 for part in estimate(training_of(load(recipe, overrides).root, gpus))}


def test_what_is_sharded_shrinks_and_what_is_not_stays():
    eight, many = parts("recipes/sft_fsdp.yaml", 8), parts("recipes/sft_fsdp.yaml", 128)
    assert eight["weights"] == pytest.approx(20.4e9 * 4 / 8 / 2**30, rel=0.01)
    assert eight["optimizer"] == pytest.approx(2 * eight["weights"], rel=0.05)
    for name in ("weights", "gradients", "optimizer"):
        assert many[name] == pytest.approx(eight[name] / 16)
    hybrid = parts("recipes/sft_fsdp.yaml", 128, "trainer.strategy.replicate=16")
    assert hybrid == pytest.approx(eight)
    whole = parts("recipes/sft_fsdp.yaml", 8, "trainer.strategy.whole_gradients=true")
    assert whole["gradients"] == pytest.approx(8 * eight["gradients"])
    averaged = parts("recipes/sft_fsdp.yaml", 8, "callbacks.ema={_target_: callbacks.ema.EMA}")
    assert averaged["average"] == pytest.approx(eight["gradients"])


def test_pairs_hold_a_reference_and_reinforcement_an_old_policy():
    """Full weights: a copy as large as the gradients. An adapter of pairs is switched off and needs none."""
    pairs, half = parts("recipes/dpo.yaml", 8), parts("recipes/dpo.yaml", 16)
    assert pairs["other policies"] == pytest.approx(pairs["gradients"])
    assert half["other policies"] == pytest.approx(pairs["other policies"] / 2)
    assert parts("recipes/dpo_lora.yaml", 8)["other policies"] == 0
    nft = parts("recipes/nft.yaml", 8, "stage.kl=0.1")
    assert nft["other policies"] == pytest.approx(2 * nft["gradients"])
    assert parts("recipes/nft.yaml", 8, "stage.kl=0")["other policies"] == pytest.approx(nft["gradients"])


def test_a_pair_is_two_samples_and_a_rollout_decodes_as_many_as_it_draws_at_once():
    training = {name: training_of(load(f"recipes/{name}.yaml").root, 8) for name in ("sft", "dpo", "nft")}
    assert [(t.batch, t.tokens) for t in training.values()][:2] == [(4, 4144), (4, 4144)]
    small = replace(training["dpo"], capacity=4096)
    assert small.batch == 2  # one pair at least
    nft = replace(training["nft"], capacity=3 * 8288)
    assert (nft.batch, nft.tokens, nft.decoded) == (3, 8288, 3)
    assert replace(nft, capacity=100 * 8288).batch == nft.group == 12
    each = [
        sum(p.size for p in estimate(replace(nft, capacity=n * 8288)) if p.name[:3] in ("dec", "act")) for n in (2, 3)
    ]
    assert each[1] - each[0] == pytest.approx(6920 * 1184 * 896, rel=0.01)


@pytest.mark.parametrize("capacity", [4096, 8192, 16384, 16500, 16576, 30000])
def test_the_estimate_is_of_the_fullest_micro_batch_that_the_capacity_lets_in(capacity):
    """Whatever the shape: at 16384 that is four squares, at 16576 four of 1184x896."""
    t = replace(training_of(load("recipes/sft.yaml").root, 8), capacity=capacity)
    allowed = [capacity // tokens(shape) * tokens(shape) for shape in shape_table(1024 * 1024)]
    assert t.batch * t.tokens == max(allowed)
    assert t.tokens == tokens(t.shape)
    assert training_of(load("recipes/nft.yaml", ["stage.capacity=null"]).root, 8).batch == 12


HOLDS = re.compile(r"(\d+) GPUs? of (\d+) GB holds? it")


def fit_recipes():
    """The recipes for a full-size transformer, by name."""
    roots = {path.stem: load(str(path)).root for path in sorted(Path("recipes").glob("*.yaml"))}
    return {name: root for name, root in roots.items() if root["_target_"] == "firered_lit.training.fit"}


def full_size_recipes():
    """Recipes that train all weights of a full-size transformer."""
    return {name: root for name, root in fit_recipes().items() if not root["stage"]["backbone"].get("lora")}


def opening(name):
    return Path(f"recipes/{name}.yaml").read_text(encoding="utf-8").partition("\nbase:")[0]


def test_a_recipe_fits_the_devices_that_its_first_lines_name():
    """Whoever trains all weights of a full-size transformer, or has chosen a card, is shown what holds it."""
    named = {name: HOLDS.search(opening(name)) for name in fit_recipes()}
    assert all(named[name] for name in full_size_recipes())
    cards = {name: (int(found[1]), int(found[2])) for name, found in named.items() if found}
    assert {name for name in cards if "gb" in name} == {
        *("sft_lora_24gb", "sft_lora_small_24gb", "sft_lora_48gb", "sft_lora_80gb", "sft_141gb")
    }
    for name, (gpus, memory) in cards.items():
        needed = sum(part.size for part in estimate(training_of(load(name).root, gpus))) / 2**30
        assert needed < memory, name
        assert needed < 21.5 or memory > 24, name


def test_every_full_size_recipe_trains_float32_weights():
    """But for the one that rounds half weights stochastically, on one card."""
    recipes = full_size_recipes()
    half = recipes.pop("sft_141gb")
    assert rounds_stochastically(locate(half["stage"]["optimizer"]["_target_"]))
    assert len(recipes) >= 6
    for name, root in recipes.items():
        assert root["stage"]["backbone"]["dtype"] == "float32", name
        assert root["trainer"]["strategy"]["compute"] == "bfloat16", name


def test_gradients_of_half_weights_that_add_up_are_float32():
    """On one device; FSDP2 keeps those of its shards in the weights' precision and is refused there."""
    one = replace(training_of(load("recipes/sft.yaml").root, 1), sharded=False, weights="bfloat16", autocast=True)
    once, summed = (
        {part.name: part.size for part in estimate(replace(one, accumulates=accumulates))}
        for accumulates in (False, True)
    )
    assert summed["gradients"] == 2 * once["gradients"]


def test_the_command_says_whether_it_fits(capsys):
    command = ["check", "--recipe", "recipes/sft_fsdp.yaml", "--gpus", "8"]
    assert main([*command, "--gpu-memory", "80"]) == 0
    assert "of 80: fits" in capsys.readouterr().out
    assert main([*command, "--gpu-memory", "24"]) == 2
    assert "does not fit; lower data.capacity, now 16576" in capsys.readouterr().out
    assert main(["check", "--recipe", "recipes/sft_fsdp.yaml", "--gpus", "8", "trainer.strategy.replicate=3"]) == 2
    assert "replicate=3: 8 processes cannot be divided by it" in capsys.readouterr().err
    assert main(["check", "--recipe", "recipes/prepare.yaml", "--gpus", "8"]) == 2
    assert "of no other" in capsys.readouterr().err
    assert main(["check", "--gpus", "8"]) == 2
    whole = ["trainer.strategy=auto", "trainer.precision=bf16-mixed"]
    assert main(["check", "--recipe", "recipes/dpo.yaml", "--gpus", "8", "--gpu-memory", "80", *whole]) == 2
    assert "shard it: 'trainer.strategy={_target_: firered_lit.distributed.strategy.FSDP2}'" in capsys.readouterr().out
    assert main(["check", "--recipe", "recipes/nft.yaml", "--gpus", "8", "--gpu-memory", "60"]) == 2
    assert "does not fit; it fits with stage.backbone.quantize=8bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "memory"), [("sft_lora", 48), ("sft_lora", 24), ("sft_lora_small", 24), ("dpo_lora", 48)]
)
def test_what_does_not_fit_is_answered_with_a_command_line_that_does(capsys, name, memory):
    command = ["check", "--recipe", name, "--gpus", "1", "--gpu-memory", str(memory)]
    assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "does not fit" in line]
    overrides = shlex.split(line.partition("it fits with ")[2])
    assert overrides
    assert main([*command, *overrides]) == 0
    assert line.count("quantize") <= 1
    before, after = load(name).root["stage"]["optimizer"], load(name, overrides).root["stage"]["optimizer"]
    kept = ("lr", "betas", "weight_decay")
    assert [after[key] for key in kept] == [before[key] for key in kept]


def test_the_first_change_that_is_enough_stands_alone(capsys):
    assert main(["check", "--recipe", "sft_lora", "--gpus", "1", "--gpu-memory", "48"]) == 2
    assert "it fits with stage.backbone.quantize=8bit\n" in capsys.readouterr().out


def kept(quantize, autocast, checkpointing=True):
    """The footprint of a LoRA over bfloat16 weights."""
    latents = (32, 32)
    lora = LoRA(rank=4, alpha=4)
    forward = Forward(
        2, latents, TEXT, 1, torch.bfloat16, False, autocast, checkpointing=checkpointing, lora=lora, quantize=quantize
    )
    return footprint(config(4, 8), forward)


def test_blocks_over_a_quantised_base_keep_a_float32_stream_under_autocast_alone():
    """The inputs of all blocks but the first, whose inputs the embeddings make."""
    stream = 2 * (512 + TEXT) * 8 * 32  # numbers: samples, tokens, width
    plain = kept(None, autocast=False)
    for quantize in ("4bit", "8bit"):
        assert kept(quantize, autocast=False).saved == plain.saved
        assert kept(quantize, autocast=True).saved - kept(None, autocast=True).saved == 3 * stream * 2


def test_a_quantised_layer_needs_its_whole_weight_while_it_computes():
    plain, four, eight = (kept(quantize, autocast=False) for quantize in (None, "4bit", "8bit"))
    assert plain.working < four.working < eight.working
    assert four.quantised == eight.quantised > 0.9 * four.parameters
    assert plain.quantised == 0


def test_the_estimate_counts_what_else_lies_on_the_device(tmp_path):
    """The text encoder of prompts that are encoded in the step, a judge of this process, weights that are put aside."""
    plain = parts("sft_lora", 1)
    assert not plain["text encoder"]
    assert not plain["judge"]
    online = parts("sft_lora", 1, "data.alignment=online")
    assert online["text encoder"] == pytest.approx(8.29e9 * 2 / 2**30, rel=0.001)
    aside = parts("sft_lora", 1, "callbacks.ema.validate=true")
    assert aside["average"] == pytest.approx(2 * plain["average"])

    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    judge = f"judge: {{_target_: callbacks.judge.local.LocalVLM, model: {tmp_path}}}"
    asked = f"callbacks.judge={{_target_: callbacks.rewards.judge.JudgeReward, prompt: edit, {judge}}}"
    assert parts("sft_lora", 1, asked)["judge"] == 2**-10
    assert parts("sft_lora", 1, asked, "callbacks.judge.judge.device=cpu")["judge"] == 0


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_text_encoder_is_counted_in_the_precision_of_the_prepared_data(tmp_path, dtype, size):
    facts = {"alignment": "online", "dtype": dtype, "sizes": Sizes().as_dict()}
    (tmp_path / "data.json").write_text(json.dumps(facts))
    recipe = load("recipes/sft_lora.yaml", ["run.dir=x", f"data.root={tmp_path}"])
    assert training_of(recipe.root, 1).text_encoder == pytest.approx(8.29e9 * size, rel=0.001)


def test_autocast_is_the_first_thing_that_a_lora_over_half_weights_gives_up(capsys):
    command = ["check", "--recipe", "sft_lora_24gb", "--gpus", "1", "--gpu-memory", "22"]
    assert main([*command, "trainer.precision=bf16-mixed"]) == 2
    assert "it fits with trainer.precision=32-true\n" in capsys.readouterr().out
