"""``http://`` and ``https://``: a file, or a folder that a page lists or whose names are known.

A server has no list of its files; nearly every one makes a page of links for a folder. Where it
makes none (a bucket behind a website, a network of copies), names are tried that the folder of a
model on the Hub or of torch.distributed.checkpoint has, and those that these files name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from ckpt_tool.common.errors import FormatError, StoreError, UsageError
from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.failures import explain
from ckpt_tool.common.remote.index_page import list_names
from ckpt_tool.common.remote.objects import RemoteObject, make_object
from ckpt_tool.common.remote.stores import open_url
from ckpt_tool.common.remote.web import Answer, ask
from ckpt_tool.common.untrusted import parse_json, require_object

#: Of a folder and those in it; more than the run of a training has.
_MOST_PAGES, _DEEPEST = 1000, 8
_LONGEST_PAGE = 16 << 20
_LONGEST_INDEX = 1 << 30
_AT_ONCE = 16

#: What names its files: an index of the Hub, and the metadata of torch.distributed.checkpoint,
#: a pickle, whose bytes spell them.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_METADATA = ".metadata"
_SPELT = re.compile(rb"__\d{1,9}_\d{1,9}\.distcp")
#: Files that have those names, where nobody lists any.
_KNOWN = (
    *_INDEXES,
    *"config.json generation_config.json model.safetensors pytorch_model.bin".split(),
    *"adapter_config.json adapter_model.safetensors tokenizer.json tokenizer_config.json".split(),
    *"tokenizer.model special_tokens_map.json added_tokens.json vocab.json merges.txt".split(),
    *"chat_template.jinja preprocessor_config.json processor_config.json".split(),
    *(_METADATA, "metadata.json", "common.pt"),
)


def list_url(address: Address) -> Iterator[Sequence[RemoteObject]]:
    """All files at and below ``address``, some at a time; nothing where none are found.

    StoreError where the server is not reached, refuses, or does not send ranges of bytes.
    UsageError for an address with a user, a query or a fragment in it.
    """
    url = _check(address)
    answer = ask("HEAD", url, address)
    if answer.status in (401, 403, 405, 501):  # of files only, or of this method
        answer = ask("GET", url, address)
    is_file = answer.status == 200 and not answer.url.endswith("/")
    if is_file and not (answer.is_page and not address.key.endswith(("html", "htm"))):
        folder, _, name = url.rpartition("/")
        yield from _look_at(folder, {unquote(name): ""}, address)
        return
    yield from _list_folder(answer, f"{url.rstrip('/')}/", address)


def _check(address: Address) -> str:
    parts = urlsplit(str(address))
    if parts.username or parts.password:
        raise UsageError(
            f"{address.scheme}://{parts.hostname}: an address with a user's name or password in it"
            " is not read, as it would be shown and kept",
            hint="Fetch the folder, and name that.",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            f"{address.scheme}://{address.bucket}{parts.path}: an address with ? or # in it is not"
            " read",
            hint="Fetch the file, and name that.",
        )
    return quote(str(address), safe="/:%[]@!$&'()*+,;=~")


def _list_folder(answer: Answer, folder: str, address: Address) -> Iterator[Sequence[RemoteObject]]:
    page = ask("GET", folder, address, most=_LONGEST_PAGE)
    if page.status == 200 and page.is_page:
        names = list(_walk(page, address))
        if names:
            yield from _look_at(page.url.rstrip("/"), {name: name for name in names}, address)
            return
    found = list(_guess(folder.rstrip("/"), address))
    if not found and {answer.status, page.status} & {401, 403}:
        raise StoreError(
            f"{address}: refused: the server answers {page.status}",
            hint="Fetch the folder with a program that can log in, and name that.",
        )
    if not found:
        raise UsageError(
            f"{address}: there is no such file, no page that lists a folder, and none of the files"
            " that a folder of a model or of torch.distributed.checkpoint has",
            hint=f"Look at it in a browser: {folder}",
        )
    yield found


def _walk(page: Answer, address: Address) -> Iterator[str]:
    """The names of all files below ``page``, with the folders that they are in."""
    root, pages, count = page.url, [(page, "")], 1
    while pages:
        page, above = pages.pop()
        for name in list_names(page.content.decode(errors="replace"), page.url):
            if not name.endswith("/"):
                yield above + name
                continue
            count += 1
            if count > _MOST_PAGES or above.count("/") >= _DEEPEST:
                raise UsageError(
                    f"{address}: has more than {_MOST_PAGES:,} folders, or {_DEEPEST} in each"
                    " other",
                    hint="Name the folder of a checkpoint or of a run.",
                )
            below = ask("GET", _join(page.url, name), address, most=_LONGEST_PAGE)
            if below.status == 200 and below.is_page and below.url.startswith(root):
                pages.append((below, above + name))


def _join(url: str, name: str) -> str:
    return f"{url}{quote(name)}"


def _look_at(
    folder: str, names: dict[str, str], address: Address
) -> Iterator[Sequence[RemoteObject]]:
    """The files ``names`` (what each is called below the address) of a server's folder."""
    store = open_url(folder)

    def look(name: str) -> RemoteObject:
        try:
            return make_object(_ask_size(store, name), store, names[name])
        except FileNotFoundError as error:
            raise StoreError(f"{address}: lists {name}, and has it not") from error
        except Exception as error:
            raise explain(error, _address_of(address, names[name])) from error

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        yield list(threads.map(look, names))


def _address_of(address: Address, name: str) -> Address:
    return address.join(name) if name else address


def _ask_size(store: Any, key: str) -> Any:
    """The row of a file, of which one byte is asked: few servers say whether they can do that."""
    import obstore

    try:
        found = obstore.get(store, key, options={"range": (0, 1)})
        found.bytes()
    except obstore.exceptions.BaseError:
        row = obstore.head(store, key)
        if row["size"]:
            raise
        return row  # of an empty file there is no byte
    return found.meta


def _guess(folder: str, address: Address) -> Iterator[RemoteObject]:
    """The files of known names that are there, and those that they name."""
    store = open_url(folder)

    def look(name: str) -> RemoteObject | None:
        try:
            return make_object(_ask_size(store, name), store, name)
        except (FileNotFoundError, PermissionError):
            return None
        except Exception as error:
            if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
                return None  # how some say that a file is not there
            raise explain(error, address.join(name)) from error

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        known = [found for found in threads.map(look, _KNOWN) if found]
        yield from known
        named = {name for found in known for name in _find_named(found, address)}
        yield from filter(None, threads.map(look, sorted(named - {each.name for each in known})))


def _find_named(found: RemoteObject, address: Address) -> Iterable[str]:
    """The files that ``found`` names: those of an index, those of the metadata."""
    import obstore

    if found.name not in (*_INDEXES, _METADATA) or found.size > _LONGEST_INDEX:
        return ()
    where = address.join(found.name)
    try:
        content = bytes(obstore.get(found.store, found.key).bytes())
    except Exception as error:
        raise explain(error, where) from error
    if found.name == _METADATA:
        return {name.decode() for name in _SPELT.findall(content)}
    index = require_object(parse_json(content, str(where)), str(where))
    files = index.get("weight_map")
    if not isinstance(files, dict):
        raise FormatError("holds no weight_map", path=str(where))
    return {name for name in files.values() if isinstance(name, str) and "/" not in name}
