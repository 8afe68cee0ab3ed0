"""Wikipedia over HTTP: a small MediaWiki runs here, with pages of its own and every kind of bad day."""

from __future__ import annotations

import gzip
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from retro import __version__
from retro.envs.base import EnvironmentFailedError
from retro.envs.hotpotqa import HotpotQATasks
from retro.envs.hotpotqa.documents import Page
from retro.envs.hotpotqa.wikipedia import Wikipedia, WikipediaOptions, split_sentences, wikipedia_options
from retro.envs.testing import check_environment
from retro.types import Split

EXTRACTS = {
    "Kallsund Bridge": "The Kallsund Bridge is a swing bridge.\n\n\n== History ==\n"
    "It was opened by Dr. K. Lie in 1909. It cost 2.5 million.\n=== Trams ===\nUntil 1968 it carried trams.",
    "Marta Ellingsvold": "Marta Ellingsvold was an engineer.",
    "Café Owl": "Café Owl is a café.",
    "Owl (bird)": "An owl is a bird.",
    "Owl (magazine)": "Owl is a magazine.",
    "Blank": "",
}
REDIRECTS = {"Bridge of Kallsund": "Kallsund Bridge"}
DISAMBIGUATIONS = {"Owl"}
FOUND = {
    "cafe owl": ["Café Owl"],
    "owl": ["Owl", "Owl (magazine)", "Owl (bird)"],
    "engineer": [f"Engineer {number}" for number in range(10)],
}
GUESSED = {"marta elingsvold": ["Marta Ellingsvold"]}

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Wiki:
    """What the server was asked, what it answers next instead of the truth, and how many it served at once."""

    requests: list[dict[str, str]] = field(default_factory=list)
    user_agents: list[str] = field(default_factory=list)
    next: list[Reply] = field(default_factory=list)
    always: Reply | None = None
    url: str = ""
    takes_seconds: float = 0.0
    busy: int = 0
    most_busy: int = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = dict(parse_qsl(urlsplit(handler.path).query, keep_blank_values=True))
        self.requests.append(asked)
        self.user_agents.append(handler.headers["User-Agent"])
        if self.always or self.next:
            (self.always or self.next.pop(0))(handler)
        else:
            send(handler, json.dumps({"batchcomplete": True, "query": query(asked)}).encode())


def query(asked: dict[str, str]) -> dict[str, Any]:
    assert asked["action"] == "query"
    assert asked["format"] == "json"
    assert asked["formatversion"] == "2"
    if "titles" in asked:
        return of_title(asked["titles"])
    if asked["list"] == "search":
        titles = FOUND.get(asked["srsearch"].lower(), [])
        return {"search": [{"ns": 0, "title": title, "pageid": 1} for title in titles]}
    titles = GUESSED.get(asked["pssearch"].lower(), [])
    return {"prefixsearch": [{"ns": 0, "title": title, "pageid": 1} for title in titles]}


def of_title(asked: str) -> dict[str, Any]:
    title = asked[:1].upper() + asked[1:]
    if title.startswith("Special:"):
        return {"pages": [{"ns": -1, "title": title, "special": True}]}
    if title.startswith("Fr:"):
        return {"interwiki": [{"title": title, "iw": "fr"}]}
    target = REDIRECTS.get(title, title)
    moved = {"redirects": [{"from": title, "to": target}]} if target != title else {}
    if target in DISAMBIGUATIONS:
        page = {"pageid": 1, "ns": 0, "title": target, "extract": "Owl may refer to:"}
        return {"pages": [page | {"pageprops": {"disambiguation": ""}}]}
    if target not in EXTRACTS:
        return {"pages": [{"ns": 0, "title": target, "missing": True}]}
    return moved | {"pages": [{"pageid": 1, "ns": 0, "title": target, "extract": EXTRACTS[target]}]}


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def sends(body: bytes | dict[str, Any] = b"", status: int = 200, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: send(handler, content, status, **headers)


def hangs(seconds: float) -> Reply:
    return lambda handler: time.sleep(seconds)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"query"')


def moves(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"", 301, Location=handler.path.replace("/w/", "/wiki/"))


def drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        return  # the client has left, as it should


@pytest.fixture
def wiki() -> Iterator[Wiki]:
    served = Wiki()
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            with counting:
                served.busy += 1
                served.most_busy = max(served.most_busy, served.busy)
            time.sleep(served.takes_seconds)
            with counting:  # before the answer: who has it may ask again at once
                served.busy -= 1
            served.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            return  # not into the tests' output

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}/w/api.php"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


class Store(Wikipedia):
    """The store, with the pauses it would have made."""

    def __init__(self, wiki: Wiki, **options: Any) -> None:
        self.pauses: list[float] = []
        super().__init__(wikipedia_options({"base_url": wiki.url} | options), self.pauses.append)


@pytest.fixture
def store(wiki: Wiki) -> Iterator[Store]:
    opened = Store(wiki)
    yield opened
    opened.close()


BRIDGE = Page(
    "Kallsund Bridge",
    (
        "The Kallsund Bridge is a swing bridge.",
        "It was opened by Dr. K. Lie in 1909.",
        "It cost 2.5 million.",
        "Until 1968 it carried trams.",
    ),
)


@pytest.mark.parametrize(
    "entity", ["Kallsund Bridge", "kallsund Bridge", "Bridge of Kallsund", " Kallsund\n Bridge\x00"]
)
def test_a_page_is_opened_by_its_title_or_a_redirect(store: Store, entity: str) -> None:
    assert store.search(entity) == BRIDGE


def test_a_title_written_otherwise_is_opened_if_the_server_finds_it(store: Store, wiki: Wiki) -> None:
    assert store.search('"cafe OWL"') == Page("Café Owl", ("Café Owl is a café.",))
    assert [request.get("srsearch") for request in wiki.requests] == [None, "cafe OWL", None]


@pytest.mark.parametrize(
    ("entity", "similar"),
    [
        ("Owl", ["Owl (magazine)", "Owl (bird)"]),  # a disambiguation page is none to read
        ("Marta Elingsvold", ["Marta Ellingsvold"]),  # by its letters
        ("engineer", [f"Engineer {number}" for number in range(5)]),
        ("Zanzibar", []),
        ("Blank", []),  # a page without text
        ("Special:Random", []),
        ("fr:Kallsund", []),
    ],
)
def test_else_similar_titles_are_listed(store: Store, entity: str, similar: list[str]) -> None:
    assert store.search(entity) == similar


@pytest.mark.parametrize(
    "entity", ["Kallsund Bridge|Owl", "a#b", "[[Owls]]", "<owls>", "{{Owls}}", "x" * 5_000, "é" * 200]
)
def test_what_cannot_be_a_title_is_searched_for_without_signs_of_the_query_language(
    store: Store, wiki: Wiki, entity: str
) -> None:
    assert store.search(entity) == []
    assert [request["list"] for request in wiki.requests] == ["search", "prefixsearch"]
    assert not set("|#[]<>{}") & set(wiki.requests[0]["srsearch"])
    assert len(wiki.requests[0]["srsearch"]) <= 250


def test_nothing_to_search_for_is_not_asked(store: Store, wiki: Wiki) -> None:
    assert store.search("") == []
    assert store.search("[]|") == []
    assert wiki.requests == []


def test_who_asks_is_said(wiki: Wiki) -> None:
    Store(wiki, contact="lab@example.org").search("Kallsund Bridge")
    assert wiki.user_agents[0].startswith(f"retro/{__version__} (")
    assert "lab@example.org" in wiki.user_agents[0]
    assert wiki.requests[0]["maxlag"] == "5"


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("replies", "pauses"),
    [
        ([sends(status=429, Retry_After="7")], [7.0]),
        ([sends(status=503), sends(status=500), sends(status=502), sends(status=504)], [1.0, 2.0, 4.0, 8.0]),
        ([sends(status=503, Retry_After="soon")], [1.0]),
        ([sends(status=503, Retry_After=date_in(-60))], [0.0]),
        ([sends({"error": {"code": "maxlag", "info": "Waiting"}}, Retry_After="5")], [5.0]),
        ([sends({"error": {"code": "internal_api_error_DBQueryError"}})], [1.0]),
        ([sends({"error": {"code": "ratelimited"}})], [1.0]),
        ([hangs_up], [1.0]),
        ([moves], []),
    ],
)
def test_what_passes_is_waited_for(store: Store, wiki: Wiki, replies: list[Reply], pauses: list[float]) -> None:
    wiki.next = list(replies)
    assert store.search("Kallsund Bridge") == BRIDGE
    assert store.pauses == pauses


def test_a_date_to_wait_for_is_waited_for(store: Store, wiki: Wiki) -> None:
    wiki.next = [sends(status=429, Retry_After=date_in(110))]
    assert store.search("Kallsund Bridge") == BRIDGE
    assert 1 < store.pauses[0] <= 110


@pytest.mark.parametrize("reply", [hangs(1.0), drips])
def test_a_request_that_takes_too_long_is_sent_again(wiki: Wiki, reply: Reply) -> None:
    wiki.next = [reply]
    store = Store(wiki, timeout_seconds=0.2, max_retries=1000)
    assert store.search("Kallsund Bridge") == BRIDGE
    assert store.pauses[:1] == [1.0]  # on a busy machine the next request may be late as well
    store.close()


def test_a_server_that_is_down_fails_the_environment_and_is_not_asked_long_again(wiki: Wiki) -> None:
    wiki.always = sends(status=503)
    store = Store(wiki, max_retries=2)
    with pytest.raises(EnvironmentFailedError, match=r"wikipedia: http://127.*: HTTP status 503 \(3 requests\)"):
        store.search("Kallsund Bridge")
    with pytest.raises(EnvironmentFailedError, match=r"HTTP status 503 \(1 requests\)"):
        store.search("Kallsund Bridge")
    assert store.pauses == [1.0, 2.0]
    wiki.always, wiki.next = None, []
    assert store.search("Kallsund Bridge") == BRIDGE
    wiki.next = [sends(status=503)] * 2  # it is up again: retried again
    assert store.search("Marta Ellingsvold") == Page("Marta Ellingsvold", ("Marta Ellingsvold was an engineer.",))
    store.close()


def test_no_server_at_all_fails_the_environment() -> None:
    store = Wikipedia(WikipediaOptions(base_url="http://127.0.0.1:9/w/api.php", max_retries=1), lambda seconds: None)
    with pytest.raises(
        EnvironmentFailedError, match=r"wikipedia: http://127\.0\.0\.1:9/.*ConnectError.*\(2 requests\)"
    ):
        store.search("Owl")
    store.close()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (sends(status=403), r"HTTP status 403; set environment\.options\.wikipedia\.contact"),
        (sends(status=404), r"HTTP status 404; is base_url the address of its api\.php\?"),
        (sends(b"<html>Log in</html>"), r"its answer is not JSON: .*; is base_url the address"),
        (sends(b"[]"), r"not a JSON object; is base_url the address"),
        (sends(b"[" * 100_000), r"nested deeper than 100 levels"),
        (sends(b'{"a": ' + b"9" * 5_000 + b"}"), r"an integer beyond 64 bits"),
        (sends(b"\xff"), r"not UTF-8"),
        (sends(b"x", Content_Encoding="br"), r"packed by 'br' instead of gzip"),
        (sends(status=302, Location="http://localhost:1/w/api.php"), r"it redirects to localhost: if you trust that"),
        (
            sends({"error": {"code": "badvalue", "info": "Unrecognised value."}}),
            r"error badvalue: Unrecognised value\.",
        ),
        (sends({"query": {"pages": "none"}}), r"query\.pages of an answer is not a list of objects"),
        (sends(status=429, Retry_After="3600"), r"429 \(1 requests; it asks for a pause of 3,600 s\)"),
    ],
)
def test_what_does_not_pass_fails_at_once(store: Store, wiki: Wiki, reply: Reply, says: str) -> None:
    wiki.always = reply
    with pytest.raises(EnvironmentFailedError, match=says):
        store.search("Kallsund Bridge")
    assert len(wiki.requests) == 1
    assert store.pauses == []


def test_an_endless_answer_is_not_read_to_its_end(store: Store, wiki: Wiki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retro.envs.hotpotqa.mediawiki.MAX_ANSWER_BYTES", 1_000)
    wiki.always = sends(b" " * 100_000)
    with pytest.raises(EnvironmentFailedError, match="an answer of more than 1,000 bytes"):
        store.search("Owl")
    wiki.always = sends(gzip.compress(b" " * 1_000_000), Content_Encoding="gzip")
    with pytest.raises(EnvironmentFailedError, match="an answer of more than 1,000 bytes"):
        store.search("Owl")


def test_packed_answers_are_unpacked_once(store: Store, wiki: Wiki, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(json.dumps({"query": of_title("Kallsund Bridge")}).encode())
    wiki.next = [sends(packed[:-20], Content_Encoding="gzip"), sends(packed, Content_Encoding="gzip")]
    assert store.search("Kallsund Bridge") == BRIDGE
    assert store.pauses == [1.0]
    wiki.always = sends(packed, Content_Encoding="gzip, gzip")
    with pytest.raises(EnvironmentFailedError, match="packed by 'gzip, gzip'"):
        store.search("Owl")


def test_a_server_that_redirects_in_a_circle_is_left(store: Store, wiki: Wiki) -> None:
    wiki.always = sends(status=302, Location="/w/api.php")
    with pytest.raises(EnvironmentFailedError, match="more than 5 redirects"):
        store.search("Owl")
    assert len(wiki.requests) == 6


@pytest.mark.parametrize(
    "pages",
    [
        [{"ns": 0, "title": "Owl", "pageprops": None, "extract": "An owl is a bird."}],
        [{"ns": 0, "title": "Owl", "pageprops": 5, "extract": "An owl is a bird."}],
    ],
)
def test_properties_of_another_type_are_none(store: Store, wiki: Wiki, pages: list[Any]) -> None:
    wiki.always = sends({"query": {"pages": pages}})
    assert store.search("Owl") == Page("Owl", ("An owl is a bird.",))


def test_of_titles_only_a_few_that_can_be_titles_are_taken(store: Store, wiki: Wiki) -> None:
    rows = [{"title": 5}, {"title": "x" * 300}, *({"title": "OWL"} for _ in range(100))]
    wiki.always = sends({"query": {"search": rows, "pages": [{"ns": 0, "missing": True}]}})
    assert store.search("Owl") == ["OWL"] * 5
    assert len(wiki.requests) == 3


def test_a_date_beyond_all_dates_is_none(store: Store, wiki: Wiki) -> None:
    wiki.next = [sends(status=503, Retry_After="Mon, 01 Jan 2024 00:00:00 +99999999999999999")]
    assert store.search("Kallsund Bridge") == BRIDGE
    assert store.pauses == [1.0]


def test_a_damaged_answer_of_the_cache_fails_the_environment(wiki: Wiki, tmp_path: Path) -> None:
    cache = tmp_path / "wikipedia.sqlite"
    store = Store(wiki, cache=str(cache))
    store.search("Kallsund Bridge")
    for damage, says in (("{", "not JSON"), ("[]", "not a JSON object"), (None, "not JSON")):
        with sqlite3.connect(cache) as database:
            database.execute("UPDATE answers SET answer = ?", (damage,))
        with pytest.raises(EnvironmentFailedError, match=rf"cache: .*wikipedia\.sqlite: .*{says}.*; delete the file"):
            store.search("Kallsund Bridge")
    store.close()


def test_nothing_is_asked_twice_nor_by_another_process(wiki: Wiki, tmp_path: Path) -> None:
    cache = str(tmp_path / "new" / "wikipedia.sqlite")
    entities = ["Kallsund Bridge", "engineer", "Owl", "Kallsund Bridge", "Zanzibar"]
    first = Store(wiki, cache=cache)
    answers = [first.search(entity) for entity in entities]
    asked = len(wiki.requests)
    assert len({json.dumps(request) for request in wiki.requests}) == asked
    assert [first.search(entity) for entity in entities] == answers
    first.close()
    wiki.always = sends(status=500)
    second = Store(wiki, cache=cache, max_retries=0)
    assert [second.search(entity) for entity in entities] == answers
    assert len(wiki.requests) == asked
    with pytest.raises(EnvironmentFailedError, match="500"):
        second.search("Marta Ellingsvold")
    wiki.always = None
    assert isinstance(second.search("Marta Ellingsvold"), Page)  # a failure is not kept
    second.close()


def test_another_wiki_has_other_answers(wiki: Wiki, tmp_path: Path) -> None:
    cache = str(tmp_path / "wikipedia.sqlite")
    for url in (wiki.url, f"{wiki.url}?"):
        store = Wikipedia(WikipediaOptions(base_url=url, cache=cache))
        store.search("Kallsund Bridge")
        store.close()
    assert len(wiki.requests) == 2


def test_threads_ask_one_after_the_other_and_each_thing_once(wiki: Wiki, tmp_path: Path) -> None:
    wiki.takes_seconds = 0.02
    store = Store(wiki, cache=str(tmp_path / "wikipedia.sqlite"))
    entities = ["Kallsund Bridge", "Marta Ellingsvold", "Café Owl", "Zanzibar"] * 10
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(store.search, entities))
    assert found == [store.search(entity) for entity in entities]
    assert wiki.most_busy == 1
    assert len(wiki.requests) == 6  # Zanzibar is asked for in three ways
    store.close()


def test_a_cache_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database, but long enough to be read as one " * 20)
    with pytest.raises(ValueError, match=r"wikipedia: cache: .*notes\.txt cannot be used: .*name another file"):
        Wikipedia(WikipediaOptions(cache=str(path)))
    with pytest.raises(ValueError, match=r"wikipedia: cache: .*cannot be used"):
        Wikipedia(WikipediaOptions(cache=str(tmp_path)))
    with pytest.raises(ValueError, match=r"wikipedia: cache: .*cannot be used"):
        Wikipedia(WikipediaOptions(cache=str(path / "cache.sqlite")))


def test_a_cache_that_breaks_fails_the_environment(wiki: Wiki, tmp_path: Path) -> None:
    cache = tmp_path / "wikipedia.sqlite"
    store = Store(wiki, cache=str(cache))
    with sqlite3.connect(cache) as database:
        database.execute("DROP TABLE answers")
    with pytest.raises(EnvironmentFailedError, match=r"wikipedia: cache: .*wikipedia\.sqlite: no such table"):
        store.search("Owl")
    store.close()
    with pytest.raises(EnvironmentFailedError, match=r"closed"):
        store.search("Owl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "en.wikipedia.org"}, "base_url: must be the http"),
        ({"base_url": "file:///etc/passwd"}, "base_url: must be the http"),
        ({"base_url": 5}, "base_url: Input should be a valid string"),
        ({"base_url": "http://[::1/w/api.php"}, "base_url: must be the http"),
        ({"base_url": "http://wiki.example:99999/w/api.php"}, "base_url: must be the http"),
        ({"base_url": "http://wiki.example/\n"}, "base_url: must be the http"),
        ({"base_url": "https://me:secret@wiki.example/w/api.php"}, "base_url: must not hold a user name"),
        ({"cache": ""}, "cache: String should have at least 1"),
        ({"cache": 5}, "cache: Input should be a valid string"),
        ({"timeout_seconds": 0}, "timeout_seconds: Input should be greater than 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: Input should be"),
        ({"timeout_seconds": "20"}, "timeout_seconds: Input should be"),
        ({"contact": "a\nHost: b"}, "contact: must be one line"),
        ({"contact": "é"}, "contact: must be one line of ASCII"),
        ({"max_retries": -1}, "max_retries: Input should be"),
        ({"max_retries": True}, "max_retries: Input should be"),
        ({"retries": 1}, "retries: unknown key; the options are base_url"),
        ("https://en.wikipedia.org", "the whole: Input should be"),
    ],
)
def test_a_wrong_option_is_named(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"wikipedia.*{says}") as error:
        wikipedia_options(options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("J. K. Lie met Dr. Owl vs. Mr. Cat Jr. in St. Olav.", ["J. K. Lie met Dr. Owl vs. Mr. Cat Jr. in St. Olav."]),
        (
            "The U.S. Army left on Feb. 3 at 2.5 km. It returned.",
            ["The U.S. Army left on Feb. 3 at 2.5 km.", "It returned."],
        ),
        ('He said "No." Then he left.', ['He said "No." Then he left.']),  # as in No. 5: an abbreviation
        ('He said "Never." Then he (or she?) left.', ['He said "Never."', "Then he (or she?) left."]),
        ("It is www.example.org. 1909 was a year. éa", ["It is www.example.org.", "1909 was a year.", "éa"]),
        ("a\n\n== Heading ==\n=== Sub ===\nb = c", ["a", "b = c"]),
        ("\n \n", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def questions(folder: Path) -> str:
    path = folder / "dev.json"
    entry = {
        "question": "When was Marta Ellingsvold's bridge opened?",
        "answer": "1909",
        "type": "bridge",
        "supporting_facts": [["Kallsund Bridge", 0]],
        "context": [],
    }
    path.write_text(json.dumps([entry | {"_id": f"q{number}"} for number in range(40)]))
    return str(path)


def test_questions_are_played_over_it(wiki: Wiki, tmp_path: Path) -> None:
    options = {"base_url": wiki.url, "cache": str(tmp_path / "cache.sqlite")}
    tasks = HotpotQATasks(questions(tmp_path), store="wikipedia", wikipedia=options)
    assert tasks.blocking
    assert not HotpotQATasks(questions(tmp_path), wikipedia=options).blocking
    task = tasks.tasks(Split.TRAIN, 1)[0]
    assert tasks.oracle(task) == "Search[Kallsund Bridge] The answer is 1909: Finish[1909]."
    game = tasks.make(task)
    assert game.step("Search[Owl]")[0] == "Could not find [Owl]. Similar: ['Owl (magazine)', 'Owl (bird)']."
    assert game.step("Search[Bridge of Kallsund]")[0] == " ".join(BRIDGE.sentences)
    assert game.step("Lookup[opened]")[0] == "(Result 1 / 1) It was opened by Dr. K. Lie in 1909."
    other = tasks.make(task)
    other.restore(game.snapshot())
    assert other.step("Lookup[opened]")[0] == "No more results."
    check_environment(tasks, task, ["Search[Owl]", "Search[Kallsund Bridge]", "Lookup[opened]", "Finish[1909]"])
    wiki.always = sends(status=404)
    with pytest.raises(EnvironmentFailedError, match="404"):
        game.step("Search[Something new]")
    tasks.close()
    tasks.close()
