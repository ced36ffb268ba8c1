"""Benchmarks: each figure of the project beside its peers, measured in one run on one machine.

Run with ``python -m bench`` from the root of the repository; see ``bench/README.md``.
"""
