"""Public weights from the Hugging Face hub, into a folder.

Only the files that are needed are downloaded, one after the other, by huggingface_hub.
An interrupted download continues where it stopped, also in a later command. (The
library's own ``hf_hub_download`` starts such a file again, so its ``http_get`` is
called with the size of the partial file.) A file gets its name once its checksum, from
our manifest or from the hub, is verified.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import tqdm
from etils import epath

from imagen_booth.config.schema import Job
from imagen_booth.errors import BoothError, InputError, StorageError
from imagen_booth.storage import is_object_store

log = logging.getLogger(__name__)

VARIABLE = "IMAGEN_BOOTH_WEIGHTS"  # names a folder of fetched weights
HUB = "https://huggingface.co"
BLOCK = 2**20  # bytes
TEXT = ("t5_xxl", "t5_vocabulary")
# The artefacts of a whole cascade.
CASCADES = {
    "if_m": ("if_i_m", "if_ii_m", *TEXT),
    "if_l": ("if_i_l", "if_ii_m", *TEXT),
    "if_xl": ("if_i_xl", "if_ii_l", *TEXT),
}


def known() -> dict[str, dict[str, Any]]:
    """Returns every public artefact by name, see third_party/README.md."""
    file = resources.files("imagen_booth.weights") / "public.json"
    return json.loads(file.read_text())


def listing() -> str:
    """Formats the artefacts and the cascades as a table."""
    artefacts = [
        f"{name:20}{entry['what']}\n{'':20}{entry['where']}\n"
        f"{'':20}{entry['size'] or 'size not known'}; {entry['licence']}; for "
        f"{entry['loads']}"
        for name, entry in known().items()
    ]
    cascades = [
        f"{name:20}the whole cascade: {', '.join(parts)}"
        for name, parts in CASCADES.items()
    ]
    return "\n".join([*artefacts, *cascades])


def default_folder() -> pathlib.Path:
    """Returns ``imagen_booth`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / "imagen_booth"


def fetch(name: str, to: str | None = None) -> dict[str, pathlib.Path]:
    """Downloads an artefact, or those of a cascade, or what is missing of them.

    The licences and the number of bytes are logged before the first byte arrives.

    Args:
        name: Name in ``known`` or in ``CASCADES``.
        to: Folder in which each artefact gets a folder of its name; default
            ``default_folder``.

    Returns:
        The folder of each artefact by its name, with files under the same paths as in
        the repository.

    Raises:
        InputError: The name is unknown, the artefact is not on the hub, or its licence
            has to be accepted first.
        StorageError: The connection or the disk failed, the disk is too small, or a
            file does not have its checksum.
    """
    root = pathlib.Path(to or default_folder())
    entries = {each: _entry(each) for each in CASCADES.get(name, (name,))}
    hub = _Hub()
    files = []
    for each, entry in entries.items():
        listed = hub.files(entry, root / each)
        size = _bytes(sum(file.size for file in listed))
        log.info("%s: %s, %s; licence: %s", each, entry["what"], size, entry["licence"])
        files += listed
    left = sum(file.size - file.present() for file in files)
    log.info("%s to download into %s", _bytes(left), root)
    _check_space(root, left)
    for file in files:
        hub.download(file)
    return {each: root / each for each in entries}


def is_found(to: str | None) -> bool:
    """Checks whether ``with_fetched`` looks into a folder, without the variable."""
    usual = (default_folder(), pathlib.Path("weights"))
    return to is None or pathlib.Path(to).absolute() in [p.absolute() for p in usual]


def with_fetched(job: Job) -> Job:
    """Returns the job with fetched weights in the place of those that it leaves empty.

    They are looked for, whole, in the folder that the environment variable
    ``IMAGEN_BOOTH_WEIGHTS`` names, in ``weights``, and in ``default_folder``.
    """
    places = [os.environ.get(VARIABLE, ""), "weights", str(default_folder())]
    found = {}
    for name in CASCADES.get(job.cascade, ()):
        entry = known()[name]
        part = entry["loads"].rpartition(".")[2]
        if getattr(job.weights, part):
            continue
        paths = (_whole(entry, epath.Path(at) / name) for at in places if at)
        path = next((path for path in paths if path is not None), None)
        if path is not None:
            found[part] = os.fspath(path if is_object_store(path) else path.absolute())
    weights = dataclasses.replace(job.weights, **found)
    return dataclasses.replace(job, weights=weights)


def _whole(entry: Mapping[str, Any], folder: epath.Path) -> epath.Path | None:
    """The path that loads an artefact, if all its files are in the folder."""
    if not all((folder / name).exists() for name in entry["files"]):
        return None
    choices = [name for name in entry["weights"] if (folder / name).exists()]
    if entry["weights"] and not choices:
        return None
    for name in choices[:1]:
        if name.endswith(".index.json"):
            index = json.loads((folder / name).read_text())
            shards = set(index.get("weight_map", {}).values())
            if not all(((folder / name).parent / each).exists() for each in shards):
                return None
    # A repository without a config.json is read as the file of tensors alone.
    return folder if entry["files"] else folder / choices[0]


def _entry(name: str) -> dict[str, Any]:
    artefacts = known()
    if name not in artefacts:
        names = [*artefacts, *CASCADES]
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"
        raise InputError(f"{name!r} is not a known artefact or cascade; {hint}")
    entry = artefacts[name]
    if "repo" not in entry:
        raise InputError(
            f"{name} is not fetched from the hub; it is at {entry['where']}, "
            f"for {entry['loads']}"
        )
    return entry


@dataclasses.dataclass(frozen=True)
class _File:
    """One file of a repository.

    Attributes:
        entry: The artefact it belongs to.
        name: Path in the repository.
        revision: Commit of the repository.
        path: Where it goes.
        size: In bytes.
        digest: SHA-256, or for small files the SHA-1 of git's blob, in hex.
    """

    entry: Mapping[str, Any]
    name: str
    revision: str
    path: pathlib.Path
    size: int
    digest: str

    @property
    def partial(self) -> pathlib.Path:
        """The file while it is incomplete; another content has another name."""
        return self.path.with_name(f".{self.path.name}.{self.digest[:16]}.part")

    def present(self) -> int:
        """Counts the bytes that need not be downloaded."""
        for path in (self.path, self.partial):
            if path.exists():
                return min(self.size, path.stat().st_size)
        return 0

    def matches(self, path: pathlib.Path) -> bool:
        """Checks the content of a file against the checksum."""
        if len(self.digest) == 40:
            computed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
        else:
            computed = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                computed.update(block)
        return computed.hexdigest() == self.digest


class _Hub:
    """The hub, with errors explained."""

    def __init__(self) -> None:
        try:
            import huggingface_hub  # an extra, and slow
            from huggingface_hub import errors, file_download
        except ImportError as error:
            raise InputError(
                "fetching needs huggingface_hub: pip install 'imagen_booth[hub]'"
            ) from error
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint)
        self._library, self._errors = file_download, errors

    def files(self, entry: Mapping[str, Any], folder: pathlib.Path) -> list[_File]:
        """Lists the files of an artefact; downloads the index of sharded weights.

        Raises:
            InputError: The repository does not have them, or refuses access.
            StorageError: The hub does not answer, or the index is damaged.
        """
        with self._explained(entry):
            info = self._api.model_info(entry["repo"], files_metadata=True)
        stored = {each.rfilename: each for each in info.siblings or ()}

        def file(name: str) -> _File:
            if name not in stored:
                raise InputError(f"{entry['where']} has no {name}")
            found = stored[name]
            from_hub = found.lfs.sha256 if found.lfs else found.blob_id
            digest = entry["sha256"].get(name) or from_hub or ""
            path = folder / name
            return _File(entry, name, info.sha or "main", path, found.size or 0, digest)

        files = [file(name) for name in entry["files"]]
        choices = entry["weights"]
        if not choices:
            return files
        chosen = next((name for name in choices if name in stored), None)
        if chosen is None:
            raise InputError(
                f"{entry['where']} has none of {', '.join(choices)}; look there for "
                "its weights as safetensors"
            )
        files.append(file(chosen))
        if chosen.endswith(".index.json"):
            self.download(files[-1])
            try:
                index = json.loads(files[-1].path.read_text())
                shards = sorted(set(index["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise StorageError(
                    f"{files[-1].path} is not an index of weights"
                ) from error
            beside = pathlib.PurePosixPath(chosen)
            files += [file(str(beside.with_name(shard))) for shard in shards]
        return files

    def download(self, file: _File) -> None:
        """Downloads a file, or the rest of it, and verifies its checksum.

        Raises:
            InputError: The repository refuses access.
            StorageError: The connection or the disk failed, or the checksum is wrong.
        """
        with self._explained(file.entry):
            if file.path.exists() and file.matches(file.path):
                return
            file.path.parent.mkdir(parents=True, exist_ok=True)
            with file.partial.open("ab") as out:
                self._library.http_get(
                    self._library.hf_hub_url(
                        file.entry["repo"],
                        file.name,
                        revision=file.revision,
                        endpoint=self._endpoint,
                    ),
                    out,
                    resume_size=out.tell(),
                    headers=self._library.build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
            if not file.matches(file.partial):
                file.partial.unlink()
                raise StorageError(
                    f"{file.name} of {file.entry['where']} is damaged: its checksum is "
                    f"not {file.digest}; run the same command again"
                )
            file.partial.replace(file.path)

    @contextlib.contextmanager
    def _explained(self, entry: Mapping[str, Any]) -> Iterator[None]:
        """Turns errors of the library into ours."""
        refusals = (self._errors.GatedRepoError, self._errors.RepositoryNotFoundError)
        try:
            yield
        except BoothError:
            raise
        except refusals as error:
            raise _refused(entry) from error
        except Exception as error:  # the HTTP library differs between hub versions
            answer = getattr(error, "response", None)
            if getattr(answer, "status_code", None) in (401, 403):
                raise _refused(entry) from error
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and error.filename
            ):
                raise StorageError(f"could not write: {error}") from error
            raise StorageError(
                f"{self._endpoint} does not answer ({error}); check the connection and "
                "run the same command again, it continues where this one stopped"
            ) from error


def _refused(entry: Mapping[str, Any]) -> InputError:
    where = entry["where"]
    if not entry["gated"]:
        return InputError(f"{where} refuses access; check the token in HF_TOKEN")
    return InputError(
        f"{where} requires that you accept its licence: log in there, accept it on "
        "that page, then run `hf auth login` or set HF_TOKEN"
    )


def _check_space(root: pathlib.Path, needed: int) -> None:
    """Raises StorageError unless the disk has room for so many bytes."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{root} needs {_bytes(needed)}, but its disk has {_bytes(free)} free; "
            "make room or give another folder with --to"
        )


def _bytes(count: int) -> str:
    return tqdm.tqdm.format_sizeof(count, "B")
