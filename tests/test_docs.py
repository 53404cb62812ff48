"""The documentation's gate: every public name is in it, and every block of Python in it runs."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import featemb as fe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
# Matches a fenced block of Python, and a comment before it that tells why it is not run.
BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>[^>]+) -->\n\n?)?"
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def blocks(text: str) -> str:
    """All blocks of a page as one program whose line numbers are the page's."""
    lines = [""] * (text.count("\n") + 1)
    for match in BLOCK.finditer(text):
        if not match["reason"]:
            first = text.count("\n", 0, match.start("code"))
            code = textwrap.dedent(match["code"]).splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


def public(module: ModuleType) -> list[str]:
    """The full names of what a module offers; those of its public modules follow them."""
    names = []
    for name in getattr(module, "__all__", None) or defined_in(module):
        names.append(f"{module.__name__}.{name}")
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            names += public(value)
    return names


def defined_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]


def missing(names: list[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


def test_api_lists_every_public_name() -> None:
    text = page("api.md")
    headings = set(re.findall(r"^### `([\w.]+)`$", text, re.MULTILINE))
    modules = (fe, fe.models, fe.datasets, fe.benchmarks, fe.torchrec)
    expected = {name for module in modules for name in public(module)}
    assert sorted(expected - headings) == [], "docs/api.md lacks these headings"
    assert sorted(headings - expected) == [], "these names in docs/api.md are not public"


def test_every_method_has_its_row() -> None:
    rows = set(re.findall(r"^\| `(\w+)`", page("methods.md"), re.MULTILINE))
    assert sorted(set(fe.methods()) - rows) == [], "docs/methods.md lacks these rows"


def test_every_codec_is_documented() -> None:
    assert not missing(fe.codecs(), page("methods.md"))


def test_every_model_has_its_row() -> None:
    rows = set(re.findall(r"^\| `(\w+)`", page("models.md"), re.MULTILINE))
    assert sorted(set(fe.models.names()) - rows) == [], "docs/models.md lacks these rows"


def test_every_data_set_is_documented() -> None:
    assert not missing(list(fe.datasets.names()), page("datasets.md"))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]]
    assert not [name for name in pages if not re.search(rf":\s*{re.escape(name)}\s*$", text, re.M)]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_in_the_docs_runs(path: Path, tmp_path: Path) -> None:
    """A page is read from top to bottom, so its blocks share one namespace."""
    code = blocks(path.read_text("utf-8"))
    if not code.strip():
        pytest.skip("no Python on this page")
    program = "import sys, torch; torch.set_num_threads(1)\n"
    program += f"exec(compile(sys.stdin.read(), {path.name!r}, 'exec'), {{'__name__': 'page'}})"
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command, input=code, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
