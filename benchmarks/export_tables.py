"""The record of the export matrix as tables of Markdown, and into the docs.

``python -m featemb.benchmarks.export_tables docs/results/export/matrix.json docs/export.md``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featemb.benchmarks import export_matrix
from featemb.errors import FormatError
from featemb.export import TARGETS
from featemb.files import replacing

BEGIN = "<!-- matrix: written by featemb.benchmarks.export_tables -->"
END = "<!-- end of the matrix -->"
_HEADINGS = {"method": "Methods", "codec": "Codecs", "model": "Models"}


def tables(record: Mapping[str, Any]) -> str:
    """Return a table a group, and the reasons of what does not work."""
    reasons: dict[str, int] = {}
    text = []
    for group, heading in _HEADINGS.items():
        rows: dict[str, list[str]] = {}
        for kind, name, form in export_matrix.cells():
            if kind == group:
                rows.setdefault(name, []).append(form)
        text += [f"### {heading}", "", f"| {group} | " + " | ".join(TARGETS) + " |"]
        text.append("|---" * (len(TARGETS) + 1) + "|")
        for name, forms in rows.items():
            found = [_cell(record, group, name, forms, target, reasons) for target in TARGETS]
            text.append(f"| `{name}` | " + " | ".join(found) + " |")
        text.append("")
    text += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(text).strip() + "\n"


def _cell(
    record: Mapping[str, Any],
    group: str,
    name: str,
    forms: list[str],
    target: str,
    reasons: dict[str, int],
) -> str:
    """Return what a cell says: yes, not tried, or the number of a reason."""
    said = []
    for form in forms:
        found = record["cells"].get(f"{group}/{name}/{form}/{target}")
        if found is None:
            said.append("not tried")
        elif found["ok"]:
            said.append("yes")
        else:
            number = reasons.setdefault(found["reason"], len(reasons) + 1)
            said.append(f"no ({number})")
    if len(set(said)) == 1:
        return said[0]
    return ", ".join(f"{form}: {one}" for form, one in zip(forms, said, strict=True))


def block(text: str) -> str:
    """Return what a page holds between the marks.

    Raises:
        FormatError: the page has no marks.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise FormatError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    return text[begin + len(BEGIN) : end].strip() + "\n"


def main() -> None:
    """Write the tables of a record into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    page = given.page.read_text("utf-8")
    old = block(page).strip()
    made = tables(export_matrix.read(given.record))
    begin = page.index(BEGIN) + len(BEGIN)
    end = page.index(END)
    with replacing(given.page) as temporary:
        temporary.write_text(f"{page[:begin]}\n\n{made}\n{page[end:]}", "utf-8")
    print("the tables are new" if made.strip() != old else "nothing changed")


if __name__ == "__main__":
    main()
