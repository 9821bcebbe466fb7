"""The instruction index counts what the slow way counts, in both languages, and rules, quotas and gaps take it."""

import itertools
import random
import re
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pictures import lines, picture, save, table

from datamodules.sources.raw import RawRows
from firered_lit.curation.corpus import Corpus
from firered_lit.curation.fill import Fill
from firered_lit.curation.phrases import Phrases
from firered_lit.curation.run import curate
from firered_lit.curation.scores import path_of, write
from firered_lit.curation.select import Quota
from firered_lit.curation.shards import OWN
from firered_lit.curation.words import Instructions, Words, folded
from firered_lit.errors import UserError

HAN = "[\u3400-\u9fff]"
VERBS = ["make", "turn", "paint", "please make"]
THINGS = ["the sky", "it", "the old car", "her hair", "a"]
COLOURS = ["red", "blue", "much brighter", "less grey"]
CHINESE = ["把天空变成红色", "把天空变成蓝色", "把 logo 换成红色", "删除路人", "把背景换掉", "红"]


def texts_of(count, seed):
    """(English or None, Chinese or None) of rows."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        english = " ".join(rng.choice(words) for words in (VERBS, THINGS, COLOURS))
        found.append((rng.choice([english, english, None]), rng.choice([*CHINESE, None, None, None])))
    return found


def corpus_of(folder, texts, tasks, shard_rows=16, kinds=None):
    """Score files of rows that say these texts."""
    for shard, start in enumerate(range(0, len(texts), shard_rows)):
        numbers = list(range(start, min(start + shard_rows, len(texts))))
        keys = {"row": numbers, "picture": [0] * len(numbers), "failure": [None] * len(numbers)}
        said = {"en": [texts[number][0] for number in numbers], "cn": [texts[number][1] for number in numbers]}
        write(path_of(folder, "said", shard), Instructions.columns, keys | said, {})
        own = dict.fromkeys(OWN["row"], [None] * len(numbers))
        own |= {"kind": [(kinds or {}).get(number, "edit") for number in numbers]}
        own |= {"task": [tasks[number] for number in numbers]}
        write(path_of(folder, "row", shard), OWN["row"], keys | own, {})
    return Corpus(folder, len(texts), shard_rows, {"said": Instructions(), "phrases": PHRASES})


PHRASES = Phrases(texts=["said.en", "said.cn"], longest=2, least=3)


def words_of(text):
    return re.sub(f"({HAN})", r" \1 ", text).split()


def written(words):
    text = " ".join(words)
    bare = text.replace("_", "")
    return text.replace(" ", "") if re.fullmatch(f"({HAN}| )+", bare) else text


def grams_of(text, longest=2):
    words = words_of(text)
    found = set()
    for size in range(1, 2 * longest + 1):
        for start in range(len(words) - size + 1):
            some = words[start : start + size]
            if size <= longest or re.fullmatch(f"{HAN}+", "".join(some)):
                found.add(" ".join(some))
    return found


def templates_of(text):
    words = words_of(text)
    found = set()
    for place in range(len(words)):
        if len(words) > 2:
            found.add(" ".join([*words[:place], "_", *words[place + 1 :]]))
        if len(words) > 5 and re.fullmatch(f"{HAN}{HAN}", "".join(words[place : place + 2])):
            found.add(" ".join([*words[:place], "_", *words[place + 2 :]]))
    return found


def slowly(texts):
    """The columns of every row, counted row by row."""
    rows_of = defaultdict(set)
    for row, own in enumerate(texts):
        for text in filter(None, own):
            rows_of[text].add(row)
    same = {text: len(rows) for text, rows in rows_of.items()}
    common, shared = Counter(), Counter()
    for text, count in same.items():
        common.update(dict.fromkeys(grams_of(text), count))
        shared.update(dict.fromkeys(templates_of(text), count))
    found = []
    for own in texts:
        options = []
        for text in filter(None, own):
            templates = [(-shared[template], -len(template), template) for template in templates_of(text)]
            best = min(templates, default=(-same[text], 0, ""))
            rarest = min(common[phrase] for phrase in grams_of(text))
            template = written(best[2].split()) if -best[0] > same[text] else text
            options.append((best[0], text, same[text], template, -best[0], rarest))
        found.append(min(options)[2:] if options else (None,) * 4)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_columns_are_what_counting_row_by_row_finds(seed, tmp_path):
    texts = texts_of(70, seed)
    corpus = corpus_of(tmp_path, texts, ["color"] * 70)
    PHRASES.run(corpus, None)
    found = []
    for shard in range(corpus.shards):
        rows = pq.read_table(path_of(tmp_path, "phrases", shard)).to_pylist()
        found += [(row["same"], row["template"], row["near"], row["rarest"]) for row in rows]
    assert found == slowly(texts)
    assert {"把天空变成_色", "删除路人"} <= {row[1] for row in found}, "both languages are there"


def test_the_index_has_the_phrases_of_each_task_and_cluster_that_enough_edits_have(tmp_path):
    texts = texts_of(80, 3)
    tasks = [("color", "text")[number % 2] for number in range(80)]
    corpus = corpus_of(tmp_path, texts, tasks, kinds=dict.fromkeys(range(0, 80, 7), "text-to-image"))
    PHRASES.run(corpus, None)
    expected = Counter()
    for row, own in enumerate(texts):
        if row % 7:
            expected.update((tasks[row], phrase) for phrase in set().union(*map(grams_of, filter(None, own))))
    found = pq.read_table(tmp_path / "state" / "phrases.parquet").to_pylist()
    assert {(one["task"], one["phrase"]): one["rows"] for one in found} == {
        (task, written(phrase.split())): count for (task, phrase), count in expected.items() if count >= 3
    }
    assert {one["language"] for one in found if re.search(HAN, one["phrase"])} == {"cn"}
    assert {one["language"] for one in found if not re.search(HAN, one["phrase"])} == {"en"}


def test_what_is_there_is_not_made_again(tmp_path):
    corpus = corpus_of(tmp_path, texts_of(20, 0), ["color"] * 20)
    assert PHRASES.run(corpus, None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert PHRASES.run(corpus, None) == []
    assert PHRASES.run(corpus, {"count": 3}), "other clusters, another index"
    assert not list((tmp_path / "state").glob(".phrases*"))
    assert before.keys() == set(tmp_path.rglob("*.parquet"))


@pytest.fixture
def raw(tmp_path):
    """Twelve edits: eight of one template, two that say the same, one in both languages, one of another task."""
    texts = [f"Make the car {colour}" for colour in ("red", "blue", "green", "pink", "grey", "black", "white", "brown")]
    texts += ["Remove the man!", "remove the man", "Add a hat", "Translate the sign"]
    rows = []
    for number, text in enumerate(texts):
        save(tmp_path / "raw" / f"{number}.png", picture(number, 32))
        row = {"id": str(number), "source_image": f"{number}.png", "target_image": f"{(number + 1) % 12}.png"}
        task = {"M": "color", "R": "remove", "r": "remove", "A": "add", "T": "text"}[text[0]]
        rows.append(row | {"instruction": text, "category": task})
    rows[10]["instruction_cn"] = "加一顶帽子"
    return table(tmp_path / "raw" / "rows.jsonl", rows)


def run(source, out, **options):
    annotators = {"words": Words(), "said": Instructions()}
    given = {"annotators": annotators, "phrases": Phrases(["said.en", "said.cn"], least=2), "workers": 0}
    steps = ["annotate", "fit", "select", "fill"]
    curate(
        source=str(source),
        out=str(out),
        rows=RawRows(str(source)),
        **{"shard_rows": 5, "steps": steps, **given, **options},
    )
    return pq.read_table(out / "decisions.parquet").column("reason").to_pylist()


def test_rules_and_quotas_take_how_common_words_are(raw, tmp_path):
    out = tmp_path / "out"
    rules = {"worn": {"column": "phrases.near", "above": 5}, "twice": {"column": "phrases.same", "above": 1}}
    assert run(raw, out, rules=rules) == ["worn"] * 8 + ["twice"] * 2 + [None] * 2
    found = run(raw, out, rules={}, quotas=[Quota("phrases.template", most=3)], steps=["select"])
    assert found[:8].count(None) == 3
    assert found[8:] == [None] * 4
    rare = run(raw, out, rules={"plain": {"column": "phrases.rarest", "above": 1}}, steps=["select"])
    assert rare == [None] * 8 + ["plain"] * 2 + [None] * 2


def test_gaps_name_phrases_that_are_missing(raw, tmp_path):
    out = tmp_path / "out"
    fill = Fill(least=1, tasks=["color"], phrases={"color": ["The car", "sky"], "add": ["帽子"]}, least_said=9)
    run(raw, out, fill=fill, rules={"blue": {"column": "row.id", "among": ["1"]}})
    gaps = {gap["phrase"]: gap for gap in lines(out / "gaps.jsonl")}
    assert {phrase: (gap["task"], gap["edits"], gap["missing"]) for phrase, gap in gaps.items()} == {
        "The car": ("color", 7, 2),
        "sky": ("color", 0, 9),
        "帽子": ("add", 1, 8),
    }


def test_a_cluster_lacks_what_edits_of_its_task_say_elsewhere(tmp_path):
    texts = [("make it red", None)] * 4 + [("make it blue", None)] * 3 + [("turn it round", None)] * 2
    corpus = corpus_of(tmp_path, texts, ["color"] * 9)
    from firered_lit.curation import fit, scores

    clusters = [0, 0, 0, 1, 1, 1, 0, 0, 0]
    scores.put(fit.path_of(tmp_path, "clusters"), fit._table("clusters", list(range(9)), clusters), {})
    kept = [True] * 8 + [False]
    pq.write_table(
        pq.read_table(fit.path_of(tmp_path, "clusters")).append_column("kept", [kept]), tmp_path / "decisions.parquet"
    )
    found = PHRASES.lacking(corpus, [("color", 0), ("color", 1), ("text", 1)], 1)
    assert found == {("color", 0): [], ("color", 1): ["it round", "turn it"], ("text", 1): []}


def test_a_phrase_is_of_whole_words_and_rows_without_a_cluster_are_a_cell(tmp_path):
    corpus = corpus_of(tmp_path, [("make the cart red", None), ("paint the car", None)], ["color"] * 2)
    kept = pa.table({"row": [0, 1], "kept": [True, True]})
    pq.write_table(kept, tmp_path / "decisions.parquet")
    assert PHRASES.said(corpus, [("color", "the car"), ("color", "Red"), ("add", "red")]) == [1, 1, 0]
    assert PHRASES.lacking(corpus, [("color", None)], 1) == {("color", None): []}


def test_the_index_names_what_the_edits_of_all_clusters_say_often_enough(tmp_path):
    """Three edits of a task say it, one or two of each cluster."""
    from firered_lit.curation import fit, scores

    corpus = corpus_of(tmp_path, [("make it red", None)] * 3 + [("turn", None)] * 2, ["color"] * 5)
    scores.put(fit.path_of(tmp_path, "clusters"), fit._table("clusters", [0, 1, 2, 3, 4], [0, 0, 1, 0, 1]), {})
    PHRASES.run(corpus, {})
    index = pq.read_table(tmp_path / "state" / "phrases.parquet").to_pylist()
    assert {(row["phrase"], row["cluster"], row["rows"]) for row in index if row["phrase"] in ("it red", "turn")} == {
        ("it red", 0, 2),
        ("it red", 1, 1),
    }


def test_columns_and_phrases_that_are_none_are_refused(raw, tmp_path):
    cases = {
        "did you mean 'said.en'": {"phrases": Phrases(["said.eng"])},
        "words.words is no text of rows": {"phrases": Phrases(["words.words"])},
        "file.path is no text of rows": {"phrases": Phrases(["file.path"])},
        "needs the instruction index": {"phrases": None, "fill": Fill(phrases={"color": ["x"]})},
        "annotators.phrases: this name is taken": {"annotators": {"phrases": Words()}},
    }
    for said, options in cases.items():
        with pytest.raises(UserError, match=said):
            run(raw, tmp_path / "out", **options)
    with pytest.raises(UserError, match="run the step fit first"):
        run(raw, tmp_path / "other", steps=["annotate", "select"])
    with pytest.raises(UserError, match="has no letter"):
        Fill(phrases={"color": ["!"]})
    with pytest.raises(UserError, match="names no column"):
        Phrases([])


def test_texts_of_both_languages_are_folded():
    from firered_lit.curation.rows import RawRow

    texts = {"original/cn": "换成 红色！", "original/en": "Make it RED", "instructive/en": "other"}
    rows = [RawRow(0, "a", "s", "w", texts=texts), RawRow(1, "b", "s", "w")]
    assert Instructions().annotate(rows) == {"en": ["make it red", None], "cn": ["换成 红色", None]}
    assert all(folded(text) == text for text in itertools.chain(CHINESE))
