# SPDX-License-Identifier: Apache-2.0
"""docs/containers.md: its examples are what the programs take, and what others' tools take."""

from __future__ import annotations

import configparser
import json
import re
import textwrap
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from slim_cni import hook, settings

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "containers.md").read_text()
VERSIONS = ("1.28", "1.34")


def blocks(mark: str) -> list[str]:
    """The fenced blocks below the marks of this name."""
    found = re.findall(rf"^ *<!-- {mark} -->\n( *)```\w+\n(.*?)^ *```$", PAGE, re.M | re.S)
    assert found, f"docs/containers.md has no {mark}"
    return [textwrap.dedent(text) for _unused, text in found]


def test_the_network_is_a_list_with_slim_after_the_addresses():
    (text,) = blocks("conflist")
    network = json.loads(text)
    *before, own = network["plugins"]
    assert own["type"] == "slim"
    assert before[-1]["ipam"]
    config = {**own, "cniVersion": network["cniVersion"], "name": network["name"]}
    env = {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "x", "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
    }  # fmt: skip
    assert settings.read(env, config).network == "slim"


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_kubernetess(version):
    documents = [each for text in blocks("manifest") for each in yaml.safe_load_all(text)]
    assert {each["kind"] for each in documents} == {"Deployment", "Service"}
    for each in documents:
        kubernetes_validate.validate(each, version, strict=True)
    broken = json.loads(json.dumps(documents[0]).replace("hostPath", "hostpath"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_units_call_what_is_installed_with_words_that_it_knows():
    for text in blocks("unit"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
        parser.read_string(text)
        unit = parser["Service"]
        assert unit["Environment"] == f"LD_PRELOAD={hook.SHIM}"
        for key in ("ExecStartPre", "ExecStopPost"):
            if key in unit:
                path, word, *more = unit[key].removeprefix("+").split()
                assert path == "/opt/slim/bin/slim-hook"
                assert word in hook.USAGE
                assert set(more[::2]) <= {"--name", "--netns"}


def test_the_pages_keys_and_codes_are_the_plugins():
    for key in settings.OWN:
        assert f"`{key}`" in PAGE
    assert ", ".join(settings.VERSIONS) in PAGE
