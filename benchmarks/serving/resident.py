"""Random batches, the forms that a model is served in, and the memory of a process that serves one.

Run as a script, it is that process. What a form does not need is not imported: a server of ONNX
needs neither torch nor featemb, so this file imports numpy alone.

Shape letters: B samples, F features, M numeric columns, N ids in all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
IDS = ("uniform", "zipf")
_UNBOUNDED = 1 << 40
_STRIDE = 2_654_435_761  # a prime: spreads the most frequent ids over the table
_BAGS = (0, 5)  # ids of a bag: from the first to before the second


class Runner(NamedTuple):
    """A model in one form.

    Attributes:
        prepare: arrays of a batch -> what `call` takes; not timed.
        call: answers a batch; returns what has ``__array__``, or a list of such.
    """

    prepare: Callable[[Arrays], Any]
    call: Callable[[Any], Any]


def draw(columns: Mapping[str, Any], batch: int, random: np.random.Generator) -> Arrays:
    """Return a random batch.

    Args:
        columns: ``cardinalities`` (null: unbounded), ``multi`` (of each feature), ``numeric`` (M)
            and ``ids``: "uniform", or "zipf", where the k-th most frequent id of a feature has a
            share of about 1 / k and frequent ids lie anywhere in the table.
        batch: B.
        random: source of all of it.

    Returns:
        ``ids`` int64 ``[B, F]``, or ``values`` int64 ``[N]`` and ``lengths`` int64 ``[F, B]`` where
        a feature has bags (of 0 to 4 ids); and ``numeric`` fp32 ``[B, M]`` where there are any.
    """
    sizes = [size or _UNBOUNDED for size in columns["cardinalities"]]
    found: Arrays = {}
    if any(columns["multi"]):
        lengths = np.ones((len(sizes), batch), np.int64)
        for feature, multi in enumerate(columns["multi"]):
            if multi:
                lengths[feature] = random.integers(*_BAGS, batch)
        values = [
            _ids(size, int(n), columns["ids"], random)
            for size, n in zip(sizes, lengths.sum(1), strict=True)
        ]
        found |= {"values": np.concatenate(values), "lengths": lengths}
    else:
        each = [_ids(size, batch, columns["ids"], random) for size in sizes]
        found["ids"] = np.ascontiguousarray(np.stack(each, 1))
    if columns["numeric"]:
        found["numeric"] = random.standard_normal((batch, columns["numeric"]), np.float32)
    return found


def _ids(size: int, count: int, how: str, random: np.random.Generator) -> npt.NDArray[np.int64]:
    if how == "uniform":
        return random.integers(0, size, count)
    rank = np.exp(random.random(count) * np.log(size + 1)).astype(np.int64) - 1
    spread: npt.NDArray[np.int64] = np.minimum(rank, size - 1) * _STRIDE % size
    return spread


def eager(file: str, threads: int | None, device: str) -> Runner:
    """Return a package's module, called as it is."""
    return in_torch(_module(file, threads, device), device)


def compiled(file: str, threads: int | None, device: str) -> Runner:
    """Return a package's module behind ``torch.compile``, for any batch size."""
    import torch

    return in_torch(torch.compile(_module(file, threads, device), dynamic=True), device)


def onnx(file: str, threads: int | None, device: str) -> Runner:
    """Return a session of onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    first = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    session = onnxruntime.InferenceSession(
        file, options, providers=[*first, "CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    return Runner(
        lambda arrays: {name: arrays[name] for name in names},
        lambda inputs: session.run(None, inputs)[0],
    )


def aoti(file: str, threads: int | None, device: str) -> Runner:
    """Return what AOTInductor made of a module."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    import featemb

    held: Any = featemb.load(file)

    def prepare(arrays: Arrays) -> dict[str, Any]:
        return {name: torch.from_numpy(one).to(device) for name, one in arrays.items()}

    return Runner(prepare, held.run)


def _module(file: str, threads: int | None, device: str) -> Any:
    import torch

    import featemb

    if threads is not None:
        torch.set_num_threads(threads)
    held: Any = featemb.load(file)
    return getattr(held, "module", held).to(device).eval()


def in_torch(module: Callable[..., Any], device: str) -> Runner:
    """Return a module, or what is called as one, as a runner."""
    import torch

    import featemb

    def prepare(arrays: Arrays) -> tuple[Any, ...]:
        tensors = {name: torch.from_numpy(one).to(device) for name, one in arrays.items()}
        numeric = [tensors.pop("numeric")] if "numeric" in tensors else []
        if "ids" in tensors:
            return (tensors["ids"], *numeric)
        return (featemb.Jagged(tensors["values"], tensors["lengths"].reshape(-1)), *numeric)

    def call(inputs: tuple[Any, ...]) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return Runner(prepare, call)


FORMS: dict[str, Callable[[str, int | None, str], Runner]] = {
    "eager": eager,
    "compiled": compiled,
    "aoti": aoti,
    "onnx": onnx,
}
_IMPORTS = {
    "eager": ("featemb", "featemb.models"),
    "compiled": ("featemb", "featemb.models"),
    "aoti": ("featemb",),
    "onnx": ("onnxruntime",),
}


def resident() -> dict[str, int]:
    """Return the resident bytes of this process, now and at most, as the kernel counts them.

    Raises:
        OSError: the system has no ``/proc``, as only Linux does.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    found = {line.partition(":")[0]: line.split() for line in lines if line.startswith("Vm")}
    return {"now": 1024 * int(found["VmRSS"][1]), "most": 1024 * int(found["VmHWM"][1])}


def main() -> None:
    """Load and serve as the JSON in the first argument says; print what was resident."""
    plan = json.loads(sys.argv[1])
    for name in _IMPORTS[plan["form"]]:
        __import__(name)
    random = np.random.default_rng(plan["seed"])
    draw(plan["columns"], plan["batch"], random)
    before = resident()["now"]
    runner = FORMS[plan["form"]](plan["file"], plan["threads"], plan["device"])
    loaded = resident()["now"]
    for _ in range(plan["batches"]):
        runner.call(runner.prepare(draw(plan["columns"], plan["batch"], random)))
    after = resident()
    print(
        json.dumps(
            {
                "before": before,
                "loaded": loaded,
                "served": after["now"],
                "most": after["most"],
                "torch": "torch" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main()
