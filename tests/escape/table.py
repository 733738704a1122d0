# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/security.md, from the program's own list and measured.json.

    python3 tests/escape/table.py write              put them into the page
    python3 tests/escape/table.py measure FILE NAME  note a run as NAME; FILE is from
                                                     runner.py --json or guests.py
NAME is open (the lab without secure mode), "kmod 6.1", "bpf 6.12" and the like, which
become columns of their own. What a run stands for are the sources that it was made with,
the suite's and the guard's: the page says of which of them there is another version by now.

tests/integration/test_escape.py fails when the page and the program say different things.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[1] / "files"
PAGE = HERE.parents[1] / "docs" / "security.md"
MEASURED = HERE / "measured.json"
BEGIN, END = "<!-- attempts: written by tests/escape/table.py -->", "<!-- /attempts -->"

GROUPS = {
    "reach": "Reach another service than the peer",
    "learn": "Learn something of the host",
    "treat": "Change how the host treats it",
    "keep": "Keep it after revocation",
}
#: From the weakest on: the first that has it is named.
IDENTITIES = ("user", "root", "userns", "admin")
WHO = {
    "user": "anybody",
    "root": "root in the container",
    "userns": "root of a user namespace",
    "admin": "NET_ADMIN only",
}

Rows = list[dict[str, str]]
Attempts = dict[str, dict[str, list[str]]]
"""attempt -> identity -> outcomes that were seen"""


@dataclass(frozen=True)
class Run:
    """What was seen once, and the digest of the sources that it was seen with."""

    sources: str
    attempts: Attempts


def sources(name: str) -> str:
    """Digest of what the run *name* depends on, as it stands: the suite and the guard."""
    guard = name.partition(" ")[0]
    places = [HERE, *({"kmod": [FILES / "kmod"], "bpf": [FILES / "bpf"]}.get(guard, []))]
    digest = hashlib.sha256()
    for place in places:
        for path in sorted((*place.glob("*.[ch]"), *place.glob("slim_bpf/*.py"))):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def listing() -> tuple[Rows, Rows]:
    """Attempts and variants, as a freshly built program tells them."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            ["make", "-s", "-C", str(HERE), f"BUILD={place}", f"{place}/escape-static"],
            check=True,
            timeout=300,
        )
        done = subprocess.run(
            [f"{place}/escape-static", "list"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [row for row in rows if "attempt" in row], [row for row in rows if "variant" in row]


def measured() -> dict[str, Run]:
    """All runs by name."""
    if not MEASURED.exists():
        return {}
    return {name: Run(**run) for name, run in json.loads(MEASURED.read_text()).items()}


def measure(results: Path, name: str) -> None:
    """Note the outcomes of a run that was just made."""
    seen: dict[str, dict[str, set[str]]] = {}
    for line in results.read_text(errors="replace").splitlines():
        words = line.split()
        if line.startswith("{"):
            row = json.loads(line)
            attempt, identity, outcome = row["attempt"], row["identity"], row["outcome"]
        elif words[:1] == ["R"] and len(words) >= 6:
            attempt, _unused, identity, outcome = words[1:5]
        else:
            continue
        seen.setdefault(attempt, {}).setdefault(identity, set()).add(outcome)
    attempts = {
        attempt: {identity: sorted(outcomes) for identity, outcomes in sorted(by.items())}
        for attempt, by in sorted(seen.items())
    }
    MEASURED.write_text(_text({**measured(), name: Run(sources(name), attempts)}))


def _text(runs: dict[str, Run]) -> str:
    """measured.json, an attempt a line."""
    blocks = []
    for name, run in sorted(runs.items()):
        rows = ",\n".join(
            f"   {json.dumps(attempt)}: {json.dumps(by)}" for attempt, by in run.attempts.items()
        )
        blocks.append(
            f' {json.dumps(name)}: {{"sources": {json.dumps(run.sources)}, "attempts": {{\n{rows}\n }}}}'
        )
    return "{\n" + ",\n".join(blocks) + "\n}\n"


#: Not an attempt: it breaks when a program cannot do what it must.
WORKS = "allowed"


def _outcomes(run: Run | None, attempt: str) -> dict[str, list[str]]:
    return run.attempts.get(attempt, {}) if run else {}


def _open(by: dict[str, list[str]]) -> str:
    """What somebody can do without secure mode."""
    for identity in IDENTITIES:
        got = [word for word in by.get(identity, []) if word in ("succeeded", "leaked")]
        if got:
            return f"{got[0]}: {WHO[identity]}"
    every = {word for words in by.values() for word in words}
    return "not possible here" if every == {"not-applicable"} else "refused by Linux"


def _secure(by: dict[str, list[str]]) -> str:
    """What was seen in secure mode."""
    every = {word for words in by.values() for word in words}
    bad = every & {"succeeded", "leaked", "broken"}
    if bad:
        return "**" + ", ".join(sorted(bad)) + "**"
    return "not possible here" if every == {"not-applicable"} else "denied"


def render() -> str:
    """The block between the marks."""
    attempts, variants = listing()
    runs = measured()
    secure = sorted(name for name in runs if name != "open")
    lines = [
        BEGIN,
        "",
        f"{len(attempts)} attempts, each by {len(variants)} variants and three identities.",
        "",
        "| run | sources |",
        "|---|---|",
        *(
            f"| {name} | {'as they stand' if runs[name].sources == sources(name) else 'older'} |"
            for name in ("open", *secure)
            if name in runs
        ),
        "",
        "| variant | how the socket is held |",
        "|---|---|",
        *(f"| `{row['variant']}` | {row['what']} |" for row in variants),
    ]
    head = ["attempt", "what success would give", "without secure mode", *secure]
    for group, title in GROUPS.items():
        lines += ["", f"### {title}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for row in attempts:
            if row["group"] != group:
                continue
            name = row["attempt"]
            cells = [f"`{name}`", row["gives"], _open(_outcomes(runs.get("open"), name))]
            cells += [_secure(_outcomes(runs[run], name)) for run in secure]
            if name == WORKS:
                cells[2:] = ["works" if cell != "**broken**" else cell for cell in cells[2:]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", END])


def page_with(block: str) -> str:
    """The page with the block in its place; ValueError if the marks are not there."""
    text = PAGE.read_text()
    before, begin, rest = text.partition(BEGIN)
    _unused, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no place for the table; put in: {BEGIN} ... {END}")
    return before + block + after


def main() -> int:
    """Entry point; returns the exit status."""
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(page_with(render()))
        return 0
    if len(sys.argv) == 4 and sys.argv[1] == "measure":
        measure(Path(sys.argv[2]), sys.argv[3])
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
