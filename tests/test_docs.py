"""The documentation says what is there: names, code, commands, links and formulas.

Sessions (``>>>``) on the pages are doctests and run by themselves; here is all the rest.
"""

import ast
import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

import condec
from condec.cli import app
from condec.dictionary import TrainConfig
from condec.retina import RetinaOptions
from condec.run import config, plan, sweep
from condec.run.selection import read_selection

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *DOCS.rglob("*.md"),
])  # fmt: skip
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*$")
BLOCK = re.compile(r"^(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$", re.M | re.S)

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page, and whether the page says that it is not run."""

    language: str
    code: str
    line: int
    is_run: bool


def blocks(page: Path, language: str | None = None) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            match["language"],
            match["code"],
            text[: match.start()].count("\n") + 1,
            NOT_RUN.search(text[: match.start()]) is None,
        )
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def prose(page: Path) -> str:
    """Text of a page without code."""
    return re.sub(r"(`+).+?\1", "", BLOCK.sub("", page.read_text(encoding="utf-8")))


def documented_modules() -> dict[str, ModuleType]:
    found = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (condec[\w.]*)$", page.read_text(encoding="utf-8"), re.M)
    ]
    return dict(module_of(name)[0] for name in found)


def module_of(name: str) -> tuple[tuple[str, ModuleType], list[str]]:
    """Import the module of a name, and return what follows; some functions are called as theirs."""
    module, *parts = name.split(".")
    while parts and importlib.util.find_spec(f"{module}.{parts[0]}"):
        module += f".{parts.pop(0)}"
        if not hasattr(importlib.import_module(module), "__path__"):
            break
    return (module, importlib.import_module(module)), parts


# --- names --------------------------------------------------------------------------------


def test_every_public_name_is_on_a_reference_page():
    modules = documented_modules()
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    for name in condec.__all__:
        thing = getattr(condec, name)
        home = [m for m, module in modules.items() if getattr(module, name, None) is thing]
        assert home, f"{name}: no reference page has it"
        assert thing.__doc__, f"{name}: no docstring, so the reference leaves it out"
        linked = re.search(rf"\[`{name}`\]\[(condec\.[\w.]+)\.{name}\]", index)
        assert linked, f"{name}: not in docs/reference/index.md"
        assert linked[1] in home


def test_every_public_module_has_a_page_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for module in pkgutil.iter_modules(condec.__path__):
        if module.name not in ("cli", "__main__"):
            assert f"condec.{module.name}" in documented_modules()
            assert f"condec.{module.name}: reference/{module.name}.md" in navigation
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in navigation


@every_page
def test_names_that_are_linked_exist(page):
    for name in re.findall(r"\]\[(condec\.[\w.]+)\]", page.read_text(encoding="utf-8")):
        (_, thing), parts = module_of(name)
        for part in parts:
            thing = getattr(thing, part)


# --- code ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda p: p.stem
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.is_run:
            # So that a traceback names the page and its line.
            code = "\n" * block.line + block.code
            exec(compile(code, str(page), "exec", dont_inherit=True), names)


@every_page
def test_sessions_are_doctests(page):
    where = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    roots = where["tool"]["pytest"]["ini_options"]["testpaths"]
    for block in blocks(page):
        session = ">>>" in block.code
        assert session == (block.language == "pycon"), f"{page}:{block.line}"
        if session:
            assert block.code.endswith("\n\n"), f"{page}:{block.line}: the fence is read as output"
            assert page.relative_to(ROOT).parts[0] in roots


@every_page
def test_every_block_has_a_language(page):
    known = {"pycon", "python", "bash", "toml", "text"}
    assert {block.language for block in blocks(page)} <= known


@every_page
def test_plans_can_be_read(page, tmp_path):
    for block in blocks(page, "toml"):
        record = tomllib.loads(block.code)
        if "modes" in record:
            (tmp_path / "selection.toml").write_text(block.code)
            assert read_selection(tmp_path / "selection.toml")
        elif "project" not in record:  # a part of a pyproject.toml
            (sweep if "grid" in record else config).from_dict(record)


# --- commands -----------------------------------------------------------------------------


def options() -> dict[str, set[str]]:
    commands = get_command(app).commands
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
    }


def command_lines(page: Path) -> Iterator[str]:
    for block in blocks(page, "bash"):
        for line in block.code.splitlines():
            if line.partition("#")[0].strip():
                yield line.partition("  #")[0].strip()


@every_page
def test_commands_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line in command_lines(page):
        words = line.split()
        if words[0] == "condec":
            assert words[1] in options(), line
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("-")}
            assert given <= options()[words[1]] | {"--help"}, line
        elif words[0] == "make":
            assert words[1] in targets, line
        else:
            assert words[0] == "python", f"{line}: a command that nobody checks"


def test_command_line_page_has_every_command_and_option():
    text = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    for command, given in options().items():
        assert f"`condec {command}" in text
        for option in given:
            if option.startswith("--"):
                assert f"`{option}`" in text, f"condec {command} {option}"


def rows_of_keys() -> dict[tuple[str, str], str]:
    """Default of every key in the tables of run.toml, by section and key."""
    text = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    section, found = "", {}
    for line in text.partition("## run.toml")[2].splitlines():
        if title := re.fullmatch(r"### \[(\w+)\]", line):
            section = title[1]
        elif row := re.match(r"\| `(\w+)` \| (.*?) ?\|", line):
            found[section, row[1]] = row[2]
    return found


def keys_of_plans() -> set[tuple[str, str]]:
    found = {("", key) for key in ("sites", "out", "base", "links")}
    for section in ("model", "data", "collect", "control", "maps", "explain", "report", "engine"):
        kind = getattr(plan, f"{section.capitalize()}Plan")
        found |= {(section, field.name) for field in dataclasses.fields(kind)}
    found |= {("retina", field.name) for field in dataclasses.fields(RetinaOptions)}
    options = (plan.FitPlan, TrainConfig, *plan.LEARNERS.values())
    of_fit = {field.name for kind in options for field in dataclasses.fields(kind)}
    internal = {"modes_per_unit", "rows_per_mode", "train"}
    return found | {("fit", key) for key in of_fit - internal}


def test_command_line_page_has_every_key_of_a_plan():
    assert set(rows_of_keys()) == keys_of_plans()


def test_command_line_page_has_the_defaults():
    made = config.from_dict({"sites": "x", "links": ["retina"]})
    defaults = config.to_dict(made) | {"engine": config.sections(made)["engine"]}
    for (section, key), said in rows_of_keys().items():
        value = (defaults[section] if section else defaults).get(key)
        if isinstance(value, str):
            assert said == f'`"{value}"`', f"[{section}] {key}"
        elif isinstance(value, int | float):
            assert said == str(value).lower(), f"[{section}] {key}"


# --- links and references -----------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@every_page
def test_relative_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def test_links_on_the_site_stay_on_the_site():
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if not link.startswith("https://"):
                assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS)


def test_bibliography_and_its_page_have_the_same_entries():
    entries = re.findall(r"^@\w+\{(\w+),", (DOCS / "bibliography.bib").read_text(), re.M)
    listed = re.findall(r"^(\w+)\n: ", (DOCS / "bibliography.md").read_text(), re.M)
    assert sorted(listed) == sorted(entries)
    assert len(set(entries)) == len(entries)


@every_page
def test_pages_name_no_place_on_a_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp|Users|mnt)/", text)


# --- formulas -----------------------------------------------------------------------------


def docstrings() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for file in (ROOT / "src" / "condec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, documented):
                yield ast.get_docstring(node) or ""


def site_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_can_be_drawn():
    hooks = site_hooks()
    texts = [*docstrings(), *(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))]
    some = [text for text in texts if "$" in text or "math" in text]
    found = [tex for text in some for tex in hooks.formulas(text)]
    assert len(found) > 40
    svg = hooks.formula_svg(r"\frac{a}{b}", display=True)
    assert 'aria-label="\\frac{a}{b}"' in svg
    assert "M" in svg.split(' d="')[1]


def test_a_formula_that_cannot_be_drawn_ends_the_build():
    with pytest.raises(ValueError, match=r"formula '.*frob.*' cannot be drawn"):
        site_hooks().formula_svg(r"\frob{x}")


def test_dollars_in_code_are_no_formulas():
    hooks = site_hooks()
    assert list(hooks.formulas("`$HOME` costs $5\n\n```bash\necho $x$\n```\n\nthen $y$")) == ["y"]


# --- sizes and files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "most"), [("CONTRIBUTING.md", 95), ("README.md", 125), ("src/condec/__init__.py", 90)]
)
def test_files_stay_short(file, most):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= most


def test_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {metadata.version('condec')}\n" in text


def test_changes_are_named_as_towncrier_wants_them():
    kinds = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
    known = "|".join(kind["directory"] for kind in kinds)
    for file in (ROOT / "changes").iterdir():
        assert re.fullmatch(rf"\d+\.({known})(\.\d+)?\.md|moved-names\.md", file.name)
