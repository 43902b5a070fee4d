"""A space to search, checked before anything is trained: what is traced in it, and what is not."""

from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from jaxnn.files import installed
from jaxnn.train.trials import Build, built


def check_space(space: Any) -> tuple[str, ...]:
    """Return the names of the settings that are traced: those of real numbers.

    Raises:
        TypeError: it is no dict of optuna's distributions.
        ValueError: it is empty.
    """
    distributions = installed("optuna", "tune").distributions
    known = "FloatDistribution, IntDistribution or CategoricalDistribution"
    if not isinstance(space, Mapping):
        raise TypeError(
            f"space is {space!r:.50}; it must be a dict of optuna.distributions by name: "
            f"a {known} each"
        )
    if not space:
        raise ValueError(
            "space is empty; it must name at least one setting: "
            '{"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}, say'
        )
    kinds = tuple(getattr(distributions, kind) for kind in known.replace(" or ", ", ").split(", "))
    for name, distribution in space.items():
        if not (isinstance(name, str) and isinstance(distribution, kinds)):
            raise TypeError(
                f"space[{name!r}] is {distribution!r:.50}; it must be a name and one of "
                f"optuna.distributions: a {known}"
            )
    return tuple(
        name for name, kind in space.items() if isinstance(kind, distributions.FloatDistribution)
    )


def check_build(build: Build, space: Mapping[str, Any], admit: Callable[[Any, Any], None]) -> None:
    """Refuse a space whose settings `build` does not read, or whose ends it cannot take.

    Args:
        build: `build(settings) -> (config, optimizer)`.
        space: what `check_space` takes.
        admit: called with every configuration and optimizer; it refuses what is none.

    Raises:
        TypeError, ValueError: `build` reads a name that is not there, or none of these of one; or
            as it raises, or `admit`, for settings at an end of the space.
    """
    ends = {name: _ends(distribution) for name, distribution in space.items()}
    first = {name: values[0] for name, values in ends.items()}
    # One at a time: what all categories and both ends of all numbers would be together is no end.
    corners = [first, *({**first, name: end} for name in ends for end in ends[name][1:])]
    read: set[str] = set()
    for corner in corners:
        watched = _Watched(corner)
        try:
            admit(*built(build, watched))
        except _UnknownError as error:
            raise ValueError(
                f"build reads the setting {error.args[0]!r}, and space names {', '.join(space)}; "
                "it must name what build reads: add it, or make it a constant of build"
            ) from error
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"space: with {corner}, {error}") from error
        read |= watched.read
    idle = [name for name in space if name not in read]
    if idle:
        raise ValueError(
            f"space names {', '.join(map(repr, idle))}, which build does not read; it reads "
            f"{', '.join(map(repr, sorted(read))) or 'nothing'}: correct the name, or leave it out"
        )


def _ends(distribution: Any) -> tuple[Any, ...]:
    """All categories, or the least and the largest number."""
    if hasattr(distribution, "choices"):
        return tuple(distribution.choices)
    return distribution.low, distribution.high


class _UnknownError(KeyError):
    """A name that the settings have not."""


class _Watched(UserDict[str, Any]):
    """Settings that know which of them were read."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.read: set[str] = set()
        super().__init__(settings)

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            raise _UnknownError(name)
        self.read.add(name)
        return self.data[name]

    def __or__(self, other: Any) -> Any:
        return dict(self) | dict(other)

    def __ror__(self, other: Any) -> Any:
        return dict(other) | dict(self)
