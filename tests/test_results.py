"""The numbers in the README and the docs are those of the committed run records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

import featemb as fe
from featemb.benchmarks.records import read_all
from featemb.benchmarks.report import Row, aggregate
from featemb.benchmarks.speed import pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"ml1m": ("README.md", "docs/results.md"), "demo": ("docs/results.md",)}
PAGES |= dict.fromkeys(("criteo_head80k", "frappe_nfm30"), ("docs/results.md",))


def line(row: Row) -> str:
    """A row of the Markdown tables."""
    change = f"{row.difference.value:+.4f}" if row.difference else ""
    size = f"{row.serving:,}"
    return f"| `{row.method}` | {size} | {row.ratio:.1f}x | {row.auc.value:.4f} | {change} |"


@pytest.mark.parametrize("results", PAGES)
def test_tables_are_those_of_the_records(results: str) -> None:
    folder = ROOT / "docs" / "results" / results
    runs = read_all(folder)
    assert not runs.unreadable
    rows = aggregate(folder, runs.records.values())
    assert any(row.is_full for row in rows)
    for page in PAGES[results]:
        text = (ROOT / page).read_text()
        missing = [line(row) for row in rows if line(row) not in text]
        assert not missing, f"{page} lacks:\n" + "\n".join(missing)


def test_speed_is_that_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/training_step.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    for value, digits in zip(record["ratios_of_medians"].values(), (2, 1, 2), strict=True):
        assert f"| {value:.{digits}f} |" in text


def every_method() -> list[str]:
    """The lines of the table of all methods at two sizes, from the records of its runs."""
    runs = read_all(ROOT / "docs" / "results" / "ml1m_methods")
    assert not runs.unreadable
    cells: dict[str, dict[float | None, str]] = {}
    best: dict[str, float] = {}
    for row in aggregate(ROOT, runs.records.values()):
        assert row.seeds == 3, f"{row.method} at {row.asked} has {row.seeds} seeds"
        seeds = [runs.records[name]["metrics"]["test"]["auc"]["value"] for name in row.runs]
        reach = t.ppf(0.975, 2) * np.std(seeds, ddof=1) / np.sqrt(3)
        size = None if row.is_full else float(row.asked.removesuffix("x"))
        cells.setdefault(row.method, {})[size] = f"{row.auc.value:.4f} ± {reach:.4f}"
        if size != 100:
            best[row.method] = row.auc.value
    for record in runs.records.values():
        config = record["config"]
        if record["status"] == "failed":
            assert record["error"]["type"] == "BudgetError", record["error"]["message"]
            floor = re.search(r"at least ([\d,]+) bytes", record["error"]["message"])
            assert floor is not None
            cells.setdefault(config["method"], {})[config["ratio"]] = f"needs {floor[1]} bytes"
    full = cells.pop("full")[None]
    order = sorted(cells, key=lambda method: -best.get(method, 0.0))
    lines = [f"| `{method}` | {cells[method][10.0]} | {cells[method][100.0]} |" for method in order]
    return [f"| `full`, 1x | {full} | |", *lines]


def pruning(folder: str) -> list[str]:
    """The lines of a table of OptEmbed against its baselines, from the records of its runs.

    The p values are of a t test of the differences to the full table, one a seed.
    """
    auc: dict[tuple[str, str, float], dict[int, float]] = {}
    size: dict[tuple[str, str, float], int] = {}
    for record in read_all(ROOT / "docs" / "results" / folder).records.values():
        config = record["config"]
        key = (config["model"], config["method"], config["ratio"] or 1.0)
        auc.setdefault(key, {})[config["seed"]] = record["metrics"]["test"]["auc"]["value"]
        size[key] = max(size.get(key, 0), record["bytes"]["serving"])
    lines = []
    for key in sorted(auc, key=lambda one: (one[0], one[2], -np.mean(list(auc[one].values())))):
        mine, full = auc[key], auc[key[0], "full", 1.0]
        assert sorted(mine) == [0, 1, 2]
        line = f"| {key[0]} | `{key[1]}` | {size[key]:,} | {np.mean(list(mine.values())):.4f} |"
        if key[1] == "full":
            lines.append(line + " | |")
            continue
        change = [mine[seed] - full[seed] for seed in sorted(mine)]
        p = ttest_1samp(change, 0.0).pvalue
        lines.append(f"{line} {np.mean(change):+.4f} | {p:.3f} |")
    return lines


def pruners() -> list[str]:
    """The lines of the table of all pruning methods, from the records of its runs."""
    records = read_all(ROOT / "docs" / "results" / "ml1m_pruners").records.values()
    found = {one["config"]["method"]: one for one in records}
    assert all(one["status"] == "ok" for one in found.values())
    auc = {method: one["metrics"]["test"]["auc"]["value"] for method, one in found.items()}
    full = auc.pop("full")
    sizes = {method: one["bytes"]["serving"] for method, one in found.items()}
    return [
        f"| `{method}` | {sizes[method]:,} | {value:.4f} | {value - full:+.4f} |"
        for method, value in sorted(auc.items(), key=lambda item: -item[1])
    ]


def formats() -> list[str]:
    """The lines of the table of trained row formats, from the records of its runs.

    Methods of three seeds have the p value of a t test of the differences to the full table.
    """
    auc: dict[tuple[str, float | None], dict[int, float]] = {}
    size: dict[tuple[str, float | None], tuple[int, int]] = {}
    for record in read_all(ROOT / "docs" / "results" / "ml1m_formats").records.values():
        assert record["status"] == "ok", record["error"]
        config, found = record["config"], record["bytes"]
        key = (config["method"], config["ratio"])
        auc.setdefault(key, {})[config["seed"]] = record["metrics"]["test"]["auc"]["value"]
        size[key] = max(size.get(key, (0, 0)), (found["serving"], found["training"]))
    full = auc.pop(("full", None))
    lines = [
        f"| `full` | {size['full', None][0]:,} | 1.0x | {np.mean(list(full.values())):.4f} | | |"
    ]
    for key in sorted(auc, key=lambda one: (-size[one][0], one[0])):
        change = [value - full[seed] for seed, value in auc[key].items()]
        p = f"{ttest_1samp(change, 0.0).pvalue:.3f}" if len(change) == 3 else "1 seed"
        serving = size[key][0]
        lines.append(
            f"| `{key[0]}` | {serving:,} | {size['full', None][0] / serving:.1f}x "
            f"| {np.mean(list(auc[key].values())):.4f} | {np.mean(change):+.4f} | {p} |"
        )
    return lines


def codecs() -> list[str]:
    """The lines of the table of codecs of a trained full table, from the records of its runs."""
    records = read_all(ROOT / "docs" / "results" / "ml1m_codecs").records.values()
    assert sorted(one["config"]["seed"] for one in records) == [0, 1, 2]
    full = [one["metrics"]["test"]["auc"]["value"] for one in records]
    whole = next(iter(records))["bytes"]["serving"]
    lines = [f"| `fp32` | {whole:,} | 1.0x | {np.mean(full):.5f} | | |"]
    found = {
        codec: [one["codecs"][codec] for one in records] for codec in next(iter(records))["codecs"]
    }
    for codec, runs in sorted(found.items(), key=lambda item: (-item[1][0]["serving"], item[0])):
        auc = [one["metrics"]["test"]["auc"]["value"] for one in runs]
        change = [mine - theirs for mine, theirs in zip(auc, full, strict=True)]
        serving = max(one["serving"] for one in runs)
        lines.append(
            f"| `{codec}` | {serving:,} | {whole / serving:.1f}x | {np.mean(auc):.5f} "
            f"| {np.mean(change):+.5f} | {ttest_1samp(change, 0.0).pvalue:.3f} |"
        )
    return lines


def test_the_tables_of_formats_are_those_of_their_records() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for lines in (formats(), codecs()):
        assert "\n".join(lines) in page, "docs/results.md lacks:\n" + "\n".join(lines)


def test_the_tables_of_pruning_are_those_of_their_records() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for lines in (pruning("ml1m_pruning"), pruning("ml1m_long"), pruners()):
        assert "\n".join(lines) in page, "docs/results.md lacks:\n" + "\n".join(lines)


def test_the_tables_of_all_methods_are_those_of_their_records() -> None:
    lines = every_method()
    both = (*lines, *pruners(), *formats())
    named = {re.match(r"\| `(\w+)", line)[1] for line in both}  # type: ignore[index]
    page = (ROOT / "docs" / "results.md").read_text()
    assert set(fe.methods()) <= named
    assert "\n".join(lines) in page


def test_the_scoring_of_a_search_is_that_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/search_scoring.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    for model, found in record["models"].items():
        each, together = found["seconds"]["each"], found["seconds"]["together"]
        line = f"| {model} | {each:.2f} | {together:.2f} | {found['ratio']:.1f} |"
        assert line in text, line


def test_method_steps_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/method_steps.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    for spec, found in record["methods"].items():
        line = f"| `{spec}` | {found['milliseconds']:.0f} | {found['ratio']:.2f} |"
        assert line in text, line


def test_serving_lookups_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/serving_lookup.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    names = re.findall(r"^\| ((?:nn|layer|rows|plain|FBGEMM)[^|]*) \|", text, re.MULTILINE)
    assert len(names) == 17
    for name in names:
        cells = [name]
        for found in record["threads"].values():
            ratio = found["ratios_of_medians"].get(name, 1.0)
            cells += [f"{found['milliseconds_median'][name]:.2f}", f"{ratio:.2f}"]
        line = "| " + " | ".join(cells) + " |"
        assert line in text, line


def test_encoding_is_that_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/encode.json").read_text())
    text = (ROOT / "docs" / "datasets.md").read_text()
    for found in record["files"]:
        for name, rate in found["rows_per_second"].items():
            alone = found["rows_per_second_by_processor_seconds"][name]
            share = found["share_of_arrow_by_processor_seconds"][name]
            line = f"| {found['rows']:,} | {name} | {rate:,} | {alone:,} | {share:.2f} | "
            line += f"{found['peak_bytes'][name] / 1e6:,.0f} |"
            assert line in text, line
    record = json.loads((ROOT / "docs/results/speed/encode_45m.json").read_text())
    assert record["peak_bytes"] < record["memory"]
    assert f"peaked at {record['peak_bytes'] / 1e6:,.0f} MB" in text
    assert f"{record['rows_per_second_by_processor_seconds']:,} rows a second" in text


def test_kernels_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/kernels.json").read_text())
    text = " ".join((ROOT / "docs" / "optimizers.md").read_text().split())
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for case in record["cases"]:
        ratios[case["network"] is not None].append(case["fbgemm / torch"])
        assert case["network"] or case["largest difference"] <= 1e-5
    assert f"took {min(ratios[False])} to {max(ratios[False])} times as long" in text
    assert f"takes most of the time: {min(ratios[True])} to {max(ratios[True])}." in text


def test_the_page_of_speed_is_made_from_its_records() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    assert pages.fill(page, ROOT / "docs/results/speed") == page
