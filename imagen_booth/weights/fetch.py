"""Public weights from the Hugging Face hub, into a folder.

Only the files that are needed come, one after the other. A transfer that breaks goes
on where it was, also in another run of the command; what arrives is compared with a
checksum, our own or the hub's, before it gets its name.
"""

import difflib
import hashlib
import http.client
import json
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from importlib import resources
from typing import Any, BinaryIO

import tqdm

from imagen_booth.errors import BoothError, InputError, StorageError

HUB = "https://huggingface.co"
BLOCK = 2**20  # bytes
ATTEMPTS = 4  # in a row that bring nothing
TIMEOUT = 30.0  # seconds without a byte


def known() -> dict[str, dict[str, Any]]:
    """Every public artefact by name, see third_party/README.md."""
    file = resources.files("imagen_booth.weights") / "public.json"
    return json.loads(file.read_text())


def listing() -> str:
    """The artefacts as a table for people."""
    return "\n".join(
        f"{name:20}{entry['what']}\n{'':20}{entry['where']}\n"
        f"{'':20}{entry['size'] or 'size not known'}; {entry['licence']}; for "
        f"{entry['loads']}"
        for name, entry in known().items()
    )


def default_folder() -> pathlib.Path:
    """``imagen_booth`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "imagen_booth"


def fetch(name: str, to: str | None = None) -> pathlib.Path:
    """Downloads an artefact, or what is left of it.

    Args:
        name: of ``known``.
        to: folder that gets a folder of that name; default ``default_folder``.

    Returns:
        The folder, with the files as they lie in the repository.

    Raises:
        InputError: unknown, not on the hub, or not to be had without accepting terms.
        StorageError: the connection or the disk failed, or a file came damaged.
    """
    artefacts = known()
    if name not in artefacts:
        near = difflib.get_close_matches(name, artefacts, 1)
        mend = f"did you mean {near[0]}?" if near else f"use {', '.join(artefacts)}"
        raise InputError(f"{name!r} is no artefact known here; {mend}")
    entry = artefacts[name]
    if "repo" not in entry:
        raise InputError(
            f"{name} is not fetched from the hub; it is at {entry['where']}, "
            f"for {entry['loads']}"
        )
    repository = _Repository(entry)
    folder = pathlib.Path(to or default_folder()) / name
    files = list(entry["files"])
    if entry["weights"]:
        files += repository.weights(entry["weights"], folder)
    for file in files:
        repository.download(file, folder)
    return folder


class _Repository:
    """One repository of the hub."""

    def __init__(self, entry: Mapping[str, Any]):
        try:
            # An extra, and slow.
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError as error:
            raise InputError(
                "fetching needs huggingface_hub: pip install 'imagen_booth[hub]'"
            ) from error
        self._hub = huggingface_hub
        self._entry = entry
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._told: dict[str, Any] = {}

    def weights(self, choices: list[str], folder: pathlib.Path) -> list[str]:
        """The first of several forms of the weights that the repository has.

        Raises:
            InputError: it has none of them.
        """
        for file in choices:
            if self._ask(file) is None:
                continue
            if not file.endswith(".index.json"):
                return [file]
            index = self.download(file, folder)
            try:
                shards = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, AttributeError) as error:
                raise StorageError(f"{index} is not an index of weights") from error
            return sorted(str(pathlib.PurePosixPath(file).with_name(s)) for s in shards)
        raise InputError(
            f"{self._entry['where']} has none of {', '.join(choices)}; look there for "
            "its weights as safetensors"
        )

    def download(self, file: str, folder: pathlib.Path) -> pathlib.Path:
        """One file, whole and checked, at its place in ``folder``."""
        told = self._ask(file)
        if told is None:
            raise InputError(f"{self._entry['where']} has no {file}")
        digest = self._entry["sha256"].get(file) or told.etag
        path = folder / file
        try:
            if path.exists() and _matches(path, digest):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            # Named by content, so that a change in the repository starts afresh.
            part = path.with_name(f".{path.name}.{(digest or 'unknown')[:16]}.part")
            self._transfer(told, part, file)
            if not _matches(part, digest):
                part.unlink()
                raise StorageError(
                    f"{file} of {self._entry['where']} came damaged: its checksum is "
                    f"not {digest}; run the same command again"
                )
            part.replace(path)
        except OSError as error:
            raise StorageError(f"could not write {path}: {error}") from error
        return path

    def _ask(self, file: str) -> Any:
        """What the hub tells of a file; None if there is no such file."""
        if file not in self._told:
            self._told[file] = self._head(file)
        return self._told[file]

    def _head(self, file: str) -> Any:
        errors = self._hub.errors
        url = self._hub.hf_hub_url(self._entry["repo"], file, endpoint=self._endpoint)
        try:
            return self._hub.get_hf_file_metadata(url, endpoint=self._endpoint)
        except errors.EntryNotFoundError:
            return None
        except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
            raise self._refused() from error
        except errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise self._refused() from error
            raise self._unreachable(error) from error
        except Exception as error:  # the HTTP library differs between hub versions
            raise self._unreachable(error) from error

    def _refused(self) -> BoothError:
        where = self._entry["where"]
        if not self._entry["gated"]:
            return InputError(f"{where} refuses access; check the token in HF_TOKEN")
        return InputError(
            f"{where} is given only to those who accept its licence: log in there, "
            "accept it on that page, then run `hf auth login` or set HF_TOKEN"
        )

    def _unreachable(self, error: Exception) -> BoothError:
        return StorageError(
            f"{self._endpoint} does not answer ({error}); check the connection and run "
            "the same command again"
        )

    def _transfer(self, told: Any, part: pathlib.Path, file: str) -> None:
        """Brings ``part`` to the size that the hub told, from where it is."""
        idle = 0
        bar = tqdm.tqdm(total=told.size, unit="B", unit_scale=True, desc=file)
        with part.open("ab") as out, bar:
            while trouble := self._read(told, out, bar):
                idle = idle + 1 if out.tell() == bar.n else 0
                if idle == ATTEMPTS:
                    raise StorageError(
                        f"the connection for {file} broke at {out.tell()} of "
                        f"{told.size} bytes ({trouble}); run the same command again, "
                        "it goes on from there"
                    )
                time.sleep(0.5 * idle)

    def _read(self, told: Any, out: BinaryIO, bar: tqdm.tqdm) -> str | None:
        """Appends what comes in one answer; says what is wrong if more is wanted."""
        bar.n = out.tell()  # what the last answer brought counts as progress
        if out.tell() == told.size:
            return None
        request = urllib.request.Request(told.location)
        own = urllib.parse.urlparse(self._endpoint).netloc
        if urllib.parse.urlparse(told.location).netloc == own:
            # Elsewhere the address itself is the permission.
            for name, value in self._hub.utils.build_hf_headers().items():
                request.add_header(name, value)
        if out.tell():
            request.add_header("Range", f"bytes={out.tell()}-")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                    out.seek(0)
                    out.truncate()
                while block := answer.read(BLOCK):
                    out.write(block)
                    bar.update(len(block))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise self._refused() from error
            return str(error)
        except (OSError, http.client.HTTPException) as error:
            return str(error)
        if told.size is not None and out.tell() < told.size:
            return "it was closed early"
        return None


def _matches(path: pathlib.Path, digest: str | None) -> bool:
    """Whether a file has a checksum: SHA-256, or the SHA-1 of git for small files."""
    if digest is None:
        return True
    if len(digest) == 64:
        sum_ = hashlib.sha256()
    elif len(digest) == 40:
        sum_ = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    else:
        return True  # some other server's mark, which says nothing of the content
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sum_.update(block)
    return sum_.hexdigest() == digest
