"""What is written in two places of the project's own files is the same in both."""

import re
import tomllib
from pathlib import Path

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
