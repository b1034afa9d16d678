"""The benchmarks of the paper and ours: one contract, a file per family of datasets, a registry of all of them."""
