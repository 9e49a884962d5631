"""Imports point down, nothing unpickles, the command line starts fast, files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "sojourn"
LAYERS = [
    {"errors"},
    {"types", "schema", "safefile"},
    {"prompt", "grammar", "config", "registry", "card", "archive", "weights", "blank"},
    {"nets", "data"},
    {"diffusion", "codecs", "conditioners", "vocabulary", "colours"},
    {"families"},
    {"package"},
    {"train", "wishes", "picture"},
    {"engine"},
    {"measure", "film", "find", "again"},
    {"studio", "migrations"},
    {"http"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(SRC.rglob("*.py"))


def layer(path: Path) -> str:
    part = path.relative_to(SRC).parts[0]
    return part.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Modules of Sojourn that a file imports when it runs (not for type checking alone)."""
    out: list[str] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("sojourn"):
                module = (child.module or "").split(".")
                out.extend([module[1]] if len(module) > 1 else [alias.name for alias in child.names])
            elif isinstance(child, ast.Import):
                out.extend(a.name.split(".")[1] for a in child.names if a.name.startswith("sojourn."))
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    own = layer(path)
    if own in ("__init__", "__main__"):
        return
    assert own in RANK, f"{own} has no layer; give it one here and in docs/architecture.md"
    for name in imports(path):
        if name in RANK and name != own:
            assert RANK[name] <= RANK[own], f"{path.name} ({own}) imports {name}, which lies above it"


def test_nothing_unpickles_or_evaluates() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "eval", "exec"), f"{path.name}: {called}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not re.search(r"\b(pickle|dill|joblib|marshal|shelve)\b", text), f"{path.name}: {text}"


def test_files_are_short() -> None:
    long = {path.name: n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 420}
    assert not long


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sojourn.cli.main import run; run(['--help']);"
        "heavy = {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules); sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "imagine" in result.stdout


def test_public_names_are_few_and_sorted() -> None:
    import sojourn

    assert list(sojourn.__all__) == sorted(sojourn.__all__)
    assert len(sojourn.__all__) <= 20
    for name in sojourn.__all__:
        assert getattr(sojourn, name) is not None
