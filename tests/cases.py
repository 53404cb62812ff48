"""One row a method: the smallest specs that show what it does. A test keeps this table complete."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

CASES: dict[str, tuple[str, ...]] = {
    "full": ("full", "full+int8"),
    "hash": ("hash", "hash(power=1.0, rows=60)+int4"),
    "unified": (
        "unified",
        "unified(lookups=2)",
        "unified(lookups=2, per_feature={user: 4}, collisionless=10)+int8",
    ),
}
