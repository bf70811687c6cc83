"""``python -m gbcache info|check|dump|load FILE``: files seen from a terminal."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from . import files, live, snapshot
from ._packed import FILE_ID_AT, judge, live_head
from .cache import Cache
from .codec import TypedCodec, decode_key, encode_key
from .errors import BudgetError, ImageError
from .live import LiveFile

__all__ = ["VERBS", "add_verbs", "run"]

VERBS = ("info", "check", "dump", "load")
_PLAIN = (int, float, bool, type(None))
_HALF = re.compile("[\ud800-\udfff]")
"""A lone surrogate. JSON's escape of a character beyond 16 bits is that of two: it reads two as one."""


class Usage(Exception):
    """Something the user can mend; told in one line."""


class InUse(Usage):
    """A process has the live file open, or had while it was copied."""


def add_verbs(verbs: Any) -> None:
    """Adds the four to an argument parser's subparsers."""
    told = {
        "info": "what a snapshot or a live file says of itself",
        "check": "verify every byte of it; exit code 1 if it is not sound, 3 if somebody has it open",
        "dump": "its entries, least recently used first",
        "load": "make a snapshot of what dump --json wrote (standard input)",
    }
    for name, text in told.items():
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("file", type=Path)
        if name != "load":
            verb.add_argument("--json", action="store_true", help="for programs")
        if name in ("check", "dump"):
            verb.add_argument(
                "--codec",
                default="typed",
                choices=["typed", "pickle"],
                help="pickle runs what the file says",
            )
        if name == "dump":
            verb.add_argument("--limit", type=int, default=None, help="stop after so many")
            verb.add_argument("--keys", action="store_true", help="keys alone")
        if name == "load":
            verb.add_argument(
                "--max-bytes",
                default="1GB",
                help="of the cache it is gathered in (default %(default)s)",
            )
            verb.add_argument(
                "--force",
                action="store_true",
                help="replace a file that is there (a live file: if nobody has it open)",
            )
        verb.add_argument(
            "-q", "--quiet", action="store_true", help="no progress on standard error"
        )


def _progress(quiet: bool, what: str) -> Callable[[int, int], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        share = done / total if total else 1.0
        end = "\n" if done >= total else ""
        print(
            f"\r{what} [{'#' * int(30 * share):<30}] {share:4.0%}",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return show


def _begins(path: Path) -> bytes:
    fd = files.open_file(str(path), own=False)
    try:
        return os.pread(fd, 65536, 0)
    finally:
        os.close(fd)


def _locked(path: Path) -> bool:
    """Whether a process has the live file open. The lock is asked for and given back: nobody is kept out."""
    fd = files.open_file(str(path), own=False)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _live_info(path: Path, begins: bytes) -> dict[str, Any]:
    head = live_head(begins)
    if head is None:
        raise ImageError(str(path), 0, "a live file has a superblock")
    length = path.stat().st_size
    verdict, reason = judge(begins, files.boot_id(), head["file_id"], length)
    state = {"clean": "closed", "killed": "open, or it was not closed", "lost": reason}[verdict]
    return {"kind": "live file", "file": str(path), "file_bytes": length, "state": state,
            "open_now": _locked(path), **head, "checkpoint": os.path.exists(str(path) + live.CHECKPOINT)}  # fmt: skip


def _info(args: argparse.Namespace) -> int:
    begins = _begins(args.file)
    if files.is_live(begins):
        said = _live_info(args.file, begins)
    else:
        found = snapshot.info(args.file)
        age = time.time() - found.saved_at.timestamp()
        said = {
            "kind": "snapshot",
            **found._asdict(),
            "saved_at": found.saved_at.isoformat(),
            "age_seconds": round(age, 3),
        }
    if args.json:
        print(json.dumps(said))
        return 0
    for name, value in said.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        print(f"{name:<12} {text}")
    return 0


def _copy(path: Path, copy: str) -> None:
    """The lock keeps nobody out meanwhile; who has had it open has left something in the file's beginning."""
    begins, told = (
        _begins(path),
        f"{path} is open in another process: let it save(), and look at that",
    )
    if _locked(path):
        raise InUse(told)
    shutil.copyfile(path, copy)
    os.chmod(copy, 0o600)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(str(path) + live.CHECKPOINT, copy + live.CHECKPOINT)
        os.chmod(copy + live.CHECKPOINT, 0o600)
    if _locked(path) or _begins(path) != begins:
        raise InUse(told)


def _take_over(copy: str) -> None:
    """The copy counts as the file it is of: nobody had that open while it was copied."""
    with open(copy, "r+b") as file:
        file.seek(FILE_ID_AT)
        file.write(LiveFile.id_of(file.fileno()).to_bytes(8, sys.byteorder))


@contextlib.contextmanager
def _opened(
    path: Path, codec: str, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[Cache, str]]:
    """A cache with what the file holds, and how it was found. A live file is opened as a copy of its own."""
    if not files.is_live(_begins(path)):
        with Cache.open(path, codec=codec, progress=progress) as cache:
            yield cache, "snapshot"
        return
    with tempfile.TemporaryDirectory(prefix="gbcache-") as folder:
        copy = os.path.join(folder, "copy.gbc")
        _copy(path, copy)
        _take_over(copy)
        with Cache(None, path=copy, codec=codec, housekeeping=False) as cache:
            assert cache.recovery is not None
            _walk(path, cache)  # a file that was closed is opened without a look at what is in it
            yield cache, cache.recovery.how


def _walk(path: Path, cache: Cache) -> None:
    try:
        cache.check()
    except AssertionError as error:
        raise ImageError(str(path), None, str(error)) from None


def _check(args: argparse.Namespace) -> int:
    _begins(args.file)  # what is no file at all is another error
    try:
        with _opened(args.file, args.codec, _progress(args.quiet, "check")) as (cache, how):
            entries = len(cache)
        said: dict[str, Any] = {
            "file": str(args.file),
            "sound": True,
            "found": how,
            "entries": entries,
        }
    except InUse:
        print(
            f"gbcache check: {args.file} is open in another process, which alone can check it",
            file=sys.stderr,
        )
        return 3
    except ImageError as error:
        said = {"file": str(args.file), "sound": False, "offset": error.offset, "rule": error.rule}
    if args.json:
        print(json.dumps(said))
    elif said["sound"]:
        print(f"{args.file}: sound ({said['found']}), {said['entries']:,} entries")
    else:
        where = "" if said["offset"] is None else f" at byte {said['offset']}"
        print(f"{args.file}: not sound:{where} it does not hold that {said['rule']}")
    return 0 if said["sound"] else 1


# --- entries as lines --------------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    """Whether JSON holds it as it is, type and all."""
    if type(value) is str:
        return _HALF.search(value) is None
    if type(value) is list:
        return all(_is_plain(v) for v in value)
    if type(value) is dict:
        return "$" not in value and all(
            type(k) is str and _is_plain(k) and _is_plain(v) for k, v in value.items()
        )
    if type(value) is float:
        return value - value == 0.0  # neither infinite nor NaN
    if type(value) is int:
        return (
            -(2**63) <= value < 2**64
        )  # Python refuses to write very long ones, and other programs to read longer
    return type(value) in _PLAIN


def _to_json(value: Any, codec: TypedCodec) -> Any:
    if _is_plain(value):
        return value
    if type(value) is bytes:
        return {"$": "bytes", "hex": value.hex()}
    return {"$": "typed", "hex": codec.encode(value).hex()}


def _of_json(value: Any, codec: TypedCodec) -> Any:
    if type(value) is dict and "$" in value:
        data = bytes.fromhex(value["hex"])
        return data if value["$"] == "bytes" else codec.decode(data)
    return value


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError) as error:  # a very long int, a very deep list
        return f"<{type(value).__name__}, which dump --json has: {error}>"


def _key_to_json(key: Any) -> Any:
    if type(key) is str and _is_plain(key):
        return key
    kind, data = encode_key(key)
    return {"$": kind, "hex": data.hex()}


def _key_of_json(key: Any) -> Any:
    return decode_key(key["$"], bytes.fromhex(key["hex"])) if type(key) is dict else key


def _dump(args: argparse.Namespace) -> int:
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    codec = TypedCodec()
    with _opened(args.file, args.codec, _progress(args.quiet, "read")) as (cache, _):
        for at, key in enumerate(cache):
            if args.limit is not None and at >= args.limit:
                break
            try:
                value, left = None if args.keys else cache.peek(key), cache.ttl(key)
            except KeyError:  # its time has come meanwhile
                continue
            if args.json:
                line = {"key": _key_to_json(key), "value": _to_json(value, codec), "ttl": left}
                print(json.dumps(line if not args.keys else {"key": line["key"]}))
            else:
                text = _shown(key) if args.keys else f"{_shown(key)}: {_shown(value)}"
                tail = "" if left is None else f"  ({left:,.0f} s left)"
                print(
                    text
                    if len(text) + len(tail) <= width
                    else text[: width - len(tail) - 3] + "...",
                    tail,
                    sep="",
                )
    return 0


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[bool]:
    """Whether a live file is there, which is nobody's meanwhile; BlockingIOError where it is somebody's."""
    file = LiveFile(path)
    try:
        is_live = path.exists() and files.is_live(_begins(path))
        yield is_live and file._lock_existing()
    finally:
        file.release()


def _load(args: argparse.Namespace, lines: TextIO) -> int:
    if args.file.exists() and not args.force:
        raise Usage(f"{args.file} is there already: --force replaces it")
    codec = TypedCodec()
    with Cache(args.max_bytes) as cache:
        n = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                cache.set(
                    _key_of_json(item["key"]), _of_json(item["value"], codec), ttl=item.get("ttl")
                )
            except BudgetError as error:
                raise Usage(f"line {number}: {error} (--max-bytes): nothing was written") from None
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                what = f"{type(error).__name__}: {error}"
                raise Usage(
                    f"line {number} is not one of dump --json ({what}): nothing was written"
                ) from None
            n += 1
        if len(cache) < n and cache.stats().evictions:
            raise Usage(
                f"only {len(cache):,} of {n:,} entries fit {args.max_bytes}: give --max-bytes more"
            )
        with _kept(args.file) as is_live:
            show, over = _progress(args.quiet, "save"), is_live and args.force
            size = snapshot.write(cache, str(args.file), show, over_live=over)
    print(f"{args.file}: {n:,} entries, {size:,} bytes", file=sys.stderr)
    return 0


def run(args: argparse.Namespace) -> int:
    """Does one of them; the exit code. 1: the file is not sound; 2: something else is at fault; 3: it is in use."""
    try:
        if args.verb == "load":
            return _load(args, sys.stdin)
        return {"info": _info, "check": _check, "dump": _dump}[args.verb](args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ImageError as error:
        print(f"gbcache {args.verb}: {error}", file=sys.stderr)
        return 1
    except (Usage, OSError, ValueError, TypeError) as error:
        print(f"gbcache {args.verb}: {error}", file=sys.stderr)
        return 2
