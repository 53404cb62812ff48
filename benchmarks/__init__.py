"""The harness: one run, sweeps that resume, and records that reports read.

Import the parts by their files: ``featemb.benchmarks.config``, ``.run``, ``.sweep``, ...
"""

if __name__ != "featemb.benchmarks":
    raise ImportError(
        "this folder holds featemb.benchmarks: use `import featemb.benchmarks`. For a third-party "
        "package named `benchmarks`, run Python with -P (or PYTHONSAFEPATH=1), so that the current "
        "folder does not shadow it."
    )
