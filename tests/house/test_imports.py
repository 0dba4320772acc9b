"""The house stands: imports only go down, importing is cheap, the library reads no flags."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Ground floor first. A module imports from its own floor and from those below.
FLOORS = (
    {"spec", "mesh", "lookup", "parts", "collectives", "tree", "weights", "checks", "pages"},
    {"kernels"},
    {"models"},
    {"hf"},
    {"objectives"},
    {"peft"},
    {"optim"},
    {"data"},
    {"sampling"},
    {"train"},
    {"rl"},
    {"evaluation"},
    {"planning"},
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}

# What `import llmjax` leaves to those who use it.
HEAVY = {
    "array_record",
    "grain",
    "matplotlib",
    "orbax",
    "pyarrow",
    "rich",
    "sentencepiece",
    "tensorboardX",
    "tensorstore",
    "torch",
    "transformers",
    "wandb",
}

LIBRARY = sorted((ROOT / "llmjax").rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file may import, wherever in it that stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from llmjax import mesh` imports llmjax.mesh.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def python(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path: pathlib.Path) -> None:
    part = path.relative_to(ROOT / "llmjax").with_suffix("").parts[0]
    top = part == "__init__"
    assert top or part in LEVEL, f"llmjax/{part} is on no floor: say in FLOORS where it belongs"
    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in {"experiments", "tests", "tools"}, f"{path} imports {name}"
        target = rest.partition(".")[0]
        if package == "llmjax" and not top and target in LEVEL:
            assert LEVEL[target] <= LEVEL[part], f"{part} imports {target}, which is above it"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_reads_no_flags(path: pathlib.Path) -> None:
    assert not {name for name in imported(path) if name.partition(".")[0] in {"absl", "argparse"}}


def test_pictures_are_drawn_in_one_place() -> None:
    """All charts have one style, and follow a page's colours."""
    code = [
        path for name in ("llmjax", "experiments", "tools") for path in (ROOT / name).rglob("*.py")
    ]
    drawing = {path for path in code if any(n.startswith("matplotlib") for n in imported(path))}
    assert drawing == {ROOT / "llmjax" / "pages" / "drawing.py"}


def test_importing_is_cheap() -> None:
    program = """
import sys
import jax
before = set(sys.modules)
import llmjax
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    assert HEAVY.isdisjoint(python(program).split())


def test_no_import_touches_a_device() -> None:
    """An array made at import would start the accelerator in every process, before its flags."""
    relative = (path.relative_to(ROOT).with_suffix("") for path in LIBRARY)
    modules = [".".join(path.parts).removesuffix(".__init__") for path in relative]
    program = f"""
import importlib
from jax._src import xla_bridge
for name in {modules}:
    importlib.import_module(name)
    assert not xla_bridge.backends_are_initialized(), name
"""
    python(program)
