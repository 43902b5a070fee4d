"""Build the site: gather its sources, run all of their cells, write pages that need no network."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import jaxnn
from jaxnn.learn.site import reference

HERE = Path(__file__).parent
NEEDED = ("sphinx", "myst_nb", "furo", "sphinx_design", "latex2mathml", "ipykernel")
# Pages of a clone, which an installed package has not: where they are, and what they are called.
BENCHMARKS = ("README.md", "LOG.md", "cpu.png")


def build(out: Path) -> int:
    """Build the site into a folder: every cell runs, and a warning is an error.

    Returns:
        0, or Sphinx's exit status where a page is wrong.

    Raises:
        ValueError: a package that it needs is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the site is built by {', '.join(missing)}, not installed: pip install 'jaxnn[site]'"
        )
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources"
        gather(sources)
        options = ["-W", "--keep-going", "-q", "-j", "2", "-b", "html", "-c", str(HERE)]
        doctrees = str(Path(scratch) / "doctrees")
        status = int(build_main([*options, "-d", doctrees, str(sources), str(out)]))
    if status == 0:
        print(f"wrote {out / 'index.html'}")
    return status


def gather(sources: Path) -> None:
    """Lay the pages out as Sphinx wants them: those written, and those made from docstrings."""
    ignored = shutil.ignore_patterns("*.py", "__pycache__", "_static")
    shutil.copytree(HERE, sources, ignore=ignored)
    for lesson in (sources / "lessons").glob("*.md"):
        with lesson.open("a") as file:
            file.write(f"\n\nThis lesson as a notebook: {{nb-download}}`{lesson.stem}.ipynb`\n")
    reference.write(sources / "reference")
    benchmarks = Path(jaxnn.__file__).parents[1] / "experiments" / "benchmark"
    if benchmarks.is_dir():
        (sources / "benchmark").mkdir()
        for name in BENCHMARKS:
            shutil.copy(benchmarks / name, sources / "benchmark" / name)
