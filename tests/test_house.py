"""The house's own rules: what is pinned, what is shipped, what the README says is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).resolve().parents[1]
# Paths of the machine that a file was written on, and the shapes of keys.
LEAKS = re.compile(
    r"""(?<![\w.~])/(work|root)/
    | \b(AKIA|ASIA)[0-9A-Z]{16}\b
    | \b(gh[pousr]|github_pat)_\w{20}
    | \bhf_[A-Za-z]{30}
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | aws_secret_access_key\s*[:=]\s*["']?[A-Za-z0-9/+]{40}""",
    re.VERBOSE,
)


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def shipped_files() -> list[Path]:
    """Tracked, or about to be."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file()]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([\w.-]+)==(\w[\w.]*)", line) for line in lines]
    wrong = [line for line, match in zip(lines, matches, strict=True) if match is None]
    assert not wrong, "not a plain name==version, which every machine can install"
    return {normalised(match[1]): match[2] for match in matches if match}


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {normalised(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]) for requirement in asked}
    assert names - pins().keys() == set()


def test_the_methods_own_environment_holds_pinned_packages_and_nothing_of_the_cluster() -> None:
    makefile = (ROOT / "Makefile").read_text()
    method, cluster = (re.search(rf"^{name} := (.*)$", makefile, re.MULTILINE) for name in ("METHOD", "CLUSTER_ONLY"))
    assert method and cluster
    assert {normalised(name) for name in method[1].split()} <= pins().keys()
    assert not set(method[1].split()) & set(cluster[1].split())


def test_no_file_tells_of_the_machine_it_was_written_on_or_holds_a_key() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in shipped_files()
        for match in LEAKS.finditer(path.read_text(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("see /" + "work/notes.md", True),
        ('open("/' + 'root/.ssh/id")', True),
        ("AKIA" + "A1B2" * 4, True),
        ("-----BEGIN RSA PRIVATE" + " KEY-----", True),
        ("net/work/shop", False),
        ("s3://bucket/root/x", False),
    ],
)
def test_leaks_are_recognised(text: str, leaks: bool) -> None:
    assert bool(LEAKS.search(text)) == leaks


def test_a_job_uploads_code_and_recipes_and_nothing_else(tmp_path: Path) -> None:
    source, package = tmp_path / "repository", tmp_path / "package.zip"
    needed = {
        "icre/data/plan.py",
        "pipelines/train.py",
        "pipelines/storage/storage.py",
        "configs/demo.yaml",
        "pyproject.toml",
    }
    left_out = {
        ".git/HEAD",
        ".venv/bin/python",
        ".venv-method/bin/python",
        "storage/runs/a/metrics.jsonl",
        "data/people/0001.jpg",
        "build/new.txt",
        "dist/icre.whl",
        "icre.egg-info/PKG-INFO",
        "icre/__pycache__/config.pyc",
        ".mypy_cache/x",
        ".ruff_cache/x",
        ".pytest_cache/x",
        ".hypothesis/x",
        ".import_linter_cache/x",
    }
    for name in needed | left_out:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    (source / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    create_package(str(source), package, include_gitignore=False, excludes=[])
    with zipfile.ZipFile(package) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == needed | {".rayignore"}


def test_no_verb_loads_torchvision(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pipelines.verbs import VERBS, command_of; "
        "[command_of(verb) for verb in VERBS]; print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = ran.stdout.split()
    assert "pipelines.train" in loaded
    assert "torchvision" not in loaded


@pytest.mark.parametrize("module", ["fingerprint", "shards", "decoding"])
def test_tasks_without_a_network_start_without_torch(module: str) -> None:
    program = f"import sys, pipelines.data.{module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = ran.stdout.split()
    assert f"pipelines.data.{module}" in loaded
    assert "torch" not in loaded


def test_walks_know_nothing_of_the_inside() -> None:
    """They are to hold while everything inside is drawn anew."""
    allowed = {*sys.stdlib_module_names, "pytest", "tests", "yaml", "numpy", "PIL", "pyarrow", "safetensors"}
    found = []
    for path in sorted((ROOT / "tests/walks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            other = [name for name in names if name.startswith("tests.") and not name.startswith("tests.walks")]
            found += [f"{path.name}: {name}" for name in names if name.partition(".")[0] not in allowed] + other
    assert found == []


def file_tree(text: str) -> dict[str, str]:
    """Path to description from the first fenced block with a line for ``icre/``; indentation or box lines nest.

    A line's first word is a name, and so are words after it that end in / or in a suffix, until two spaces or more.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = next((block for block in blocks if re.search(r"^\W*icre/", block, re.MULTILINE)), "")
    tree: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    last, column = "", 1000
    for line in block.splitlines():
        plain = re.sub(r"[│├└─]", " ", line)
        indent = len(plain) - len(plain.lstrip())
        if indent >= column:
            tree[last] += " " + plain.strip()
        elif plain.strip():
            match = re.match(r"(\S+(?: (?:· )?\S*\w(?:/|\.\w+)(?=\s|$))*)[\s#]*(.*)", plain.strip())
            assert match
            names, description = match[1].replace(" · ", " ").split(), match[2]
            above = [(depth, folder) for depth, folder in above if depth < indent]
            parent = above[-1][1] if above else ""
            for name in names:
                last = parent + name.removeprefix("./")
                tree[last] = description
            above.append((indent, last))
            column = len(plain) - len(description) if description else column
    return tree


def test_file_trees_of_several_styles_are_read() -> None:
    indented = "```\nicre/         the method\n  data/       records,\n              plan\na.txt b.txt c/ x/y\n```\n"
    assert file_tree(indented) == {
        "icre/": "the method",
        "icre/data/": "records, plan",
        "a.txt": "x/y",
        "b.txt": "x/y",
        "c/": "x/y",
    }
    boxes = "```text\n├── icre/  # the method\n│   └── data/\n├── a.txt · b.txt\n└── Makefile\n```\n"
    assert list(file_tree(boxes)) == ["icre/", "icre/data/", "a.txt", "b.txt", "Makefile"]


def test_the_readmes_file_tree_is_this_one() -> None:
    text = (ROOT / "README.md").read_text()
    if not text.strip():
        pytest.skip("README.md is empty")
    tree = file_tree(text)
    assert tree, "README.md has no fenced file tree"
    assert [path for path in tree if not (ROOT / path).exists()] == []
    rooms = {
        f"{top}/{path.parent.name}/" for top in ("icre", "pipelines") for path in (ROOT / top).glob("*/__init__.py")
    }
    assert rooms - tree.keys() == set()
