"""Facts of a sample: from its row, through the JSON that is stored with it, to the batch."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.chunks.samples import Sample, pack, unpack
from datamodules.prepare.encode import STORED
from datamodules.sources.records import Record
from firered_lit.facts import Facts, from_meta, to_meta

LAYOUT = {"size": [64, 96], "place": None, "chars": [["a", 1.5, 2.0, 8.0, 9.0, 0]]}
KNOWN = st.builds(
    Facts,
    id=st.text(),
    task=st.text(),
    instruction=st.text(),
    target_text=st.text(),
    replaced_text=st.text(),
    requirement=st.text(),
    cluster=st.text(),
    layout=st.sampled_from([None, LAYOUT]),
    order=st.permutations([1, 2, 3]).map(tuple) | st.just(()),
)


@given(KNOWN)
def test_stored_facts_are_read_as_they_were_but_for_the_instruction_of_a_visit(facts: Facts) -> None:
    stored = json.loads(json.dumps(to_meta(facts)))
    assert from_meta(facts.id, stored) == replace(facts, instruction="")
    assert to_meta(from_meta(facts.id, stored)).keys() == stored.keys()
    assert set(stored) <= set(STORED)


@given(KNOWN)
def test_facts_survive_a_chunk(facts: Facts) -> None:
    leaves = pack(Sample(facts.id, to_meta(facts), {}, {}))
    sample = unpack(leaves)
    assert from_meta(sample.id, sample.meta) == replace(facts, instruction="")


@pytest.mark.parametrize("key", ["target_text", "cluster", "replaced_text", "requirement", "order", "text_layout"])
def test_a_sample_of_an_earlier_version_may_lack_any_fact_but_its_task(key: str) -> None:
    whole = Facts("a", "text", "", "new", "old", "is it new", "c", LAYOUT, (2, 1))
    meta = to_meta(whole)
    del meta[key]
    name = "layout" if key == "text_layout" else key
    empty = next(field.default for field in fields(Facts) if field.name == name)
    assert from_meta("a", meta) == replace(whole, **{name: empty})


def test_a_record_and_its_facts_say_the_same() -> None:
    texts = {"target_text": "new", "replaced_text": "old", "requirement": "is it new", "cluster": "c"}
    record = Record("a", "text", "t.png", ("s.png",), {"original/en": "Write new"}, "rows.jsonl:1", **texts)
    assert record.facts("Write new") == Facts(id="a", task="text", instruction="Write new", **texts)
    assert record.facts().columns() == texts
    assert replace(record, cluster="", target_text="").facts().columns().keys() == {"replaced_text", "requirement"}
