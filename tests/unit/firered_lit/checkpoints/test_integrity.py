"""A damaged checkpoint is found wherever it is read, and fallen back from where the newest one was meant."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_export_lora import recorded
from test_sharded_files import mesh, state  # noqa: F401 - a fixture
from tiny_edits import fit

from callbacks.checkpoint import Checkpoint
from firered_lit.checkpoints import sharded
from firered_lit.checkpoints.average import average
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, damage, newest, resolve, sound
from firered_lit.checkpoints.integrity import COMPLETE
from firered_lit.errors import UserError
from firered_lit.exporting import export
from firered_lit.models.backbone import Backbone
from firered_lit.models.family import open_base
from firered_lit.models.lora import LoRA
from firered_lit.run.start import start_folder

CONTENT = {
    "state_dict": {f"layer.{i}": torch.randn(37, 11) for i in range(4)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
    "global_step": 3,
}


def flip(path, place, bit=0):
    """Change one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "step_00000003.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


@pytest.fixture
def folder(tmp_path, mesh):  # noqa: F811
    path = tmp_path / "step_00000020.ckpt"
    sharded.save(state(mesh), path)
    return path


def files_of(checkpoint):
    return [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_bit_flipped_at_twenty_random_places_is_found_twenty_times(kind, request):
    """Over all bytes: tensors, pickles, the archive's headers and directory, padding, the seal, the manifest."""
    checkpoint = request.getfixturevalue(kind)
    assert damage(checkpoint) is None
    places = [(path, place) for path in files_of(checkpoint) for place in range(path.stat().st_size)]
    drawn, found = random.Random("twenty places"), 0
    for path, place in drawn.sample(places, 20):
        whole = path.read_bytes()
        flip(path, place, drawn.randrange(8))
        found += damage(checkpoint) is not None
        path.write_bytes(whole)
    assert found == 20
    assert damage(checkpoint) is None


def test_a_flip_in_any_byte_is_found(file):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.zeros(1)}}, file)
    whole = file.read_bytes()
    with file.open("r+b", buffering=0) as opened:
        for place, byte in enumerate(whole):
            os.pwrite(opened.fileno(), bytes([byte ^ 1 << place % 8]), place)
            assert damage(file) is not None, place
            os.pwrite(opened.fileno(), bytes([byte]), place)


def test_what_is_cut_or_grown_is_found(file):
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:-48], whole[: len(whole) // 2], whole + b"\0", b"", b"PK\x05\x06"):
        file.write_bytes(content)
        assert damage(file) is not None


def test_a_sealed_file_is_an_archive_as_any(file):
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"firered_lit crc32 ")
    for mapped in (True, False):
        found = torch.load(file, weights_only=True, mmap=mapped)
        assert torch.equal(found["state_dict"]["layer.3"], CONTENT["state_dict"]["layer.3"])


def test_of_a_file_without_a_seal_every_record_is_checked(file):
    """As earlier versions wrote it: a flip is found in all that is read."""
    torch.save(CONTENT, file)
    assert damage(file) is None
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    whole, drawn, found = file.read_bytes(), random.Random("records"), 0
    for _ in range(20):
        record = drawn.choice(records)
        begin = whole.index(record.filename.encode(), record.header_offset) + len(record.filename)
        begin += int.from_bytes(whole[record.header_offset + 28 : record.header_offset + 30], "little")
        flip(file, begin + drawn.randrange(record.file_size), drawn.randrange(8))
        found += damage(file) is not None
        file.write_bytes(whole)
    assert found == 20


def test_of_a_folder_without_checksums_every_tensor_and_value_is_checked(folder):
    content = json.loads((folder / COMPLETE).read_text())
    before = json.dumps({"processes": 1, "files": content["files"]}, indent=1)
    (folder / COMPLETE).write_text(before)
    assert damage(folder) is None
    assert AtomicCheckpointIO().load_checkpoint(folder)["global_step"] == 20
    tensors = next(folder.glob("*.distcp"))
    whole = tensors.read_bytes()
    place = whole.index(torch.full((12,), 1.0).numpy().tobytes())  # the weights
    for path, at in ((tensors, place), (folder / "meta.pt", whole_pickle(folder / "meta.pt"))):
        kept = path.read_bytes()
        flip(path, at)
        assert "checksum of its record" in damage(folder)
        path.write_bytes(kept)


def whole_pickle(path):
    return path.read_bytes().index(b"global_step")


def test_each_process_reads_its_share_of_a_folder(folder):
    flip(next(folder.glob("*.distcp")), 100)
    problems = [damage(folder, rank, 3) for rank in range(3)]
    assert sum(problem is not None for problem in problems) == 1


def test_a_damaged_manifest_is_no_manifest_of_an_earlier_version(folder):
    text = (folder / COMPLETE).read_text()
    for broken in (
        text.replace("crc32", "crc33"),
        text.replace('"own"', '"owm"'),
        text.replace(" 1,", " 3,", 1),
        text[1:],
    ):
        (folder / COMPLETE).write_text(broken)
        with pytest.raises(UserError, match="damaged"):
            sound(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return recorded(folder, fit(folder, Backbone("tiny", lora=LoRA(2, 4)), 3, [Checkpoint(every=1)], logger=False))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run of three checkpoints, of which the newest has one bit flipped."""
    shutil.copytree(trained, tmp_path / "run")
    path = newest(tmp_path / "run")
    flip(path, path.stat().st_size // 2)
    return tmp_path / "run"


def test_resume_goes_on_from_the_one_before(run, tmp_path):
    with pytest.warns(
        UserWarning, match=r"step_00000003.ckpt: the checkpoint is damaged .*step_00000002.ckpt is taken"
    ):
        found = AtomicCheckpointIO(fall_back=True).load_checkpoint(resolve(run, "last"))
    assert found["global_step"] == 2
    with pytest.raises(UserError, match=r"step_00000003.ckpt: the checkpoint is damaged"):
        AtomicCheckpointIO().load_checkpoint(newest(run))


def test_export_takes_the_one_before_or_refuses_the_one_that_was_named(run, tmp_path):
    with pytest.warns(UserWarning, match="damaged"):
        export(str(run), str(tmp_path / "out"))
    assert "2 optimizer steps" in (tmp_path / "out" / "README.md").read_text()
    (run / "checkpoints" / "best.json").write_text('{"name": "step_00000003.ckpt"}')
    for named in ("best", "step_00000003.ckpt"):
        with pytest.raises(UserError, match="damaged"):
            export(str(run), str(tmp_path / "other"), checkpoint=named)
    assert not (tmp_path / "other").exists()


def test_average_leaves_it_out(run, tmp_path, capsys):
    average(str(run), str(tmp_path / "mean.ckpt"), last=2)
    assert "step_00000003.ckpt: the checkpoint is damaged" in capsys.readouterr().out
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "mean.ckpt")
    assert found["averaged"] == ["step_00000001.ckpt", "step_00000002.ckpt"]
    with pytest.raises(UserError, match="has 2 checkpoints, not 3"):
        average(str(run), str(tmp_path / "more.ckpt"), last=3)


def test_a_new_run_starts_from_the_one_before_or_refuses_the_one_that_was_named(run, tmp_path):
    base = open_base("tiny")
    with pytest.raises(UserError, match="damaged"):
        start_folder(str(newest(run)), tmp_path / "new", base)
    assert not (tmp_path / "new").exists()
    with pytest.warns(UserWarning, match="step_00000002.ckpt is taken instead"):
        made = start_folder(str(run), tmp_path / "new", base)
    assert json.loads((made / "start.json").read_text())["checkpoint"].endswith("step_00000002.ckpt")


def test_a_run_without_any_sound_checkpoint_does_not_begin_again_over_them(run):
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="no checkpoint of this run is whole"):
        resolve(run, "last")


def test_a_cut_checkpoint_is_named_when_it_is_passed_over(run):
    path = newest(run)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(
        UserWarning, match=r"step_00000003.ckpt: not a checkpoint file, or cut short; step_00000002.ckpt"
    ):
        assert resolve(run, "last").name == "step_00000002.ckpt"


def test_a_record_of_the_best_that_is_damaged_is_one_clear_line(run):
    for text in ("{", "[]", '{"step": 3}', "\udcff"):
        (run / "checkpoints" / "best.json").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match=r"best\.json: "):
            resolve(run, "best")


def test_the_processes_agree_on_one_checkpoint(run, tmp_path):
    """Whatever one of them finds, all hear; here one process stands for all."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.warns(UserWarning, match="damaged"):
            assert sound(newest(run), fall_back=True).name == "step_00000002.ckpt"
    finally:
        dist.destroy_process_group()
