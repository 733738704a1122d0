# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
"""Private to this collection: how slim_rate_limit and slim_qos ask the helper of the host.

The helper (files/qos) owns the file, the kernel's queues and the word to the router;
modules carry the wish there and the answer back.
"""

from __future__ import annotations

import json

DIRECTORY = "/opt/slim/qos/current"

ARGUMENTS = {
    "endpoint": {"type": "str", "required": True},
    "tenant": {"type": "str"},
    "python": {"type": "path", "default": "/usr/bin/python3"},
    "directory": {"type": "path", "default": DIRECTORY},
}


# By the helper's exit status (files/qos/slim_qos/__main__.py).
KINDS = {1: "failed", 2: "refused"}


def refuse(module, text):
    """End the module on a wish that cannot be, before anybody is asked."""
    module.fail_json(msg=text, kind="refused")


def ask(module, change):
    """The helper's answer to a change; ends the module where there is none."""
    directory = module.params["directory"]
    command = [module.params["python"], "-m", "slim_qos", "edit", "--json"]
    if module.check_mode:
        command.append("--check")
    status, out, err = module.run_command(
        command,
        data=json.dumps(change),
        environ_update={"PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        answer = json.loads(out)
    except ValueError:
        answer = {}
    if status or not isinstance(answer, dict) or "after" not in answer:
        cause = answer.get("problem") if isinstance(answer, dict) else ""
        if cause and status in KINDS:
            module.fail_json(msg=cause, kind=KINDS[status])
        module.fail_json(
            msg=f"slim_qos: {directory} gave no answer (status {status}): {(err or out).strip()};"
            " run the role slim.overlay.slim_qos on this host",
            kind="no-helper",
        )
    return answer


def of_endpoint(document, name, tenant, part):
    """What a document of the helper says of one endpoint, for diff and return value."""
    for entry in document.get("endpoints", []):
        if entry["name"] == name and tenant in (None, entry["tenant"]):
            return entry[part]
    return {}


def finish(module, answer, part):
    """End the module with the part that it is for."""
    name, tenant = module.params["endpoint"], module.params["tenant"]
    before, after = (of_endpoint(answer[key], name, tenant, part) for key in ("before", "after"))
    result = {
        "changed": answer["changed"],
        part: after,
        "changes": answer["changes"],
        "skipped_fallback": answer["skipped"],
        "router": answer.get("router", ""),
    }
    if module._diff:
        result["diff"] = {
            "before_header": f"{part} of endpoint {name}",
            "after_header": f"{part} of endpoint {name}",
            "before": json.dumps(before, indent=1, sort_keys=True) + "\n",
            "after": json.dumps(after, indent=1, sort_keys=True) + "\n",
        }
    module.exit_json(**result)
