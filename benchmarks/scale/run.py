"""100,000 items through Ray Data on one machine, with everything killed on the way; and two workers beside one.

    .venv/bin/python benchmarks/scale/run.py            # about 6 minutes; writes results/cpu.json
    .venv/bin/python benchmarks/scale/run.py --quick    # 400 items; prints one line

`Captions` asks a scripted server, a process of its own that speaks OpenAI's protocol on loopback, thinks for a fixed time and
then writes a caption that depends on the image, so that every caption can be checked; a few images it refuses for good. The
judge is `make_judge`'s. Twice the server is killed (SIGKILL) and comes back on the same port; once the driver is, and another is
started at once, while the workers of the first may still be writing. Then `again=True` tries the dead letters of the outages.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import finish

IMAGES = 1000
"""Different ones, more than a shard has entries: the same request is put only once in a shard."""
SIDE = 64
WORDS = "a white cup stands on the old brown table next to one small silver spoon and two green apples".split()
REFUSED = 200
"""One image in so many, by its hash."""


def wrote(encoded: bytes) -> str | None:
    """What the server says of an image in base64; None if it refuses."""
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return None if int(digest, 16) % REFUSED == 0 else f"Image {digest}: {' '.join(WORDS * 6)}."


# The server


class Chat(asyncio.Protocol):
    """One connection of HTTP/1.1, as bare as it may be: the cores are for the workers."""

    think = 0.02
    first = last = 0.0
    asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport, self.data = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.data[:end]).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.data) < end + 4 + length:
                return
            body = bytes(self.data[end + 4 : end + 4 + length])
            del self.data[: end + 4 + length]
            if head.startswith(b"get"):
                self.answer({"asked": Chat.asked, "seconds": Chat.last - Chat.first, "cpu": time.process_time()})
                Chat.asked, Chat.first = 0, 0.0
            else:
                Chat.first = Chat.first or time.monotonic()
                asyncio.get_running_loop().call_later(self.think, self.complete, body)

    def complete(self, body: bytes) -> None:
        image = body.partition(b";base64,")[2].partition(b'"')[0]
        text = wrote(image)
        message = {"role": "assistant", "content": text or ""}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if text else "content_filter"}
        usage = {"prompt_tokens": 300, "completion_tokens": 130, "total_tokens": 430}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted"}
        self.answer({**about, "choices": [choice], "usage": usage})
        Chat.asked += 1
        Chat.last = time.monotonic()

    def answer(self, said: Mapping[str, Any]) -> None:
        data = json.dumps(said).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
        self.transport.write(head + data)


async def serve(port: int, think: float) -> None:
    Chat.think = think
    server = await asyncio.get_running_loop().create_server(Chat, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    await server.serve_forever()


class Server:
    """The server's process."""

    def __init__(self, think: float) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.think = think
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--server", str(self.port), str(self.think)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", "the server did not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def asked(self) -> dict[str, float]:
        """Requests since the last call, the seconds from the first one's arrival to the last answer, and CPU seconds so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/") as reply:
            said: dict[str, float] = json.load(reply)
        return said


# The driver: a process that starts Ray and does one run after the other


@dataclass
class Job:
    """One call of `run_on_ray`."""

    source: str
    out: str
    port: int
    workers: int = 2
    concurrency: int = 64
    """Requests that a worker has under way."""
    shard_size: int = 256
    attempts: int | None = None
    """What `make_judge` sets when left out."""
    again: bool = False


def make_stage(port: int, concurrency: int, attempts: int | None) -> Any:
    from capreward.curate.captions import Captions
    from capreward.judges.named import make_judge
    from capreward.judges.openai import OpenAIJudge
    from capreward.judges.wrap import Limited, Retried

    url = f"http://127.0.0.1:{port}/v1"
    if attempts is None:
        return Captions(make_judge("openai:scripted", base_url=url, images=True, concurrency=concurrency))
    judge = OpenAIJudge("scripted", base_url=url, images=True)
    return Captions(Retried(Limited(judge, concurrency), attempts=attempts))


def drive(jobs: Sequence[Job], folder: str) -> None:
    import ray

    from capreward.curate.ray import run_on_ray
    from capreward.curate.sources import open_source

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=80_000_000,
    )
    for job in jobs:
        print(json.dumps({"started": time.time()}), flush=True)
        began = time.perf_counter()
        summary = run_on_ray(
            functools.partial(make_stage, job.port, job.concurrency, job.attempts),
            open_source(job.source),
            job.out,
            shard_size=job.shard_size,
            workers=job.workers,
            again=job.again,
            progress=False,
        )
        said = {"items": summary.items, "dead": dict(summary.dead), "seconds": time.perf_counter() - began}
        said |= {"calls": sum(usage.calls for usage in summary.usage.values()), "finished": summary.finished}
        print(json.dumps(said), flush=True)
    ray.shutdown()


class Driver:
    """The driver's process, and those of Ray below it."""

    def __init__(self, jobs: Sequence[Job], scratch: Path) -> None:
        import psutil

        self.folder = tempfile.mkdtemp(dir=scratch)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        env = {
            **os.environ,
            "HOME": self.folder,  # where Ray keeps a token
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            # binds to loopback where Ray would make 127.0.0.1 the machine's address: meant for Windows, read everywhere
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_worker_niceness": "0",  # 15 otherwise: whatever else the machine does would be measured
            "RAY_prestart_worker_first_driver": "0",  # processes that nobody needs
        }
        command = [sys.executable, __file__, "--drive", json.dumps([asdict(job) for job in jobs]), self.folder]
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=self.errors, text=True, start_new_session=True
        )
        self.seen = psutil.Process(self.process.pid)
        self.cpu: dict[int, tuple[str, float]] = {}
        """By process, also of those that have ended: what it is, and its CPU seconds."""

    def line(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"the driver ended with {self.process.returncode}:\n{self.errors.read()[-4000:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    def look(self) -> dict[str, float]:
        """Megabytes of resident memory of the driver, its workers, and Ray's own processes."""
        import psutil

        megabytes = {"driver": 0.0, "workers": 0.0, "ray": 0.0}
        workers = set()
        with suppress(psutil.NoSuchProcess):
            for process in (self.seen, *self.seen.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    title = " ".join(process.cmdline()[:1])
                    kind = "driver" if process.pid == self.process.pid else "ray"
                    if title.startswith("ray::") and "_Worker" in title:
                        if process.ppid() in workers:
                            continue  # a fork that is about to become something else, with the same pages
                        workers.add(process.pid)
                        kind = "workers"
                    times = process.cpu_times()
                    self.cpu[process.pid] = kind, times.user + times.system
                    megabytes[kind] += process.memory_info().rss / 1e6
        return megabytes

    def cpu_of(self, kind: str) -> float:
        return sum(seconds for of, seconds in self.cpu.values() if of == kind)

    def open_doors(self) -> list[str]:
        """Addresses other than loopback that any of its processes listens on."""
        import psutil

        found = []
        for process in (self.seen, *self.seen.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                for each in process.net_connections("inet"):
                    if each.status == psutil.CONN_LISTEN and each.laddr.ip not in (
                        "127.0.0.1",
                        "::ffff:127.0.0.1",
                        "::1",
                    ):
                        found.append(f"{process.name()} {each.laddr.ip}")
        return found

    def kill(self) -> list[Any]:
        """SIGKILL for the driver alone; the processes below it, which Ray has to end by itself."""
        import psutil

        below: list[Any] = []
        with suppress(psutil.NoSuchProcess):
            below = self.seen.children(recursive=True)
        self.process.kill()
        self.process.wait()
        return below

    def close(self) -> None:
        """Nothing of it stays, whatever state it is in."""
        import psutil

        if self.process.poll() is None:
            for process in self.kill():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.errors.close()


# What is measured


def make_items(folder: Path, count: int) -> Path:
    """A .jsonl file of items and the images it names."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for n in range(min(count, IMAGES)):
        encoded = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(encoded, "png")
        (folder / "images" / f"{n:04d}.png").write_bytes(encoded.getvalue())
    path = folder / "items.jsonl"
    rows = ({"id": f"item-{n:06d}", "image": f"images/{n % IMAGES:04d}.png"} for n in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some_of(path: Path, count: int) -> Path:
    """The first rows, in a file beside it."""
    some = path.with_name(f"first-{count}.jsonl")
    some.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    return some


def rows(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob("[0-9]*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def checked(source: Path, out: Path) -> dict[str, Any]:
    """Holds what lies in `out` against the source, item by item."""
    from base64 import b64encode

    said = {path.name: wrote(b64encode(path.read_bytes())) for path in (source.parent / "images").iterdir()}
    expected = {row["id"]: said[Path(row["image"]).name] for row in map(json.loads, source.open(encoding="utf-8"))}
    found: Counter[str] = Counter()
    wrong = 0
    for row in rows(out / "items"):
        found[row["id"]] += 1
        wrong += row["metadata"]["caption"] != expected.get(row["id"])
    dead: Counter[str] = Counter()
    for row in rows(out / "dead"):
        found[row["id"]] += 1
        dead[row["reason"]] += 1
        wrong += row["reason"] == "refused" and expected.get(row["id"]) is not None
    records = Counter(row["item"] for row in rows(out / "records"))
    return {
        "not exactly once": sum(found[id] != 1 for id in expected) + len(found.keys() - expected.keys()),
        "wrong captions": wrong,
        "records without an item": sum(records.values()) - (sum(found.values()) - sum(dead.values())),
        "to be refused": sum(text is None for text in expected.values()),
        "dead": dict(dead),
    }


class Progress:
    """Of the shards in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.parts: dict[str, tuple[int, int]] = {}

    def done(self) -> tuple[int, int]:
        """Entries, and how many of them are dead letters that an outage left."""
        for path in self.out.glob("items/[0-9]*.jsonl"):
            if path.stem not in self.parts:
                part = json.loads((self.out / "counts" / f"{path.stem}.json").read_bytes())
                dead = sum(part["dead"].values())
                self.parts[path.stem] = part["items"] + dead, dead - part["dead"].get("refused", 0)
        return sum(count for count, _ in self.parts.values()), sum(dead for _, dead in self.parts.values())


@dataclass
class Story:
    """What happened in the long run."""

    samples: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[list[float]] = field(default_factory=list)
    """From each kill to the first shard that was done after service was back."""
    cpu: Counter[str] = field(default_factory=Counter)
    open_doors: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Kill:
    at: float
    """Share of the entries that are done."""
    what: str
    down: float = 0.0
    """Seconds until it is started again."""


def alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def long_run(job: Job, count: int, server: Server, kills: Sequence[Kill], scratch: Path, step: float) -> Story:
    """Keeps a driver at it until it is done, and kills as told."""
    import psutil

    story, progress, ahead = Story(), Progress(Path(job.out)), list(kills)
    driver, back_at, orphans = Driver([job], scratch), 0.0, []  # type: Driver, float, list[Any]
    waiting: int | None = 0  # entries that were done when service was back
    story.gaps.append([0.0, 0.0])
    start = time.monotonic()
    try:
        while True:
            now = time.monotonic() - start
            entries, dead = progress.done()
            sample = {"t": now, "entries": entries, "dead": dead, **driver.look()}
            machine = psutil.cpu_times()
            busy = machine.user + machine.nice + machine.system
            own = sum(story.cpu.values()) + sum(map(driver.cpu_of, ("driver", "workers", "ray")))
            story.samples.append({**sample, "others": busy - own})
            if not story.open_doors and entries:
                story.open_doors = driver.open_doors() or ["none"]
            if waiting is not None and not story.samples[-1]["workers"]:
                waiting = entries  # what the workers of a driver that is gone still write
            if waiting is not None and entries > waiting:
                story.gaps[-1][1] = now
                waiting = None
            if back_at and now >= back_at:
                server.start()
                story.events[-1]["back"] = time.monotonic() - start
                back_at, waiting = 0.0, progress.done()[0]
            elif ahead and not back_at and waiting is None and entries >= ahead[0].at * count:
                kill = ahead.pop(0)
                now = time.monotonic() - start
                story.events.append({"t": now, "what": kill.what, "entries": entries, "dead": dead, "down": kill.down})
                story.gaps.append([now, now])
                if kill.what == "server":
                    server.kill()
                    back_at = now + kill.down
                else:
                    orphans = driver.kill()
                    story.events[-1]["last_of_it"] = []
                    for kind in ("driver", "workers", "ray"):
                        story.cpu[kind] += driver.cpu_of(kind)
                    driver = Driver([job], scratch)
                    waiting = entries
            if orphans:
                orphans = [process for process in orphans if alive(process)]
                event = next(event for event in story.events if event["what"] == "driver")
                event["last_of_it_gone"] = time.monotonic() - start - event["t"]
                with suppress(psutil.NoSuchProcess):
                    event["last_of_it"] = [process.name() for process in orphans] or event["last_of_it"]
            if driver.process.poll() is not None:
                break
            time.sleep(step)
        driver.line()  # said when it began
        driver.line()
        story.seconds = time.monotonic() - start
        assert not ahead, f"over before {ahead} came"
    except psutil.NoSuchProcess as error:
        raise RuntimeError("a process that was looked at is gone") from error
    finally:
        driver.close()
        for process in orphans:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    for kind in ("driver", "workers", "ray"):
        story.cpu[kind] += driver.cpu_of(kind)
    return story


def quarters(story: Story, count: int) -> list[dict[str, float]]:
    """Of each quarter of the entries: seconds, rate outside the gaps, peak and median of driver and workers together."""
    found = []
    for n in range(4):
        inside = [s for s in story.samples if min(int(4 * s["entries"] / count), 3) == n]
        begin = inside[0]
        end = next((s for s in story.samples if s["entries"] >= (n + 1) * count / 4), story.samples[-1])
        clear = steps = 0.0
        span = [s for s in story.samples if begin["t"] <= s["t"] <= end["t"]]
        for one, two in itertools.pairwise(span):
            if not any(low < two["t"] and one["t"] < high for low, high in story.gaps):
                clear += two["t"] - one["t"]
                steps += two["entries"] - one["entries"]
        memory = sorted(s["driver"] + s["workers"] for s in inside)
        found.append(
            {
                "seconds": end["t"] - begin["t"],
                "rate": steps / clear if clear else 0.0,
                "peak_mb": memory[-1],
                "median_mb": memory[len(memory) // 2],
                "ray_peak_mb": max(s["ray"] for s in inside),
                "others_cores": (end["others"] - begin["others"]) / (end["t"] - begin["t"]),  # the server among them
            }
        )
    return found


def rate(job: Job, count: int, server: Server, driver: Driver) -> dict[str, float]:
    """Of a job that the driver does next: items a second from the first request to the last answer, and what it took."""
    driver.line()
    before = server.asked()["cpu"]
    driver.look()
    spent = {kind: driver.cpu_of(kind) for kind in ("driver", "workers", "ray")}
    said: dict[str, Any] = {}

    import threading

    thread = threading.Thread(target=lambda: said.update(driver.line()))
    thread.start()
    while thread.is_alive():
        driver.look()
        thread.join(0.5)
    asked = server.asked()
    assert said["items"] + sum(said["dead"].values()) == count, said
    cpu = {f"{kind}_cpu": driver.cpu_of(kind) - spent[kind] for kind in spent}
    return {
        "workers": job.workers,
        "concurrency": job.concurrency,
        "rate": asked["asked"] / asked["seconds"],
        "seconds": asked["seconds"],
        "seconds_with_start": said["seconds"],
        "server_cpu": asked["cpu"] - before,
        **cpu,
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="scale-"))  # short: Ray puts sockets below it
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def waited_out(job: Job, count: int, server: Server, driver: Driver, down: float) -> dict[str, Any]:
    """A job that the driver does next, with one outage in it: its dead letters that are not refusals."""
    driver.line()
    progress = Progress(Path(job.out))
    while progress.done()[0] < count / 3:
        time.sleep(0.1)
    server.kill()
    time.sleep(down)
    server.start()
    said = driver.line()
    found = checked(Path(job.source), Path(job.out))
    return {
        "items": count,
        "attempts": job.attempts,
        "down": down,
        "dead": sum(count for reason, count in found["dead"].items() if reason != "refused"),
        "not exactly once": found["not exactly once"],
        "seconds": said["seconds"],
    }


def measure(quick: bool, seed: int) -> None:
    chance = random.Random(seed)
    if quick:
        count, some, think, concurrency, shard_size, step = 400, 120, 0.06, 4, 20, 0.1
        kills = [Kill(chance.uniform(0.1, 0.3), "server", 1.0), Kill(chance.uniform(0.4, 0.6), "driver")]
        slow, patience, outage = 0.1, 100, 0.5
    else:
        count, some, think, concurrency, shard_size, step = 100_000, 4000, 0.02, 16, 256, 0.5
        slow, patience, outage = 0.1, 2000, 6.0
        kills = [
            Kill(chance.uniform(0.05, 0.45), "server", 2.0),
            Kill(chance.uniform(0.2, 0.8), "driver"),
            Kill(chance.uniform(0.55, 0.95), "server", 6.0),
        ]
    kills.sort(key=lambda kill: kill.at)

    with scratch_folder() as scratch:
        source = make_items(scratch, count)
        server = Server(think)
        driver = None
        try:
            job = Job(str(source), str(scratch / "out"), server.port, concurrency=concurrency, shard_size=shard_size)
            story = long_run(job, count, server, kills, scratch, step)
            first = checked(source, Path(job.out))

            server.kill()
            server.think = slow
            server.start()
            few = some_of(source, some)
            small = {"concurrency": 8, "shard_size": 10 if quick else 50}
            again = Job(**{**asdict(job), "again": True})
            jobs = {n: Job(str(few), str(scratch / f"workers-{n}"), server.port, workers=n, **small) for n in (1, 2)}
            busy = {}
            if not quick:
                busy = {n: Job(str(few), str(scratch / f"busy-{n}"), server.port, workers=n) for n in (1, 2)}
                for each in busy.values():
                    each.shard_size, each.concurrency = 128, 64
            patient = Job(str(some_of(source, patience)), str(scratch / "patient"), server.port, attempts=8, **small)
            driver = Driver([again, *jobs.values(), *busy.values(), patient], scratch)
            driver.line()
            retried = driver.line()
            second = checked(source, Path(job.out))
            rates = {n: rate(each, some, server, driver) for n, each in jobs.items()}
            crowded = {n: rate(each, some, server, driver) for n, each in busy.items()}
            patiently = waited_out(patient, patience, server, driver, outage)
        finally:
            if driver is not None:
                driver.close()
            server.kill()

    parts = quarters(story, count)
    left = sum(count for reason, count in first["dead"].items() if reason != "refused")
    still = sum(count for reason, count in second["dead"].items() if reason != "refused")
    peaks = [part["peak_mb"] for part in parts]
    headline = [
        {"name": "items", "value": count, "unit": ""},
        {"name": "server killed", "value": sum(kill.what == "server" for kill in kills), "unit": "times"},
        {"name": "driver killed", "value": sum(kill.what == "driver" for kill in kills), "unit": "times"},
        {"name": "ids that are not exactly once in items or dead", "value": first["not exactly once"], "unit": ""},
        {"name": "captions of another image", "value": first["wrong captions"], "unit": ""},
        {"name": "refused for good, as the server does", "value": first["dead"].get("refused", 0), "unit": ""},
        {"name": "of them expected", "value": first["to be refused"], "unit": ""},
        {"name": "dead letters of the outages", "value": left, "unit": ""},
        {"name": "of them left after again=True", "value": still, "unit": ""},
        {"name": "ids not exactly once after again=True", "value": second["not exactly once"], "unit": ""},
        {"name": "all of it", "value": story.seconds, "unit": "s"},
        *(
            {"name": f"quarter {n}, {name}", "value": part[key], "unit": unit}
            for n, part in enumerate(parts, 1)
            for name, key, unit in (
                ("time", "seconds", "s"),
                ("rate outside the interruptions", "rate", "items/s"),
                ("peak of driver and workers", "peak_mb", "MB"),
            )
        ),
        {"name": "highest peak / lowest", "value": max(peaks) / min(peaks), "unit": "x"},
        {"name": "one worker", "value": rates[1]["rate"], "unit": "items/s"},
        {"name": "two workers", "value": rates[2]["rate"], "unit": "items/s"},
        {"name": "two / one", "value": rates[2]["rate"] / rates[1]["rate"], "unit": "x"},
        {"name": "dead letters of an outage with attempts=8", "value": patiently["dead"], "unit": ""},
    ]
    details = {
        "seed": seed,
        "image": f"{SIDE} x {SIDE} pixels of noise, png; {IMAGES} different ones",
        "server_thinks_s": think,
        "server_thinks_s_in_the_scaling": slow,
        "concurrency_of_a_worker": concurrency,
        "shard_size": shard_size,
        "quarters": parts,
        "interruptions": story.events,
        "gaps": story.gaps,
        "cpu_seconds": dict(story.cpu),
        "listening_elsewhere_than_on_loopback": story.open_doors,
        "again": retried,
        "scaling": list(rates.values()),
        "scaling_with_64_at_once": list(crowded.values()),
        "waiting_out": patiently,
        "samples": [
            {key: round(value, 1) for key, value in sample.items()}
            for sample in story.samples[:: max(1, len(story.samples) // 80)]
        ],
    }
    finish(
        Path(__file__).parent,
        headline,
        details,
        quick,
        packages=("capreward", "ray", "openai", "httpx2", "pydantic", "pyarrow"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 items; write nothing")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--server", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asyncio.run(serve(int(arguments.server[0]), float(arguments.server[1])))
    elif arguments.drive:
        drive([Job(**job) for job in json.loads(arguments.drive[0])], arguments.drive[1])
    else:
        measure(arguments.quick, arguments.seed)


if __name__ == "__main__":
    main()
