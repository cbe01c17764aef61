"""A local site in place of the real ones, and no waiting."""

import pytest

import run_all
from panderm_utils.fetching import downloads, drive, repositories
from tests.fetching.site_on_loopback import Site


@pytest.fixture
def site(monkeypatch):
    site = Site()
    monkeypatch.setattr(downloads, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(drive, "DOWNLOAD", f"{site.url}/uc?export=download&id={{id}}")
    for name in ("HUGGING_FACE", "FIGSHARE", "MENDELEY", "ZENODO", "GITHUB", "ISIC"):
        monkeypatch.setattr(repositories, name, f"{site.url}/{name.lower()}")
    dataverses = dict.fromkeys(repositories.DATAVERSES, f"{site.url}/dataverse")
    monkeypatch.setattr(repositories, "DATAVERSES", dataverses)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield site
    site.close()


@pytest.fixture
def fetch(tmp_path, capsys):
    """Runs `--fetch` with these arguments; returns exit status, output and errors."""

    def run(*arguments):
        folders = ["--data-root", str(tmp_path / "D"), "--weights-root", str(tmp_path / "W")]
        status = run_all.main(["--fetch", *map(str, arguments), *folders])
        return status, *capsys.readouterr()

    return run
