"""The site, built: its sources gathered in a folder, each cell run by Sphinx and MyST-NB."""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jaxnn
from jaxnn.learn.site import reference
from jaxnn.verify.programs import quick_flags

OUT = Path("out/site")
NEEDED = ("sphinx", "myst_nb", "furo", "sphinx_design", "latex2mathml", "ipykernel", "matplotlib")
# What the folder of an earlier site has, and hardly anything else.
SIGNS = ("index.html", "objects.inv", "searchindex.js")
ROOT = Path(jaxnn.__file__).parents[1]
# Pages of a clone that a wheel does not have.
MEASURED = {
    "benchmark/README.md": "speed.md",
    "benchmark/LOG.md": "log.md",
    "scaling/README.md": "growth.md",
}
# A kernel's: no network, nothing to say of its debugger; and what it compiles is in no folder, so
# that every build runs all that it shows. A program of a lesson runs once: to compile it fast, and
# not well, saves a third of the time.
KERNEL = {"JAX_PLATFORMS": "cpu", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
KERNEL["XLA_FLAGS"] = quick_flags()
KERNEL["PYTHONWARNINGS"] = "ignore:IProgress not found"  # a progress bar as a widget; none is shown


def build(out: Path | str = OUT) -> int:
    """Build the site; every code cell runs, and a warning is an error.

    Args:
        out: the folder for it. An earlier site there is replaced.

    Returns:
        0; 1 where a cell fails, a warning is given, or something is missing, which is said.
    """
    out = Path(out).absolute()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'The site needs {", ".join(missing)}: pip install "jaxnn[site]"', file=sys.stderr)
        return 1
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not _is_site(out)):
        print(f"{out} holds something that is no site; choose another --out", file=sys.stderr)
        return 1
    from ipykernel.kernelspec import write_kernel_spec
    from sphinx.cmd.build import main

    with tempfile.TemporaryDirectory(prefix="jaxnn-site-") as folder:
        made = Path(folder)
        gather(made / "site")
        # Cells run in this very Python, whatever kernels others have installed.
        kernel = made / "jupyter" / "kernels" / "python3"
        write_kernel_spec(kernel, extra_arguments=["--log-level=ERROR"])
        os.environ.update(KERNEL)
        _before("JUPYTER_PATH", made / "jupyter")
        _before("PYTHONPATH", ROOT)
        strict = ("-W", "--keep-going", "-q", "-j", str(min(4, max(2, os.cpu_count() or 1))))
        status = main([*strict, "-b", "html", str(made / "site"), str(made / "html" / "out")])
        if status == 0:
            shutil.copytree(
                made / "html" / "jupyter_execute",
                made / "html" / "out" / "notebooks",
                ignore=shutil.ignore_patterns("*.png", "*.svg", "*.txt"),
            )
            shutil.rmtree(made / "html" / "out" / ".doctrees", ignore_errors=True)
            if out.exists():
                shutil.rmtree(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made / "html" / "out", out)
            print(f"built: {out / 'index.html'}")
    return int(status)


def gather(folder: Path) -> None:
    """Copy the sources of all pages to a folder, and write those that are generated."""
    here = Path(__file__).parent
    shutil.copytree(here, folder, ignore=shutil.ignore_patterns("__pycache__", "__*__.py"))
    reference.write(folder / "reference")
    log = next(ROOT.glob("*/benchmark/LOG.md"), None)
    if log is None:
        shutil.rmtree(folder / "benchmarks")
        return
    for name, page in MEASURED.items():
        path = log.parents[1] / name
        text = path.read_text(encoding="utf-8")
        for other, its_page in MEASURED.items():
            if Path(other).parent == Path(name).parent:
                text = text.replace(f"]({Path(other).name})", f"]({its_page})")
        (folder / "benchmarks" / page).write_text(text, encoding="utf-8")
        for picture in path.parent.glob("*.png"):
            shutil.copy(picture, folder / "benchmarks")


def spread(pages: list[str]) -> None:
    """Sort pages so that those whose cells run lie evenly between the others.

    Sphinx hands each process some tens of pages in a row, and all lessons would fall to one.
    """
    ran = [page for page in pages if page.startswith(("lessons/", "howto/"))]
    others = [page for page in pages if page not in ran]
    place = {page: (i + 0.5) / len(row) for row in (ran, others) for i, page in enumerate(row)}
    pages.sort(key=lambda page: place[page])


def _is_site(folder: Path) -> bool:
    return all((folder / name).is_file() for name in SIGNS)


def _before(variable: str, path: Path) -> None:
    """Put a path before those that an environment variable has."""
    rest = [os.environ[variable]] if os.environ.get(variable) else []
    os.environ[variable] = os.pathsep.join([str(path), *rest])
