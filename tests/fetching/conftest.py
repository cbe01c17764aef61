"""A local site in place of the real ones, and no waiting."""

import pytest

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
