import importlib.metadata
import runpy
import tomllib
from pathlib import Path

import twinstep

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_distribution_s_own():
    assert twinstep.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert runpy.run_path(str(ROOT / "twinstep" / "__init__.py"))["__version__"] == "0+unknown"
