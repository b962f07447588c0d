"""Which tests are left out where torch is not installed."""

from types import SimpleNamespace

from tests.helpers import frameworks
from tests.helpers.frameworks import ROOT, files_that_need_torch, imported_names, needs_torch, without_cases_of_torch


def test_the_files_that_import_torch_are_found_and_no_others():
    found = {str(path.relative_to(ROOT)) for path in files_that_need_torch()}
    assert {"tests/docs/test_runs.py", "tests/jax_impl/test_parallel.py", "tests/bench/test_report.py"} <= found
    assert not found & {"tests/jax_impl/test_muon.py", "tests/twins/test_losses.py", "tests/test_trust_resume.py"}


def test_an_import_is_followed_through_our_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(frameworks, "ROOT", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text("")
    (tmp_path / "room/far.py").write_text("def f():\n    import torch.nn")
    (tmp_path / "room/near.py").write_text("from room import far, near")  # in a circle
    (tmp_path / "one.py").write_text("import numpy\nfrom room.near import far")
    (tmp_path / "other.py").write_text("import room\nimport torchvision")
    assert needs_torch(tmp_path / "one.py", set())
    assert not needs_torch(tmp_path / "other.py", set())
    assert imported_names("from a.b import c as d\nimport e.f") == {"a.b.c", "e.f"}


def test_a_case_is_left_out_for_a_parameter_that_says_torch():
    case = lambda **params: SimpleNamespace(callspec=SimpleNamespace(params=params))
    params = [{"side": "jax"}, {"side": "torch"}, {"x": 1, "room": "torch_ref.train"}, {"word": "torchrun"}]
    items = [SimpleNamespace(), *(case(**of_case) for of_case in params)]
    kept, left_out = without_cases_of_torch(items)
    assert (kept, left_out) == ([items[0], items[1], items[4]], [items[2], items[3]])
