"""Properties of the repository that an edit anywhere can break."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).resolve().parents[1]

# From the ground floor up; a module imports only what stands before it.
FLOORS = [
    "errors",
    "paths",
    "dtypes",
    "staging",
    "schema",
    "command_line",
    "hardware",
    "config",
    "config_dict",
    "families",
    "flops",
    "execution",
    "parameters",
    "formats",
    "parallel",
    "layers",
    "decoder",
    "bricks",
    "next_token",
    "objective",
    "optimizer",
    "data",
    "checkpoints",
    "inference",
    "operations",
    "convert",
    "library",
    "models",
    "training",
    "analysis",
    "planning",
]

# Run the code of others, in environments of their own.
FOREIGN = (ROOT / "scripts/benchmark_original.py", ROOT / "scripts/benchmark_peft.py")

GENERATED = {"__pycache__", "build", "runs", "site"}


def tree() -> Iterator[Path]:
    """The files of the repository, without what git and the tools keep beside them."""
    pending = [ROOT]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_dir():
                hidden = path.name.startswith(".") and path.name != ".ci"
                if not hidden and path.name not in GENERATED and path.suffix != ".egg-info":
                    pending.append(path)
            elif path.name != ".git":  # a file, in a worktree
                yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = list(tree())
PYTHON_FILES = [path for path in FILES if path.suffix == ".py"]
SHIPPED = ("modbrick", "pallas_kernels", "scripts", "tools", "configs")
LIBRARY = [
    path
    for path in PYTHON_FILES
    if path.relative_to(ROOT).parts[0] in SHIPPED and path not in FOREIGN
]
SCRIPTS = [path for path in LIBRARY if path.parent == ROOT / "scripts"]
# Other files of tools/ serve these.
TOOLS = [
    path
    for path in LIBRARY
    if path.is_relative_to(ROOT / "tools") and '__name__ == "__main__"' in path.read_text()
]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PAGES = [
    path
    for path in FILES
    if path.suffix == ".md" and (path.parent == ROOT or path.is_relative_to(ROOT / "docs"))
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for path in PYTHON_FILES
    if path.relative_to(ROOT).parts[0] in ("modbrick", "pallas_kernels")
}


@functools.cache
def imports(path: Path) -> set[str]:
    """The full names that a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports relatively"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_module(name: str) -> str | None:
    """The module of this project that a full name lies in, if any."""
    while name:
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


def outside(paths: list[Path]) -> set[str]:
    """The top-level packages that files import and that are neither Python's nor this project's."""
    tops = {name.partition(".")[0] for path in paths for name in imports(path)}
    known = {"modbrick", "pallas_kernels", "scripts", "tools", "configs", "tests", "__future__"}
    return tops - known - sys.stdlib_module_names


def declared(name: str) -> set[str]:
    """The packages in a list, or in a dictionary of lists, of requirements in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value = ast.literal_eval(node.value)
            lines = (
                value if isinstance(value, list) else [line for v in value.values() for line in v]
            )
            return {normal(re.split(r"[\[<>=~!; ]", line)[0]) for line in lines}
    raise AssertionError(f"setup.py assigns no {name}")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_imports_run_one_way() -> None:
    # The root stands above all that it re-exports; importing it is free, as it runs first anyway.
    rank = {"pallas_kernels": -1, "modbrick": len(FLOORS)}
    rank |= {f"modbrick.{floor}": height for height, floor in enumerate(FLOORS)}
    rank |= {"modbrick.__main__": len(FLOORS) + 1}

    def floor(module: str) -> str:
        parts = module.split(".")
        return parts[0] if parts[0] == "pallas_kernels" else ".".join(parts[:2])

    homeless = sorted({floor(module) for module in MODULES} - set(rank))
    assert not homeless, f"give these a place in FLOORS: {homeless}"
    upward = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in filter(None, map(own_module, imports(path)))
        if target != "modbrick" and rank[floor(target)] > rank[floor(module)]
    ]
    assert not upward


def test_imports_make_no_circle() -> None:
    graph = {
        module: {own_module(name) for name in imports(path)} - {None, module, "modbrick"}
        for module, path in MODULES.items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_libraries_import_no_entry_points() -> None:
    entries = ("scripts", "tools", "configs", "tests")
    assert not [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name.partition(".")[0] in entries
    ]


def test_kernels_need_only_jax() -> None:
    kernels = [path for name, path in MODULES.items() if name.startswith("pallas_kernels")]
    # jaxlib comes with jax: kernels of Mosaic GPU name instructions by its dialects.
    assert outside(kernels) <= {"jax", "jaxlib", "jaxtyping", "numpy"}
    names = [name for name in MODULES if name.startswith("pallas_kernels")]
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "sys.exit(' '.join({'modbrick', 'flax', 'optax', 'orbax'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_requirements_are_those_imported() -> None:
    distributions = packages_distributions()

    def imported(paths: list[Path]) -> set[str]:
        return {
            normal(distribution)
            for package in outside(paths)
            for distribution in distributions.get(package, [f"{package} (not installed)"])
        }

    required = declared("REQUIRES")
    assert imported(LIBRARY) - required == set(), "imported, but not declared in setup.py"
    assert required - imported(LIBRARY) == set(), "declared in setup.py, but imported nowhere"
    tests = [path for path in PYTHON_FILES if re.match(r"test_|conftest", path.name)]
    assert imported(tests) - required - declared("EXTRAS") == set(), "tests import undeclared"


@pytest.mark.parametrize("path", LOCKS, ids=relative)
def test_lock_pins_by_hash_and_names_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://|file:|index-url|find-links|trusted-host|^\s*-[a-z]|@ ", text, re.M)
    entries = re.split(r"\n(?=\w)", re.sub(r"(?m)^\s*#.*\n", "", text).strip())
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ ", entry), entry.splitlines()[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry.splitlines()[0]


def test_locks_agree_and_cover_setup() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"(?m)^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", text))

    runtime, dev, docs = pins("runtime.txt"), pins("dev.txt"), pins("docs.txt")
    assert {"mkdocs", "mkdocs-material", "mkdocstrings", "ruff"} <= set(docs)
    assert {name: dev[name] for name in docs.keys() & dev.keys()}.items() <= docs.items()
    assert runtime.items() <= dev.items()
    assert declared("REQUIRES") | {"setuptools"} <= set(runtime)
    assert {"pytest", "pytest-xdist", "pytest-timeout", "hypothesis", "ruff", "mypy"} <= set(dev)


def test_no_path_of_a_machine() -> None:
    pattern = re.compile(rb"(?<![\w.:/-])/(?:home|root|Users|opt|work|mnt)/[\w.]")
    texts = {path: path.read_bytes() for path in FILES if path.stat().st_size < 1 << 20}
    assert not [relative(path) for path, text in texts.items() if pattern.search(text)]


def test_nothing_is_pickled() -> None:
    forbidden = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
    found = {
        relative(path): tops
        for path in LIBRARY
        if (tops := {name.partition(".")[0] for name in imports(path)} & forbidden)
        or "allow_pickle=True" in path.read_text(encoding="utf-8")
    }
    assert not found


def test_file_lengths() -> None:
    def limit(path: Path) -> int:
        return 600 if relative(path).startswith(("pallas_kernels/", "tests/")) else 300

    lengths = {path: path.read_bytes().count(b"\n") for path in PYTHON_FILES}
    assert not {relative(path): lines for path, lines in lengths.items() if lines > limit(path)}


def test_pages_name_only_commands_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    named = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        commands = re.findall(r"(?m)(?:`|^)make ([a-z]+)", text)
        files = re.findall(r"(?<![\w/])((?:scripts|tools|configs)/\w+\.py)\b", text)
        files += [f"tools/{name}.py" for name in re.findall(r"python -m tools\.(\w+)", text)]
        named += len(commands) + len(files)
        assert set(commands) <= targets, f"{page.name} names make targets that do not exist"
        missing = {name for name in files if "NAME" not in name and not (ROOT / name).exists()}
        assert not missing, f"{page.name} names {missing}"
    assert named > 0


@pytest.mark.parametrize("path", SCRIPTS + TOOLS, ids=relative)
@pytest.mark.parametrize("start", ["prepared", pytest.param("cold", marks=pytest.mark.verify)])
def test_script_explains_itself(path: Path, start: str) -> None:
    # Tools use each other, as modules of the repository's root.
    command = ["-m", module_name(path)] if path in TOOLS else [str(path)]
    if start == "prepared":
        run = programs.run([path, "--help"])
    else:
        cold = [sys.executable, *command, "--help"]
        run = subprocess.run(cold, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert path.name in run.stdout or "usage" in run.stdout.lower()
