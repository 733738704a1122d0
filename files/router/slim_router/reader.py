# SPDX-License-Identifier: Apache-2.0
"""Reading decoded JSON field by field: router.json, map.json, the policy.

Every complaint is a :class:`ConfigError` whose text names the thing, the cause
and the next step.
"""

from __future__ import annotations

import ipaddress
from typing import Any, cast

from .whole import is_whole

FORMAT = 1
"""The only version of our files that this router reads."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ConfigError(ValueError):
    """A file that cannot be used; the text is for the operator."""


class Reader:
    """Reads one JSON object field by field, refusing whatever is not known."""

    def __init__(self, value: object, where: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            raise ConfigError(
                f"{where}: a {kind(value)}, where an object is needed; see docs/architecture.md"
            )
        self.value = cast("dict[str, Any]", value)
        self.where = where
        unknown = sorted(set(self.value) - set(known))
        if unknown:
            raise ConfigError(
                f"{where}: unknown key {unknown[0]!r};"
                f" remove it, the known keys are {', '.join(known)}"
            )

    def fail(self, name: str, cause: str, step: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name}: {cause}; {step}")

    def get(self, name: str, default: object = None) -> Any:
        if name in self.value:
            return self.value[name]
        if default is None:
            raise self.fail(name, "missing", "add it")
        return default

    def text(self, name: str, *, limit: int = 255, default: str | None = None) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or not value:
            raise self.fail(name, f"a {kind(value)}, not a name", "give a non-empty string")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in value):  # JSON's lone surrogates
            raise self.fail(name, f"{shown(value)} is not text", "correct it")
        if len(value.encode()) > limit:
            raise self.fail(name, f"longer than {limit} bytes", "shorten it")
        if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in value):
            raise self.fail(
                name, f"{shown(value)} holds a space or a control character", "remove it"
            )
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.get(name, default)
        if not is_whole(value) or not low <= value <= high:
            raise self.fail(
                name, f"{shown(value)} is not a whole number from {low} to {high}", "correct it"
            )
        return value

    def seconds(self, name: str, low: float, high: float, default: float) -> float:
        value = self.get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self.fail(
                name,
                f"{shown(value)} is not a number of seconds from {low:g} to {high:g}",
                "correct it",
            )
        return cast("float", value)

    def address(self, name: str) -> str:
        value = self.get(name)
        try:
            if not isinstance(value, str):
                raise ValueError
            found = normal(value)
        except ValueError:
            raise self.fail(
                name,
                f"{shown(value)} is not an IPv4 or IPv6 address",
                "give the address itself, without prefix or port",
            ) from None
        if found.is_unspecified or found.is_multicast:
            raise self.fail(
                name, f"{value} is not the address of one host", "give a unicast address"
            )
        return str(found)

    def version(self) -> None:
        value = self.get("version")
        if not is_whole(value) or value != FORMAT:
            raise self.fail(
                "version",
                f"{shown(value)}, this router reads {FORMAT}",
                "deploy files and router of one collection version",
            )


def kind(value: object) -> str:
    """What JSON calls the type of *value*."""
    if value is None:
        return "null"
    return {
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "list",
        dict: "object",
    }.get(type(value), type(value).__name__)


def normal(text: str) -> Address:
    """*text* as an address; IPv4-mapped IPv6 becomes IPv4. Raises ValueError."""
    if "%" in text:
        raise ValueError(text)
    found = ipaddress.ip_address(text)
    if found.version == 6 and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def shown(value: object) -> str:
    """*value* as it was given, cut where somebody put a book."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a deep nest
        return f"this {kind(value)}"
    return text if len(text) <= 80 else text[:80] + "..."
