"""``python -m pyratok`` is the command ``pyratok``."""

from __future__ import annotations

from pyratok.cli.app import main

if __name__ == "__main__":
    main()
