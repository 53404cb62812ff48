"""Generated parts of Markdown pages: what lies between two markers is made anew.

A part is ``<!-- WORD NAME -->``, text, ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from featemb.files import replacing


def fill(page: str, word: str, make: Callable[[str], str]) -> str:
    """Return a page with every part of a word made anew from its name."""
    part = re.compile(rf"(<!-- {word} ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return part.sub(lambda match: f"{match[1]}\n{make(match[2]).rstrip()}\n\n{match[3]}", page)


def rewrite(pages: Sequence[Path], change: Callable[[str], str]) -> list[Path]:
    """Change files, each atomically; return those that became different."""
    changed = []
    for page in pages:
        before = page.read_text("utf-8")
        after = change(before)
        if after != before:
            with replacing(page) as path:
                path.write_text(after, "utf-8")
            changed.append(page)
    return changed
