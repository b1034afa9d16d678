"""Benchmarks: a protocol whose hash travels with the result, so that numbers are compared only where they may be."""
