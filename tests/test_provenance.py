"""The code revision is that of this checkout or "unknown" with the reason; never that of a repository around it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core import provenance

IDENTITY = ("-c", "user.name=n", "-c", "user.email=e@example.org")


def commit(root: Path) -> str:
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), *IDENTITY, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    place = tmp_path / "outer" / "mono-s2s"
    place.mkdir(parents=True)
    (place / "run_all.sh").write_text("x")
    monkeypatch.setattr(provenance, "CHECKOUT", place)
    for function in (provenance.code_revision, provenance._revision):
        function.cache_clear()
    yield place
    for function in (provenance.code_revision, provenance._revision):
        function.cache_clear()


def test_a_checkout_names_its_commit_and_whether_it_was_edited(checkout):
    made = commit(checkout)
    assert provenance.code_revision() == {"commit": made, "dirty": False} and provenance.why_no_revision() == ""
    provenance.code_revision.cache_clear(), provenance._revision.cache_clear()
    (checkout / "run_all.sh").write_text("y")
    assert provenance.code_revision() == {"commit": made, "dirty": True}


def test_a_copy_inside_another_repository_has_no_revision(checkout):
    commit(checkout.parent)
    assert provenance.code_revision() == {"commit": "unknown", "dirty": None}
    assert str(checkout.parent) in provenance.why_no_revision() and "git clone" in provenance.why_no_revision()


@pytest.mark.parametrize("names", [("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_CEILING_DIRECTORIES",)])
def test_git_variables_of_a_hook_do_not_decide(checkout, tmp_path, monkeypatch, names):
    made, other = commit(checkout), tmp_path / "other"
    other.mkdir()
    commit(other)
    values = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": checkout, "GIT_CEILING_DIRECTORIES": checkout.parent}
    for name in names:
        monkeypatch.setenv(name, str(values[name]))
    assert provenance.code_revision()["commit"] == made


def test_without_git_or_repository_the_reason_is_said(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "")
    assert "no git checkout" in provenance.why_no_revision()
    provenance._revision.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.why_no_revision() == "git is not installed here"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_dubious_ownership_is_called_that(checkout, monkeypatch):
    commit(checkout)
    for path in [checkout, *checkout.rglob("*")]:
        os.lchown(path, 12345, 12345)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    assert provenance.code_revision()["commit"] == "unknown"
    assert "dubious ownership" in provenance.why_no_revision() and "safe.directory" in provenance.why_no_revision()


def test_the_module_needs_no_torch():
    code = "import utils.core.provenance, sys; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "False\n"
