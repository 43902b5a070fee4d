"""Exercises in writing gradients by hand: list them, start one, check it, open a hint.

    python -m jaxnn.learn                      list the lessons, and how far you are
    python -m jaxnn.learn start layer_norm     write layer_norm.py, to be filled in
    python -m jaxnn.learn check layer_norm.py  grade it; --watch grades again whenever it is saved
    python -m jaxnn.learn hint layer_norm      open one more hint
    python -m jaxnn.learn solution layer_norm  print the solution
    python -m jaxnn.learn site                 build the pages of all lessons

Exit status: 0 right, 1 wrong or not done, 2 usage.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxnn import files
from jaxnn.learn import exercise, progress, start

INTERRUPTED = 130
PATIENCE = 0.3  # seconds between two looks at a file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m jaxnn.learn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("list", help="the lessons and exercises, and how far you are")
    begin = commands.add_parser("start", help="write the file of an exercise")
    begin.add_argument("name", metavar="NAME")
    begin.add_argument("--grade", choices=exercise.GRADES, help="fused unless told")
    begin.add_argument("--file", metavar="F", help="another name for the file")
    check = commands.add_parser("check", help="grade a file")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--watch", action="store_true", help="again whenever it is saved")
    check.add_argument("--limit", type=_seconds, default=20.0, help="seconds of computing, at most")
    hint = commands.add_parser("hint", help="open one more hint")
    hint.add_argument("name", metavar="NAME")
    solved = commands.add_parser("solution", help="print the solution")
    solved.add_argument("name", metavar="NAME")
    solved.add_argument("--grade", choices=exercise.GRADES, help="fused unless told")
    commands.add_parser("site", help="build the pages of all lessons", add_help=False)
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "site":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: dict[str, Callable[[Any], int]] = {
        "start": _start,
        "check": _check,
        "hint": _hint,
        "solution": _solution,
        "site": lambda _: _site(rest),
    }
    try:
        return run.get(options.command, _list)(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e5:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _note(name: str, **changes: Any) -> None:
    """Note progress; what cannot be noted is said, and takes nothing from what was asked for."""
    try:
        progress.note(name, _say, **changes)
    except ValueError as error:
        _say(f"Your progress is not kept: {error}; or name a file that can be in JAXNN_LEARN")


def _list(options: Any) -> int:
    """Print lessons in order with their exercises and one's progress."""
    known = progress.load(_say)
    everything = exercise.in_order()
    width = max((len(e.name) for e in everything), default=0)
    following = lesson = ""
    for e in everything:
        if e.lesson != lesson:
            lesson = e.lesson
            print(exercise.title_of(lesson))
        mine = known.get(e.name, {})
        marks = [f"{g} {_state(mine, g)}" for g in e.grades]
        print(f"  {e.name:<{width}}  {'  '.join(f'{m:<12}' for m in marks)}".rstrip())
        if not following and not mine.get("solved"):
            following = e.name
    solved = sum(bool(known.get(e.name, {}).get("solved")) for e in everything)
    print(f"{solved} of {len(everything)} exercises solved.")
    if following:
        begun = Path(known.get(following, {}).get("file", ""))
        if begun.is_relative_to(Path.cwd()):
            begun = begun.relative_to(Path.cwd())
        said = f"check {begun}" if begun.is_file() else f"start {following}"
        print(f"Next: python -m jaxnn.learn {said}")
    return 0


def _state(mine: dict[str, Any], grade: str) -> str:
    if grade in mine.get("solved", []):
        return "solved"
    return "begun" if grade in mine.get("begun", []) else "-"


def _grade_of(e: exercise.Exercise, told: str | None) -> str:
    grade = told or ("fused" if "fused" in e.grades else e.grades[0])
    if grade not in e.grades:
        raise ValueError(f"{e.name} has no grade {grade}; it has {', '.join(e.grades)}")
    return grade


def _start(options: Any) -> int:
    """Write the file of an exercise, never over another."""
    e = exercise.find(options.name)
    grade = _grade_of(e, options.grade)
    name = options.file or start.file_name(e, grade)
    path = files.as_path(name, "FILE")
    text = start.text(e, grade, name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(
            f"{path} is there already and is left as it is; name another with --file, or go on "
            f"with it: python -m jaxnn.learn check {path}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); name another with --file"
        ) from None
    _note(e.name, begun=[grade], file=str(path.resolve()))
    print(f"{path}: {e.title} ({grade}: {exercise.ABOUT[grade]})")
    told = "Find the line that is wrong and change it" if grade == "bug" else "Fill it in"
    print(f"{told}, then: python -m jaxnn.learn check {path}")
    print(f"A hint: python -m jaxnn.learn hint {e.name}")
    return 0


def _check(options: Any) -> int:
    """Grade a file, once or whenever it is saved."""
    from jaxnn.learn.worker import Worker

    with Worker(options.limit, fresh=__name__ == "__main__") as worker:
        while True:
            seen = _stamp(options.file)
            status = _checked(worker, options.file)
            if not options.watch:
                return status
            if status == 0:
                return 0
            print("(waiting until it is saved again; Ctrl-C ends)", flush=True)
            while _stamp(options.file) == seen:
                time.sleep(PATIENCE)


def _checked(worker: Any, file: str) -> int:
    path = Path(file)
    if not path.is_file():
        files.read_bytes(path, 2**20)
    result = worker.grade(file)
    if result.grade == "bug" and not result and not result.fault:
        e = exercise.find(result.exercise)
        if start.is_as_begun(e, "bug", path.read_text(encoding="utf-8")):
            print(f"{file} is as it was handed out: find the line that is wrong, and change it.")
            return 1
    print(result, flush=True)
    if result:
        all_grades = exercise.find(result.exercise).grades
        later = all_grades[all_grades.index(result.grade) + 1 :]
        more = f"start {result.exercise} --grade {later[0]}" if later else "list"
        print(f"Next: python -m jaxnn.learn {more}", flush=True)
    if result.exercise:
        grades = {"begun": [result.grade]} | ({"solved": [result.grade]} if result else {})
        _note(result.exercise, file=str(path.resolve()), **grades)
    return 0 if result else 1


def _stamp(file: str) -> Any:
    try:
        stat = Path(file).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _hint(options: Any) -> int:
    """Open one more hint."""
    e = exercise.find(options.name)
    hints = e.module.HINTS
    opened = progress.load(_say).get(e.name, {}).get("hints", 0)
    number = min(opened + 1, len(hints))
    _note(e.name, hints=number)
    for i, text in enumerate(hints[:number], 1):
        print(f"{i} of {len(hints)}: {text}")
    if number == len(hints):
        print(f"That was the last. The solution: python -m jaxnn.learn solution {e.name}")
    return 0


def _solution(options: Any) -> int:
    """Print the solution, and note that it was seen."""
    e = exercise.find(options.name)
    grade = _grade_of(e, options.grade)
    _note(e.name, seen=[grade])
    print(start.solution(e, grade, start.file_name(e, grade)), end="")
    return 0


def _site(rest: Sequence[str]) -> int:
    """Build the site."""
    from jaxnn.learn.site.__main__ import main as build

    return build(rest)


if __name__ == "__main__":
    sys.exit(main())
