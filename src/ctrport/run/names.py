"""Names as users write them, to names as containerd wants them."""

from __future__ import annotations

import os
import re

from ctrport.errors import InputError

# containerd's identifiers package: at most 76 characters of this form.
IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
IDENTIFIER_LIMIT = 76
REFERENCE = re.compile(r"[A-Za-z0-9._:/@\[\]-]+")


def check_identifier(what: str, name: str) -> str:
    """Give a container id or namespace back. InputError when containerd would refuse it."""
    if not IDENTIFIER.fullmatch(name) or len(name) > IDENTIFIER_LIMIT:
        raise InputError(
            f"{what} {name!a} is not a name that containerd takes",
            hint=f"letters and digits, with single . _ or - between them, {IDENTIFIER_LIMIT} characters at most",
        )
    return name


def generated_name(image: str) -> str:
    """Give a name for a container that was given none: the image's, and four random digits."""
    base = re.sub(r"[^A-Za-z0-9]+", "-", reference_name(image)).strip("-") or "container"
    return f"{base[:60].rstrip('-')}-{os.urandom(2).hex()}"


def reference_name(image: str) -> str:
    """Give the last word of an image reference: `redis` of `docker.io/library/redis:alpine`."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def full_reference(image: str) -> str:
    """Give the reference that containerd keeps: `redis` is `docker.io/library/redis:latest`.

    As Docker reads it: the first part names a registry when it has a dot or a colon, or is localhost.
    """
    if not REFERENCE.fullmatch(image) or image.startswith(("-", "/")):
        raise InputError(f"{image!a} is not an image reference", hint="for example redis:alpine")
    first, slash, rest = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not ("." in first or ":" in first or first == "localhost"):
        image = f"docker.io/{image}"
    elif first == "docker.io" and "/" not in rest:
        image = f"docker.io/library/{rest}"
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"
