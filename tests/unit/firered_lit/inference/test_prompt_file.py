"""A file of prompts is read as it was written."""

import json

from firered_lit.inference.prompt_file import read_prompts


def test_a_prompt_may_hold_any_line_end_but_its_own(tmp_path) -> None:
    odd = "Write\u2028two\x85lines\x0bor\x1cmore"
    file = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"instruction": text}, ensure_ascii=False) for text in (odd, "Make it red")]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert [prompt.instruction for prompt in read_prompts(file, "--prompts")] == [odd, "Make it red"]
