"""Names of containers and images, as users write them and as containerd has them."""

from __future__ import annotations

import pytest
from hypothesis import given

from ctrport.errors import InputError
from ctrport.run import names
from strategies import hostile_text


@pytest.mark.parametrize("name", ["web", "a", "0", "A.b-c_d", "n" * 76])
def test_identifiers(name: str):
    """What containerd takes is given back."""
    assert names.check_identifier("--name", name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a--b", "a..b", ".", "a/b", "a b", "é", "a\n", "n" * 77])
def test_what_is_no_identifier(name: str):
    """What containerd would refuse is refused before anything is made."""
    with pytest.raises(InputError, match=r"--name .* is not a name that containerd takes"):
        names.check_identifier("--name", name)


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:alpine", "docker.io/library/redis:alpine"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("docker.io/library/redis:7", "docker.io/library/redis:7"),
        ("quay.io/a/b", "quay.io/a/b:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("registry:5000/a/b:1", "registry:5000/a/b:1"),
        ("redis@sha256:abc", "docker.io/library/redis@sha256:abc"),
        ("redis:7@sha256:abc", "docker.io/library/redis:7@sha256:abc"),
    ],
)
def test_references(image: str, reference: str):
    """As Docker reads them; the result is read as itself."""
    assert names.full_reference(image) == reference
    assert names.full_reference(reference) == reference


@pytest.mark.parametrize("image", ["", "-x", "/x", "a b", "a\n", "é", "$(x)", "a;b"])
def test_what_is_no_reference(image: str):
    """Nothing that could be an option or syntax."""
    with pytest.raises(InputError, match="is not an image reference"):
        names.full_reference(image)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker.io/library/redis:alpine", "redis"),
        ("redis", "redis"),
        ("localhost:5000/a/b@sha256:abc", "b"),
        ("registry:5000/a", "a"),
    ],
)
def test_the_last_word_of_a_reference(image: str, name: str):
    """Without registry, tag and digest."""
    assert names.reference_name(image) == name


@given(image=hostile_text())
def test_a_generated_name_is_one_that_containerd_takes(image: str):
    """Whatever the image is called; another one each time."""
    first, second = names.generated_name(image), names.generated_name(image)
    assert names.check_identifier("the name", first) == first
    assert first.rpartition("-")[0] == second.rpartition("-")[0]
