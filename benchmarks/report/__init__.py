"""Reports: one HTML file and pictures, from run folders and nothing else."""

from featemb.benchmarks.report.aggregate import Row, aggregate
from featemb.benchmarks.report.write import write_report

__all__ = ["Row", "aggregate", "write_report"]
