"""Which packages of a requirements file this interpreter lacks. Standard library only, and imports none of them."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from types import TracebackType

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:==\s*([^\s;#]+))?")
_MARKER = re.compile(r";\s*python_version\s*(>=|<)\s*[\"']3\.([0-9]+)[\"']")


def wanted(requirements: Path) -> dict[str, str]:
    """Pinned version by package name ("" where none) for this Python, following `-r other.txt` lines."""
    pins: dict[str, str] = {}
    for line in requirements.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("-r "):
            pins |= wanted(requirements.parent / line[3:].strip())
        elif (match := _PINNED.match(line)) and _for_this_python(line):
            pins[match[1]] = match[2] or ""
    return pins


def _for_this_python(line: str) -> bool:
    marker = _MARKER.search(line)
    return marker is None or (sys.version_info[1] >= int(marker[2])) == (marker[1] == ">=")


def missing(requirements: Path) -> list[str]:
    """The packages that are not installed here."""
    return [name for name in wanted(requirements) if _installed(name) is None]


def other_versions(requirements: Path) -> dict[str, tuple[str, str]]:
    """(installed, pinned) of the packages that are here in another version than the pinned one."""
    differing = {}
    for name, pinned in wanted(requirements).items():
        version = _installed(name)
        if version and pinned and version.split("+")[0] != pinned:  # torch says 2.13.0+cpu for its CPU build
            differing[name] = (version, pinned)
    return differing


def is_missing_package(error: BaseException) -> bool:
    """Whether a module of somebody else's is not installed; one of this project's is a bug."""
    return isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in ("utils", "configs")


def advice(error: BaseException) -> str:
    """In one line, what to do where a package that this project needs is not installed for the running Python."""
    return (
        f"{type(error).__name__}: {error} in {sys.executable}. Use the environment (source .venv/bin/activate), "
        "or: pip install -r requirements.txt -c requirements.lock"
    )


def tell_what_is_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the scripts: `advice` instead of a traceback through somebody else's imports."""
    if is_missing_package(error):
        print(advice(error), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def main(arguments: list[str]) -> int:
    """Print what is missing of the file named, one a line; exit code 1 if anything is."""
    lacks = missing(Path(arguments[0]))
    print("\n".join(lacks), end="\n" if lacks else "")
    return 1 if lacks else 0


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
