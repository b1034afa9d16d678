"""The command ``pyratok``: one module per group of verbs, ``app`` puts them together."""
