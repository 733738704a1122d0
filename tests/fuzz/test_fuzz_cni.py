# SPDX-License-Identifier: Apache-2.0
"""What a CNI runtime says, bent out of shape: a checked call, or an error of the
specification; and files of attachments, which the router reads: one, or a ConfigError."""

from __future__ import annotations

import json
from typing import Any

from slim_cni import settings
from slim_cni.errors import CniError
from slim_router import attachments
from slim_router.reader import ConfigError
from tests.fuzz.fuzzing import bend, generator, mutate, runs

CONFIG: dict[str, Any] = {
    "cniVersion": "1.1.0", "name": "dbnet", "type": "slim", "tenant": "blue",
    "socket": "/run/slim/admin.sock", "requireRouter": True,
    "prevResult": {
        "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
        "interfaces": [{"name": "eth0", "sandbox": "/var/run/netns/blue"}],
    },
    "cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "eth0"}],
}  # fmt: skip
ENV = {
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c0ffee", "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "eth0", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
}  # fmt: skip
RECORD: dict[str, Any] = {
    "version": 1, "network": "dbnet", "container": "c0ffee", "ifname": "eth0", "name": "web",
    "tenant": "default", "netns": "/run/netns/blue", "addresses": ["10.1.0.5"],
    "vip": "10.1.0.5", "cookie": 7, "born": 1,
}  # fmt: skip


def test_calls() -> None:
    rng = generator("cni-calls")
    raw = json.dumps(CONFIG).encode()
    refused = served = 0
    for _unused in range(runs(8_000)):
        env = dict(ENV, CNI_COMMAND=rng.choice(tuple(settings.NEEDED)))
        if rng.random() < 0.3:
            name = rng.choice(tuple(env))
            env[name] = mutate(rng, env[name].encode()).decode(errors="surrogateescape")
        try:
            config = settings.decode(mutate(rng, raw)) if rng.random() < 0.3 else CONFIG
            for _unused in range(rng.randint(0, 3)):
                config = bend(rng, config)
            if not isinstance(config, dict):
                continue
            call = settings.read(env, config)
            assert call.name or not call.container
            assert all(isinstance(text, str) for text in (call.tenant, call.socket))
            settings.addresses(config.get("prevResult"))
            served += 1
        except CniError as error:
            assert error.code in range(1, 12), error
            assert str(error)
            refused += 1
    assert refused
    assert served


def test_records() -> None:
    rng = generator("cni-records")
    refused = 0
    for _unused in range(runs(8_000)):
        value: Any = RECORD
        for _unused in range(rng.randint(1, 3)):
            value = bend(rng, value)
        try:
            record = attachments.parse(value, "file")
            attachments.file_name(record.id)
        except ConfigError as error:
            assert str(error), "an error without words"
            refused += 1
    assert refused
