# SPDX-License-Identifier: Apache-2.0
"""Fixtures that need the lab.

            switch
           /      \\
       node1      node2
       c1 c3      c2 c4        c1 - c2: across hosts; c1 - c3: within one host

`lab` is a `lab.client.Lab` (tools/lab/client.py): run, popen, ip, hostip, slimctl,
router_pid, kill_router, keeper, listens; `wait_for` is there too:
    from lab.client import Lab, wait_for

Environment:
  SLIMLAB_NAME       name of the lab; "test" if not set, so that a lab which somebody
                     is playing with stays alone. Each process of pytest -n adds its own
                     and has a lab for itself (with --dist loadfile, as files share theirs)
  SLIMLAB_KEEP=1     use the lab of this name if it is up, and leave it up
  SLIMLAB_NO_DEPLOY=1  an overlay without the product; tests that use the shim skip
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab import names
from lab.client import SLIMLAB, Lab
from lab.errors import LabError
from tests.integration.runtime import deploy, traces

HOSTS = 2
ENDPOINTS_PER_HOST = 2


def pytest_configure() -> None:
    """Name the lab of this process."""
    name = os.environ.get("SLIMLAB_NAME", "test")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        name = f"{name[: names.NAME_MAX - len(worker) - 1]}-{worker}"
    os.environ["SLIMLAB_NAME"] = name


def _bring_up() -> None:
    command = [
        str(SLIMLAB),
        "up",
        "--hosts",
        str(HOSTS),
        "--endpoints-per-host",
        str(ENDPOINTS_PER_HOST),
    ]
    if os.environ.get("SLIMLAB_NO_DEPLOY"):
        command.append("--no-deploy")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.exit(f"the lab did not come up:\n{done.stdout}\n{done.stderr}", returncode=1)


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    """The lab of the whole session."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    keep = bool(os.environ.get("SLIMLAB_KEEP"))
    lab: Lab | None = None
    if keep:
        try:
            lab = Lab()
        except LabError:
            lab = None
        if lab is not None and lab.plan.phase != "up":
            lab = None
    if lab is None:
        _bring_up()
        lab = Lab()
    yield lab
    lab.end_processes()
    if not keep:
        subprocess.run([str(SLIMLAB), "down"], timeout=120, check=True)


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """The lab; what a test started with popen() is ended after it."""
    yield session_lab
    session_lab.end_processes()


@pytest.fixture
def slim_lab(lab: Lab) -> Lab:
    """The lab with the product deployed; skips on one without."""
    if not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    return lab


@pytest.fixture(scope="session")
def python() -> str:
    """A Python that exists inside nodes and endpoints."""
    return sys.executable


@pytest.fixture(scope="session")
def checkout() -> str:
    """The checkout's root, the same path inside nodes and endpoints."""
    return str(names.CHECKOUT)


@pytest.fixture(scope="session")
def cni(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with the role slim_cni; it is taken away at the end, and leaves nothing."""
    if not session_lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    directory = tmp_path_factory.mktemp("cni")
    deploy(session_lab, directory, False)
    yield session_lab
    deploy(session_lab, directory, True)
    assert traces(session_lab) == []
