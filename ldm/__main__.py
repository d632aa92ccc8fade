"""`python -m ldm`, the same as `ldm`."""

from __future__ import annotations

from ldm.cli.app import main

if __name__ == "__main__":
    main()
