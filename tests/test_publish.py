"""Generated parts of pages: markers, tables, cards; the committed pages are up to date."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import fail, make

from featemb.benchmarks import published_tables, stored_pairs
from featemb.benchmarks.publish import fill, publish
from featemb.benchmarks.published import Published
from featemb.errors import ConfigError, RunError

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE = DOCS / "results" / "table"
COSTS = DOCS / "results" / "speed" / "table.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        make(folder, seed=seed)
        make(folder, 3.0, method="hash", ratio=10.0, serving=100, seed=seed)
        make(folder, 0.0, method="unified(lookups=2)", ratio=10.0, serving=90, seed=seed)
    make(folder, 0.1, method="lsq", serving=250)
    fail(folder, "qr at width 8 needs at least 120 bytes", method="qr", ratio=10.0)
    return folder


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    one = {"step": {"ratio": 0.84}, "lookup": {"ratio": 12.4}}
    path.write_text(json.dumps({"costs": {"toy, dcnv2, unified(lookups=2)": one}}))
    return path


def cells(block: str, method: str) -> list[str]:
    (line,) = (line for line in block.splitlines() if f"`{method}`" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_says_what_the_records_say(runs: Path, costs: Path) -> None:
    found = Published.read(runs, costs)
    block = fill("<!-- results table toy dcnv2 10x -->\nold\n<!-- end -->\n", found)
    assert "old" not in block
    assert block.splitlines()[2].startswith("| method | bytes | ratio | test AUC |")
    lines = [line for line in block.splitlines() if line.startswith("| ")][2:]
    assert "`full`" in lines[0]
    assert "`hash`" in lines[-1], "best first"
    (hashed,) = (row for row in found.rows if row.method == "hash")
    name, size, ratio, auc, full, p, *rest = cells(block, "hash")
    assert (name, size) == ("`hash`", "100")
    assert auc.startswith(f"{hashed.auc.value:.4f} ± ")
    assert ratio == f"{hashed.ratio:.1f}x"
    assert hashed.difference is not None
    assert full.startswith(f"{hashed.difference.value:+.4f} ± ")
    assert p == "<.001"
    assert rest == ["", "", f"{hashed.training:,}", "", ""], "no difference to itself, no cost"
    best = cells(block, "unified(lookups=2)")
    assert best[0] == "**`unified(lookups=2)`**", "not worse than full"
    assert float(best[6].split(" ± ")[0]) > 0
    assert best[-2:] == ["0.8x", "12x"]
    assert "**`lsq`** †" in block, "one seed; its own size is in the table"
    assert "- qr at width 8 needs at least 120 bytes" in block


@pytest.mark.parametrize(("high", "bold"), [(-0.001, False), (0.0, True), (0.002, True)])
def test_many_methods_hide_no_loss(runs: Path, high: float, bold: bool) -> None:
    (row,) = (one for one in Published.read(runs).rows if one.method == "hash")
    assert row.to_full is not None
    assert row.to_full.compared.auc is not None
    change = replace(row.to_full.compared.auc, value=-0.003, high=high)
    against = replace(row.to_full, compared=replace(row.to_full.compared, auc=change), p=0.9)
    name, *_ = published_tables.cells(replace(row, to_full=against))
    assert name.startswith("**") == bold, "the plain interval decides, not the adjusted p"


def test_curves_have_a_column_a_size(tmp_path: Path) -> None:
    for seed in range(3):
        make(tmp_path, seed=seed)
        for ratio in (2.0, 10.0, 100.0):
            make(tmp_path, ratio / 20, method="hash", ratio=ratio, serving=500, seed=seed)
        make(tmp_path, 1.0, method="qr", ratio=10.0, serving=90, seed=seed)
    found = Published.read(tmp_path)
    block = fill("<!-- results curves toy dcnv2 -->\n<!-- end -->\n", found)
    assert "| method | 2x | 10x | 100x |" in block
    assert "qr" not in block, "one size is no curve"
    shown = cells(block, "hash")[1:]
    rows = [row for row in found.rows if row.method == "hash" and row.to_full is not None]
    changes = {row.asked: row.to_full.compared.auc.value for row in rows}
    wanted = [f"{changes[size]:+.4f}" for size in ("2x", "10x", "100x")]
    assert [cell.strip("*").split(" ± ")[0] for cell in shown] == wanted
    assert changes["2x"] > changes["100x"]
    assert not shown[-1].startswith("**"), "the loss at 100x is shown"


def test_pictures_are_drawn_too(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Nothing marked\n")
    assert publish(runs, [page], drawings=tmp_path) == []
    assert (tmp_path / "toy-dcnv2.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_is_the_same_without_predictions(runs: Path, tmp_path: Path) -> None:
    page = "<!-- results table toy dcnv2 10x -->\n<!-- end -->\n"
    before = fill(page, Published.read(runs))
    stored_pairs.store(runs)
    bare = tmp_path / "bare"
    for path in (*runs.glob("*/run.json"), runs / "paired.json"):
        (bare / path.relative_to(runs)).parent.mkdir(parents=True, exist_ok=True)
        (bare / path.relative_to(runs)).write_bytes(path.read_bytes())
    assert fill(page, Published.read(bare)) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("table toy dcnv2", "is not known; Allowed: table"),
        ("plot toy", "is not known"),
        ("table toy fm 10x", "no runs of fm on toy at 10x"),
        ("card pep", "no run is of the method 'pep'"),
        ("choices toy", "nothing was tuned on 'toy'"),
        ("curves toy dcnv2", "no method has 3 sizes of dcnv2 on toy"),
    ],
)
def test_a_wrong_marker_is_refused(name: str, message: str, runs: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fill(f"<!-- results {name} -->\n<!-- end -->", Published.read(runs))


def test_pages_change_only_between_markers(runs: Path, tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    page.write_text("before\n<!-- results table toy dcnv2 10x -->\n<!-- end -->\nafter\n")
    other.write_text("no markers\n")
    assert publish(runs, [page, other]) == [page]
    text = page.read_text()
    assert text.startswith("before\n<!-- results table toy dcnv2 10x -->\n\n| method |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert publish(runs, [page, other]) == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished runs"):
        Published.read(tmp_path)


@pytest.mark.parametrize(
    ("results", "costs", "pages"),
    [("table", COSTS, ("table.md", "methods.md")), ("planted", None, ("benchmarks.md",))],
)
def test_pages_are_up_to_date(results: str, costs: Path | None, pages: tuple[str, ...]) -> None:
    found = Published.read(DOCS / "results" / results, costs)
    for page in pages:
        text = (DOCS / page).read_text("utf-8")
        assert "<!-- results " in text
        assert fill(text, found) == text, f"{page} is not what the records say: publish it again"


def test_full_tables_are_at_published_level() -> None:
    rows = [row for row in Published.read(TABLE).rows if row.is_full and row.data == "ml1m"]
    assert {row.model for row in rows} >= {"dcnv2"}
    for row in rows:
        assert row.seeds == 3
        assert row.auc.value >= 0.895, f"{row.model}: {row.auc.value:.4f}"
