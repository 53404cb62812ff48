"""Tables of speed in Markdown pages, made from the records that the scripts here write.

A page holds ``<!-- speed NAME -->`` and ``<!-- end -->``; what lies between is replaced. Names:
``peers``, ``profile`` (peers.json; ``peers small``, ``profile small``: peers_small_net.json),
``lookups``, ``faster`` (lookups.json), ``growth``, ``largest`` (growth.json).
Run ``python -m featemb.benchmarks.speed.pages docs/speed.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from featemb.benchmarks import blocks
from featemb.benchmarks.speed.lookups import FORMS
from featemb.benchmarks.speed.step_profile import PARTS
from featemb.errors import ConfigError

Record = dict[str, Any]
_MISSING = "Not measured yet.\n"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruled = ["|" + "---|" * len(head)]
    return "\n".join(
        [f"| {' | '.join(one)} |" for one in (head,)] + ruled + [_row(r) for r in rows]
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def peers(record: Record) -> str:
    """Samples a second and ratios of every peer and size."""
    rows = []
    for pair in record["pairs"]:
        rate, ratio = pair["samples_per_second"], pair["ratios"]
        cells = [f"{pair['rows']:,}", pair["peer"], f"{rate['featemb']:,}", f"{rate['peer']:,}"]
        kinds = ("median", "best", "processor")
        rows.append([*cells, *(f"{ratio[kind]:.2f}" for kind in kinds)])
    head = ["rows", "beside", "featemb, samples/s", "it, samples/s", "times as fast (median)"]
    return _lines([*head, "of best steps", "by processor time"], rows)


def profile(record: Record) -> str:
    """Shares of our step."""
    rows = [
        [f"{one['rows']:,}", *(f"{100 * one['shares'][part]:.1f}%" for part in PARTS)]
        for one in record["profiles"]
    ]
    return _lines(["rows", *PARTS], rows)


def lookups(record: Record) -> str:
    """Ratios of every method and form, to ``nn.Embedding``."""
    rows = []
    for name, found in sorted(record["methods"].items()):
        cells = [f"`{name}`", f"{found['times_smaller']:.1f}x"]
        for form in FORMS:
            cells.append(f"{found[form]['ratios']['median']:.2f}" if form in found else "")
        rows.append(cells)
    return _lines(["method", "smaller", *FORMS], rows)


def faster(record: Record) -> str:
    """What lookups that compute each distinct id once gain over those that do not."""
    rows = []
    for name, found in sorted(record["methods"].items()):
        for form, before in found.get("each_id", {}).items():
            ratios = (before["ratios"]["median"], found[form]["ratios"]["median"])
            gain = ratios[0] / ratios[1]  # each took turns with nn.Embedding
            rows.append([f"`{name}`", form, *(f"{one:.2f}" for one in ratios), f"{gain:.2f}"])
    return _lines(["method", "form", "before", "now", "times as fast"], rows)


def growth(record: Record) -> str:
    """Exponents of every axis."""
    rows = []
    for axis, found in record["axes"].items():
        values = [one[found["of"]] for one in found["points"]]
        times = [one["milliseconds"]["median"] for one in found["points"]]
        cells = [axis, f"{values[0]:,} to {values[-1]:,}", f"{times[0]:,.1f} to {times[-1]:,.1f}"]
        rows.append([*cells, _exponent(found["time"]), _exponent(found.get("training_bytes"))])
    return _lines(["axis", "values", "ms", "exponent of the time", "of the training bytes"], rows)


def _exponent(found: Record | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['exponent']:.2f} ({low:.2f} to {high:.2f})"


def largest(record: Record) -> str:
    """Resident memory of the largest table."""
    one = record["largest_table"]
    sizes = [f"{one[name] / 1e6:,.0f}" for name in ("bytes", "resident_bytes", "peak_bytes")]
    ratios = [f"{one[name]:.3f}" for name in ("resident_ratio", "peak_ratio")]
    head = ["rows", "MB by count", "MB resident", "MB at the peak", "resident / count"]
    return _lines([*head, "peak / count"], [[f"{one['rows']:,}", *sizes, *ratios]])


KINDS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "peers": ("peers", peers),
    "profile": ("peers", profile),
    "peers small": ("peers_small_net", peers),
    "profile small": ("peers_small_net", profile),
    "lookups": ("lookups", lookups),
    "faster": ("lookups", faster),
    "growth": ("growth", growth),
    "largest": ("growth", largest),
}


def fill(page: str, folder: Path) -> str:
    """Return a page with every marked part made anew from a folder's records.

    Raises:
        ConfigError: a marker asks for something else than the above.
    """

    def made(name: str) -> str:
        if name not in KINDS:
            raise ConfigError(f"speed {name!r} is not known; Allowed: {', '.join(KINDS)}")
        record, make = KINDS[name]
        file = folder / f"{record}.json"
        return make(json.loads(file.read_text("utf-8"))) if file.exists() else _MISSING

    return blocks.fill(page, "speed", made)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--records", type=Path, default=Path("docs/results/speed"))
    options = parser.parse_args()
    for page in blocks.rewrite(options.pages, lambda page: fill(page, options.records)):
        print(page)


if __name__ == "__main__":
    main()
