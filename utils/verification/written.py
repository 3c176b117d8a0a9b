"""The report made again from final_results.json and the records, and compared file by file. Torch-free."""

from __future__ import annotations

import math
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from utils.analysis.aggregate import FINAL, findings
from utils.analysis.final import FinalResults
from utils.core.codec import from_json, to_json
from utils.reports.files import write_report
from utils.reports.verdict import final_results
from utils.verification.check import Check, figures_of, first_difference, text_of, tried, unequal
from utils.verification.provenance import SeedDirectory

DRAWN = (".svg", ".pdf")
_NUMBER = re.compile(rb"-?\d*\.?\d+(?:[eE]-?\d+)?")
_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
NEAR = 0.02  # points (1/72 inch) that a line of a figure may lie elsewhere where another processor rounds


def checks_of_report(run: SeedDirectory) -> Iterator[Check]:
    """The sentences of final_results.json, and every file that a reader sees."""
    yield Check(f"verdict and limits in {FINAL} from its parts", tried(lambda: _sentences(run)))
    with tempfile.TemporaryDirectory() as folder:
        made, note = Path(folder), figures_of(run.metadata)
        title = f"tables, summary, cards, figures and page from {FINAL}"

        def remade() -> Iterator[str]:
            write_report(from_json(FinalResults, run.final["results"], FINAL), run.metadata, run.path, made)
            yield from differing_files(made, run.path, same_figures=not note)

        yield Check(title, tried(remade), note)


def _sentences(run: SeedDirectory) -> Iterator[str]:
    written = run.final["results"]
    made = to_json(final_results(findings(run.parts, run.metadata["settings"].get("QUALITY_MARGIN", 0.0))))
    for name in ("verdict", "limits"):
        yield from unequal(made[name], written[name], name)


def differing_files(made: Path, found: Path, same_figures: bool) -> Iterator[str]:
    """Files below `made` that are not the same below `found`. Figures and the page are only compared with
    `same_figures`; else the page is, without its pictures."""
    for path in sorted(file for file in made.rglob("*") if file.is_file()):
        name = path.relative_to(made).as_posix()
        other = found / name
        if not other.is_file():
            yield f"{name} is not there"
        elif path.suffix in DRAWN:
            if same_figures and not same_picture(path.read_bytes(), other.read_bytes()):
                yield f"{name} is not the figure of these results"
        elif (left := _without_pictures(path)) != (right := _without_pictures(other)):
            yield f"{name} differs: {first_difference(left, right)}"
        elif same_figures and not same_picture(path.read_bytes(), other.read_bytes()):
            yield f"{name} shows another figure"


def _without_pictures(path: Path) -> str:
    return (
        re.sub(r"<svg.*?</svg>", "<svg/>", text_of(path), flags=re.DOTALL) if path.suffix == ".html" else text_of(path)
    )


def same_picture(made: bytes, found: bytes) -> bool:
    """Whether two files of a figure draw one thing: all but numbers equal, and numbers within `NEAR`.

    Another processor may round a coordinate otherwise. A PDF's streams are compared unpacked, and its table of offsets
    follows from their lengths.
    """
    if made == found:
        return True
    left, right = (_unpacked(content) for content in (made, found))
    if _NUMBER.split(left) != _NUMBER.split(right):
        return False
    pairs = zip(_NUMBER.findall(left), _NUMBER.findall(right), strict=True)
    return all(a == b or math.isclose(float(a), float(b), abs_tol=NEAR) for a, b in pairs)


def _unpacked(content: bytes) -> bytes:
    if not content.startswith(b"%PDF"):
        return content
    content = content[: content.rfind(b"xref\n")] if b"xref\n" in content else content
    content = re.sub(rb"/Length \d+", b"", content)

    def inflate(match: re.Match[bytes]) -> bytes:
        try:
            return zlib.decompress(match[1])
        except zlib.error:
            return match[1]  # not packed

    return _STREAM.sub(inflate, content)
