"""Build the site: `python -m jaxnn.learn.site --out DIR`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxnn.learn.site.build import OUT, build


def main(argv: Sequence[str] | None = None) -> int:
    """Build it; return 0 if there was no warning and no cell failed."""
    parser = argparse.ArgumentParser("python -m jaxnn.learn.site", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"its folder (default: {OUT})")
    return build(parser.parse_args(argv).out)


if __name__ == "__main__":
    sys.exit(main())
