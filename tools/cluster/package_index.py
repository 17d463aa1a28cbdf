"""Lets pip and uv inside a build use the package index and certificates that this machine is configured for.

Written as files that are mounted into the build, so that no address gets into an image or into the repository.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path

from tools.cluster.shell import attempt, write

# What of pip's settings makes sense inside a build.
_KEPT = ("index-url", "extra-index-url", "trusted-host", "cert", "proxy", "timeout", "retries")


def pip_settings(listing: str, environment: Mapping[str, str]) -> dict[str, str]:
    """pip's settings, by option, out of `pip config list` and the environment; later sources win, as with pip."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        name, separator, value = line.partition("=")
        section, _, option = name.strip().rpartition(".")
        if separator and section in ("global", "install") and option in _KEPT:
            found[option] = str(ast.literal_eval(value))
    for option in _KEPT:
        override = environment.get(f"PIP_{option.upper().replace('-', '_')}")
        if override:
            found[option] = override
    return found


def pip_conf(settings: Mapping[str, str]) -> str:
    """The same as a pip.conf. A value of several words is a list, one a line."""
    lines = ["[global]"]
    for option, value in settings.items():
        words = value.split()
        lines.append(f"{option} = {words[0]}" if len(words) == 1 else f"{option} =")
        lines += [f"    {word}" for word in words if len(words) > 1]
    return "\n".join(lines) + "\n"


def uv_toml(settings: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """The same for uv; its own variables win over pip's settings."""
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or settings.get("index-url")
    extra = environment.get("UV_INDEX") or environment.get("UV_EXTRA_INDEX_URL") or settings.get("extra-index-url", "")
    hosts = environment.get("UV_INSECURE_HOST") or settings.get("trusted-host", "")
    lines = [f"index-url = {json.dumps(_address(index))}"] if index else []
    if extra:
        lines.append(f"extra-index-url = {json.dumps([_address(word) for word in extra.split()])}")
    if hosts:
        lines.append(f"allow-insecure-host = {json.dumps(hosts.split())}")
    return "".join(f"{line}\n" for line in lines)


def _address(index: str) -> str:
    """UV_INDEX may say name=address."""
    name, separator, address = index.partition("=")
    return address if separator and "/" not in name else index


def mounts(cache: Path, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What to mount into a build, as source:destination:ro; nothing where nothing is configured."""
    settings = pip_settings(attempt("pip", "config", "list").stdout.decode(errors="replace"), environment)
    folder = cache / "package-index"
    found = []
    if settings:
        write(folder / "pip.conf", pip_conf(settings))
        found.append(f"{folder / 'pip.conf'}:/etc/pip.conf:ro")
    uv = uv_toml(settings, environment)
    if uv:
        write(folder / "uv.toml", uv)
        found.append(f"{folder / 'uv.toml'}:/etc/uv/uv.toml:ro")
    certificate = Path(settings.get("cert", ""))
    if certificate.is_file() and not str(certificate).startswith("/etc/ssl/certs/"):
        found.append(f"{certificate}:{certificate}:ro")
    return found
