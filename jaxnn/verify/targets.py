"""Import the modules that a target on the command line names, or refuse in words."""

import importlib
import importlib.util
import itertools
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

import jax


class UsageError(Exception):
    """A mistake on the command line; the message names it, the rule and the fix."""


class Target:
    """What one word of the command line names: a module, a package, or a file.

    Args:
        name: a dotted module or package, or the path of a file.
    """

    def __init__(self, name: str):
        """Nothing is imported yet."""
        self.name = name
        file = Path(name)
        self.siblings = _Siblings(file) if name.endswith(".py") or file.is_file() else None

    def importable(self) -> AbstractContextManager[None]:
        """Make what lies beside a file importable, as when Python runs that file."""
        return self.siblings.importable() if self.siblings else nullcontext()

    def modules(self) -> list[ModuleType]:
        """Return the module named and, if it is a package, those below it.

        Raises:
            UsageError: it is not there, or cannot be imported.
        """
        try:
            with self.importable():
                return [_from_file(Path(self.name))] if self.siblings else [*_dotted(self.name)]
        except (UsageError, KeyboardInterrupt):
            raise
        except BaseException as error:  # an exit of the module's is none of ours
            lines = traceback.format_list(own_frames(error)[-3:])
            lines += traceback.format_exception_only(error)
            own = "".join(lines).rstrip()
            raise UsageError(f"importing {self.name} failed; mend this first\n{own}") from error


class _Siblings(MetaPathFinder):
    """Finds what lies beside a file, before what is installed, and the file itself after it.

    A file may have the name of any module, of one that it imports too: it takes no place of its.
    Nor do the siblings of one file take those of another's.
    """

    def __init__(self, file: Path):
        self.file, self.folder = file, str(file.resolve().parent)
        self.found: set[str] = set()
        self.modules: dict[str, ModuleType] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a sibling; None for what Python is to find."""
        if path is not None or name == self.file.stem or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self.folder])
        if spec is None or spec.loader is None:  # a mere folder comes after what is installed
            return None
        self.found.add(name)
        return spec

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make what lies beside a file importable, as when Python runs that file."""
        hidden = {name: sys.modules[name] for name in self.modules if name in sys.modules}
        sys.modules.update(self.modules)
        sys.meta_path.insert(0, self)
        already = self.folder in sys.path
        sys.path.extend([] if already else [self.folder])
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            if not already:
                sys.path.remove(self.folder)
            for name in [n for n in sys.modules if n.partition(".")[0] in self.found]:
                self.modules[name] = sys.modules.pop(name)
            sys.modules.update(hidden)


def module_title(module: ModuleType) -> str:
    """Return a module's name; a file's without its folder and suffix."""
    return module.__name__.partition(_MARK)[0]


# Between a file's name and a number: no module that is imported by a name has such a one.
_MARK = " of file "
_NUMBERS = itertools.count(1)


def _from_file(path: Path) -> ModuleType:
    """Import a file by its path, under a name that no other module has."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; name a .py file that exists")
    name = f"{path.stem}{_MARK}{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(
        name, path, loader=SourceFileLoader(name, str(path))
    )
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _dotted(name: str) -> Iterator[ModuleType]:
    """A module or package by its name, and what is below it."""
    if Path(name).is_dir() and not name.isidentifier():
        raise UsageError(f"{name} is a folder; name one .py file in it, or a dotted package")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"there is no module {error.name}; name a dotted module that Python can import, or "
                "the path of a .py file"
            ) from error
        raise
    yield module
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
        if not info.name.endswith(".__main__"):
            yield importlib.import_module(info.name)


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error that are the user's: not Python's importing, JAX's or ours."""
    foreign = [Path(str(module.__file__)).parent for module in (jax, importlib)]
    library = Path(__file__).parents[1]
    ours = [Path(__file__).parent, library / "op.py", library / "calls.py"]

    def is_in(frame: traceback.FrameSummary, places: list[Path]) -> bool:
        file = Path(frame.filename)
        return any(place == file or place in file.parents for place in places)

    frames = traceback.extract_tb(error.__traceback__)
    if error.__cause__ and frames and is_in(frames[-1], ours):  # said in our words
        return own_frames(error.__cause__)
    return [f for f in frames if not (f.filename.startswith("<") or is_in(f, foreign + ours))]
