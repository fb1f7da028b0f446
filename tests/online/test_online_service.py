"""The online service on a real Ray Serve: its answers are the models' own, bad requests end in 4xx, and neither a swap of models
nor a killed replica fails a request."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import requests
import torch
from ray import serve

from recsys_ray.columns import FREQUENCY
from recsys_ray.command_line import JobError
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.serving.app.deploy import ServiceConfig, start_service
from recsys_ray.serving.app.deployments.tasks import ModelSources
from recsys_ray.serving.app.release import INGRESS, application_name
from recsys_ray.serving.app.run import content
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.recommender.candidates import exact_candidates
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from tests.support.running_service import LIMITS, LOG, config, sources
from tests.support.served_models import ServedRuns
from tests.support.service_client import TOKEN, ServiceClient, replica_processes
from tests.support.service_fuzz import FuzzReport, fuzz_bodies, fuzz_connections, fuzz_document

K, CANDIDATES = 7, 50


@pytest.fixture(scope="module")
def recommender(runs: ServedRuns) -> Recommender:
    return recommender_of(runs, "a")


def recommender_of(runs: ServedRuns, letter: str) -> Recommender:
    ranker = load_ranker(runs.rankers[letter])
    return Recommender(load_retriever(runs.retrievers[letter]), ranker, ServedCatalogue.load(runs.dataset, "item_id", ranker))


def direct(recommender: Recommender, user: pa.Table, exclude: list[int], eligible: np.ndarray | None = None) -> dict[str, list]:
    """Returns what the models recommend to one user when they are called in this process."""
    catalogue = recommender.catalogue
    vectors = torch.from_numpy(recommender.retriever.embed_candidates(catalogue.raw))
    found = exact_candidates(recommender.queries(user), vectors, CANDIDATES, [catalogue.positions(exclude)], eligible=eligible)
    best = recommender.recommend(user, found, K)
    keys = catalogue.keys(best.positions[0]).to_pylist()
    return {"item": keys, "retrieval_score": best.retrieval[0].tolist(), "ranking_score": best.ranking[0].tolist()}


def user_row(runs: ServedRuns, user: int) -> pa.Table:
    """Returns the latest raw columns of a user, as the service looks them up."""
    rows = pq.read_table(runs.raw / "interactions.parquet").filter(pc.field("user_id") == user)
    latest = rows.take([int(np.argmax(rows["timestamp"].to_numpy()))]).select(["user_id", "recent_items"])
    country = pq.read_table(runs.raw / "users.parquet").filter(pc.field("user_id") == user)["country"]
    return latest.append_column("country", country)


def assert_same(answer: dict[str, Any], expected: dict[str, list]) -> None:
    for name, values in expected.items():
        found = [item[name] for item in answer["items"]]
        assert found == (values if name == "item" else pytest.approx(values, abs=1e-6)), name


def test_answers_are_those_of_the_recommender(client: ServiceClient, runs: ServedRuns, recommender: Recommender) -> None:
    """For users by id, with items left out, and by a filter."""
    kinds = recommender.catalogue.raw["kind"]
    for user in (3, 77, 214):
        row, seen = user_row(runs, user), [5, 8, 10**6]
        answer = client.answer("/recommend", user=user, k=K, candidates=CANDIDATES, exclude=seen, columns=["title", "kind"])
        assert_same(answer, direct(recommender, row, seen))
        assert answer["strategy"] == "personal" and answer["items"][0]["columns"]["title"].startswith("item ")
        where = [{"column": "kind", "op": "in", "value": ["kind 1", "kind 2"]}, {"column": "size", "op": ">", "value": 1}]
        eligible = pc.is_in(kinds, pa.array(["kind 1", "kind 2"])).to_numpy() & (recommender.catalogue.raw["size"].to_numpy() > 1)
        filtered = client.answer("/recommend", user=user, k=K, candidates=CANDIDATES, where=where)
        assert_same(filtered, direct(recommender, row, [], eligible))
        assert filtered["versions"]["index"] == "exact"


def test_features_that_are_given_win_over_those_that_are_stored(
    client: ServiceClient, runs: ServedRuns, recommender: Recommender
) -> None:
    given = {"recent_items": [1, 2, 3], "country": None, "shoe_size": 44}
    row = pa.table({"user_id": [3], "recent_items": [[1, 2, 3]], "country": pa.array([None], pa.string())})
    answer = client.answer("/recommend", user=3, features=given, k=K, candidates=CANDIDATES)
    assert_same(answer, direct(recommender, row, []))
    assert answer["ignored"] == ["shoe_size"]


def test_unknown_users_get_what_is_known_of_them_or_popular_items(
    client: ServiceClient, runs: ServedRuns, recommender: Recommender
) -> None:
    newcomer = pa.table({"user_id": [10**7], "recent_items": [[4]]})
    answer = client.answer("/recommend", user=10**7, features={"recent_items": [4]}, k=K, candidates=CANDIDATES)
    assert_same(answer, direct(recommender, newcomer, []))
    assert answer["strategy"] == "personal"
    catalogue = load_catalogue(runs.dataset)
    popular = catalogue.take(np.argsort(-catalogue[FREQUENCY].to_numpy(), kind="stable"))
    for request in ({"user": 10**7}, {}, {"features": {"country": "atlantis", "recent_items": []}}):
        answer = client.answer("/recommend", k=3, exclude=popular["item_id"][:2].to_pylist(), **request)
        assert answer["strategy"] == "popular"
        assert [item["item"] for item in answer["items"]] == popular["item_id"][2:5].to_pylist()
        assert {item["ranking_score"] for item in answer["items"]} == {None}


def test_no_item_is_an_answer(client: ServiceClient) -> None:
    nothing = [{"column": "size", "op": "<", "value": 0}]
    for user in (3, 10**7):
        assert client.answer("/recommend", user=user, where=nothing)["items"] == []


def test_ranking_scores_are_those_of_the_ranker(client: ServiceClient, runs: ServedRuns, recommender: Recommender) -> None:
    """Scores items by key; test_agreement.py scores whole rows."""
    row, keys = user_row(runs, 3), [9, 10**9, 4]
    expected = recommender.rank(row, recommender.catalogue.positions(keys)[None])[0].tolist()
    scores = client.answer("/rank", user=3, items=keys)["scores"]
    assert scores[1] is None and [scores[0], scores[2]] == pytest.approx([expected[0], expected[2]], abs=1e-6)


def test_the_token_opens_what_tells_of_users(client: ServiceClient) -> None:
    for headers in ({}, {"authorization": "Bearer wrong-wrong-wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer "}):
        stranger = ServiceClient(client.url, headers)
        for answer in (stranger.post("/recommend", user=3), stranger.post("/rank"), stranger.post("/history", user=3),
                       stranger.get("/users"), stranger.get("/columns"), stranger.get("/metrics")):  # fmt: skip
            assert answer.status_code == 401 and "token" in answer.json()["error"]
            assert answer.headers["www-authenticate"] == "Bearer"
        assert [stranger.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.json", "/")] == [200] * 4


BAD: list[dict[str, Any]] = [
    {"k": 0},
    {"k": 101},
    {"k": "ten"},
    {"k": 10, "candidates": 5},
    {"candidates": 2001},
    {"exclude": list(range(5001))},
    {"exclude": [None]},
    {"user": [1]},
    {"user": True},
    {"user": "x" * 257},
    {"user": 2**63},
    {"user": "seven"},
    {"surprise": 1},
    {"features": {"country": 7}},
    {"features": {"recent_items": ["a"]}},
    {"features": {"recent_items": 5}},
    {"features": {"recent_items": [[1]]}},
    {"features": {"recent_items": list(range(501))}},
    {"features": {"country": "\ud800"}},
    {"features": {"x": {"y": 1}}},
    {"features": {f"column {number}": 1 for number in range(201)}},
    {"where": [{"column": "nowhere", "value": 1}]},
    {"where": [{"column": "kind", "op": ">", "value": 3}]},
    {"where": [{"column": "kind", "op": "in", "value": "kind 1"}]},
    {"where": [{"column": "size", "op": "contains", "value": 1}]},
    {"where": [{"column": "size", "value": "1 OR 1=1"}]},
    {"where": [{"column": "size", "value": 1}] * 17},
    {"columns": ["nothing"]},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: str(bad)[:40])
def test_a_bad_request_is_named_and_spoils_no_other(client: ServiceClient, bad: dict[str, Any]) -> None:
    answer = client.post("/recommend", **{"user": 3, **bad})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"] and "Traceback" not in answer.text and 'File "' not in answer.text


def test_bodies_that_are_no_request(client: ServiceClient) -> None:
    def status(body: bytes, path: str = "/recommend", **headers: str) -> int:
        sent = client.headers | {"content-type": "application/json"} | headers
        answer = requests.post(client.url + path, data=body, headers=sent, timeout=30)
        assert "error" in answer.json() and "Traceback" not in answer.text
        return answer.status_code

    assert status(b"") == 422 and status(b"[]") == 422 and status(b"null") == 422
    assert status(b"{") == 400 and status(b"\xff\xfe") == 400 and status(b"[" * 100_000) == 400
    assert status(b'{"k": 1' + b"0" * 5000 + b"}") in (400, 422) and status(b'{"k": NaN}') in (400, 422)
    assert status(b'{"features": {"recent_items": [Infinity]}}') in (400, 422)
    assert status(b"{}" + b" " * LIMITS.bytes) == 413 and status(b"{}", path="/nothing") == 404
    assert requests.put(f"{client.url}/recommend", headers=client.headers, timeout=30).status_code == 405


def test_a_body_without_a_length_and_one_that_never_ends(client: ServiceClient) -> None:
    parts = (b" " * 10_000 for _ in range(1000))
    with contextlib.suppress(requests.ConnectionError):  # it may not have stopped sending when the answer comes
        assert requests.post(f"{client.url}/recommend", data=parts, headers=client.headers, timeout=30).status_code == 413
    host, port = client.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /recommend HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 50\r\n\r\n{{"
        connection.sendall(head.encode())
        assert connection.recv(200).startswith(b"HTTP/1.1 408")


def test_headers_that_command_the_proxy_are_dropped(client: ServiceClient) -> None:
    host, port = client.url.removeprefix("http://").split(":")
    commands = (
        b"x-request-id: \xff\xfe",
        b"x-session-id: \xff",
        b"serve_multiplexed_model_id: \xff",
        b"x-request-timeout-seconds: 0",
    )
    for header in commands:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n\r\n")
            assert connection.recv(200).startswith(b"HTTP/1.1 200"), header


def test_metrics_and_interface_description(client: ServiceClient) -> None:
    client.answer("/recommend", user=3)
    client.post("/recommend", k=-1)
    text, versions = client.get("/metrics").text, client.get("/readyz").json()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['recsys_requests_total{endpoint="/recommend",status="200"}']) >= 1
    assert float(lines['recsys_requests_total{endpoint="/recommend",status="422"}']) >= 1
    assert float(lines['recsys_request_seconds_bucket{endpoint="/recommend",le="+Inf"}']) >= 2
    assert all(f'{name}="{value}"' in text for name, value in versions.items())
    document = client.get("/openapi.json").json()
    assert {"/recommend", "/rank", "/healthz", "/readyz", "/metrics"} <= document["paths"].keys()
    assert document["components"]["schemas"]["RecommendRequest"]["properties"]["k"]["maximum"] == 100


def test_every_answer_is_logged_under_its_id(client: ServiceClient, folder: Path) -> None:
    for path, body in (("/recommend", {"user": 3, "k": 2}), ("/rank", {"user": 3, "items": [1]})):
        answer = client.post(path, **body)
        logged = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
        request_id, user, found, seconds = next(one for one in logged if one[0] == answer.headers["x-request-id"])
        assert request_id and user["country"] in ("north", "south") and found == answer.json() and 0 < seconds < 60


def test_the_content_of_what_is_served(runs: ServedRuns, tmp_path: Path) -> None:
    """By it the job follows runs that change."""
    versions = load_retriever(runs.retrievers["a"]).version, load_ranker(runs.rankers["b"]).version
    found = ModelSources(str(runs.retrievers["a"]), str(runs.rankers["b"]))
    assert content(found) == (*versions, "") and content(ModelSources(found.retriever, str(tmp_path))) is None


def test_history_of_the_sample(client: ServiceClient, runs: ServedRuns) -> None:
    deadline = time.monotonic() + 30
    while not (sample := client.get("/users").json())["complete"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sample["fault"] == "" and len(sample["users"]) == 200
    user = sample["users"][0]
    found, rows = client.answer("/history", user=user), pq.read_table(runs.raw / "interactions.parquet")
    of_user = rows.filter(pc.field("user_id") == user)
    assert found["known"] and set(found["seen"]) <= set(of_user["item_id"].to_pylist()) and len(found["seen"]) >= 12
    liked = [row["item_id"] for row in found["liked"]]
    chosen = of_user.filter(pc.field("chosen") == 1).sort_by([("timestamp", "descending")])["item_id"].to_pylist()
    assert liked and liked == [item for item in chosen if item in liked], "the latest first"
    assert client.answer("/history", user=10**9) == {"known": False, "seen": [], "liked": []}
    assert [one["name"] for one in client.get("/columns").json()] == ["item_id", "kind", "title", "size"]


PAGE_DRIVER = """
<script>
const step = async () => {
  const until = async test => { for (let n = 0; n < 200 && !test(); n++) await new Promise(done => setTimeout(done, 50)); };
  document.getElementById("token").value = "TOKEN";
  document.getElementById("open").click();
  await until(() => document.body.dataset.ready);
  const rows = () => [...document.querySelectorAll("#found tr")].map(row => [...row.cells].map(cell => cell.innerText));
  const liked = document.querySelectorAll("#liked li").length;
  const found = {before: rows(), liked, user: document.getElementById("user").value};
  document.getElementById("add").click();
  document.querySelector(".column").value = "kind";
  document.querySelector(".column").dispatchEvent(new Event("change"));
  document.querySelector(".op").value = "=";
  document.querySelector(".value").value = "kind 3";
  document.querySelector("[type=submit]").click();
  await until(() => JSON.stringify(rows()) !== JSON.stringify(found.before));
  found.filtered = rows();
  document.getElementById("user").value = "123456789";
  document.querySelector("[type=submit]").click();
  await until(() => !document.getElementById("popular").hidden);
  found.popular = rows();
  found.problem = document.getElementById("problem").hidden;
  found.scrolls = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  found.unlabelled = [...document.querySelectorAll("input, select")].filter(one => !one.labels.length).length;
  document.body.textContent = "found " + JSON.stringify(found) + " end";
};
step();
</script>
"""


def test_page_in_a_browser(client: ServiceClient, tmp_path: Path) -> None:
    """A person shows the token, sees a user's liked and recommended items, adds a filter, and asks for an unknown user."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("the page wants Chromium, and there is none here")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--window-size=1100,900"]
    with driven_page(client) as address:
        command = [browser, *options, "--virtual-time-budget=20000", "--dump-dom", address]
        dump = subprocess.run(command, capture_output=True, text=True, timeout=120)
    text = re.search(r"found (\{.*?\}) end", html.unescape(dump.stdout))
    assert text, dump.stderr + dump.stdout[-2000:]
    found = json.loads(text[1])
    assert len(found["before"]) == len(found["popular"]) == 10 and found["liked"] > 5 and found["user"].isdigit()
    assert all(len(row) == 4 and "item " in row[1] and float(row[3]) > 0 for row in found["before"])
    assert found["filtered"] and all("kind 3" in row[1] for row in found["filtered"])
    assert all(row[2:] == ["\u2013", "\u2013"] for row in found["popular"])
    assert found["problem"] and not found["scrolls"] and found["unlabelled"] == 0


@contextlib.contextmanager
def driven_page(client: ServiceClient) -> Iterator[str]:
    """Serves the page with a script that uses it, and passes all other requests on to the service."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            sent = {name: value for name, value in self.headers.items() if name.lower() in ("authorization", "content-type")}
            answer = requests.request(self.command, client.url + self.path, data=body, headers=sent, timeout=30)
            content = answer.content
            if self.path == "/":
                content = content.replace(b"</body>", PAGE_DRIVER.replace("TOKEN", TOKEN).encode() + b"</body>")
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            if "content-security-policy" in answer.headers:
                self.send_header("content-security-policy", answer.headers["content-security-policy"])
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_fuzz_of_requests_finds_no_error_of_the_server(client: ServiceClient) -> None:
    report = FuzzReport()
    fuzz_document(client, 30, report)
    fuzz_bodies(client, 2, report)
    fuzz_connections(client, 1, 5, report)
    assert report.faults == [] and report.statuses[200] > 50 and report.statuses[422] > 50 and report.statuses[408] == 5, report
    client.answer("/recommend", user=3)


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_cannot_be_served_changes_nothing(client: ServiceClient, runs: ServedRuns, tmp_path: Path) -> None:
    before, port = client.get("/readyz").json(), int(client.url.rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=r"--retriever .*ranker_a holds a model that ranks"):
        start_service(ModelSources(str(runs.rankers["a"]), str(runs.rankers["b"])), config(port, tmp_path))
    with pytest.raises(ValueError, match=r"--ranker .*retriever_a holds a model that retrieves"):
        start_service(ModelSources(str(runs.retrievers["b"]), str(runs.retrievers["a"])), config(port, tmp_path))
    shutil.copytree(runs.rankers["b"], tmp_path / "damaged")
    flip_byte(next((tmp_path / "damaged").rglob("*.safetensors")))
    with pytest.raises(JobError, match=r"the models do not start: .*does not fit its checksum"):
        start_service(ModelSources(str(runs.retrievers["b"]), str(tmp_path / "damaged")), config(port, tmp_path))
    with pytest.raises(JobError, match=f"already listens at 127.0.0.1:{port}"):
        start_service(sources(runs, "a"), config(port + 1, tmp_path))
    with pytest.raises(ValueError, match="can be reached from other machines: pass --token-file"):
        start_service(sources(runs, "a"), ServiceConfig(host="0.0.0.0"))
    assert client.get("/readyz").json() == before and client.post("/recommend", user=3).status_code == 200
    assert len([name for name in serve.status().applications if name != INGRESS]) == 3


@pytest.mark.long
def test_killed_replicas_fail_no_request(client: ServiceClient) -> None:
    """Of every deployment the only replica is killed: requests wait, and are sent again."""
    release = client.get("/readyz").json()["release"]
    for application in (application_name(release, "retrieval"), application_name(release, "ranking"), INGRESS):
        with client.load({"user": 3, "k": K, "candidates": CANDIDATES}) as load:
            while len(load.answers) < 20:
                time.sleep(0.05)
            (killed,) = replica_processes(application)
            killed.kill()
            answered = len(load.answers)
            deadline = time.monotonic() + 60
            while len(load.answers) < answered + 50 and time.monotonic() < deadline:
                time.sleep(0.1)
        assert load.failures == [] and len(load.answers) >= answered + 50, application
        assert len({str([item["item"] for item in answer["items"]]) for answer in load.answers}) == 1


def test_models_are_swapped_under_load_without_a_failure(client: ServiceClient, runs: ServedRuns, tmp_path: Path) -> None:
    """Every answer is of one release, with the items that this release's models recommend."""
    port, releases = int(client.url.rsplit(":", 1)[1]), {}
    for letter in "ab":
        models = recommender_of(runs, letter)
        assert models.ranker is not None
        releases[models.retriever.version, models.ranker.version] = direct(models, user_row(runs, 3), [])["item"]
    with client.load({"user": 3, "k": K, "candidates": CANDIDATES}, threads=2) as load:
        start_service(sources(runs, "b"), config(port, tmp_path, seconds=1.0))
    assert load.failures == []
    found = {}
    for answer in load.answers:
        versions = (answer["versions"]["retriever"], answer["versions"]["ranker"])
        assert [item["item"] for item in answer["items"]] == releases[versions]
        found[versions] = found.get(versions, 0) + 1
    assert set(found) == set(releases) and load.answers[-1]["versions"] == client.get("/readyz").json()
    assert len([name for name in serve.status().applications if name != INGRESS]) == 3, "the earlier release is gone"
