"""Downloads over real sockets: resumed, retried, checked, and each known failure in its own sentence."""

import json
import ssl
import subprocess
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from panderm_utils import disk
from panderm_utils.fetching import downloads
from panderm_utils.fetching.downloads import CHUNK, Remote, download
from panderm_utils.fetching.errors import FetchError
from tests.fetching.site_on_loopback import QUOTA_PAGE

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def remote(site):
    return Remote("data.zip", site.publish("/data.zip", CONTENT), "https://example.org/page")


@pytest.fixture
def part(tmp_path):
    return tmp_path / "data.zip.part"


def ranges(site):
    return [wanted for _, wanted in site.requests]


def test_a_file_comes_whole(remote, part):
    download(remote, part)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_site_that_is_busy_is_asked_again(remote, part, site, status):
    site.troubles["/data.zip"] = [(status, b"later", {"Retry-After": "0"}), (status, b"later")]
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert len(site.requests) == 3


def test_a_cut_connection_is_continued_where_it_ended(remote, part, site):
    site.troubles["/data.zip"] = [("cut", 18 * CHUNK + 9), ("cut", 12 * CHUNK)]
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert ranges(site) == [None, f"bytes={18 * CHUNK}-", f"bytes={30 * CHUNK}-"]


def test_a_site_that_goes_silent_is_left_and_asked_for_the_rest(remote, part, site, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 0.2))
    site.troubles["/data.zip"] = [("stall", 4 * CHUNK)]
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert ranges(site) == [None, f"bytes={4 * CHUNK}-"]


def test_progress_makes_the_number_of_retries_begin_anew(remote, part, site):
    site.troubles["/data.zip"] = [("cut", CHUNK)] * 20
    download(remote, part)
    assert part.read_bytes() == CONTENT


def test_a_site_that_never_recovers_is_given_up_with_what_was_got_kept(remote, part, site):
    site.troubles["/data.zip"] = [("cut", 18 * CHUNK)] + [(503, b"")] * 9
    with pytest.raises(
        FetchError, match=r"503 Service Unavailable, 4 times; repeat the command later, it continues; or open"
    ):
        download(remote, part)
    assert part.read_bytes() == CONTENT[: 18 * CHUNK]
    site.troubles.clear()
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert ranges(site)[-1] == f"bytes={18 * CHUNK}-"


def test_a_machine_without_a_network_is_told_so(site, part):
    remote = Remote("data.zip", "https://nowhere.invalid/data.zip", "https://nowhere.invalid/page")
    with pytest.raises(
        FetchError, match=r"page: no connection to nowhere.invalid, .*4 times; repeat the command later"
    ):
        download(remote, part)


def test_pauses_grow_and_a_site_may_ask_for_longer_ones(remote, part, site, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(downloads, "PAUSES", (1, 2, 4))
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    site.troubles["/data.zip"] = [(503, b""), (503, b""), (503, b"", {"Retry-After": "50"})]
    download(remote, part)
    assert waited == [1, 2, 50]
    assert "https://example.org/page: the site answers 503 Service Unavailable; again in 2 s" in capsys.readouterr().err


def test_a_site_without_ranges_is_begun_anew(remote, part, site):
    site.troubles["/data.zip"] = [("cut", 2 * CHUNK), "no ranges"]
    download(remote, part)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize("new", [CONTENT[::-1], CONTENT[:500], CONTENT + b"more"])
def test_a_file_that_changed_in_between_is_not_pieced_together(remote, part, site, new):
    site.troubles["/data.zip"] = [("cut", 2 * CHUNK), (403, b"")]
    with pytest.raises(FetchError):
        download(remote, part)
    site.publish("/data.zip", new)
    download(remote, part)
    assert part.read_bytes() == new


def test_a_site_that_continues_with_another_version_is_found_out(remote, part, site):
    """It ignores `If-Range`, and the new version has the old one's size: only the tag tells."""
    site.troubles["/data.zip"] = [("cut", 2 * CHUNK), (403, b"")]
    with pytest.raises(FetchError):
        download(remote, part)
    new, size = CONTENT[::-1], len(CONTENT)
    site.publish("/data.zip", new)
    headers = {"ETag": '"new"', "Content-Range": f"bytes {2 * CHUNK}-{size - 1}/{size}"}
    site.troubles["/data.zip"] = [(206, new[2 * CHUNK :], headers)]
    download(remote, part)
    assert part.read_bytes() == new


def test_a_site_that_continues_at_another_byte_is_not_believed(remote, part, site):
    site.troubles["/data.zip"] = [("cut", 2 * CHUNK), (206, CONTENT, {"Content-Range": "bytes 0-9/1024000"})]
    with pytest.raises(FetchError, match="continues at another byte than asked"):
        download(remote, part)


def test_a_file_with_a_weak_tag_is_continued(remote, part, site):
    headers = {"ETag": 'W/"weak"', "Content-Range": f"bytes {CHUNK}-{len(CONTENT) - 1}/{len(CONTENT)}"}
    part.write_bytes(CONTENT[:CHUNK])
    part.with_name("data.zip.part.json").write_text(json.dumps({"url": remote.url, "size": len(CONTENT), "tag": ""}))
    site.troubles["/data.zip"] = [(206, CONTENT[CHUNK:], headers)]
    download(remote, part)
    assert part.read_bytes() == CONTENT


def test_a_partial_file_of_another_address_is_begun_anew(remote, part, site):
    part.write_bytes(b"of something else")
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert ranges(site) == [None]


def test_a_complete_partial_file_is_not_asked_for_again(remote, part, site):
    download(remote, part)
    download(remote, part)
    assert len(site.requests) == 1


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/zip"])
@pytest.mark.parametrize("status", [200, 403, 429])
def test_the_quota_page_of_drive_under_any_name_and_status(remote, part, site, content_type, status):
    site.troubles["/data.zip"] = [(status, QUOTA_PAGE.encode(), {"Content-Type": content_type})]
    with pytest.raises(FetchError, match=r"https://example.org/page: .*download quota .* 24 hours, or open"):
        download(remote, part)
    assert not part.exists()


def test_a_quota_page_does_not_harm_what_was_got(remote, part, site):
    site.troubles["/data.zip"] = [("cut", CHUNK), (200, QUOTA_PAGE.encode())]
    with pytest.raises(FetchError, match="quota"):
        download(remote, part)
    download(remote, part)
    assert part.read_bytes() == CONTENT
    assert ranges(site)[-1] == f"bytes={CHUNK}-"


def test_any_other_page_is_named_by_its_title(remote, part, site):
    site.publish("/data.zip", b"\xef\xbb\xbf\n <!DOCTYPE HTML><html><TITLE>Please\n log in</TITLE></html>")
    with pytest.raises(FetchError, match='sent a web page "Please log in" instead of the file; open https://example'):
        download(remote, part)
    assert not part.exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "refuses the file .403 Forbidden.*click-through"), (401, "refuses"), (404, "no such file"), (400, "400")],
)
def test_a_refusal_is_not_tried_again(remote, part, site, status, words):
    site.troubles["/data.zip"] = [(status, b"<Error>AccessDenied</Error>")]
    with pytest.raises(FetchError, match=words):
        download(remote, part)
    assert len(site.requests) == 1


def test_too_little_room_is_said_before_a_byte_is_written(remote, part, monkeypatch):
    monkeypatch.setattr(disk, "free", lambda folder: 1000)
    with pytest.raises(disk.DiskFullError, match=r"data.zip needs 1,024,000 bytes, 1,000 are free"):
        download(remote, part)
    assert not part.exists()


def test_a_proxy_of_the_environment_is_used(site, part, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url)
    site.files["http://data.invalid/data.zip"] = CONTENT
    download(Remote("data.zip", "http://data.invalid/data.zip", "http://data.invalid/"), part)
    assert site.requests == [("http://data.invalid/data.zip", None)]
    assert part.read_bytes() == CONTENT


def test_a_proxy_that_is_not_there_is_named(part, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"the proxy refuses or cannot be reached .*correct HTTPS_PROXY or NO_PROXY"):
        download(Remote("data.zip", "https://data.invalid/data.zip", "https://data.invalid/"), part)


def test_a_certificate_that_cannot_be_checked_and_one_that_is_trusted(site, tmp_path, part, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    done = subprocess.run([*command.split(), "-keyout", key, "-out", certificate], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            site.send(self, 200, CONTENT)

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # the handshake that the client refuses
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    remote = Remote("data.zip", f"https://127.0.0.1:{server.server_address[1]}/data.zip", "https://example.org/page")
    try:
        with pytest.raises(FetchError, match=r"certificate of this site cannot be checked .*REQUESTS_CA_BUNDLE="):
            download(remote, part)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        download(remote, part)
    finally:
        server.shutdown()
        server.server_close()
    assert part.read_bytes() == CONTENT


def test_the_note_beside_a_partial_file_says_what_it_is_of(remote, part, site):
    download(remote, part)
    note = json.loads(part.with_name("data.zip.part.json").read_text())
    assert (note["url"], note["size"]) == (remote.url, len(CONTENT))
