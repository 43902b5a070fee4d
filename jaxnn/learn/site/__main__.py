"""Build the site: python -m jaxnn.learn.site [--out FOLDER]."""

import argparse
import sys
from pathlib import Path

from jaxnn.learn.site.build import build


def main() -> int:
    """Build it, and say where it is."""
    parser = argparse.ArgumentParser("python -m jaxnn.learn.site", description=build.__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/site"), help="folder for the pages")
    try:
        return build(parser.parse_args().out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
