"""Rules of the house that a program can check: arrows between packages, sizes, file names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTER = ("models", "datasets", "benchmarks")
MAX_FILE = 300
MAX_FUNCTION = 60


def sources() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    found = {}
    for top in ("featemb", *OUTER):
        prefix = () if top == "featemb" else ("featemb",)
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "featemb" and len(parts) > 2 and parts[1] in OUTER:
                continue  # a development link
            name = ".".join((*prefix, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
# What each layer must not import; a layer is the longest prefix that fits.
FORBIDDEN = {
    "featemb": ("featemb.models", "featemb.datasets", "featemb.benchmarks", "featemb.cli"),
    "featemb.models": ("featemb.datasets", "featemb.benchmarks", "featemb.cli"),
    "featemb.datasets": ("featemb.models", "featemb.benchmarks", "featemb.cli"),
    "featemb.benchmarks": ("featemb.cli",),
    "featemb.cli": (),
}
# The only files that may import TorchRec or FBGEMM.
NATIVE = {
    "torchrec": (
        "featemb.torchrec",
        "featemb.torchrec_placement",
        "featemb.ids",
        "featemb.export",
        "featemb.benchmarks.speed",
    ),
    "fbgemm_gpu": (
        "featemb.torchrec",
        "featemb.fbgemm",
        "featemb.export",
        "featemb.benchmarks.speed",
    ),
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of `if TYPE_CHECKING:` blocks, which never run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt) and is_type_checking(child):
            continue
        yield child
        yield from run_time_nodes(child)


def imports(module: str) -> Iterator[str]:
    """Every module, or name in a module, that a module imports; anywhere in its code."""
    for node in run_time_nodes(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import; write it in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str:
    return max((name for name in FORBIDDEN if within(module, name)), key=len)


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_inwards(module: str) -> None:
    if module == "featemb.__main__":
        pytest.skip("the door to the command line")
    for target in imports(module):
        for package in FORBIDDEN[layer_of(module)]:
            assert not within(target, package), f"{module} imports {target}"


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_names_a_method(module: str) -> None:
    for target in imports(module):
        own = within(module, "featemb.methods")
        assert own or not within(target, "featemb.methods"), f"{module} imports {target}"


@pytest.mark.parametrize("module", SOURCES)
def test_native_libraries_stay_in_their_files(module: str) -> None:
    for target in imports(module):
        for library, allowed in NATIVE.items():
            if within(target, library):
                assert any(within(module, name) for name in allowed), f"{module} imports {target}"


@pytest.mark.parametrize("module", SOURCES)
def test_top_level_folders_are_imported_by_their_installed_names(module: str) -> None:
    for target in imports(module):
        assert target.split(".")[0] not in OUTER, f"{module} imports {target}: say featemb.{target}"


@pytest.mark.parametrize("module", SOURCES)
def test_sizes(module: str) -> None:
    lines = len(SOURCES[module].read_text("utf-8").splitlines())
    assert lines <= MAX_FILE, f"{module} has {lines} lines, at most {MAX_FILE}: split it"
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            long = (node.end_lineno or node.lineno) - node.lineno + 1
            assert long <= MAX_FUNCTION, f"{module}.{node.name}: {long} lines, max {MAX_FUNCTION}"


def test_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [name for name in SOURCES if name.split(".")[-1] in drawers]


def test_nothing_unpickles() -> None:
    for module, tree in TREES.items():
        assert not {"pickle", "dill", "joblib", "cloudpickle"} & set(imports(module)), module
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                weights_only = [k for k in node.keywords if k.arg == "weights_only"]
                assert weights_only, f"{module}: torch.load without weights_only=True"
                assert ast.unparse(weights_only[0].value) == "True", module
