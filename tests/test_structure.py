"""Which room may import which, that no imports form a cycle, and how long files and rooms may grow."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {  # beside itself
    "files": set(),
    "models": set(),
    "diffusion": set(),
    "datasets": {"files"},
    "utils": {"files", "models", "diffusion", "datasets"},
}
BELOW = {"files", "models", "diffusion", "datasets", "utils"}
MAY_IMPORT |= {"runs": BELOW}
BELOW = BELOW | {"runs"}
MAY_IMPORT |= {"training": BELOW, "evaluation": BELOW, "sharing": BELOW}  # they do not know each other
MAY_IMPORT |= {"test_modes": BELOW | {"evaluation"}}
SCRIPTS = {"train_solver", "test_solver", "convert"}
BESIDE = {"tests", "benchmarks"}  # not part of the product
LONGEST = 250  # lines of a file: what is read in one sitting
LARGEST = 0.2  # of the product, in one room


def room_files():
    """All Python files in the rooms and beside them; of other folders, such as data, only those directly inside."""
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    known = BESIDE | set(MAY_IMPORT)
    return sorted(f for folder in folders for f in folder.glob("**/*.py" if folder.name in known else "*.py"))


def product():
    """The files of the product by module name, such as runs.config; a room's own name is its __init__.py."""
    files = [*ROOT.glob("*.py"), *(file for file in room_files() if room_of(file) in MAY_IMPORT)]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def room_of(file):
    return file.relative_to(ROOT).parts[0]


def length(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def imports(file, modules):
    """The names a file imports, anywhere in it. Of `from a import b` it is a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules else node.module


@pytest.fixture(scope="module")
def graph():
    """{module: the modules of the product that it imports}"""
    modules = product()
    return {name: {other for other in imports(file, modules) if other in modules} for name, file in modules.items()}


def test_the_graph_sees_the_imports_that_there_are(graph):
    assert graph["runs.config"] >= {"datasets", "runs.recipe"} and "runs.config" in graph["train_solver"]
    assert len(graph) > 40 and set(MAY_IMPORT) | SCRIPTS <= set(graph)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_one_way(graph, room):
    for module, imported in graph.items():
        if module.split(".")[0] == room:
            assert {other.split(".")[0] for other in imported} <= MAY_IMPORT[room] | {room}, module


def test_the_scripts_do_not_know_each_other(graph):
    for name in SCRIPTS:
        assert not SCRIPTS & graph[name]


def test_no_imports_form_a_cycle(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the cycle


def test_every_room_has_its_place():
    assert {room_of(file) for file in room_files()} - BESIDE == set(MAY_IMPORT)
    assert {file.stem for file in ROOT.glob("*.py")} == SCRIPTS


def test_no_file_outgrows_one_sitting():
    files = [*product().values(), *(file for file in room_files() if room_of(file) in BESIDE)]
    assert {str(file.relative_to(ROOT)): length(file) for file in files if length(file) > LONGEST} == {}


def test_no_room_outgrows_the_others():
    lines = {}
    for file in product().values():
        lines[room_of(file)] = lines.get(room_of(file), 0) + length(file)
    shares = {room: lines[room] / sum(lines.values()) for room in MAY_IMPORT}
    assert max(shares.values()) <= LARGEST, shares
