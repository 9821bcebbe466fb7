"""What docs/dpo.md says of the asymmetry holds."""

import re
import runpy
import sys

import pytest
import torch


@pytest.fixture
def toy(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import dpo_toy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    yield dpo_toy
    torch.set_num_threads(threads)


def test_plain_dpo_raises_the_winner_s_own_error_and_the_asymmetric_form_does_not(toy):
    found = toy.curves(2, 30, ["plain", "asymmetric"])
    assert found["plain"][0] == found["asymmetric"][0]  # one start
    first = found["plain"][0]
    for curve in found.values():
        assert curve[-1][1] > 2 * first[1]  # both have learnt to tell the sides apart
    assert found["plain"][-1][0] > 1.5 * first[0]
    assert max(winner for winner, _ in found["asymmetric"]) <= first[0]


@pytest.mark.slow
def test_so_it_is_for_three_seeds_and_as_documented(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dpo_toy.py", "--svg", str(tmp_path / "plot.svg")])
    runpy.run_path(str(root / "benchmarks" / "dpo_toy.py"), run_name="__main__")
    rows, written = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if re.match(r"\| \d", line)]
        for text in (capsys.readouterr().out, (root / "docs" / "dpo.md").read_text(encoding="utf-8"))
    )
    assert len(rows) == len(written) == 9
    for (seed, form, first, last, highest, *_), (*names, _, documented, _, _, _) in zip(rows, written):
        assert names == [seed, form]
        assert float(last) / float(documented) == pytest.approx(1, abs=0.3)
        if form == "plain":
            assert float(last) > 1.3 * float(first)
        if form == "asymmetric":
            assert float(highest) <= float(first)
    assert (tmp_path / "plot.svg").read_text().count("<polyline") == 10
