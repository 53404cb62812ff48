"""Score raw rows with an exported model: numpy and onnxruntime, no torch, no featemb.

python serve_onnx.py MODEL.onnx ROWS.csv SCORES.csv
"""

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

MISSING = -(1 << 63)


def load(path: str, threads: int = 1) -> tuple[onnxruntime.InferenceSession, dict]:
    """Check the seal, then load the model and what it says of itself."""
    content = Path(path).read_bytes()
    if hashlib.blake2b(content[:-70], digest_size=16).hexdigest() != content[-32:].decode("latin1"):
        raise SystemExit(f"{path} is corrupt")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["featemb"])
    return session, manifest


def token(cell: str, kind: str) -> int:
    """Return the token of a raw cell: an integer itself, a text's FNV-1a hash."""
    if cell == "":
        return MISSING
    if kind == "integer":
        return int(cell)
    value = 0xCBF29CE484222325
    for byte in cell.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value - 2**64 if value >= 2**63 else value


def score(session: onnxruntime.InferenceSession, manifest: dict, rows: list[dict]) -> np.ndarray:
    """Return the probability of each row, a dict of column to text."""
    encoder = manifest["encoder"]
    kinds = list(zip(encoder["names"], encoder["cells"], strict=True))
    tokens = np.array([[token(row[name], kind) for name, kind in kinds] for row in rows], np.int64)
    (logits,) = session.run(None, {"tokens": tokens})
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def main() -> None:
    """Score a file in batches of 512."""
    model, source, target = sys.argv[1:4]
    session, manifest = load(model)
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = [score(session, manifest, rows[i : i + 512]) for i in range(0, len(rows), 512)]
    np.savetxt(target, np.concatenate(scores), fmt="%.9g")


if __name__ == "__main__":
    main()
