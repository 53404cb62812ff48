"""`RunConfig`: everything that decides the answer of one run, checked when it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from featemb import models
from featemb.budget import parse_bytes
from featemb.codecs.base import codec_by_name
from featemb.errors import ConfigError, nearest
from featemb.fbgemm.choice import check_kernel
from featemb.fbgemm.optimizers import FUSED, check_has, require_fbgemm
from featemb.grammar import write
from featemb.history import check_anneal
from featemb.optim import OPTIMIZERS
from featemb.spec import Spec, parse

# Where and how a run is computed, not what: left out of its identity.
PLACE = ("device", "threads")
_INTEGERS = {
    "dim": 1,
    "seed": 0,
    "epochs": 1,
    "batch_size": 1,
    "patience": 1,
    "eval_batch_size": 1,
}
_OPTIONAL_INTEGERS = {"rows": 1, "threads": 1, "eval_every": 1}
_NUMBERS = ("weight_decay", "net_weight_decay")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: data x model x method x dim x size x seed, and how it is trained.

    Attributes:
        data: name of a registered data set, or path of a table.
        data_options: arguments of `featemb.datasets.load`.
        model: name of a CTR model.
        model_config: its settings; the rest are its defaults.
        method: text of the method and its codec, such as "unified(lookups=2)+int8"; written
            out in its canonical form.
        dim: width of a feature; a model that asks for a width of its own (lr: 1) gets that.
        budget: serving bytes of all embedding layers of the model together, an int or a text such
            as "2MB"; or None.
        ratio: compression ratio of every embedding layer, or None. At most one of the two.
        seed: of the layer's and the model's initial values, the batches and dropout.
        epochs: upper limit of each training stage.
        batch_size: samples of a training step.
        lr: learning rate.
        weight_decay: L2 on embedding rows that are read (over all rows with dense_adam).
        net_weight_decay: L2 on the other parameters.
        optimizer: name as in `featemb.optim.build`.
        kernel: whose kernels train the rows, "torch" or "fbgemm" (`featemb.use_kernel`).
        patience: evaluations in a row without a better validation AUC before a stage stops.
        lr_decay: factor of the learning rate after such an evaluation.
        anneal: share of a stage's epochs in which the learning rate falls to zero (`featemb.fit`).
        eval_every: training steps between evaluations; None: once an epoch.
        eval_batch_size: samples of an evaluation step.
        rows: train on this many rows, drawn at random from the training split by ``seed``; None:
            all.
        codecs: texts of codecs, such as "int8" or "pq(parts=8)"; the trained network is scored in
            the form that each of them gives it, too.
        device: "cpu", "cuda" or "cuda:1".
        threads: CPU threads of torch; None leaves torch's choice.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    data: str
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "dcnv2"
    model_config: Mapping[str, Any] = field(default_factory=dict)
    method: str = "full"
    dim: int = 16
    budget: int | str | None = None
    ratio: float | None = None
    seed: int = 0
    epochs: int = 10
    batch_size: int = 1024
    lr: float = 1e-3
    weight_decay: float = 0.0
    net_weight_decay: float = 0.0
    optimizer: str = "row_adam"
    kernel: str = "torch"
    patience: int = 2
    lr_decay: float = 1.0
    anneal: float = 0.0
    eval_every: int | None = None
    eval_batch_size: int = 16384
    rows: int | None = None
    codecs: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check every setting; bring those with several spellings to one."""
        for name, low in _INTEGERS.items():
            self._require(name, f"an integer >= {low}", _is_integer(getattr(self, name), low))
        for name, low in _OPTIONAL_INTEGERS.items():
            value = getattr(self, name)
            holds = value is None or _is_integer(value, low)
            self._require(name, f"an integer >= {low} or none", holds)
        for name in _NUMBERS:
            self._require(name, "a number >= 0", _is_number(getattr(self, name)))
        self._require("lr", "a number > 0", _is_number(self.lr) and self.lr > 0)
        self._require(
            "lr_decay", "between 0 and 1", _is_number(self.lr_decay) and self.lr_decay <= 1
        )
        check_anneal(self.anneal, self.lr_decay)
        if self.optimizer not in OPTIMIZERS:
            hint = nearest(str(self.optimizer), OPTIMIZERS)
            raise ConfigError(f"unknown optimizer {self.optimizer!r}; {hint}")
        self._check_kernel()
        self._require("data", "a name or a path", isinstance(self.data, str) and bool(self.data))
        self._check_size()
        self._check_names()
        check_device(self.device)

    def _check_kernel(self) -> None:
        """Refuse what the kernel has on no device; a record is read on other devices too."""
        check_kernel(self.kernel)
        if self.kernel == "fbgemm":
            devices = FUSED[self.optimizer].devices if self.optimizer in FUSED else ("cpu",)
            check_has(self.optimizer, self.weight_decay, devices[0])

    def check_here(self) -> None:
        """Refuse a run that this machine cannot do, before its data are loaded.

        Raises:
            ConfigError: the kernel is not installed, or has no such optimizer on the device.
        """
        if self.kernel == "fbgemm":
            require_fbgemm()
            check_has(self.optimizer, self.weight_decay, self.device.partition(":")[0])

    def _check_size(self) -> None:
        if self.ratio is not None and self.budget is not None:
            raise ConfigError(
                f"give a ratio or a budget, not both: got ratio={self.ratio}, budget={self.budget}"
            )
        if self.ratio is not None:
            self._require("ratio", "a number > 0", _is_number(self.ratio) and self.ratio > 0)
            self._set(ratio=float(self.ratio))
        if self.budget is not None:
            self._set(budget=parse_bytes(self.budget))

    def _check_names(self) -> None:
        """Look up method and model, so that a typing error shows before anything is loaded."""
        model = models.find(self.model)
        spec = parse(self.method)
        if model.embedding_dim is not None:
            self._set(dim=model.embedding_dim)
            spec = spec.at_width(self.dim)
        allowed = model.config_class.field_names()
        for name in self.model_config:
            if name not in allowed:
                raise ConfigError(
                    f"{self.model}: unknown setting {name!r}; {nearest(name, allowed)}"
                )
        wanted = self.codecs
        self._require("codecs", "a list of codecs", isinstance(wanted, (list, tuple)))
        self._set(codecs=tuple(write(codec_by_name(text)) for text in wanted))
        settings = model.config_class(**self.model_config).to_dict()
        self._set(method=str(spec), model_config=settings, data_options=dict(self.data_options))

    def _require(self, name: str, rule: str, holds: bool) -> None:
        if not holds:
            raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)!r}")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def spec(self) -> Spec:
        """The method and codec, parsed."""
        return parse(self.method)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-able values."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the answer: all but the place of computation."""
        settings = {name: value for name, value in self.to_dict().items() if name not in PLACE}
        settings["codecs"] = list(self.codecs)
        # what came after the first records counts only where it is used: run ids stay
        unused = {"codecs": [], "anneal": 0, "kernel": "torch"}
        return {n: value for n, value in settings.items() if n not in unused or value != unused[n]}

    def at(self, device: str | None = None, threads: int | None = None) -> RunConfig:
        """Return the same run for another place of computation."""
        return replace(self, device=device or self.device, threads=threads or self.threads)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """Read what `to_dict` gives; identity is enough.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        refuse_unknown(settings, SETTINGS, "run")
        return cls(**settings)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


SETTINGS = tuple(entry.name for entry in fields(RunConfig))


def refuse_unknown(settings: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """Refuse settings whose name is not allowed.

    Raises:
        ConfigError: names the setting and the nearest allowed one.
    """
    for name in settings:
        if name not in allowed:
            raise ConfigError(f"{where}: unknown setting {name!r}; {nearest(name, allowed)}")


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: the text is no device, or this machine has none of the kind.
    """
    import torch

    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"unknown device {device!r}; Allowed: cpu, cuda, cuda:<number>")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"
        )


def _is_integer(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number >= 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0
