"""The lock contains all installed packages, with hashes, and their licences are listed."""

import importlib.metadata
import re

import pytest


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def lock(repository):
    """For each package of the lock: its versions, which may differ by platform, and its hashes."""
    text = (repository / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"\n\s+#.*", "", text))
    packages = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)==([\w.+-]+)", entry).groups()
        package = packages.setdefault(plain(name), {"versions": set(), "hashes": []})
        package["versions"].add(version)
        package["hashes"] += re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)
    return packages


def test_the_lock_is_up_to_date_and_everything_in_it_has_hashes(repository, lock):
    pins = re.findall(r"^([\w.-]+)==(\S+)", (repository / "requirements.txt").read_text(), re.M)
    assert len(pins) > 30 and len(lock) > 150
    stale = {
        name for name, version in pins if lock.get(plain(name), {}).get("versions") != {version}
    }
    assert not stale, "run make lock"
    assert not [name for name, package in lock.items() if not package["hashes"]]


def test_what_is_installed_is_what_is_locked_and_its_licence_is_listed(repository, lock):
    text = (repository / "licences.md").read_text()
    doubtful, every = text.split("## All")
    installed = {}
    for found in importlib.metadata.distributions():  # the first is imported, others are vendored
        installed.setdefault(plain(found.metadata["Name"]), found.version)
    here = installed.keys() & lock.keys()
    assert {"torch", "timm", "snakemake", "nibabel"} <= here
    assert not {name for name in here if installed[name] not in lock[name]["versions"]}
    rows = {plain(row.split("|")[1].strip()): row for row in every.splitlines() if "|" in row}
    assert not {name for name in here if name not in rows}, "run make lock"
    named = "GPL", "MPL", "Mozilla", "NVIDIA", "UNKNOWN"
    assert all(row in doubtful for row in rows.values() if any(word in row for word in named))
