"""One row a method: the smallest specs that show what it does. A test keeps this table complete."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

CASES: dict[str, tuple[str, ...]] = {
    "adaembed": (
        "adaembed",
        "adaembed(every=3, kept=60, margin=0.0)+int8",
        "adaembed(every=2, score=frequency, share=0.5)",
    ),
    "adapt": ("adapt", "adapt(hot_share=0.2, rows=40)+int8"),
    "alpt": (
        "alpt",
        "alpt(bits=16, grain=table, optimizer=adam)",
        "alpt(grain=feature, step_optimizer=sgd, step_lr=0.01)",
    ),
    "autodim": (
        "autodim",
        "autodim(limit=2500, start=inherit, rate=0.01)",
        "autodim(limit=3000)+int8",
    ),
    "autosrh": ("autosrh", "autosrh(groups=3, kept=300)+int8"),
    "cafe": (
        "cafe(rows=70, threshold=3.0)",
        "cafe(levels=3)+int8",
        "cafe(score=frequency, rows=60)",
    ),
    "cce": ("cce", "cce(rows=20, chunks=2, clusterings=1)+int8", "cce(pointer_share=0.9, rows=30)"),
    "dedup": ("dedup+int8", "dedup(blocks=12, block=2)", "dedup(block=3, blocks=25)+int8"),
    "deeplight": (
        "deeplight(ramp=30, every=2)",
        "deeplight(kept=300, every=1, ramp=20, tune=false)+int8",
    ),
    "dpq": (
        "dpq(codewords=16, parts=4)",
        "dpq(codewords=9, parts=4, variant=sx, temperature=0.1)",
        "dpq(codewords=9, parts=8, shared=true, commitment=0.3)",
        "dpq(grain=table)",
    ),
    "dhe": (
        "dhe(width=8, hashes=32, layers=2)",
        "dhe(hashes=16, layers=2)+int8",
        "dhe(width=8, hashes=32, layers=2, distribution=normal)",
    ),
    "double_hash": (
        "double_hash",
        "double_hash(combine=concat)+int8",
        "double_hash(weights=0.5, multiplexed=true)",
    ),
    "field_size": (
        "field_size",
        "field_size(limit=2500)",
        "field_size(coefficient=1.3, power=0.5)+int8",
    ),
    "frequency": ("frequency", "frequency(rows=60)+int4"),
    "full": ("full", "full+int8"),
    "hash": ("hash", "hash(power=1.0, rows=60)+int4"),
    "lowdim": ("lowdim", "lowdim(width=3)+int8"),
    "lsq": ("lsq", "lsq(bits=4)", "lsq(bits=2, offset=true)", "lsq(bits=2)"),
    "lowprec": (
        "lowprec",
        "lowprec(rows=int16, optimizer=adam)",
        "lowprec(rows=fp16, optimizer=sgd)",
        "lowprec(rows=bf16)",
    ),
    "magnitude": (
        "magnitude",
        "magnitude(unit=rows, kept=60)+int8",
        "magnitude(kept=300)+int8",
    ),
    "mde": (
        "mde",
        "mde(limit=2500, popularity=counts)",
        "mde(alpha=0.3, rounding=true)+int8",
    ),
    "mec": (
        "mec(cutoff=10, codewords=5)",
        "mec(cutoff=3, codewords=7, parts=3, start=initial, rewind=true, weights=counts)",
        "mec(cutoff=10)",
    ),
    "memcom": ("memcom", "memcom(bias=true, rows=30)+int8"),
    "mpe": (
        "mpe",
        "mpe(mode=faithful, strength=0.01)",
        "mpe(groups=2, bits=3, limit=700, retrain=continue)",
    ),
    "mgqe": (
        "mgqe(codewords=16, tail_codewords=5, parts=4)",
        "mgqe(codewords=12, parts=2, top=0.4, commitment=0.3)",
    ),
    "multi_hash": (
        "multi_hash",
        "multi_hash(combine=concat, rows=90)+int8",
        "multi_hash(weights=0.5, multiplexed=true, probes=3)",
    ),
    "optembed": (
        "optembed(generations=3)",
        "optembed(mode=faithful, generations=1, alpha=0.001)",
        "optembed(prune=rows)+int8",
        "optembed(prune=dims, limit=1500, threshold=id, norm=2, retrain=continue)",
    ),
    "optfs": (
        "optfs",
        "optfs(anneal_steps=20, kept=60, penalty=batch, strength=0.5)+int8",
        "optfs(gate_lr=0.1, start=1.0, temperature=200.0)",
    ),
    "pca": (
        "pca",
        "pca(limit=2500, start=components)",
        "pca(share=0.8, limit=2500)+int8",
    ),
    "pep": (
        "pep",
        "pep(grain=row, kept=300, threshold=-3.0)+int8",
        "pep(grain=dimension)",
        "pep(grain=global)",
    ),
    "qr": (
        "qr",
        "qr(combine=add, collisions=4, per_feature={user: 9})+int8",
        "qr(combine=concat)",
        "qr(partitions=3)",
        "qr(multiplexed=true)",
    ),
    "robe": ("robe", "robe(chunk=3, signs=true, multiplexed=false)+int8"),
    "tt": ("tt(rank=2)", "tt(rank=3, cores=2)+int8", "tt(cores=4, cache=20)"),
    "unified": (
        "unified",
        "unified(lookups=2)",
        "unified(lookups=2, per_feature={user: 4}, collisionless=10)+int8",
        "unified(lookups=4, allot=auto, tables=3)",
    ),
    "zch": (
        "zch(interval=5)",
        "zch(interval=4, policy=lru, start=shared, rows=60)+int8",
        "zch(interval=3, policy=lfu, cold_share=0.4, candidates=20)",
        "zch(interval=5, engine=torchrec)",
    ),
}
