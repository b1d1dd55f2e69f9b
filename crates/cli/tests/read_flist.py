#!/usr/bin/env python3
"""A reader of flists of format 2 that shares nothing with the program: written from docs/flist.md, with Python's own SQLite and
hashes and everything else below. It prints a tree as `path kind mode uid gid mtime ...`, one JSON list a line.

usage: read_flist.py [--old] FILE.fl STORE      what a flist has; STORE is a directory of blocks
       read_flist.py [--old] DIR/               the same of a directory, to compare with

--old reads as the original tool does: without the tables that are our extension.
"""
import hashlib
import json
import os
import sqlite3
import stat
import sys

BLOCK = 512 * 1024


# --- AES-256-GCM (FIPS 197, NIST SP 800-38D) ---

def make_tables():
    power, box = [0] * 256, [0] * 256
    logarithm, x = [0] * 256, 1
    for exponent in range(255):
        power[exponent], logarithm[x] = x, exponent
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)
        x &= 0xFF
    inverse = lambda byte: 0 if byte == 0 else power[(255 - logarithm[byte]) % 255]
    for byte in range(256):
        value, total = inverse(byte), 0x63
        for turn in range(5):
            total ^= ((value << turn) | (value >> (8 - turn))) & 0xFF
        box[byte] = total
    times2 = [((byte << 1) ^ (0x11B if byte & 0x80 else 0)) & 0xFF for byte in range(256)]
    columns = []
    for turn in range(4):
        column = []
        for byte in range(256):
            s = box[byte]
            parts = [times2[s], s, s, times2[s] ^ s]
            parts = parts[-turn:] + parts[:-turn] if turn else parts
            column.append(int.from_bytes(bytes(parts), "big"))
        columns.append(column)
    return box, columns


BOX, COLUMNS = make_tables()


def expand(key):
    words = [int.from_bytes(key[at:at + 4], "big") for at in range(0, 32, 4)]
    substitute = lambda word: int.from_bytes(bytes(BOX[byte] for byte in word.to_bytes(4, "big")), "big")
    constant = 1
    for at in range(8, 60):
        word = words[-1]
        if at % 8 == 0:
            word = substitute((word << 8 | word >> 24) & 0xFFFFFFFF) ^ constant << 24
            constant <<= 1
        elif at % 8 == 4:
            word = substitute(word)
        words.append(words[at - 8] ^ word)
    return words


def encrypt_block(words, block):
    c0, c1, c2, c3 = COLUMNS
    s = [int.from_bytes(block[at:at + 4], "big") ^ words[at // 4] for at in range(0, 16, 4)]
    for at in range(4, 56, 4):
        s = [c0[s[i] >> 24] ^ c1[s[(i + 1) % 4] >> 16 & 255] ^ c2[s[(i + 2) % 4] >> 8 & 255] ^ c3[s[(i + 3) % 4] & 255]
             ^ words[at + i] for i in range(4)]
    out = b""
    for i in range(4):
        word = bytes((BOX[s[i] >> 24], BOX[s[(i + 1) % 4] >> 16 & 255], BOX[s[(i + 2) % 4] >> 8 & 255], BOX[s[(i + 3) % 4] & 255]))
        out += (int.from_bytes(word, "big") ^ words[56 + i]).to_bytes(4, "big")
    return out


def multiply(x, y):
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def decrypt(key, sealed):
    words, body, tag = expand(key), sealed[:-16], sealed[-16:]
    hash_key = int.from_bytes(encrypt_block(words, bytes(16)), "big")
    nonce, check = key[:12], 0
    # The tag of a long block takes minutes here; its digests are checked anyway.
    if len(body) <= 4096:
        for at in range(0, len(body), 16):
            check = multiply(check ^ int.from_bytes(body[at:at + 16].ljust(16, b"\0"), "big"), hash_key)
        check = multiply(check ^ len(body) * 8, hash_key)
        mask = encrypt_block(words, nonce + (1).to_bytes(4, "big"))
        if check.to_bytes(16, "big") != bytes(a ^ b for a, b in zip(tag, mask)):
            raise ValueError("wrong tag")
    stream = b"".join(encrypt_block(words, nonce + (2 + number).to_bytes(4, "big")) for number in range((len(body) + 15) // 16))
    return (int.from_bytes(body, "big") ^ int.from_bytes(stream[:len(body)], "big")).to_bytes(len(body), "big")


# --- snappy's raw format ---

def decompress(data):
    length, shift, at = 0, 0, 0
    while True:
        byte = data[at]
        at += 1
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            size = tag >> 2
            if size >= 60:
                extra = size - 59
                size = int.from_bytes(data[at:at + extra], "little")
                at += extra
            out += data[at:at + size + 1]
            at += size + 1
            continue
        if tag & 3 == 1:
            size, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            extra = 2 if tag & 3 == 2 else 4
            size, offset = (tag >> 2) + 1, int.from_bytes(data[at:at + extra], "little")
            at += extra
        if not 0 < offset <= len(out):
            raise ValueError("a copy from nowhere")
        start = len(out) - offset
        for number in range(size):
            out.append(out[start + number])
    if len(out) != length:
        raise ValueError("another length")
    return bytes(out)


def digest(data):
    return hashlib.blake2b(data, digest_size=32).digest()


def read_block(store, block_id, key):
    name = block_id.hex()
    with open(os.path.join(store, name[:2], name), "rb") as file:
        sealed = file.read()
    if digest(sealed) != block_id:
        raise ValueError(f"{name} is another block")
    plain = decompress(decrypt(key, sealed))
    if digest(plain) != key:
        raise ValueError(f"{name} has another plaintext")
    return plain


# --- the tables ---

def main():
    arguments = sys.argv[1:]
    old = arguments[0] == "--old"
    lines = of_directory(arguments[old].rstrip("/"), old) if len(arguments) == 1 + old else of_flist(*arguments[old:], old)
    for line in sorted(lines):
        print(json.dumps(line))


def of_directory(root, old):
    """What `lstat` tells."""
    lines, first = [], {}
    paths = sorted(os.path.join(folder, name).encode("utf-8", "surrogateescape")
                   for folder, folders, files in os.walk(root) for name in folders + files)
    for path in [root.encode()] + paths:
        shown = path[len(root):]
        if old:
            shown = shown.decode("utf-8", "replace").encode()
        facts = os.lstat(path)
        content = ""
        if stat.S_ISREG(facts.st_mode):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path).hex()
        elif stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
            content = f"{os.major(facts.st_rdev)},{os.minor(facts.st_rdev)}"
        seconds, nanoseconds = divmod(facts.st_mtime_ns, 10 ** 9)
        kept = ("user.", "trusted.", "security.capability", "system.posix_acl")
        names = [] if old else [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(kept)]
        xattrs = sorted([name.encode().hex(), os.getxattr(path, name, follow_symlinks=False).hex()] for name in names)
        same = first.setdefault(facts.st_ino, shown.hex()) if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode) else ""
        lines.append([shown.hex(), facts.st_mode, facts.st_uid, facts.st_gid, seconds, 0 if old else nanoseconds, content,
                      xattrs, "" if old else same])
    return lines


def of_flist(file, store, old):
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    tables = {name for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    has = lambda table: not old and table in tables
    names = dict(db.execute("SELECT ino, name FROM name_bytes")) if has("name_bytes") else {}
    first = dict(db.execute("SELECT ino, target FROM hard_link")) if has("hard_link") else {}
    nanoseconds = dict(db.execute("SELECT ino, mtime FROM nsec")) if has("nsec") else {}
    attributes = {}
    for ino, name, value in db.execute("SELECT ino, name, value FROM xattr") if has("xattr") else []:
        attributes.setdefault(ino, []).append((bytes(name), bytes(value)))
    children, cache = {}, {}
    for row in db.execute("SELECT ino, parent, name, size, uid, gid, mode, rdev, mtime FROM inode ORDER BY ino"):
        children.setdefault(row[1], []).append(row)
    todo = [(row, b"") for row in children[0]]
    paths, lines = {}, []
    while todo:
        (ino, _, name, size, uid, gid, mode, rdev, mtime), above = todo.pop()
        path = b"" if ino == 1 else above + b"/" + (bytes(names[ino]) if ino in names else name.encode())
        paths[ino] = path
        todo += [(row, path) for row in children.get(ino, [])]
        content = ""
        if stat.S_ISREG(mode):
            hashed, length = hashlib.sha256(), 0
            for block_id, key in db.execute("SELECT id, key FROM block WHERE ino = ? ORDER BY rowid", (ino,)):
                if key not in cache:
                    cache[key] = read_block(store, block_id, key)
                if length % BLOCK:
                    raise ValueError("a short block in the middle")
                hashed.update(cache[key])
                length += len(cache[key])
            if length != size:
                raise ValueError(f"{path} has {length} bytes instead of {size}")
            content = hashed.hexdigest()
        elif stat.S_ISLNK(mode):
            content = db.execute("SELECT data FROM extra WHERE ino = ?", (ino,)).fetchone()[0].hex()
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            content = f"{os.major(rdev)},{os.minor(rdev)}"
        main_row = first.get(ino, ino)
        xattrs = [[key.hex(), value.hex()] for key, value in sorted(attributes.get(main_row, []))]
        lines.append([path.hex(), mode, uid, gid, mtime, nanoseconds.get(main_row, 0), content, xattrs, main_row])
    groups = {}
    for ino in sorted(paths, key=paths.get):
        groups.setdefault(first.get(ino, ino), []).append(paths[ino].hex())
    for line in lines:
        group = groups[line[-1]]
        line[-1] = group[0] if len(group) > 1 else ""
    return lines


main()
