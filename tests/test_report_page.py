"""The report's page in a headless browser: offline, filters, selection, keyboard, addresses."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_folders import fail, make

import featemb as fe
from featemb.benchmarks.records import read_all
from featemb.benchmarks.report import aggregate, write_report
from featemb.benchmarks.report.looks import looks
from featemb.benchmarks.report.page import page as write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: no chromium in PATH", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        # in a container Chromium runs as root, where its sandbox does not
        launched = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; full, hash and unified at two sizes, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    for model in ("dcnv2", "deepfm"):
        for seed in range(2):
            make(folder, seed=seed, model=model, users=30)
            for ratio, serving in ((10.0, 100), (100.0, 10)):
                size = {"ratio": ratio, "serving": serving, "seed": seed, "model": model}
                make(folder, 3.0, method="hash", users=30, **size)
                make(folder, 0.0, method="unified(lookups=2)", users=30, **size)
    fail(folder, "</script><script>window.bad = 1</script>", method="hash", ratio=1e6)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("report"))[0]


def artifact(name: str, tmp_path: Path) -> Path:
    """A place for a picture: kept where FEATEMB_ARTIFACTS says."""
    folder = Path(os.environ.get("FEATEMB_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


class Opened:
    """A page with what it complained of and asked for."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1500, "height": 1000}, **context)
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector(".plot .scatterlayer .trace .point", state="attached")

    def rows(self) -> list[str]:
        """The names and sizes of the visible rows."""
        found = self.page.eval_on_selector_all(
            "tr[data-id]",
            "all => all.filter(one => one.offsetParent).map(one => one.cells[0].textContent"
            " + ' ' + one.cells[1].textContent)",
        )
        return [str(one) for one in found]

    def settle(self) -> None:
        """Wait for the pause after a keystroke, and for the plots."""
        self.page.wait_for_timeout(250)

    def selected(self) -> list[str]:
        return list(
            self.page.eval_on_selector_all(
                "tr[aria-selected=true]", "all => all.map(one => one.cells[0].textContent)"
            )
        )

    def points(self, method: str, plot: str = "#plot0") -> Any:
        """The markers of a method in a plot."""
        uid = self.page.evaluate(
            "([plot, name]) => document.querySelector(plot).data"
            ".find(one => one.name === name).uid",
            [plot, method],
        )
        return self.page.locator(f"{plot} .scatterlayer .trace{uid} .points path")

    def click_point(self, method: str, number: int, **how: Any) -> None:
        box = self.points(method).nth(number).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(150)
        for key in how.get("keys", ()):
            self.page.keyboard.down(key)
        self.page.mouse.click(x, y)
        for key in how.get("keys", ()):
            self.page.keyboard.up(key)
        self.settle()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    one = Opened(browser, report.as_uri())
    yield one
    assert one.complaints == []
    assert [url for url in one.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in one.requests if url.startswith("file:")]) == 1, "one file is all"
    one.page.close()


def test_it_opens_without_a_network(opened: Opened, tmp_path: Path) -> None:
    assert len(opened.rows()) == 10
    assert opened.page.evaluate("window.bad") is None, "text of a record is no program"
    assert opened.page.locator("#failed td", has_text="window.bad").count() == 1
    buttons = opened.page.eval_on_selector_all(
        ".modebar-btn", "all => all.map(one => one.dataset.title)"
    )
    assert "Zoom" in buttons
    assert not [name for name in buttons if re.search("share|cloud|edit", name, re.I)]
    for name in ("light", "dark"):
        opened.page.emulate_media(color_scheme=name)
        opened.settle()
        path = artifact(f"report_{name}.png", tmp_path)
        opened.page.screenshot(path=path)
        assert path.stat().st_size > 10_000
    back = "getComputedStyle(document.body).backgroundColor"
    assert opened.page.evaluate(back) == "rgb(22, 24, 27)"
    opened.page.click("#theme")
    assert opened.page.evaluate(back) == "rgb(255, 255, 255)"


def test_filters(opened: Opened) -> None:
    page = opened.page

    def after(count: int) -> list[str]:
        opened.settle()
        rows = opened.rows()
        assert len(rows) == count
        assert page.inner_text("#count") == f"{count} of 10 rows"
        return rows

    page.fill("[name=q]", "hash 10x")
    assert after(2) == ["hash 10x"] * 2
    page.fill("[name=q]", "deepfm")
    assert after(5)
    page.click("text=Reset")
    after(10)
    page.fill("[name=low]", "50")
    assert {one.split()[-1] for one in after(4)} == {"100x"}
    page.fill("[name=low]", "")
    page.fill("[name=high]", "2")
    assert after(2) == ["full -"] * 2
    page.click("text=Reset")
    page.select_option("[name=test]", "hash:better")
    assert {one.split()[0] for one in opened_rows(opened)} <= {"unified(lookups=2)"}
    page.select_option("[name=test]", "")
    page.click("summary:has-text('Models')")
    page.uncheck("[name=model][value=deepfm]")
    after(5)
    assert page.locator("section[data-group]:visible").count() == 1
    page.keyboard.press("Escape")
    page.click("summary:has-text('Methods')")
    page.uncheck("[name=method][value=hash]")
    assert "hash 10x" not in after(3)
    page.click("button[data-family=address]")
    assert after(0) == []


def opened_rows(opened: Opened) -> list[str]:
    opened.settle()
    return opened.rows()


def test_tests_are_filtered_as_the_table_says(opened: Opened, runs: Path) -> None:
    rows = aggregate(runs, read_all(runs).records.values())
    for reference in ("full", "hash"):
        for verdict in ("better", "worse", "no difference shown"):
            against = [getattr(row, f"to_{reference}") for row in rows]
            wanted = sum(one is not None and one.verdict == verdict for one in against)
            opened.page.select_option("[name=test]", f"{reference}:{verdict.split()[0]}")
            assert len(opened_rows(opened)) == wanted


def test_only_the_front(opened: Opened) -> None:
    opened.page.check("[name=best]")
    for row in opened_rows(opened):
        assert not row.startswith("hash"), "hash is beaten at every size"
    assert opened.rows()


def test_a_point_selects_its_runs(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    opened.click_point("hash", 0)
    assert opened.selected() == ["hash"]
    panel = page.locator("#details")
    assert panel.is_visible()
    text = panel.inner_text()
    assert "hash 100x" in text
    assert "AUC to full" in text
    assert panel.locator("pre").count() == 2, "one a seed"
    assert '"method": "hash"' in panel.locator("pre").first.inner_text()
    assert panel.locator(".curves .scatterlayer .trace").count() == 2
    assert "run=" in page.url
    page.screenshot(path=artifact("report_selected.png", tmp_path))
    opened.click_point("unified(lookups=2)", 1, keys=("Shift",))
    assert sorted(opened.selected()) == ["hash", "unified(lookups=2)"]
    assert panel.locator(".curves .scatterlayer .trace").count() == 4
    page.keyboard.press("Escape")
    assert opened.selected() == []
    assert not panel.is_visible()


def test_hover_tells_and_isolates(opened: Opened) -> None:
    box = opened.points("hash").first.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.wait_for_selector("#plot0 .hoverlayer .hovertext")
    text = opened.page.locator("#plot0 .hoverlayer").text_content()
    for words in ("hash 100x", "10 bytes, 100.00x", "to full", "p ", "2 seeds"):
        assert words in text
    faded = opened.page.locator("#plot0 .scatterlayer .trace.faded").count()
    assert faded == opened.page.locator("#plot0 .scatterlayer .trace").count() - 1
    opened.page.mouse.move(5, 5)
    opened.settle()
    assert opened.page.locator(".trace.faded").count() == 0


def test_the_keyboard_is_enough(opened: Opened) -> None:
    page = opened.page
    page.locator("tr[data-id]").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    opened.settle()
    second = page.locator("tr[data-id]").nth(1)
    assert second.get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert second.evaluate("line => line === document.activeElement")
    page.locator("th button", has_text="AUC").first.focus()
    page.keyboard.press("Enter")
    keys = page.eval_on_selector_all(
        "section[data-group='0'] tbody tr",
        "all => all.map(one => Number(one.cells[4].dataset.key))",
    )
    assert keys == sorted(keys)
    assert page.locator("th[aria-sort=ascending]").count() == 1


def test_every_axis_can_be_drawn(opened: Opened) -> None:
    for value in ("to_full", "to_hash", "logloss", "gauc", ""):
        opened.page.select_option("[name=y]", value)
        opened.settle()
        drawn = opened.page.evaluate("document.querySelector('#plot0').data.map(one => one.name)")
        assert ("hash" in drawn) == (value != "to_hash")
        assert ("Pareto front" in drawn) == (value == "")


def test_an_address_is_a_view(opened: Opened, browser: Any) -> None:
    page = opened.page
    page.fill("[name=q]", "10x")
    page.select_option("[name=y]", "logloss")
    page.click("summary:has-text('Models')")
    page.uncheck("[name=model][value=deepfm]")
    opened.settle()
    page.keyboard.press("Escape")
    page.locator("tr[data-id]:visible").first.click()
    opened.settle()
    address, rows, selected = page.url, opened.rows(), opened.selected()
    again = Opened(browser, address)
    assert again.rows() == rows
    assert again.selected() == selected
    assert again.page.locator("#details").is_visible()
    assert again.page.input_value("[name=y]") == "logloss"
    again.page.evaluate("location.hash = ''")
    again.settle()
    assert len(again.rows()) == 10
    assert again.selected() == []
    again.page.close()


def test_an_address_of_nonsense_shows_all(browser: Any, report: Path) -> None:
    one = Opened(browser, report.as_uri() + "#run=none&y=none&low=x&theme=<b>&-method=nothing&%%%")
    assert len(one.rows()) == 10
    assert one.complaints == []
    one.page.close()


def test_forty_methods_and_480_runs(
    browser: Any, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read_all(runs).records
    sample = aggregate(runs, records.values())[1]
    run = sample.runs[0]
    names = [name for name in fe.methods() if name != "full"]
    names += [f"{name}+int8" for name in names][: 40 - len(names)]
    rows, copies = [], {}
    for number, method in enumerate(names[:40]):
        for size in (2, 5, 10, 100):
            ids = tuple(f"{method}-{size}-{seed}" for seed in range(3))
            copies |= {name: {**records[run], "run_id": name} for name in ids}
            value = 0.9 - 0.002 * number - size / 2000
            auc = replace(sample.auc, value=value, low=value - 0.003, high=value + 0.003)
            serving = 10**6 // size
            rows.append(
                replace(
                    sample, method=method, asked=f"{size}x", ratio=size, runs=ids, auc=auc, seeds=3,
                    serving=serving,
                )
            )  # fmt: skip
    path = tmp_path / "big.html"
    drawn = looks(row.method for row in rows)
    assert len({(one.light, one.symbol, one.dash) for one in drawn.values()}) == 40
    path.write_text(write_page("big", rows, copies, {}, drawn, runs))
    start = time.perf_counter()
    one = Opened(browser, path.as_uri())
    loaded = time.perf_counter() - start
    one.page.screenshot(path=artifact("report_forty.png", tmp_path))
    assert len(one.rows()) == 160
    spent = one.page.evaluate(
        "() => { const start = performance.now(); form.elements.q.value = '10x'; apply();"
        " return performance.now() - start; }"
    )
    with capsys.disabled():
        print(f"\n480 runs: open in {loaded:.1f} s, filter in {spent:.0f} ms")
    assert loaded < 30
    assert spent < 3000
    assert one.complaints == []
    one.page.close()
