"""Flask: Semel in its place, whatever the order: marks, hooks, mounts, redirects, bodies."""

from __future__ import annotations

import functools
import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    g,
    jsonify,
    request,
    session,
    stream_with_context,
)
from flask.views import MethodView, View
from flask_restful import Api, Resource
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from semel import Idempotency, Issuer, Policy, WSGIMiddleware
from semel.core.policy import PolicyError
from semel.web.flask import init_app, operation
from tests.http.harness import until

KEY = {"Idempotency-Key": "k"}
SECRET = "x" * 32


def guarded(**settings: Any) -> tuple[Flask, Idempotency]:
    app, idempotency = Flask("shop"), Idempotency("memory://", **settings)
    init_app(app, idempotency)
    return app, idempotency


def problem(answer: Any) -> str:
    assert answer.content_type == "application/problem+json", (answer.status, answer.text)
    return str(answer.json["type"]).rsplit("/", 1)[1]


class Runs(list[Any]):
    """A view, and how often it ran."""

    def __call__(self, **given: Any) -> Any:
        self.append(given)
        return {"run": len(self)}, 201

    __name__ = "runs"


# --- marks ---------------------------------------------------------------------------------------


def declares_a_view(app: Flask, keys: Idempotency) -> None:
    @app.post("/c")
    @keys.route(required=True)
    def c() -> Any:
        return {}


def declares_below_a_decorator(app: Flask, keys: Idempotency) -> None:
    def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def checked(*given: Any, **named: Any) -> Any:
            return view(*given, **named)

        return checked

    @app.post("/c")
    @login_required
    @login_required
    @keys.route(required=True)
    def c() -> Any:
        return {}


def declares_in_nested_blueprints(app: Flask, keys: Idempotency) -> None:
    inner = Blueprint("inner", __name__)

    @inner.post("")
    @keys.route(required=True)
    def c() -> Any:
        return {}

    outer = Blueprint("outer", __name__)
    outer.register_blueprint(inner, url_prefix="/c")
    app.register_blueprint(outer)


def declares_a_method(app: Flask, keys: Idempotency) -> None:
    class C(MethodView):
        def get(self) -> Any:
            return {}

        @keys.route(required=True)
        def post(self) -> Any:
            return {}

    app.add_url_rule("/c", view_func=C.as_view("c"))


def declares_a_class(app: Flask, keys: Idempotency) -> None:
    @keys.route(required=True)
    class C(View):
        methods = ("GET", "POST")

        def dispatch_request(self) -> Any:
            return {}

    app.add_url_rule("/c", view_func=C.as_view("c"))


def declares_an_inherited_method(app: Flask, keys: Idempotency) -> None:
    class Base(MethodView):
        init_every_request = False

        @keys.route(required=True)
        def post(self) -> Any:
            return {}

    class C(Base):
        pass

    app.add_url_rule("/c", view_func=C.as_view("c"))


def declares_a_resource(app: Flask, keys: Idempotency) -> None:
    class C(Resource):  # type: ignore[misc]
        def get(self) -> Any:
            return {}

        @keys.route(required=True)
        def post(self) -> Any:
            return {}

    Api(app).add_resource(C, "/c")


def declares_a_resource_class_in_a_blueprint(app: Flask, keys: Idempotency) -> None:
    @keys.route(required=True)
    class C(Resource):  # type: ignore[misc]
        def post(self) -> Any:
            return {}

    blueprint = Blueprint("api", __name__)
    Api(blueprint).add_resource(C, "/c")
    app.register_blueprint(blueprint)


def declares_an_endpoint(app: Flask, keys: Idempotency) -> None:
    app.add_url_rule("/c", "c", methods=["POST"])

    @app.endpoint("c")
    @keys.route(required=True)
    def c() -> Any:
        return {}


DECLARATIONS = [value for name, value in globals().items() if name.startswith("declares_")]


@pytest.mark.parametrize("declare", DECLARATIONS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("how", ["before", "after", "twice", "by hand", "by hand behind a proxy"])
def test_a_mark_is_never_lost(declare: Any, how: str) -> None:
    app, keys = Flask("shop"), Idempotency("memory://")
    if how in ("before", "twice"):
        init_app(app, keys)
    declare(app, keys)
    if how in ("after", "twice"):
        init_app(app, keys)
    if "proxy" in how:
        app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    if "hand" in how:
        app.wsgi_app = WSGIMiddleware(app.wsgi_app, keys)  # type: ignore[method-assign]
    client = app.test_client()
    assert problem(client.post("/c")) == "key-missing"
    assert client.post("/c", headers=KEY).status_code == 200
    assert client.post("/c", headers=KEY).headers["Idempotent-Replayed"] == "true"


def test_a_mark_on_a_view_that_is_declared_after_the_first_request() -> None:
    app, keys = guarded()
    app.test_client().post("/c")
    app._got_first_request = False  # as suites do that add views to one application
    declares_a_view(app, keys)
    assert problem(app.test_client().post("/c")) == "key-missing"


@pytest.mark.parametrize("rule", ["/o/<any(a, b):o>", "/o/<string(length=1):o>", "/o/<o>"])
def test_a_mark_is_for_the_paths_of_its_route(rule: str) -> None:
    app, keys = guarded()
    app.add_url_rule(rule, "o", keys.route(required=True)(lambda o: {}), methods=["POST"])
    app.add_url_rule("/o/<path:o>", "other", lambda o: {}, methods=["POST"])
    client = app.test_client()
    assert problem(client.post("/o/a")) == "key-missing"
    assert client.post("/o/a/b").status_code == 200
    if rule != "/o/<o>":
        assert client.post("/o/other").status_code == 200


def test_one_idempotency_serves_the_applications_that_a_factory_makes(tmp_path: Any) -> None:
    keys, blueprint = Idempotency(), Blueprint("shop", __name__)

    @blueprint.post("/c")
    @keys.route(required=True, guarantee="atomic")
    def c() -> Any:
        operation().connection()
        return {}, 201

    def create_app(url: str) -> Flask:
        app = Flask("shop")
        keys.init(url)
        init_app(app, keys)
        app.register_blueprint(blueprint)
        return app

    for number in range(3):
        client = create_app(f"sqlite:///{tmp_path}/{number}.db").test_client()
        assert problem(client.post("/c")) == "key-missing"
        answers = [client.post("/c", headers=KEY) for _ in range(2)]
        assert [a.headers.get("Idempotent-Replayed") for a in answers] == [None, "true"]
    keys.stop()


def test_a_pattern_in_flasks_writing_is_refused_with_the_fix() -> None:
    with pytest.raises(PolicyError, match=r"\{id:int\}"):
        Idempotency("memory://", routes={"POST /orders/<int:id>": Policy(required=True)})


def test_a_second_call_with_other_objects_is_refused() -> None:
    app, keys = guarded()
    init_app(app, keys)
    with pytest.raises(PolicyError, match="protected already"):
        init_app(app, Idempotency("memory://"))
    with pytest.raises(PolicyError, match="protected already"):
        init_app(app, keys, caller=lambda: "ann")
    with pytest.raises(PolicyError, match="scope"):
        init_app(Flask("other"), Idempotency("memory://", scope=lambda r: "x"), caller=lambda: "a")


def test_init_app_and_the_middleware_by_hand_do_not_wait_for_each_other() -> None:
    app, keys = guarded(policy=Policy())
    view = Runs()
    app.add_url_rule("/c", "c", view, methods=["POST"])
    app.wsgi_app = WSGIMiddleware(app.wsgi_app, keys)  # type: ignore[method-assign]
    client = app.test_client()
    answers = [client.post("/c", headers=KEY) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert len(view) == 1


# --- before_request and after_request -----------------------------------------------------------


def test_before_request_functions_let_a_replay_through_or_refuse_it() -> None:
    app, _ = guarded()
    view, allowed = Runs(), {"ann"}
    app.add_url_rule("/c", "c", view, methods=["POST"])

    @app.before_request
    def authenticate() -> Any:
        if request.headers["X-User"] not in allowed:
            return {"error": "who are you?"}, 401
        return None

    client = app.test_client()
    ann = {**KEY, "X-User": "ann"}
    assert client.post("/c", headers={**KEY, "X-User": "bob"}).status_code == 401
    assert client.post("/c", headers=ann).status_code == 201
    assert client.post("/c", headers=ann).headers["Idempotent-Replayed"] == "true"
    allowed.clear()
    refused = client.post("/c", headers=ann)
    assert (refused.status_code, refused.json) == (401, {"error": "who are you?"})
    assert len(view) == 1


def test_before_request_functions_of_a_blueprint_come_before_the_replay() -> None:
    app, _ = guarded()
    blueprint = Blueprint("api", __name__)
    view, open_ = Runs(), [True]
    blueprint.add_url_rule("/c", "c", view, methods=["POST"])
    blueprint.before_request(lambda: None if open_ else abort(403))
    app.register_blueprint(blueprint)
    client = app.test_client()
    assert client.post("/c", headers=KEY).status_code == 201
    open_.clear()
    assert client.post("/c", headers=KEY).status_code == 403


def test_a_replay_carries_the_cors_headers_of_its_own_request() -> None:
    app, _ = guarded()
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])

    @app.after_request
    def cors(response: Response) -> Response:  # what Flask-CORS does
        response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        response.headers.add("Vary", "Origin")
        return response

    client = app.test_client()
    for origin in ("https://a.example", "https://b.example"):
        answer = client.post("/c", headers={**KEY, "Origin": origin})
        assert (answer.status_code, answer.json) == (201, {"run": 1})
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [origin]
        assert answer.headers.getlist("Vary") == ["Origin"]
    refused = client.post("/c", headers={**KEY, "Origin": "https://c.example"}, json={"other": 1})
    assert problem(refused) == "key-reused"
    assert refused.headers["Access-Control-Allow-Origin"] == "https://c.example"


def test_after_request_functions_find_in_a_replay_what_they_found_at_first() -> None:
    app, _ = guarded()
    found: list[Any] = []
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])

    @app.after_request
    def wrap(response: Response) -> Response:
        found.append(response.get_json())
        response.set_data(b'{"data": %s}' % response.get_data())
        response.headers.add("X-Wrapped", "yes")
        return response

    client = app.test_client()
    answers = [client.post("/c", headers=KEY) for _ in range(3)]
    assert [a.json for a in answers] == [{"data": {"run": 1}}] * 3
    assert [a.headers.getlist("X-Wrapped") for a in answers] == [["yes"]] * 3
    assert [a.headers["Content-Length"] for a in answers] == [
        answers[0].headers["Content-Length"]
    ] * 3
    assert found == [{"run": 1}] * 3


def test_a_stream_too_is_recorded_as_the_view_gave_it() -> None:
    app, _ = guarded()

    @app.post("/c")
    def c() -> Any:
        def rows() -> Iterator[str]:
            yield from ("a", "é", request.args["last"])

        return Response(stream_with_context(rows()), mimetype="text/csv")

    @app.after_request
    def shout(response: Response) -> Response:
        chunks = response.iter_encoded() if not response.is_sequence else [response.get_data()]
        response.response = (chunk.upper() for chunk in chunks)
        return response

    client = app.test_client()
    for replayed in (None, "true"):
        answer = client.post("/c?last=z", headers=KEY)
        assert answer.data == b"A\xc3\xa9Z"
        assert answer.headers.get("Idempotent-Replayed") == replayed


def test_headers_that_the_view_has_set_by_after_this_request_are_replayed() -> None:
    app, _ = guarded()

    @app.post("/c")
    def c() -> Any:
        @after_this_request
        def total(response: Response) -> Response:
            response.headers["X-Total"] = "7"
            return response

        return {}

    client = app.test_client()
    assert [client.post("/c", headers=KEY).headers["X-Total"] for _ in range(2)] == ["7", "7"]


def test_a_status_that_an_after_request_function_gives_is_what_counts() -> None:
    app, _ = guarded()
    view, fails = Runs(), [True]
    app.add_url_rule("/c", "c", view, methods=["POST"])

    @app.after_request
    def commit(response: Response) -> Response:
        return app.make_response(({"error": "not committed"}, 503)) if fails else response

    client = app.test_client()
    assert client.post("/c", headers=KEY).status_code == 503
    fails.clear()
    assert client.post("/c", headers=KEY).json == {"run": 2}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", ["teardown_request", "teardown_appcontext"])
def test_teardown_functions_come_before_the_record(kind: str, streams: bool) -> None:
    app, keys = guarded()
    seen: list[str] = []
    keys.outcomes.observers += (lambda passed: seen.append("recorded"),)

    @app.post("/c")
    def c() -> Any:
        if not streams:
            return {}
        return Response(stream_with_context(iter(["a", "b"])))

    getattr(app, kind)(lambda error: seen.append("committed"))
    Client(app).post("/c", headers=KEY).close()
    assert seen[0] == "committed"  # Flask calls them once more at the end of a stream
    assert (seen[-1], seen.count("recorded")) == ("recorded", 1)


def test_a_teardown_function_that_raises_frees_the_key() -> None:
    app, _ = guarded()
    view, fails = Runs(), [True]
    app.add_url_rule("/c", "c", view, methods=["POST"])

    @app.teardown_request
    def commit(error: BaseException | None) -> None:
        if fails:
            raise RuntimeError("not committed")

    client = app.test_client()
    with pytest.raises(RuntimeError, match="not committed"):
        client.post("/c", headers=KEY)
    fails.clear()
    assert client.post("/c", headers=KEY).json == {"run": 2}


def test_the_session_of_a_replay_is_its_own() -> None:
    app, _ = guarded()
    app.secret_key = SECRET
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])

    @app.before_request
    def count() -> None:
        session["seen"] = session.get("seen", 0) + 1

    client = app.test_client()
    for _ in range(2):
        client.post("/c", headers=KEY)
    with client.session_transaction() as kept:
        assert kept["seen"] == 2


# --- the request's body --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 200_000, 3_000_000])
@pytest.mark.parametrize("reads", ["nothing", "json", "data", "the stream", "a part", "a line"])
def test_a_before_request_function_and_the_view_read_the_same_body(reads: str, size: int) -> None:
    app, _ = guarded()
    bodies: list[bytes] = []

    @app.before_request
    def look() -> None:
        g.seen = b""
        if reads == "json":
            request.get_json()
        elif reads == "data":
            request.get_data()
        elif reads == "the stream":
            g.seen = request.stream.read()
        elif reads == "a part":
            g.seen = request.stream.read(5)
        elif reads == "a line":
            g.seen = request.stream.readline(7)

    @app.post("/c")
    def c() -> Any:
        bodies.append(g.seen + (request.get_data() if not g.seen else request.stream.read()))
        return {}, 201

    client = app.test_client()
    body = b'"%s"' % (b"x" * size)
    kind = {"content_type": "application/json"}
    first = client.post("/c", headers=KEY, data=body, **kind)
    assert (first.status_code, bodies) == (201, [body])
    assert client.post("/c", headers=KEY, data=body, **kind).headers["Idempotent-Replayed"]
    other = b'"%sy"' % (b"x" * (size - 1))
    assert problem(client.post("/c", headers=KEY, data=other, **kind)) == "key-reused"
    assert len(bodies) == 1


def test_a_form_that_csrf_protection_has_read_is_compared_and_reaches_the_view() -> None:
    app, _ = guarded()
    app.before_request(lambda: None if request.form["token"] == "t" else abort(400))

    @app.post("/c")
    def c() -> Any:
        return {"item": request.form["item"], "file": request.files["file"].read().decode()}

    client = app.test_client()

    def order(item: str) -> Any:
        data = {"token": "t", "item": item, "file": (io.BytesIO(b"content"), "f.txt")}
        return client.post("/c", headers=KEY, data=data)

    answers = [order("tea"), order("tea")]
    assert [a.json for a in answers] == [{"item": "tea", "file": "content"}] * 2
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert problem(order("milk")) == "key-reused"


def test_a_stream_may_read_the_request_while_it_is_sent() -> None:
    app, _ = guarded()

    @app.post("/c")
    def c() -> Any:
        return Response(stream_with_context(iter(lambda: request.stream.read(3), b"")))

    client = app.test_client()
    assert [client.post("/c", headers=KEY, data=b"abcdefg").data for _ in range(2)] == [
        b"abcdefg"
    ] * 2


# --- mounts, prefixes, redirects -----------------------------------------------------------------


def test_a_retry_through_a_slash_redirect_gets_its_response() -> None:
    app, _ = guarded(policy=Policy(required=True))
    view = Runs()
    app.add_url_rule("/c/", "c", view, methods=["POST"])
    client = app.test_client()
    redirected = client.post("/c", headers=KEY)
    assert (redirected.status_code, redirected.headers["Location"]) == (308, "http://localhost/c/")
    for path in ("/c", "/c/", "/c"):
        answer = client.post(path, headers=KEY, json={}, follow_redirects=True)
        assert (answer.status_code, answer.json) == (201, {"run": 1})
    assert client.post("/c", json={}, follow_redirects=True).status_code == 400
    assert len(view) == 1


def test_what_flask_answers_by_itself_takes_no_key() -> None:
    app, _ = guarded(policy=Policy(required=True))
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])
    client = app.test_client()
    assert client.post("/nowhere", headers=KEY).status_code == 404
    assert client.post("/nowhere").status_code == 404
    assert client.patch("/c", headers=KEY).status_code == 405
    assert client.post("/c", headers=KEY).status_code == 201


@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize("root", [None, "/api"])
def test_issued_and_bound_keys_work_where_the_application_is_mounted(
    prefix: str, root: str | None
) -> None:
    issuer = Issuer(SECRET)
    app, _ = guarded(issuer=issuer, policy=Policy(required="issued"))
    if root is not None:
        app.config["APPLICATION_ROOT"] = root
    view = Runs()
    app.add_url_rule("/c", "c", view, methods=["POST"])
    client = Client(DispatcherMiddleware(Flask("root"), {prefix: app}) if prefix else app)
    issued = client.post(f"{prefix}/idempotency-keys", json={"count": 2})
    assert issued.status_code == 201, issued.text
    for key in issued.json["keys"]:  # type: ignore[index]
        assert client.post(f"{prefix}/c", headers={"Idempotency-Key": key}).status_code == 201
    for route in {"POST /c", f"POST {prefix}/c"}:
        (key,) = issuer.issue("anonymous", route=route).keys
        assert client.post(f"{prefix}/c", headers={"Idempotency-Key": key}).status_code == 201
    (elsewhere,) = issuer.issue("anonymous", route="POST /d").keys
    assert (
        problem(client.post(f"{prefix}/c", headers={"Idempotency-Key": elsewhere})) == "key-invalid"
    )
    assert problem(client.post(f"{prefix}/c", headers=KEY)) == "key-invalid"
    assert client.get(f"{prefix}/idempotency-keys").status_code == 405


def test_issuing_keys_is_authenticated_as_everything_is() -> None:
    app, _ = guarded(issuer=Issuer(SECRET))
    app.before_request(lambda: None if "X-User" in request.headers else abort(401))
    client = app.test_client()
    assert client.post("/idempotency-keys").status_code == 401
    assert len(client.post("/idempotency-keys", headers={"X-User": "a"}).json["keys"]) == 1  # type: ignore[index]


def test_a_next_key_comes_with_each_response() -> None:
    app, _ = guarded(issuer=Issuer(SECRET), policy=Policy(next_key=True))
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])
    client = app.test_client()
    first = client.post("/c")
    answers = [
        client.post("/c", headers={"Idempotency-Key": first.headers["Idempotency-Key"]})
        for _ in range(2)
    ]
    fresh = [a.headers.getlist("Idempotency-Key") for a in (first, *answers)]
    assert [len(keys) for keys in fresh] == [1, 1, 1]
    assert len({key for keys in fresh for key in keys}) == 3
    assert [a.json for a in answers] == [{"run": 2}] * 2


def test_wrappers_before_and_after_leave_semel_where_it_is() -> None:
    app, keys = Flask("shop"), Idempotency("memory://")
    view = Runs()
    app.add_url_rule("/c", "c", view, methods=["POST"])

    def marked(inner: Any, name: str) -> Any:
        def wrapper(environ: Any, start_response: Any) -> Any:
            def start(status: str, headers: Any, *more: Any) -> Any:
                return start_response(status, [*headers, (name, "1")], *more)

            return inner(environ, start)

        return wrapper

    app.wsgi_app = marked(app.wsgi_app, "X-Inside")  # type: ignore[method-assign]
    init_app(app, keys)
    app.wsgi_app = marked(ProxyFix(app.wsgi_app), "X-Outside")  # type: ignore[method-assign]
    client = app.test_client()
    for _ in range(2):
        answer = client.post("/c", headers=KEY)
        assert answer.json == {"run": 1}
        assert answer.headers.getlist("X-Inside") == answer.headers.getlist("X-Outside") == ["1"]
    assert answer.headers["Idempotent-Replayed"] == "true"


def test_an_application_that_is_mounted_within_has_its_own_rules() -> None:
    app, _ = guarded()
    inner, _ = guarded()
    views = [Runs(), Runs()]
    app.add_url_rule("/c", "c", views[0], methods=["POST"])
    inner.add_url_rule("/c", "c", views[1], methods=["POST"])
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/in": inner})  # type: ignore[method-assign]
    client = app.test_client()
    for _ in range(2):
        assert client.post("/c", headers=KEY).json == {"run": 1}
        assert client.post("/in/c", headers=KEY).json == {"run": 1}


def test_a_view_that_calls_its_own_service_is_no_repeat_of_itself() -> None:
    app, _ = guarded()
    view = Runs()
    app.add_url_rule("/c", "c", view, methods=["POST"])

    @app.post("/both")
    def both() -> Any:
        inside = app.test_client().post("/c", headers={"Idempotency-Key": "inside"})
        return {"inside": inside.json, "attempt": operation().attempt}

    client = app.test_client()
    expected = {"inside": {"run": 1}, "attempt": 1}
    assert [client.post("/both", headers=KEY).json for _ in range(2)] == [expected] * 2
    assert len(view) == 1


def test_a_request_that_bypasses_wsgi_app_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    app, _ = guarded()
    app.add_url_rule("/c", "c", Runs(), methods=["POST"])
    with app.test_request_context("/c", method="POST"):
        assert app.full_dispatch_request().status_code == 201
    keyed = app.test_request_context("/c", method="POST", headers=KEY)
    with keyed, pytest.raises(RuntimeError, match=r"app\.wsgi_app"):
        app.preprocess_request()


def test_get_requests_and_jsonify_are_untouched() -> None:
    app, _ = guarded(policy=Policy(required=True))
    app.add_url_rule("/g", "g", lambda: jsonify(1))
    answer = app.test_client().get("/g")
    assert (answer.json, answer.headers.get("Vary")) == (1, None)


ABANDONS = """
import os, sys
from datetime import timedelta
from flask import Flask, request
from semel import Idempotency, Policy
from semel.web.flask import init_app, operation

def make(path, dies):
    app = Flask("shop")
    rules = Policy(remember_request=True, lease=timedelta(seconds=0.5))
    init_app(app, Idempotency(f"sqlite:///{path}", policy=rules, complete_every=None))
    app.bodies = []

    @app.post("/c/<name>")
    def c(name):
        if dies:
            os._exit(9)
        app.bodies.append((name, request.get_data(), operation().attempt))
        return "done", 201

    return app

if __name__ == "__main__":
    app = make(sys.argv[1], True)
    app.test_client().post("/c/tea", headers={"Idempotency-Key": "k"}, data=b"body")
"""


def test_what_a_crash_has_abandoned_is_completed_through_flask(tmp_path: Any) -> None:
    script, database = tmp_path / "abandons.py", tmp_path / "shop.db"
    script.write_text(ABANDONS, "utf-8")
    assert subprocess.run([sys.executable, script, database], check=False).returncode == 9
    made: dict[str, Any] = {"__name__": "abandons"}
    exec(ABANDONS, made)
    app = made["make"](database, False)
    client = app.test_client()
    client.get("/")  # it starts with its first request
    guard = app.extensions["semel"]
    until(lambda: guard.complete_abandoned(idle=0) == 1)
    assert app.bodies == [("tea", b"body", 2)]
    answer = client.post("/c/tea", headers=KEY, data=b"body")
    assert (answer.text, answer.headers["Idempotent-Replayed"]) == ("done", "true")
