"""Vectors of pictures and texts come from any encoder's folder, and heads compute from them without a picture."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from raw_pictures import contents, edits, loose, picture
from safetensors.numpy import save_file

from callbacks.annotators.embeddings import Embeddings, TextEmbeddings
from datamodules.sources.raw import RawRows
from firered_lit.curation.annotator import Annotator
from firered_lit.curation.heads import Cosines, Head, Probe, cosine, fit_probe, read_head, vectors_of
from firered_lit.curation.rows import Picture, RawRow
from firered_lit.curation.run import curate
from firered_lit.errors import UserError

WORDS = ["<pad>", "<end>", "<unknown>", "a", "red", "blue", "square", "invert"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny encoders with random weights, as their libraries write them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        PreTrainedTokenizerFast,
        ResNetConfig,
        ResNetModel,
        SiglipConfig,
        SiglipModel,
    )

    home = tmp_path_factory.mktemp("encoders")
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = wide | {"image_size": 28, "patch_size": 14}
    text = wide | {
        "vocab_size": 8,
        "max_position_embeddings": 6,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)),
            "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config=vision)),
            "dinov2": Dinov2Model(Dinov2Config(**wide, image_size=28, patch_size=14)),
            "resnet": ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1])),
        }
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    size = {"height": 28, "width": 28}
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    for name, model in made.items():
        model.save_pretrained(home / name)
        processor.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return home


def vectors(annotator, items):
    annotator.open()
    return np.array(list(annotator.annotate(items)["vector"]))


@pytest.mark.parametrize(("name", "width"), [("clip", 8), ("siglip", 16), ("dinov2", 16), ("resnet", 6)])
def test_a_vector_is_the_models_own_whatever_stands_beside_it(folders, name, width):
    from transformers import AutoImageProcessor, AutoModel

    pictures = [Picture(picture(number, side)) for number, side in enumerate((40, 28, 64, 33, 50))]
    pictures.append(Picture(picture(7, 96)[:50]))
    together = vectors(Embeddings(str(folders / name)), pictures)
    assert together.shape == (6, width)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    some = vectors(Embeddings(str(folders / name), together=2), pictures)
    assert together == pytest.approx(some, abs=1e-5)
    # The model's own way with one picture, from a Pillow image.
    model = AutoModel.from_pretrained(folders / name).eval()
    inputs = AutoImageProcessor.from_pretrained(folders / name)(
        Image.fromarray(pictures[2].pixels), return_tensors="pt"
    )
    with torch.no_grad():
        asks = model.get_image_features if name in ("clip", "siglip") else model
        own = asks(pixel_values=inputs["pixel_values"]).pooler_output.flatten().numpy()
    assert cosine(own, together[2]) == pytest.approx(1, abs=1e-4)


def test_texts_are_in_the_space_of_pictures_and_rows_without_one_have_no_vector(folders):
    annotator = TextEmbeddings(str(folders / "clip"))
    annotator.open()
    texts = ["a red square", "a blue square", "", "a red square a red square a red square"]
    rows = [RawRow(0, "a", "s", "w", texts={"original/en": text} if text else {}) for text in texts]
    found = annotator.annotate(rows)["vector"]
    assert found[2] is None
    assert all(len(vector) == 8 for vector in (found[0], found[1], found[3]))
    assert cosine(found[0], found[1]) < 0.9999
    alone = annotator.annotate(rows[:1])["vector"][0]
    assert alone == pytest.approx(found[0], abs=1e-6)
    with pytest.raises(UserError, match="has no vectors of texts"):
        TextEmbeddings(str(folders / "dinov2")).open()


def test_the_weights_are_part_of_what_columns_are_made_by(folders, tmp_path):
    source, out = loose(tmp_path / "raw", 3, 32), tmp_path / "out"
    model = shutil.copytree(folders / "dinov2", tmp_path / "model")
    path = out / "scores" / "look" / "00000.parquet"

    def made(folder):
        run(source, out, annotators={"look": Embeddings(str(folder))})
        return path.stat().st_mtime_ns

    before = made(model)
    assert made(shutil.copytree(model, tmp_path / "moved")) == before
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-4] + b"\x00\x00\x00\x40")
    assert made(model) != before


def run(source, out, **options):
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{"workers": 0, "shard_rows": 4, **options})
    return pq.read_table(out / "decisions.parquet").column("reason").to_pylist()


def column(out, name, field):
    paths = sorted((out / "scores" / name).glob("*.parquet"))
    return [value for path in paths for value in pq.read_table(path).column(field).to_pylist()]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    rng = np.random.default_rng(0)
    save_file({"head.weight": rng.normal(size=(1, 8)).astype("f4"), "head.bias": np.array([0.5], "f4")}, path)
    return path


def measured(folders, head):
    """Vectors of pictures and texts, a head on the former and cosines of both."""
    clip = str(folders / "clip")
    return {
        "look": Embeddings(clip),
        "said": TextEmbeddings(clip),
        "aesthetics": Head(str(head), "look.vector"),
        "near": Cosines("look.vector", "said.vector"),
    }


def test_heads_and_cosines_are_those_of_their_formulas_and_rules_take_them(folders, head, tmp_path):
    source, out = edits(tmp_path / "raw", 6, instruction="invert a red square"), tmp_path / "out"
    rules = {"plain": {"column": "aesthetics.score", "below_quantile": 0.3, "of": "target"}}
    found = run(source, out, annotators=measured(folders, head), rules=rules)
    assert found.count("plain") == 2
    look = np.array(column(out, "look", "vector"))
    said = np.array(column(out, "said", "vector"))
    weight, bias = read_head(head)
    assert column(out, "aesthetics", "score") == pytest.approx(look @ weight + bias, abs=1e-5)
    targets, sources = look[0::2], look[1::2]
    assert column(out, "near", "pair") == pytest.approx((targets * sources).sum(1), abs=1e-5)
    assert column(out, "near", "text") == pytest.approx((targets * said).sum(1), abs=1e-5)
    assert [len(some) for some in vectors_of(out, "look.vector")] == [6, 6]


def test_another_head_opens_no_picture(folders, head, tmp_path, monkeypatch):
    source, out = edits(tmp_path / "raw", 5, instruction="a square"), tmp_path / "out"
    annotators = measured(folders, head)
    run(source, out, annotators=annotators)
    before = contents(out)
    monkeypatch.setattr(RawRows, "open", lambda *_: pytest.fail("a picture is opened"))
    other = tmp_path / "other.safetensors"
    save_file({"w.weight": np.ones((1, 8), "f4")}, other)
    run(
        source,
        out,
        annotators=annotators | {"aesthetics": Head(str(other), "look.vector"), "b": Probe(str(other), "look.vector")},
    )
    changed = {name for name, content in contents(out).items() if before.get(name) != content}
    scores = {f"scores/{name}/0000{shard}.parquet" for name in ("aesthetics", "b") for shard in (0, 1)}
    assert changed == {"data_card.json", *scores}  # the card names what the columns are made by
    look = np.array(column(out, "look", "vector"))
    assert column(out, "b", "probability") == pytest.approx(1 / (1 + np.exp(-look.sum(1))), abs=1e-5)


def test_vectors_made_anew_have_their_heads_made_anew(folders, head, tmp_path):
    source, out = loose(tmp_path / "raw", 2, 32), tmp_path / "out"
    run(source, out, annotators={"look": Embeddings(str(folders / "clip")), "head": Head(str(head), "look.vector")})
    before = column(out, "head", "score")
    other = shutil.copytree(folders / "clip", tmp_path / "other")
    config = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(config | {"do_normalize": False}))
    run(source, out, annotators={"look": Embeddings(str(other)), "head": Head(str(head), "look.vector")})
    assert column(out, "head", "score") != before


def test_processes_give_the_vectors_that_one_gives(folders, head, tmp_path):
    source = edits(tmp_path / "raw", 6, instruction="a square")
    annotators = measured(folders, head)
    torch.randn(64, 64) @ torch.randn(64, 64)  # PyTorch's threads are there when the processes are started
    run(source, tmp_path / "one", annotators=annotators)
    run(source, tmp_path / "two", annotators=annotators, workers=2, patience=60.0)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_picture_without_a_vector_has_no_score(folders, head, tmp_path):
    class Missing(Annotator):
        columns = {"vector": "vector"}  # noqa: RUF012

        def annotate(self, batch):
            return {"vector": [None if item.path.endswith("1.jpg") else np.ones(8) for item in batch]}

    source = loose(tmp_path / "raw", 3, 32)
    (source / "0002.jpg").write_text("no picture")
    out = tmp_path / "out"
    run(
        source,
        out,
        annotators={"look": Missing(), "head": Head(str(head), "look.vector"), "near": Cosines("look.vector")},
    )
    weight, bias = read_head(head)
    assert column(out, "head", "score") == [pytest.approx(weight.sum() + bias, abs=1e-5), None]
    assert column(out, "near", "pair") == [None, None]


def test_layers_without_activations_are_one_linear_head(tmp_path):
    rng = np.random.default_rng(1)
    sizes = [8, 5, 4, 3, 2, 1]
    layers = [(rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
    tensors = {}
    for number, (weight, bias) in zip((0, 2, 4, 6, 10), layers):  # 10 comes after 6
        tensors |= {f"layers.{number}.weight": weight.astype("f4"), f"layers.{number}.bias": bias.astype("f4")}
    save_file(tensors, tmp_path / "mlp.safetensors")
    weight, bias = read_head(tmp_path / "mlp.safetensors")
    x = rng.normal(size=8)
    expected = x
    for layer, more in layers:
        expected = layer @ expected + more
    assert x @ weight + bias == pytest.approx(expected[0], rel=1e-4)


def test_a_probe_finds_what_it_was_fitted_to_find(tmp_path):
    rng = np.random.default_rng(2)
    direction = rng.normal(size=32)
    labels = rng.random(600) < 0.2
    features = rng.normal(size=(600, 32)) * rng.uniform(0.1, 10, 32) + np.outer(labels, 2 * direction)
    path = tmp_path / "probe.safetensors"
    weight, bias = fit_probe(features[:400], labels[:400], path)
    probe = Probe(str(path), "look.vector")
    found = np.array(probe.annotate([{"look.vector": row} for row in features[400:].astype("f4")])["probability"])
    assert found == pytest.approx(1 / (1 + np.exp(-(features[400:] @ weight + bias))), abs=1e-4)
    right = labels[400:]
    assert found[right].mean() > 0.9 > 0.1 > found[~right].mean()
    with pytest.raises(UserError, match="of what it is to find, and of others"):
        fit_probe(features, np.zeros(600, bool))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w.weight": np.ones((2, 8), "f4")}, "gives 2 numbers"),
        ({"w.weight": np.ones((1, 8), "f4"), "w.scale": np.ones(3, "f4")}, "expected NAME.weight"),
        ({"a.0.weight": np.ones((3, 8), "f4"), "a.1.weight": np.ones((1, 4), "f4")}, "takes 4 numbers"),
        ({"w.weight": np.full((1, 8), np.nan, "f4")}, "not finite"),
        ({"w.weight": np.ones((1, 8), "f4"), "w.bias": np.ones(2, "f4")}, "the bias of"),
        ({}, "expected NAME.weight"),
    ],
)
def test_a_file_that_is_no_head_is_refused(tensors, said, tmp_path):
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=said):
        Head(str(tmp_path / "head.safetensors"), "look.vector")


def test_what_cannot_be_computed_from_is_refused_before_anything_is_opened(folders, head, tmp_path):
    source, clip = loose(tmp_path / "raw", 1, 32), str(folders / "clip")
    looks, head = {"look": Embeddings(clip)}, str(head)
    cases = {
        "did you mean 'look.vector'": looks | {"a": Head(head, "look.vectr")},
        "name look before it": {"a": Head(head, "look.vector")} | looks,
        "file.width holds count": looks | {"a": Head(head, "file.width")},
        "said.vector has no value for each": {"said": TextEmbeddings(clip), "a": Head(head, "said.vector")},
        "is for vectors of 8 numbers": {"look": Embeddings(str(folders / "siglip")), "a": Head(head, "look.vector")},
    }
    for said, annotators in cases.items():
        with pytest.raises(UserError, match=said):
            run(source, tmp_path / "out", annotators=annotators)
    with pytest.raises(UserError, match="cannot be read"):
        Head(str(tmp_path / "none.safetensors"), "look.vector")


def test_folders_that_are_no_encoder_are_refused(folders, tmp_path):
    broken = shutil.copytree(folders / "clip", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="cut short"):
        Embeddings(str(broken))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        Embeddings(str(broken))
    bare = shutil.copytree(folders / "clip", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config.json"):
        Embeddings(str(bare))
    with pytest.raises(UserError, match="device=cuda:99"):
        Embeddings(str(folders / "clip"), device="cuda:99").open()


def test_without_an_encoder_curate_imports_no_torch(root):
    named = "firered_lit.curation.run, firered_lit.curation.heads, firered_lit.curation.niqe, datamodules.sources.raw"
    code = f"import sys, sklearn.cluster, {named}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
