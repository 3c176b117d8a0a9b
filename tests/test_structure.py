"""The house: rooms import downwards only, nothing in a circle; files stay short; the login node needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in ("configs", "utils", "scripts")
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py"
}
# A room may import from itself and from the rooms of lower floors.
FLOORS = [
    ["configs"],
    ["core"],
    ["scoring"],
    ["pipeline", "data"],
    ["modeling", "analysis"],
    ["evaluation", "training", "slurm", "reports"],
    ["attacks", "operations", "demo", "verification"],
    ["benchmarks", "commands"],
    ["scripts"],
]
TORCH_FREE = ["scoring", "commands", "core", "pipeline", "slurm", "operations", "analysis", "reports", "verification"]


def room(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if first == "utils" else first


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == {name for floor in FLOORS for name in floor}


def test_no_import_leads_upwards():
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upwards = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if room(module) != room(other) and height[room(other)] >= height[room(module)]
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in GRAPH[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize(("pattern", "limit"), [("*.py", 400), ("*.sh", 100)])
def test_files_are_short(pattern, limit):
    files = [path for path in ROOT.rglob(pattern) if not {".venv", "demo_run", ".git"} & set(path.parts)]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > limit}
    assert not {name: n for name, n in long.items() if not name.startswith("tests/")}


def test_the_login_node_needs_no_torch():
    modules = [module for module in MODULES if room(module) in TORCH_FREE]
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    program += "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
