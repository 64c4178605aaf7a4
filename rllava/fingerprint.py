"""Fingerprints: the hash of everything that decides a result, inputs' specs included; it names the artifact."""

import dataclasses
import hashlib
import json
from typing import Any

FORMAT = 1
"""Part of every fingerprint; raised when the meaning of existing specs changes."""


def to_json(spec: Any) -> dict[str, Any]:
    """A spec as plain JSON values.

    Args:
        spec: any spec dataclass.

    Returns:
        Nested dictionaries.
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec), sort_keys=True))
    return plain


# What describes a spec to people, says where a file lies whose hash is beside it, or trades time for memory: decides no
# result.
_DESCRIPTIVE = {"training", "licence", "origin", "parameters", "weights", "gradient_checkpointing"}


def fingerprint(spec: Any) -> str:
    """Hash of everything in a spec that decides its result.

    Args:
        spec: any spec dataclass.

    Returns:
        Sixteen hexadecimal digits.
    """

    def essential(value: Any) -> Any:
        if isinstance(value, dict):
            assert not value.get("weights") or value.get("sha256"), f"weights without a hash: {value}"  # pin_weights
            return {key: essential(entry) for key, entry in value.items() if key not in _DESCRIPTIVE}
        if isinstance(value, list):
            return [essential(entry) for entry in value]
        return value

    described = {"format": FORMAT, "type": type(spec).__name__, "spec": essential(to_json(spec))}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
