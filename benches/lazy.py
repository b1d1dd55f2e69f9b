#!/usr/bin/env python3
"""The first start of an image whose registry is far away: the same files as an eStargz layer and as a plain gzip layer.

    lazy.py ZMACHINE REGISTRY [--rounds N] [--mib SIZE] [--delay MILLISECONDS]

REGISTRY is the program of Debian's package docker-registry. A layer with this host's busybox and SIZE MiB (300) of files of /usr is put together
twice, pushed, and served through a proxy that waits DELAY milliseconds (20) before it passes a request on. Each round, in a home without
images and blocks, runs `run --rm IMAGE busybox echo` of both in turns. Printed are the seconds until the first byte of output, the bytes that
had come from the registry by then, and the ratio of the medians.
"""

import argparse
import gzip
import hashlib
import http.client
import http.server
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from pull import serve

CHUNK = 4 << 20


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chosen(mib):
    """Files of /usr of SIZE MiB together, and busybox."""
    files, left = {"bin/busybox": Path("/bin/busybox")}, mib << 20
    for folder, _, names in os.walk("/usr"):
        for path in (Path(folder) / name for name in sorted(names)):
            if left > 0 and path.is_file() and not path.is_symlink():
                files[str(path)[1:]] = path
                left -= path.stat().st_size
    return files


def layers(files):
    """The tar, and as gzip: plain, and as eStargz with the digest of its table."""
    tar, stargz, entries = io.BytesIO(), io.BytesIO(), []

    def put(data):
        tar.write(data)
        at = stargz.tell()
        stargz.write(gzip.compress(data, 6, mtime=0))
        return at

    for name, path in files.items():
        info = tarfile.TarInfo(name)
        content = path.read_bytes()
        info.size, info.mode = len(content), 0o755
        put(info.tobuf(tarfile.PAX_FORMAT))
        entry = {"name": name, "type": "reg", "size": info.size, "mode": 0o755, "modtime": "1970-01-01T00:00:00Z"}
        pieces = [content[at : at + CHUNK] for at in range(0, info.size, CHUNK)] or [b""]
        for number, piece in enumerate(pieces):
            if not piece:
                entries.append(entry)
                continue
            described = entry | {"digest": digest(content)} if number == 0 else {"name": name, "type": "chunk"}
            described |= {"offset": put(piece), "chunkDigest": digest(piece), "chunkOffset": number * CHUNK}
            if number + 1 < len(pieces):
                described["chunkSize"] = len(piece)
            entries.append(described)
        put(bytes(-len(content) % 512))
    put(bytes(1024))
    plain = gzip.compress(tar.getvalue(), 6, mtime=0)
    table = json.dumps({"version": 1, "entries": entries}).encode()
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(table)
    packed = info.tobuf() + table + bytes(-len(table) % 512) + bytes(1024)
    at = stargz.tell()
    stargz.write(gzip.compress(packed, 6, mtime=0))
    footer = bytes([0x1F, 0x8B, 8, 4, 0, 0, 0, 0, 0, 0xFF, 26, 0]) + b"SG" + bytes([22, 0]) + f"{at:016x}STARGZ".encode()
    stargz.write(footer + bytes([1, 0, 0, 0xFF, 0xFF]) + bytes(8))
    return (tar.getvalue(), plain, {}), (
        tar.getvalue() + packed,
        stargz.getvalue(),
        {"containerd.io/snapshot/stargz/toc.digest": digest(table)},
    )


def push(host, name, tar, layer, annotations):
    """Puts an image of one layer into the registry."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(tar)]}}).encode()
    kinds = "application/vnd.oci.image."
    manifest = {
        "schemaVersion": 2,
        "mediaType": kinds + "manifest.v1+json",
        "config": {"mediaType": kinds + "config.v1+json", "digest": digest(config), "size": len(config)},
        "layers": [
            {
                "mediaType": kinds + "layer.v1.tar+gzip",
                "digest": digest(layer),
                "size": len(layer),
                "annotations": annotations,
            }
        ],
    }
    connection = http.client.HTTPConnection(host)

    def ask(method, path, body=b"", headers=None):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 300:
            sys.exit(f"lazy: {method} {path}: {answer.status}")
        return answer

    for blob in (config, layer):
        place = ask("POST", f"/v2/{name}/blobs/uploads/").headers["location"]
        place = place[place.index("/v2/") :]
        ask("PUT", f"{place}&digest={digest(blob)}", blob, {"content-type": "application/octet-stream"})
    ask("PUT", f"/v2/{name}/manifests/latest", json.dumps(manifest), {"content-type": manifest["mediaType"]})


class Sent:
    bytes = 0


def proxy(host, delay):
    """Passes requests on to `host`, each after a pause."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            time.sleep(delay)
            inner = http.client.HTTPConnection(host)
            inner.request(self.command, self.path, headers=dict(self.headers))
            answer = inner.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            try:
                while piece := answer.read(1 << 16):
                    self.wfile.write(piece)
                    Sent.bytes += len(piece)
            except OSError:
                self.close_connection = True
            inner.close()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def first_byte(command, environment):
    """Seconds until the first byte of output, and bytes that came by then."""
    Sent.bytes, start = 0, time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not child.stdout.read(1):
        sys.exit("lazy: no output")
    took, sent = time.monotonic() - start, Sent.bytes
    child.stdout.read()
    child.wait()
    return took, sent


def main():
    options = argparse.ArgumentParser()
    options.add_argument("zmachine")
    options.add_argument("registry")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--mib", type=int, default=300)
    options.add_argument("--delay", type=int, default=20)
    options.add_argument("--kernels", type=Path, default=Path(".demo/home/kernels"))
    asked = options.parse_args()
    room = Path(tempfile.mkdtemp(prefix="lazy-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    server = None
    try:
        server, host = serve(asked.registry, room)
        for name, layer in zip(("plain", "lazy"), layers(chosen(asked.mib))):
            push(host, name, *layer)
            print(f"{name}: a layer of {len(layer[1]) >> 20} MiB")
        host = proxy(host, asked.delay / 1000)
        figures = {"plain": [], "lazy": []}
        for number in range(asked.rounds):
            for name in ("plain", "lazy") if number % 2 else ("lazy", "plain"):
                home = room / f"home-{name}-{number}"
                home.mkdir()
                (home / "kernels").symlink_to(asked.kernels.resolve())
                command = [asked.zmachine, "run", "--rm", "--network", "none", f"{host}/{name}", "/bin/busybox", "echo", "x"]
                took, sent = first_byte(command, os.environ | {"ZMACHINE_HOME": str(home)})
                figures[name].append(took)
                print(f"{name}: first byte after {took:.2f} s, {sent / (1 << 20):.1f} MiB had come")
                # What brings the rest would go on beside the next one.
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        words = process.read_bytes().split(b"\0")
                    except OSError:
                        continue
                    if b"complete" in words and str(home).encode() in words:
                        os.kill(int(process.parent.name), 15)
                time.sleep(0.5)
                shutil.rmtree(home, ignore_errors=True)
        plain, lazy = (statistics.median(figures[name]) for name in ("plain", "lazy"))
        print(f"medians: plain {plain:.2f} s, lazy {lazy:.2f} s, ratio {lazy / plain:.2f}")
    finally:
        if server:
            server.kill()
            server.wait()
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    main()
