"""Run the table of docs/versions.md: each dependency's oldest and newest version, each in an environment of its own.

An environment here is a layer over the one that runs this: it has the packages that are tried,
and sees the others where they are installed. So a row costs a few megabytes and seconds to set
up, and .venv stays as it is.

    .venv/bin/python tests/versions.py                      every row
    .venv/bin/python tests/versions.py duckdb --newest      one row, one of its versions
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "docs/versions.md"
_ROW = re.compile(
    r"^\| `(?P<package>[\w.-]+)` \| `(?P<range>[^`]+)` "
    r"\| (?P<oldest>[^|]+) \| (?P<newest>[^|]+) \| (?P<tests>[^|]+) \|$"
)
_COMMANDS = ("tracetune",)  # what tests start from the folder of their interpreter


@dataclass(frozen=True)
class Row:
    """One dependency of the table.

    Attributes:
        package: as it is installed.
        range: what pyproject.toml admits, as it stands there.
        oldest: requirements of the oldest version that was tried, and of the packages that it needed with it.
        newest: likewise.
        tests: the files and folders of tests that use it; none where the whole suite does.
    """

    package: str
    range: str
    oldest: tuple[str, ...]
    newest: tuple[str, ...]
    tests: tuple[str, ...]


def rows_of(document: str) -> list[Row]:
    """The rows of the tables in the text of docs/versions.md."""
    return [
        Row(
            row["package"],
            row["range"],
            _requirements(row["package"], row["oldest"]),
            _requirements(row["package"], row["newest"]),
            tuple(re.findall(r"tests/[\w/.]+", row["tests"])),
        )
        for row in map(_ROW.match, document.splitlines())
        if row is not None
    ]


def _requirements(package: str, cell: str) -> tuple[str, ...]:
    """The requirements in `1.0.0 with langgraph 1.0.0, langchain-openai 1.0.0`."""
    version, _, others = cell.strip().partition(" with ")
    named = [f"{package} {version}", *(other for other in others.split(", ") if other)]
    return tuple(requirement.replace(" ", "==") for requirement in named)


def tried(row: Row, requirements: tuple[str, ...], folder: Path) -> str:
    """What came of one version: pytest's last line, or pip's."""
    python = layer(folder)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        return f"not installed: {(installed.stderr.strip().splitlines() or ['?'])[-1]}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", *row.tests],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / "pytest.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    summaries = [line for line in done.stdout.splitlines() if re.match(r"\d+ (passed|failed|error|skipped)", line)]
    said = summaries[-1] if summaries else "no tests ran"
    return said if done.returncode == 0 else f"FAILED: {said}; see {folder / 'pytest.txt'}"


def layer(folder: Path) -> Path:
    """The interpreter of a new environment that also sees what is installed where this runs."""
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    here, there = (
        Path(subprocess.check_output([interpreter, "-c", where], text=True).strip())
        for interpreter in (sys.executable, python)
    )
    (there / "below.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n", encoding="utf-8")
    for command in _COMMANDS:
        _, script = Path(sys.executable).with_name(command).read_text(encoding="utf-8").split("\n", 1)
        (folder / "bin" / command).write_text(f"#!{python}\n{script}", encoding="utf-8")
        (folder / "bin" / command).chmod(0o755)
    return python


def main() -> int:
    """Run the rows that are asked for; 1 where one did not pass."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("packages", nargs="*", help="of the table; all by default")
    arguments.add_argument("--oldest", action="store_true", help="try the oldest versions only")
    arguments.add_argument("--newest", action="store_true", help="try the newest versions only")
    asked = arguments.parse_args()
    rows = rows_of(TABLE.read_text(encoding="utf-8"))
    unknown = sorted(set(asked.packages) - {row.package for row in rows})
    if unknown:
        arguments.error(f"docs/versions.md has no row of {', '.join(unknown)}")
    folder = Path(tempfile.mkdtemp(prefix="tracetune-versions-"))
    failed = 0
    for row in rows:
        if not row.tests or (asked.packages and row.package not in asked.packages):
            continue
        versions = [*([] if asked.newest else [row.oldest]), *([] if asked.oldest else [row.newest])]
        for requirements in dict.fromkeys(versions):
            answer = tried(row, requirements, folder / requirements[0])
            failed += not re.match(r"\d+ passed", answer)
            print(f"{' '.join(requirements)}: {answer}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
