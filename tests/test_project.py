"""What is written in two places of the project's own files is the same in both."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def value(file: str, key: str) -> str:
    """Of `key: value` in a YAML file."""
    return re.search(rf"^\W*{key}: (.+)$", (ROOT / file).read_text(), re.MULTILINE)[1]


def test_pre_commit_runs_the_ruff_that_the_project_installs():
    (ruff,) = (line.split("==")[1] for line in PROJECT["optional-dependencies"]["dev"] if line.startswith("ruff"))
    assert value(".pre-commit-config.yaml", "rev") == f"v{ruff}"


def test_the_citation_names_the_project_s_version_authors_and_license():
    assert value("CITATION.cff", "version") == PROJECT["version"]
    assert value("CITATION.cff", "name") == PROJECT["authors"][0]["name"]
    assert value("CITATION.cff", "license") == PROJECT["license"]
    assert PROJECT["authors"][0]["name"] in (ROOT / "LICENSE").read_text()


# ------------------------------------------------------------------------------------------- versions
# What the tests need. The tools of [dev] and [docs] are pinned where they are named.
EXTRAS = ("torch", "hf", "tensorboard", "test-jax", "test")
OWN = [*PROJECT["dependencies"], *(line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra])]
RANGES = {r.name: r.specifier for r in map(Requirement, OWN) if r.name not in ("twinstep", "setuptools")}


def pins(stack: str) -> dict[str, Version]:
    """Distribution -> version of a file of constraints."""
    lines = (ROOT / "constraints" / f"{stack}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


def lower_bound(specifiers) -> Version:
    (bound,) = (spec.version for spec in specifiers if spec.operator == ">=")
    return Version(bound)


@pytest.mark.parametrize("stack", ["oldest", "newest"])
def test_constraints_pin_every_dependency_within_its_range(stack):
    found = pins(stack)
    assert set(found) == {*RANGES, "jaxlib"}
    outside = [f"{name} {found[name]} is not {RANGES[name]}" for name in RANGES if found[name] not in RANGES[name]]
    assert not outside
    assert found["jaxlib"] == found["jax"]


def test_the_oldest_stack_is_the_lower_bounds():
    found = pins("oldest")
    above = {name: str(found[name]) for name in RANGES if found[name] != lower_bound(RANGES[name])}
    assert above == {"torch": "2.13.0"}


def test_the_newest_stack_is_the_last_minor_version_of_jax_and_torch_that_is_allowed():
    for name in ("jax", "torch"):
        (end,) = (Version(spec.version) for spec in RANGES[name] if spec.operator == "<")
        assert pins("newest")[name].minor == end.minor - 1, name


def test_the_pythons_that_are_named_begin_with_the_oldest_that_installs():
    minors = [int(c.rpartition(".")[2]) for c in PROJECT["classifiers"] if re.search(r":: 3\.\d", c)]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert Specifier(PROJECT["requires-python"]) == Specifier(f">=3.{minors[0]}")
