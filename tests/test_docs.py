"""Docs say what the code does: generated pages are fresh, examples run, every verb and family is named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import contract
import pytest

from sojourn import registry
from sojourn.config import load_recipe, recipes

ROOT = Path(__file__).parent.parent


def test_generated_pages_are_fresh_and_links_lead_somewhere() -> None:
    result = subprocess.run(
        [sys.executable, "docs/build.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_example_family_is_one_file_and_holds_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/adding-a-family.md, put in a file of its own, passes every clause."""
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 60
    (tmp_path / "denoising_example.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.ids("family")
    import denoising_example  # type: ignore[import-not-found]

    try:
        assert "denoising" in registry.ids("family")
        for clause in contract.CLAUSES:
            clause(contract.make("denoising"))
    finally:
        registry._TABLES["family"].pop("denoising")
        del denoising_example


def test_lsgan_is_the_lines_of_one_file_that_the_page_shows(tmp_path: Path) -> None:
    """Taken out of a copy, the copy does not know it and is whole; put back, it holds the contract."""
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    (tmp_path / "lsgan.diff").write_text(diff)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("starter", "__pycache__"))

    def known(ask: str) -> str:
        code = f"from sojourn import registry; import contract; print({ask})"
        path = f"{tmp_path / 'src'}:{ROOT / 'tests'}"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def patch(*how: str) -> None:
        subprocess.run(["git", "apply", "--unidiff-zero", *how, "lsgan.diff"], cwd=tmp_path, check=True)

    patch("-R")
    changed = [
        p for p in (tmp_path / "src").rglob("*.py") if p.read_bytes() != (ROOT / p.relative_to(tmp_path)).read_bytes()
    ]
    assert [p.name for p in changed] == ["dcgan.py"]
    assert known("'lsgan' in registry.ids('family'), 'dcgan' in registry.ids('family')") == "False True"
    patch()
    assert known(
        "'lsgan' in registry.ids('family'), [clause(contract.make('lsgan')) for clause in contract.CLAUSES]"
    ) == ("True [None, None, None, None, None]")


def test_every_verb_and_family_is_in_the_readmes() -> None:
    from sojourn.cli.main import VERBS

    english = (ROOT / "README.md").read_text(encoding="utf-8")
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for verb in VERBS:
        assert f"sojourn {verb}" in english + pages, verb
    for text in (english, chinese):
        assert 'make imagine PROMPT="' in text
        assert "make test" in text
    for id in registry.ids("family"):
        assert f"## {id}\n" in pages


def test_every_recipe_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in recipes():
        assert f"| `{name}` |" in page, name
        assert load_recipe(name).title


def test_prompts_in_the_readmes_parse() -> None:
    from sojourn.cli.draw import joined
    from sojourn.prompt import parse

    seen = 0
    for name in ("README.md", "README.zh.md"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("sojourn imagine"):
                import shlex

                parse(joined(tuple(shlex.split(line)[2:])))
                seen += 1
    assert seen >= 6


def test_no_registry_host_is_named() -> None:
    hosts = ("py" + "pi.org", "python" + "hosted", "registry." + "npmjs", "deb." + "debian")
    for path in [*ROOT.glob("*.*"), *(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*")]:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ""}:
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(host in text for host in hosts), path


def test_the_example_runs(packages_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("notebook", ROOT / "examples" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(packages_folder / "flow"), "3", tmp_path)
    assert capsys.readouterr().out == "equal\n"
    assert len(list(tmp_path.glob("*.png"))) == 4
