"""Object stores: what is read from folders and written to them says so, and leaves no folder named after an address."""

import pytest
from raw_pictures import loose

from datamodules.prepare.parts import at_work
from datamodules.sources.raw import RawRows
from datamodules.sources.tables import survey
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.run import curate
from firered_lit.errors import UserError
from firered_lit.places import on_this_machine, writable


@pytest.mark.parametrize("address", ["s3://bucket/raw", "gs://bucket/rows.jsonl", "hf://datasets/NAME/rows.parquet"])
def test_an_address_where_a_folder_is_needed_is_one_clear_line(address, tmp_path, monkeypatch):
    source = str(loose(tmp_path / "raw", 1, side=32))
    monkeypatch.chdir(tmp_path)
    said = rf"^{address}: an address where a file or a folder of this machine is needed; mount the store"
    with pytest.raises(UserError, match=said):
        curate(address, "out", RawRows(address), {"hashes": Hashes()})
    with pytest.raises(UserError, match=said):
        curate(source, address, RawRows(source), {"hashes": Hashes()})
    with pytest.raises(UserError, match=said):
        survey(address)
    with pytest.raises(UserError, match=said), at_work((tmp_path / address).resolve()):
        pass
    with pytest.raises(UserError, match=said):
        writable(tmp_path / address)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


@pytest.mark.parametrize("name", ["a:b/c", "data/2026-01-01T10:20:30/x", "C:/data", "./s3/bucket"])
def test_a_colon_in_a_name_is_no_address(name):
    on_this_machine(name)
