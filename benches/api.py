#!/usr/bin/env python3
"""What the server of the APIs costs: requests, processor time, memory.

    api.py list    ZMACHINE IMAGE [--machines N] [--requests N]        CPU time of the server for a listing of N stopped machines
    api.py run     ZMACHINE IMAGE DOCKER [--rounds N]                  `docker run --rm IMAGE true` by the socket, against `zmachine run --rm`
    api.py follow  ZMACHINE IMAGE [--clients N] [--seconds N] [--pause S]  memory of the server with N followers of a log that grows by about 1 MB/s
    api.py kill    ZMACHINE IMAGE [--clients N]                        kill -9 of the server under N streaming clients

ZMACHINE_HOME names the state to work on; IMAGE is one that is in it and has `sh` and `true`. The server is `zmachine-api` beside ZMACHINE. The
variants of `run` take turns, so that whatever else the host does hits both.
"""

import argparse
import http.client
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path


class Connection(http.client.HTTPConnection):
    """HTTP by a Unix socket."""

    def __init__(self, path):
        super().__init__("zmachine")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Server:
    """`zmachine serve` over the home, until the end of the block."""

    def __init__(self, program):
        self.program = Path(program).resolve()
        self.run = Path(os.environ["ZMACHINE_HOME"]) / "run"
        self.api, self.docker = self.run / "api.sock", self.run / "docker.sock"

    def start(self):
        command = [self.program.with_name("zmachine-api"), "--program", self.program, "serve"]
        self.child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.ask("GET", "/v1/version")
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit("api: the server does not answer")
                time.sleep(0.05)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()

    def ask(self, method, path, body=None):
        connection = Connection(self.api)
        connection.request(method, path, body and json.dumps(body))
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        if answer.status >= 400:
            sys.exit(f"api: {method} {path}: {read.decode()}")
        return json.loads(read) if read else None

    def cpu(self):
        """Processor time so far, in seconds."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, what):
        """A line of its status, in MB."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024 / 1e6
        return 0.0


def zmachine(program, *args):
    return subprocess.run([program, *args], check=True, capture_output=True, text=True).stdout


def stopped(program, image, count):
    """Makes as many machines as there are to be: one, and copies of its folder with ids and names of their own."""
    zmachine(program, "create", "--name", "listed-0", "--network", "none", image)
    first = json.loads(zmachine(program, "inspect", "listed-0"))[0]
    folder = Path(first["directory"])
    for number in range(1, count):
        new = folder.with_name(f"{number:012x}")
        shutil.copytree(folder, new)
        for path in new.glob("*.json"):
            path.write_text(path.read_text().replace(first["id"], new.name).replace("listed-0", f"listed-{number}"))
        (folder.parent / "by-name" / f"listed-{number}").symlink_to(f"../{new.name}")


def listing(args):
    stopped(args.program, args.image, args.machines)
    time.sleep(3)
    with Server(args.program) as server:
        path = "/v1/machines?limit=1000"
        begun = time.monotonic()
        first = server.cpu()
        page = server.ask("GET", path)
        print(f"{len(page['machines'])} machines, {len(json.dumps(page))} bytes; the first listing: {(server.cpu() - first) * 1000:.0f} ms of CPU")
        before, begun = server.cpu(), time.monotonic()
        connection = Connection(server.api)
        for _ in range(args.requests):
            connection.request("GET", path)
            connection.getresponse().read()
        spent, took = server.cpu() - before, time.monotonic() - begun
        each = spent / args.requests * 1000
        print(f"{args.requests} listings: {each:.1f} ms of CPU each, {took / args.requests * 1000:.1f} ms each on the clock")
        print(f"memory: {server.memory('VmRSS'):.1f} MB now, {server.memory('VmHWM'):.1f} MB at most")


def run(args):
    with Server(args.program) as server:
        environment = dict(os.environ, DOCKER_HOST=f"unix://{server.docker}")
        commands = {
            "docker run --rm": ([args.docker, "run", "--rm", args.image, "true"], environment),
            "zmachine run --rm": ([args.program, "run", "--rm", args.image, "true"], None),
        }
        samples = {name: [] for name in commands}
        for number in range(args.rounds + 1):
            for name, (command, env) in commands.items():
                begun = time.monotonic()
                subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL, capture_output=True)
                # The first of each warms what both need.
                if number:
                    samples[name].append(time.monotonic() - begun)
        for name, times in samples.items():
            print(f"{name:<20} median {statistics.median(times) * 1000:6.0f} ms, least {min(times) * 1000:6.0f} ms")
        medians = [statistics.median(times) for times in samples.values()]
        print(f"ratio of medians {medians[0] / medians[1]:.2f}, of minima {min(samples['docker run --rm']) / min(samples['zmachine run --rm']):.2f}")


def noisy(server, image, name, pause=1.0):
    """Starts a machine that writes 1 MB at once, and again after a pause."""
    line = "x" * 999
    # Few processes for much text: an emulated guest is slow to start them.
    script = f"while :; do yes {line} | head -n 1000; sleep {pause}; done"
    spec = {"flist": image, "name": name, "networks": [], "command": ["sh", "-c", script]}
    server.ask("POST", "/v1/machines", spec)
    server.ask("POST", f"/v1/machines/{name}/start")


def follow(args):
    paths = {
        "docker": "/containers/noisy/logs?follow=1&stdout=1&stderr=1&tail=0",
        "api": "/v1/machines/noisy/logs?follow=1&tail=0",
    }
    for name, path in paths.items():
        # A server of its own for each: what the first one needed would be the other's, too.
        with Server(args.program) as server:
            noisy(server, args.image, "noisy", args.pause)
            try:
                followers(server, getattr(server, name), path, args)
            finally:
                server.ask("DELETE", "/v1/machines/noisy?force=1")


def followers(server, where, path, args):
    connections = []
    for _ in range(args.clients):
        connection = Connection(where)
        connection.request("GET", path)
        connection.sock.setblocking(False)
        connections.append(connection)
    read, most, begun, cpu = 0, 0.0, time.monotonic(), server.cpu()
    while time.monotonic() - begun < args.seconds:
        for connection in connections:
            try:
                read += len(connection.sock.recv(1 << 20))
            except BlockingIOError:
                pass
        most = max(most, server.memory("VmRSS"))
        time.sleep(0.01)
    took = time.monotonic() - begun
    print(f"{path}: {args.clients} followers, {read / took / args.clients / 1e6:.2f} MB/s each; memory {most:.1f} MB at most, "
          f"CPU {(server.cpu() - cpu) / took * 100:.0f} %")


def kill(args):
    with Server(args.program) as server:
        noisy(server, args.image, "kept")
        try:
            started = server.ask("GET", "/v1/machines/kept")["state"]["started_at"]
            clients = []
            for number in range(args.clients):
                kinds = [(server.api, "/v1/machines/kept/logs?follow=1"), (server.api, "/v1/events"),
                         (server.docker, "/events"), (server.docker, "/containers/kept/logs?follow=1&stdout=1"),
                         (server.docker, "/containers/kept/stats")]
                where, path = kinds[number % len(kinds)]
                connection = Connection(where)
                connection.request("GET", path)
                clients.append(connection)
            time.sleep(2)
            server.child.kill()
            server.child.wait()
            ends = 0
            for connection in clients:
                connection.sock.settimeout(10)
                try:
                    while connection.sock.recv(1 << 20):
                        pass
                    ends += 1
                except ConnectionResetError:
                    ends += 1
            begun = time.monotonic()
            server.start()
            again = server.ask("GET", "/v1/machines/kept")["state"]
            print(f"{ends} of {args.clients} clients saw an end; the next server answered after {(time.monotonic() - begun) * 1000:.0f} ms")
            print(f"the machine is {again['phase'] if isinstance(again['phase'], str) else next(iter(again['phase']))}, "
                  f"started {'once' if again['started_at'] == started else 'AGAIN'}")
        finally:
            server.ask("DELETE", "/v1/machines/kept?force=1")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, work, options in [
        ("list", listing, {"--machines": 1000, "--requests": 100}),
        ("run", run, {"--rounds": 7}),
        ("follow", follow, {"--clients": 100, "--seconds": 20, "--pause": 0.5}),
        ("kill", kill, {"--clients": 50}),
    ]:
        command = commands.add_parser(name)
        command.add_argument("program")
        command.add_argument("image")
        if name == "run":
            command.add_argument("docker")
        for option, default in options.items():
            command.add_argument(option, type=type(default), default=default)
        command.set_defaults(work=work)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
