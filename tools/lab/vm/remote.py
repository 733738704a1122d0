# SPDX-License-Identifier: Apache-2.0
"""`slimlab exec` and `slimlab node` in a lab of virtual machines.

    -m lab.vm.remote STATE NODE WHERE SHIM CMD...

WHERE is an endpoint or "-" for the node itself, SHIM the library's file name or "-".

Behaves as the command itself would: standard input and output are its own, and so
are the exit status, the signals that reach it and the signal that ends it. Started
for every command: imports little.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from lab.vm import ssh

AGENT = "/usr/local/lib/lab/agent"
SHIM = "/opt/slim/shim/current"
#: What a container of a secure lab does not have (docs/security.md).
DROPPED = "-net_admin,-net_raw,-sys_admin"
FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
)
#: Variables that mean the same over there, beside LC_* and SLIM_* and those that
#: SLIMLAB_ENV names: the caller's others are this machine's business.
KEPT = ("LANG", "TERM", "TZ", "LD_PRELOAD", "LD_LIBRARY_PATH")
#: ssh(1)'s own status for "no connection".
NO_CONNECTION = 255


def environment() -> dict[str, str]:
    """The variables that go along."""
    named = os.environ.get("SLIMLAB_ENV", "").replace(",", " ").split()
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name in named or name.startswith(("LC_", "SLIM_", "CONF_"))
    }


def words_inside(place: str, library: str, secure: bool, command: list[str]) -> list[str]:
    """The command line on the node."""
    variables = environment()
    if library != "-":
        already = variables.get("LD_PRELOAD")
        variables["LD_PRELOAD"] = f"{SHIM}/{library}" + (f":{already}" if already else "")
    words: list[str] = []
    if place != "-":
        words += ["ip", "netns", "exec", place]
        if secure:
            words += ["setpriv", f"--bounding-set={DROPPED}", "--inh-caps=-all"]
    if variables:
        words += ["env", *(f"{name}={value}" for name, value in variables.items())]
    return [*words, *command]


def end_by(number: int) -> None:
    """End as the command did: by a signal."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main() -> int:
    """Entry point; returns the exit status."""
    state, node, place, library, *command = sys.argv[1:]
    host = ssh.Host(Path(state) / "vm" / "ssh_config", node)
    secure = (Path(state) / "vm" / "secure").read_text().strip() != "none"
    words = words_inside(place, library, secure, command)
    if os.isatty(0) and os.isatty(1):
        # A terminal on both ends: it makes the signals itself.
        line = host.command("--", shlex.join(words))
        os.execvp(line[0], [line[0], "-t", *line[1:]])
    name = os.urandom(12).hex()
    inside = shlex.join([AGENT, "run", name, str(Path.cwd()), *words])
    # In a session of its own, so that Ctrl-C reaches it through us; and never without us.
    runner = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *host.command("--", f"exec {inside}")],
        start_new_session=True,
    )
    passing: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: object) -> None:
        passing.append(
            subprocess.Popen(
                host.command("--", f"{AGENT} kill {name} {number}"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    for number in FORWARDED:
        signal.signal(number, forward)
    status = runner.wait()
    for each in passing:
        each.kill()
    if 0 <= status < 128:
        return status
    said = host.run(f"{AGENT} status {name}").stdout.split()
    if len(said) == 2 and said[0] == b"signal":
        end_by(int(said[1]))
    if len(said) == 2 and said[0] == b"exit":
        return int(said[1])
    print(f"slimlab: the connection to {node} broke; see tools/slimlab status", file=sys.stderr)
    return NO_CONNECTION


if __name__ == "__main__":
    sys.exit(main())
