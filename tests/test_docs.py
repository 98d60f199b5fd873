"""The documents' code runs: each file's Python blocks in order, in one namespace."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path):
    """(line, code) of every ```python block."""
    text = path.read_text("utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text.count("\n", 0, match.start(1)), match.group(1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__document__"}
    for line, code in blocks(path):
        source = compile("\n" * line + code, str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, namespace)
    assert namespace


def test_quick_start_has_exactly_two_shell_blocks():
    section = DOCUMENTS[0].read_text("utf-8").split("## Quick start")[1].split("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert len(found) == 2
    assert all(block.startswith("python3 -m venv ") for block in found)


def test_links_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_reference_lists_every_op_and_layer():
    import minidl as md

    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    listed = set(re.findall(r"`(\w+)`", text.split("## Ops")[1].split("## Training")[0]))
    assert listed == set(md.ops.__all__) | {"getitem"}
    assert set(md.layers.__all__) - {"Parameter"} <= set(re.findall(r"`(\w+)`", text))
