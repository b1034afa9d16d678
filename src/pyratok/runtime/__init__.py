"""How to run long and large video in a given memory: receptive fields, tiles, plans."""
