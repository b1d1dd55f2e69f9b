"""The image that all stacks serve: real Debian packages, 450 MB in 17,000 files, with a git repository in them.

Nothing of it runs on the host, and no maintainer script runs at all. What they would have done for python is done by this
interpreter, when it writes the same format: the standard library's byte code, without which every import would compile it.
"""

import compileall
import importlib.util
import os
import random
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("base-files base-passwd bash coreutils dash findutils git grep libc-bin mawk perl python3 sed tar util-linux busybox"
            " gcc-12").split()
HEADERS = r"linux-headers-6\.1\.0-[0-9]*-common$"
SMALL_FILES, SMALL_BYTES = 3000, 16384
BIG_BYTES = 2 << 20


class Tree:
    """The unpacked image: `path`, the folder of headers in it as `repository`, and what of it the workloads use."""

    def __init__(self, work):
        self.path = work / "tree"
        search = ["apt-cache", "search", "--names-only", f"^{HEADERS}"]
        found = subprocess.run(search, check=True, capture_output=True, text=True).stdout.split("\n")
        known = sorted((line.split()[0] for line in found if line), key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        # The headers once chosen stay: a newer package would be another tree.
        have = re.findall(r"linux-headers-\S+", (work / "tree.packages").read_text()) if (work / "tree.packages").exists() else []
        headers = (have or known)[-1]
        make = [PROJECT / "scripts/debian-tree", self.path, *PACKAGES, headers]
        subprocess.run(make, check=True, stdout=sys.stderr)
        self.repository = Path("usr/src") / headers
        # For `grep -r`: a folder of sources with somewhat more than 3,000 files.
        self.sources = self.repository / "arch"
        if not (self.path / self.repository / ".git").exists():
            self._finish()
        self.sizes = self._sizes()
        self.files, self.bytes = len(self.sizes), sum(self.sizes.values())
        self.source_files = sum(Path(name).is_relative_to(self.sources) for name in self.sizes)

    def _finish(self):
        (self.path / "etc/mtab").unlink(missing_ok=True)
        magic = self.path / "usr/lib/python3.11"
        if importlib.util.MAGIC_NUMBER == b"\xa7\r\r\n" and magic.is_dir():
            compileall.compile_dir(magic, quiet=2, stripdir=str(self.path))
        folder = self.path / self.repository

        def git(*words):
            # Nobody's settings, and the same commit each time.
            facts = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
            for who in ("AUTHOR", "COMMITTER"):
                facts |= {f"GIT_{who}_NAME": "bench", f"GIT_{who}_EMAIL": "bench@localhost", f"GIT_{who}_DATE": "@1700000000 +0000"}
            subprocess.run(["git", "-C", folder, *words], check=True, env=facts, stdout=subprocess.DEVNULL)

        part = folder / "git.part"
        shutil.rmtree(part, ignore_errors=True)
        git("init", "-q", "--bare", "--initial-branch=main", part)
        there = ("--git-dir=git.part", "--work-tree=.")
        git(*there, "config", "core.bare", "false")
        # A commit would begin the same in the background.
        git(*there, "config", "gc.auto", "0")
        git(*there, "add", "--all", "--", ":!git.part")
        git(*there, "commit", "-q", "-m", "headers")
        git(*there, "gc", "-q")
        part.rename(folder / ".git")

    def _sizes(self):
        sizes, seen = {}, set()
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                facts = path.lstat()
                if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    sizes[str(path.relative_to(self.path))] = facts.st_size
        return dict(sorted(sizes.items()))

    def small(self):
        """3,000 small files from all over the tree, in no order: what a start of many programs looks like."""
        names = [name for name, size in self.sizes.items() if 0 < size <= SMALL_BYTES and "/.git/" not in name]
        return random.Random(1).sample(names, SMALL_FILES)

    def big(self):
        """Files for random reads."""
        return [name for name, size in self.sizes.items() if size >= BIG_BYTES][:200]
