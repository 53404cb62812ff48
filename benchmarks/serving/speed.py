"""`measure`: latency, throughput and resident memory of a package in every form, as a record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featemb.benchmarks import environment
from featemb.benchmarks.serving import resident
from featemb.benchmarks.serving.latency import summary, take_turns
from featemb.benchmarks.serving.resident import Arrays, Runner
from featemb.benchmarks.serving.subject import Subject, module_of
from featemb.errors import ConfigError, ExportError, RunError, nearest

PACKAGE, PLAIN = "package", "plain"
# The network over fp32 tables as it comes from training: what there is without a package.
TRAINED = "trained eager"
# Forms that are a file of their own, by the target of `featemb.export`.
_EXPORTED = {"onnx": "onnx", "aoti": "aoti"}
_SUFFIX = {"onnx": ".onnx", "aoti": ".pt2"}
_TOLERANCE = 1e-4
Watch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure.

    Attributes:
        targets: forms: eager, compiled, aoti, onnx.
        batches: samples of a call, each measured by itself.
        rounds: calls of every form and batch size.
        warmup: calls before those.
        threads: CPU threads; None leaves the libraries' choice.
        device: "cpu", "cuda" or "cuda:1"; exported files are for the CPU.
        ids: how ids are drawn: "uniform" or "zipf".
        memory_batches: calls, of 512 samples, of the process whose memory is watched; 0: none is.
        seed: of the batches.

    Raises:
        ConfigError: a setting is out of range.
    """

    targets: Sequence[str] = tuple(resident.FORMS)
    batches: Sequence[int] = (1, 64, 512, 4096)
    rounds: int = 200
    warmup: int = 10
    threads: int | None = None
    device: str = "cpu"
    ids: str = "uniform"
    memory_batches: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for target in self.targets:
            if target not in resident.FORMS:
                raise ConfigError(f"unknown target {target!r}; {nearest(target, resident.FORMS)}")
        if self.ids not in resident.IDS:
            raise ConfigError(f"unknown ids {self.ids!r}; {nearest(self.ids, resident.IDS)}")
        for name, low in (("rounds", 1), ("warmup", 0), ("memory_batches", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not self.targets or not self.batches or min(self.batches) < 1:
            raise ConfigError("give a target, and batch sizes of at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")


_MEMORY_BATCH = 512


def measure(subject: Subject, settings: Settings, watch: Watch = lambda _: None) -> dict[str, Any]:
    """Return the record of a package: all settings, numbers, and why a form is missing.

    Raises:
        RunError: a form gives other answers than the eager one.
    """
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="featemb-speed-") as name, _threads(settings.threads):
        files = _files(subject, settings, Path(name), missing, watch)
        latency = _latency(files, subject, settings, missing, watch)
        memory = []
        if settings.memory_batches:
            for form, (target, file) in files.items():
                watch(f"memory of {form}")
                memory.append({"form": form, **_resident(target, file, subject, settings)})
    threads = settings.threads or torch.get_num_threads()
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "subject": dict(subject.facts),
        "settings": {**vars(settings), "threads": threads, "memory_batch": _MEMORY_BATCH},
        "machine": {"cpus": os.cpu_count(), **environment.device(settings.device)},
        "versions": {**environment.versions(), **_versions()},
        "git": environment.git(),
        "latency": latency,
        "memory": memory,
        "missing": missing,
    }


def _files(
    subject: Subject, settings: Settings, folder: Path, missing: dict[str, str], watch: Watch
) -> dict[str, tuple[str, Path]]:
    """Return target and file of every form that can be had, by "package eager" and so on."""
    packages = {PACKAGE: subject.package, PLAIN: subject.plain}
    found: dict[str, tuple[str, Path]] = {}
    for tables, package in packages.items():
        for target in settings.targets if package is not None else ():
            form = f"{tables} {target}"
            assert package is not None
            if target not in _EXPORTED:
                found[form] = (target, package)
            elif settings.device != "cpu":
                missing[form] = "exported files are for the CPU"
            else:
                watch(f"export {form}")
                file = folder / f"{tables}-{target}{_SUFFIX[target]}"
                try:
                    _export(package, file, _EXPORTED[target])
                    found[form] = (target, file)
                except ExportError as error:
                    missing[form] = str(error)
    return found


def _export(package: Path, file: Path, target: str) -> None:
    import featemb

    featemb.export(module_of(package), file, to=target)


def _latency(
    files: Mapping[str, tuple[str, Path]],
    subject: Subject,
    settings: Settings,
    missing: dict[str, str],
    watch: Watch,
) -> list[dict[str, Any]]:
    random = np.random.default_rng(settings.seed)
    columns = subject.columns(settings.ids)

    def draw(batch: int) -> Arrays:
        return resident.draw(columns, batch, random)

    runners: dict[str, Runner] = {}
    for form, (target, file) in files.items():
        watch(f"load {form}")
        runner = resident.FORMS[target](os.fspath(file), settings.threads, settings.device)
        why = _fault(runner, form, files, draw(max(settings.batches)), settings)
        if why is None:
            runners[form] = runner
        else:
            missing[form] = why
    if subject.plain is not None:
        net = subject.trained().to(settings.device)
        runners[TRAINED] = resident.in_torch(net, settings.device)
    found = []
    for batch in settings.batches:
        watch(f"batch {batch}")
        seconds = take_turns(
            runners,
            draw,
            batch,
            settings.rounds,
            settings.warmup,
            settings.device,
            settings.seed,
        )
        each = summary(seconds, batch, TRAINED if TRAINED in runners else None)
        found += [{"batch": batch, "form": form, **values} for form, values in each.items()]
    return found


def _fault(
    runner: Runner,
    form: str,
    files: Mapping[str, tuple[str, Path]],
    batch: Arrays,
    settings: Settings,
) -> str | None:
    """Return why a form cannot be measured; None where it answers as the eager one does.

    Raises:
        RunError: it answers otherwise.
    """
    tables, _, target = form.partition(" ")
    if target == "eager":
        return None
    try:
        answer = _array(runner.call(runner.prepare(batch)))
    except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, or no such graph
        return f"torch.compile: {str(error).strip().splitlines()[0]}"
    package = files.get(f"{tables} eager", (None, None))[1]
    if package is None:
        return None
    eager = resident.eager(os.fspath(package), settings.threads, settings.device)
    wanted = _array(eager.call(eager.prepare(batch)))
    worst = float((np.abs(answer - wanted) / np.maximum(1.0, np.abs(wanted))).max())
    if not worst <= _TOLERANCE:
        raise RunError(f"{form} differs from eager by {worst:.3g}, {_TOLERANCE} is allowed")
    return None


def _array(answer: Any) -> np.ndarray[Any, Any]:
    return np.asarray(answer.cpu() if isinstance(answer, torch.Tensor) else answer)


def _resident(target: str, file: Path, subject: Subject, settings: Settings) -> dict[str, Any]:
    """Return what a fresh process takes that serves one form, as the kernel counts it."""
    plan = {
        "form": target,
        "file": os.fspath(file.resolve()),
        "columns": subject.columns(settings.ids),
        "batch": _MEMORY_BATCH,
        "batches": settings.memory_batches,
        "threads": settings.threads,
        "device": settings.device,
        "seed": settings.seed,
    }
    script = Path(str(resident.__file__)).read_text("utf-8")
    with tempfile.TemporaryDirectory(prefix="featemb-serve-") as elsewhere:
        told = subprocess.run(
            [sys.executable, "-c", script, json.dumps(plan)],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            check=False,
        )
    if told.returncode:
        raise RunError(f"the process that serves {file.name} failed: {told.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    found["file"] = file.stat().st_size
    found["growth"] = found["loaded"] - found["before"]
    return found


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("onnx", "onnxruntime", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Set torch's number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
