# SPDX-License-Identifier: Apache-2.0
"""docs/conformance.md against the symbols of libslim.so and the programs that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "conformance.md"
PROGRAMS = ROOT / "tests" / "conformance"
FUNCTION = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$")


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[str, list[str]]]:
    """call -> (what we do, tests)."""
    text = DOC.read_text()
    table = text.split("<!-- calls -->")[1].split("<!-- /calls -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    found: dict[str, tuple[str, list[str]]] = {}
    for line in lines:
        match = ROW.match(line)
        assert match, f"a row that cannot be read: {line}"
        assert match[1] not in found, f"{match[1]} is there twice"
        found[match[1]] = (match[2], [name.strip() for name in match[3].split(",")])
    return found


@pytest.fixture(scope="module", params=["libslim.so", "libslim-musl.so"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What the library exports, built afresh out of tree."""
    if not shutil.which("cc") or not shutil.which("nm"):
        pytest.skip("no C compiler")
    if request.param == "libslim-musl.so" and not shutil.which("musl-gcc"):
        pytest.skip("no musl-gcc (package musl-tools)")
    build = tmp_path_factory.mktemp("shim")
    subprocess.run(
        ["make", "-s", "-C", str(ROOT / "files" / "shim"), f"BUILD={build}", build / request.param],
        check=True,
        timeout=120,
    )
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", build / request.param],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in listing.splitlines() if line.strip()}
    return names - {"_init", "_fini"}  # every musl library has these


def test_every_exported_call_has_a_row(
    rows: dict[str, tuple[str, list[str]]], exported: set[str]
) -> None:
    assert exported - rows.keys() == set(), "exported, but not in docs/conformance.md"


def test_every_row_is_an_exported_call(
    rows: dict[str, tuple[str, list[str]]], exported: set[str], request: pytest.FixtureRequest
) -> None:
    if "musl" in request.node.callspec.id:
        pytest.skip("musl has fewer calls")
    assert rows.keys() - exported == set(), "in docs/conformance.md, but not exported"


def test_every_row_names_programs_that_exist(rows: dict[str, tuple[str, list[str]]]) -> None:
    for call, (_unused, tests) in rows.items():
        assert tests, f"{call} names no test"
        for name in tests:
            assert (PROGRAMS / f"{name}.c").exists(), f"{call} names {name}, which does not exist"


def test_every_program_is_spoken_of() -> None:
    """A program that no line of the page names proves nothing that anybody could find."""
    text = DOC.read_text()
    for program in sorted(PROGRAMS.glob("test_*.c")):
        # Not a row, but a cross-section of several calls:
        if program.stem == "test_many_connects":
            continue
        assert program.stem in text, f"docs/conformance.md does not name {program.stem}"


def test_names_in_the_text_exist() -> None:
    text = FUNCTION.sub("", DOC.read_text())
    for name in set(re.findall(r"\btest_\w+\b", text)):
        base = name.removesuffix("_fortify")
        places = [
            PROGRAMS / f"{base}.c",
            ROOT / "tests" / "integration" / f"{name}.py",
            ROOT / "tests" / "unit" / f"{name}.py",
        ]
        assert any(place.exists() for place in places), f"{name} does not exist"


def test_functions_in_the_text_exist() -> None:
    found = FUNCTION.findall(DOC.read_text())
    assert found
    for path, function in found:
        source = (ROOT / path).read_text()
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), f"{path}::{function}"


def test_every_defect_names_tests() -> None:
    table = DOC.read_text().split("<!-- defects -->")[1].split("<!-- /defects -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        _edge, defect, tests, _end = row.split("|")
        names = [name.strip() for name in tests.split(",")]
        assert defect.strip() and names, row
        for name in names:
            assert FUNCTION.fullmatch(name) or (PROGRAMS / f"{name}.c").exists(), (
                f"{defect}: {name}"
            )
