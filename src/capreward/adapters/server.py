"""A suite behind HTTP: one process holds the judge and its cache, any number of trainers and ranks ask it (docs/serving.md).

Scoring runs in the suite's own loop, so that the server answers while a judge computes. Nothing here does arithmetic on rewards.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers, whose types are local to `make_app`.

import asyncio
import ipaddress
import json
import logging
import math
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from capreward import __version__
from capreward.adapters.door import GONE, Door, GoneError, Metrics, while_connected
from capreward.adapters.groups import Groups, Place
from capreward.adapters.openrlhf import END_TOKENS, logs_of, response_of
from capreward.adapters.wire import (
    Cell,
    Faults,
    Health,
    Problem,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoredRollout,
    ScoreRequest,
    clean,
    usable_token,
)
from capreward.coroutines import start
from capreward.data import digest
from capreward.errors import ComponentError, InputError, TooManyMissingError, missing_extra, require_positive
from capreward.records import Item, Rollout
from capreward.scoring import ScoreTable
from capreward.suite import RewardSuite

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("capreward.server")


def make_app(
    suite: RewardSuite,
    *,
    items: Sequence[Item] = (),
    token: str | None = None,
    max_body: int = 32 * 10**6,
    max_rollouts: int = 1024,
    timeout: float = 100.0,
    group_size: int | None = None,
    group_timeout: float = 60.0,
    end_tokens: Sequence[str] = END_TOKENS,
) -> "FastAPI":
    """The suite as a FastAPI application; `serve` runs it.

    Args:
        suite: scores.
        items: what requests may name by id.
        token: needed for everything but /health; None: no token.
        max_body: bytes of a request, at most.
        max_rollouts: of a request, at most.
        timeout: seconds for a request's body to come, and again for scoring it. With `group_timeout` it stays below the 180
            that OpenRLHF waits.
        group_size: rollouts of an item and prompt that /get_reward waits for, to answer with the decoupled scalar; None: it
            answers each at once with the weighted mean of its scores.
        group_timeout: seconds that a group waits for its last rollout after the first has been scored.
        end_tokens: cut off the end of a response.

    Raises:
        InputError: a limit that is not above 0, an empty token, two items with one id.
        MissingExtraError: without the extra `server`.
    """
    try:
        from fastapi import FastAPI, HTTPException, Request, Response, Security
        from fastapi.responses import PlainTextResponse
        from fastapi.security import HTTPBearer
    except ImportError as error:
        raise missing_extra("The server", "server", error) from error

    require_positive(
        "server", max_body=max_body, max_rollouts=max_rollouts, timeout=timeout, group_size=group_size,
        group_timeout=group_timeout,
    )  # fmt: skip
    if not math.isfinite(timeout + group_timeout):
        raise InputError(f"server: got timeout={timeout} and group_timeout={group_timeout}, expected finite numbers")
    token = usable_token(token)
    known = {item.id: item for item in items}
    if len(known) < len(items):
        raise InputError("items: two have the same id; item ids have to be unique")
    groups = Groups(suite.weights, group_timeout)
    metrics = Metrics(suite.judges, lambda: groups.waiting)

    refused: dict[int | str, dict[str, Any]] = {}
    secured = []
    if token is not None:  # for the page alone: the door has seen the token before
        refused[401] = {"model": Problem, "description": "Wrong or no token"}
        secured.append(Security(HTTPBearer(auto_error=False, description="The text in CAPREWARD_TOKEN")))
    responses: dict[int | str, dict[str, Any]] = {
        **refused,
        413: {"model": Problem, "description": "The body is too large"},
        422: {"model": Faults, "description": "The request cannot be used; `loc` names the field"},
        503: {"model": Problem, "description": "A component broke, or too many scores are missing"},
        504: {"model": Problem, "description": "Not scored in time"},
    }
    app = FastAPI(title="capreward", version=__version__, description=__doc__, redoc_url=None)
    app.state.suite, app.state.groups, app.state.token, app.state.timeout = suite, groups, token, timeout

    async def scored(rollouts: Sequence[Rollout]) -> ScoreTable:
        """The suite's table, made in its own loop; what takes too long, or is not wanted any more, is cancelled there."""
        async with asyncio.timeout(timeout):
            table = await asyncio.wrap_future(start(suite.ascore(rollouts, part=True)))
        metrics.scored(table)
        if suite.max_missing < 1:  # else it would only log, once a request, what the metrics tell
            suite.check_missing(table)
        return table

    def item_of(sent: Item | str, others: Mapping[str, Item]) -> Item:
        if isinstance(sent, Item):
            return sent
        item = others.get(sent, known.get(sent))
        if item is None:
            raise InputError(f"item: got id {sent!r}, expected the id of an item that the server or the request holds")
        return item

    def checked_count(field: str, count: int) -> None:
        if count > max_rollouts:
            raise InputError(f"{field}: got {count}, expected at most {max_rollouts} in a request")

    @app.get("/health", tags=["about"])
    async def health() -> Health:
        """Whether the server answers. Needs no token."""
        return Health()

    @app.get("/metrics", tags=["about"], dependencies=secured, responses=refused, response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/score", tags=["scoring"], dependencies=secured, responses=responses, response_model=ScoreAnswer)
    async def score(request: Request, sent: ScoreRequest) -> Response:
        """Scores, gates, reasons and advantages of captions."""
        checked_count("rollouts", len(sent.rollouts))
        if sent.group_size is not None and sent.estimator != "gdpo":
            raise InputError(f"estimator: got {sent.estimator!r}, expected 'gdpo' with group_size")
        others: dict[str, Item] = {}
        for new in sent.items:
            if not new.same_as(others.setdefault(new.id, new)):
                raise InputError(f"items: two different items have the id {new.id!r}; item ids have to be unique")
        rollouts = []
        for one in sent.rollouts:
            item = item_of(one.item, others)
            group = item.id if one.group is None else one.group
            # for a ledger: rollouts of a group that come in several requests are of one batch
            batch = {} if sent.group_size is None else {"batch": f"group {group}"}
            rollouts.append(
                Rollout(**{**dict(one), "item": item, "group": group, "metadata": {**batch, **one.metadata}})
            )

        async def work() -> ScoreAnswer:
            table = await scored(rollouts)
            if sent.group_size is None:
                places = _in_request(table, sent.estimator)
            else:
                keys = [("score", rollout.group) for rollout in rollouts]
                places = await groups.places(keys, table.values, sent.group_size)
            return _answer(table, rollouts, places)

        answer = await while_connected(request.receive, work())
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/get_reward", tags=["scoring"], dependencies=secured, responses=responses, response_model=RewardAnswer)
    async def get_reward(request: Request, sent: RewardRequest) -> Response:
        """One reward a response, in the form of OpenRLHF's remote reward model."""
        checked_count("query", len(sent.query))
        if not len(sent.query) == len(sent.prompts) == len(sent.labels):
            counts = len(sent.query), len(sent.prompts), len(sent.labels)
            raise InputError("query, prompts, labels: got {} {} {}, expected as many of each".format(*counts))
        captions = [
            response_of(query, prompt, end_tokens) for query, prompt in zip(sent.query, sent.prompts, strict=True)
        ]
        labels = [item_of(label, {}) for label in sent.labels]
        names = [f"{item.id}/{digest(prompt)}" for item, prompt in zip(labels, sent.prompts, strict=True)]
        rollouts = [
            Rollout(item=item, caption=caption, group=name, metadata={} if group_size is None else {"batch": name})
            for item, caption, name in zip(labels, captions, names, strict=True)
        ]

        async def work() -> RewardAnswer:
            table = await scored(rollouts)
            if group_size is None:
                if unscored := np.flatnonzero(np.isnan(table.total())).tolist():
                    reasons = [f"{name}: {table.why(unscored[0], k)}" for k, name in enumerate(table.names)]
                    raise HTTPException(503, f"query[{unscored[0]}] has no score at all: {'; '.join(reasons)}")
                rewards = table.total().tolist()
            else:
                keys = [("get_reward", name) for name in names]
                rewards = [place.advantage for place in await groups.places(keys, table.values, group_size)]
            return RewardAnswer(rewards=rewards, scores=rewards, extra_logs=logs_of(table))

        answer = await while_connected(request.receive, work())
        return Response(answer.model_dump_json(), media_type="application/json")

    _answer_errors(app, timeout)
    paths = {getattr(route, "path", "") for route in app.routes}
    app.add_middleware(Door, token=token, max_body=max_body, timeout=timeout, metrics=metrics, paths=paths)
    return app


def _answer_errors(app: "FastAPI", timeout: float) -> None:
    """What the app answers where a handler raises: 422 for what came in, 503 and 504 for what became of it here."""
    from fastapi import Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def problem(status: int, error: object, headers: Mapping[str, str] | None = None) -> JSONResponse:
        if status >= 500:
            log.warning("status=%d error=%s", status, json.dumps(str(error)))
        return JSONResponse({"detail": clean(str(error))}, status, headers)

    def faults(*found: tuple[Sequence[str | int], str, str]) -> JSONResponse:
        detail = [{"loc": clean(list(loc)), "msg": clean(message), "type": kind} for loc, message, kind in found]
        return JSONResponse({"detail": detail}, 422)

    @app.exception_handler(RequestValidationError)
    async def _refused(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may be an image, or no JSON at all.
        return faults(
            *((fault["loc"], fault["msg"].removeprefix("Value error, "), fault["type"]) for fault in error.errors())
        )

    @app.exception_handler(InputError)
    async def _unusable(_: Request, error: InputError) -> JSONResponse:
        return faults((["body"], str(error), "input_error"))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # a body that Python's parser gives up on: nested too deeply, endless numbers
            return faults((["body"], str(error.detail), "json_invalid"))
        return problem(error.status_code, error.detail, error.headers)

    @app.exception_handler(TooManyMissingError)
    @app.exception_handler(ComponentError)
    async def _broken(_: Request, error: Exception) -> JSONResponse:
        return problem(503, error)

    @app.exception_handler(TimeoutError)
    async def _late(_: Request, __: Exception) -> JSONResponse:
        return problem(504, f"not scored within {timeout:g} s; send fewer rollouts, or raise --timeout")

    @app.exception_handler(GoneError)
    async def _gone(_: Request, __: Exception) -> Response:
        return Response(status_code=GONE)


def serve(app: "FastAPI", *, host: str = "127.0.0.1", port: int = 8900) -> None:
    """Runs an app of `make_app` until SIGTERM or Ctrl-C.

    Then it takes no more requests, answers the rollouts that wait for their group with what has come, finishes the requests in
    flight, and returns.

    Args:
        app: from `make_app`.
        host: address to listen on; one that others can reach needs an app with a token.
        port: 0 takes a free one, which the log names.

    Raises:
        InputError: an address that others can reach without a token, or one that cannot be listened on.
        MissingExtraError: without the extra `server`.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("The server", "server", error) from error

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            # uvicorn's own raises the signal again when all is done, and the exit status would not be 0.
            self.force_exit = self.should_exit
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.groups.close()
            await super().shutdown(sockets)

    with _listen(host, port, app.state.token) as listener:
        address, port = listener.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        suite: RewardSuite = app.state.suite
        log.info(
            "capreward %s serves %s with %s on %s, %s; docs at %s/docs",
            __version__,
            ", ".join(suite.names),
            ", ".join(f"judge {judge.name}" for judge in suite.judges) or "no judge",
            url,
            "token needed" if app.state.token else "no token",
            url,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(2 * app.state.timeout) + 5,  # longer than any request
        )
        Server(config).run(sockets=[listener])


def check_address(host: str, port: int, token: str | None) -> tuple[Any, Any]:
    """Family and address to listen on.

    Raises:
        InputError: an address that is none, or that others can reach while there is no token.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(f"host, port: got {host!r}, {port}, expected an address of this machine ({error})") from None
    if token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"host: got {host!r}, which others can reach, without a token; expected a loopback address such as 127.0.0.1, "
            "or set the environment variable CAPREWARD_TOKEN to a secret"
        )
    return family, address


def _listen(host: str, port: int, token: str | None) -> socket.socket:
    family, address = check_address(host, port, token)
    try:
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(f"host, port: cannot listen on {host}:{port} ({error})") from None


def _in_request(table: ScoreTable, estimator: str) -> list[Place]:
    sizes = Counter(table.groups.tolist())
    try:
        advantages = table.advantages(estimator).tolist()
    except ValueError as error:
        raise InputError(f"estimator {estimator!r}: {error}") from None
    return [Place(a, sizes[group]) for a, group in zip(advantages, table.groups.tolist(), strict=True)]


def _answer(table: ScoreTable, rollouts: Sequence[Rollout], places: Sequence[Place]) -> ScoreAnswer:
    total = table.total()
    return ScoreAnswer(
        components=list(table.names),
        rollouts=[
            ScoredRollout(
                id=table.ids[row],
                group=rollout.group,
                item=rollout.item.id,
                scores={name: Cell(**clean(table.cell(row, k))) for k, name in enumerate(table.names)},
                total=clean(float(total[row])),
                **asdict(place),
            )
            for row, (rollout, place) in enumerate(zip(rollouts, places, strict=True))
        ],
        missing={name: dict(counts) for name, counts in table.missing_by_reason().items()},
    )
