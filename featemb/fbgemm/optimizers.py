"""Which optimizers FBGEMM has, by featemb's names, and on which kind of device."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from featemb.errors import ConfigError

INSTALL = (
    "install it: pip install 'featemb[gpu]', or fbgemm-gpu-cpu without a GPU, of the release that "
    "belongs to this torch"
)


@dataclass(frozen=True)
class Fused:
    """An optimizer of FBGEMM that computes what one of featemb's does.

    Attributes:
        name: FBGEMM's.
        devices: kinds of device that have it.
        settings: what FBGEMM calls the optimizer's other settings, and featemb's values of them.
        state: names of its state tensors, in FBGEMM's order.
        rowwise: whether the state is one number a row.
        counts: whether a step depends on how many were made.
    """

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    settings: dict[str, float] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    rowwise: bool = False
    counts: bool = False


FUSED = {
    "row_sgd": Fused("exact_sgd"),
    "row_adagrad": Fused("exact_adagrad", settings={"eps": 1e-10}, state=("sum",)),
    "rowwise_adagrad": Fused(
        "exact_row_wise_adagrad", settings={"eps": 1e-10}, state=("sum",), rowwise=True
    ),
    "row_adam": Fused(
        "adam",
        devices=("cuda",),
        settings={"eps": 1e-8, "beta1": 0.9, "beta2": 0.999},
        state=("exp_avg", "exp_avg_sq"),
        counts=True,
    ),
}


def has(optimizer: str, weight_decay: float, device: str) -> bool:
    """Whether FBGEMM has an optimizer of `featemb.optim.OPTIMIZERS` on a kind of device."""
    known = FUSED.get(optimizer)
    return known is not None and device in known.devices and not weight_decay


def check_has(optimizer: str, weight_decay: float, device: str) -> None:
    """Refuse what FBGEMM cannot step rows by.

    Raises:
        ConfigError: names the optimizer or the decay, the device, and what is allowed.
    """
    allowed = ", ".join(name for name, one in FUSED.items() if device in one.devices)
    if not has(optimizer, 0.0, device):
        raise ConfigError(
            f"the kernel 'fbgemm' has no optimizer {optimizer!r} on {device}; Allowed: {allowed}"
        )
    if weight_decay:
        raise ConfigError(
            f"the kernel 'fbgemm' has no weight decay as featemb's row optimizers: got "
            f"weight_decay={weight_decay!r}; Allowed: 0, or the kernel 'torch'"
        )


def optim_type(name: str) -> Any:
    """Return FBGEMM's own object for its name of an optimizer."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return EmbOptimType(name)


def require_fbgemm() -> None:
    """Say what to install where FBGEMM is missing, or is not the one for this torch.

    Raises:
        ConfigError: it cannot be imported.
    """
    if find_spec("fbgemm_gpu") is None:
        raise ConfigError(f"the kernel 'fbgemm' needs FBGEMM: {INSTALL}")
    try:
        import_module("fbgemm_gpu")
    except (ImportError, OSError) as error:
        raise ConfigError(f"FBGEMM cannot be loaded ({error}): {INSTALL}") from error
