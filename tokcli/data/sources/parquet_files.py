"""Which Parquet files `--data` names: one file, a pattern, a folder, or a split of Hugging Face's layout."""

import os
import re
from pathlib import Path

from tokcli.data.sources.listing import IMAGE_EXTENSIONS, NUMBERED, ROLES, split_of
from tokcli.data.sources.tars import expand, regular
from tokcli.errors import NotFound, TokError
from tokcli.files import from_home

END = ".parquet"
FOLDERS = 2  # how many folders below the named one may hold files: config/split/0000.parquet


def roles_of(columns: str) -> dict[str, list[str]]:
    """Columns by what they are: `image=picture,caption=a,caption=b` -> {"image": ["picture"], "caption": ["a", "b"]}; `label=` is no column.

    Raises:
        TokError: it is of another form.
    """
    roles: dict[str, list[str]] = {}
    for part in re.split(rf",(?=(?:{ROLES})=)", columns) if columns else ():
        role, _, name = part.partition("=")
        roles.setdefault(role, []).extend([name] if name else [])
    for role in ("image", "label"):
        if role in roles and len(roles[role]) != 1 and (role, roles[role]) != ("label", []):
            raise TokError(f"--columns {columns}", f"names no single column as {role}", next=f"Write {role}=NAME once")
    return roles


def layout(folder: Path) -> dict[str, list[Path]]:
    """The files in a folder by the spec that names them together: the folder that they lie in, and their split."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder, FOLDERS):
        found.setdefault(str(path.parent / split_of(path)), []).append(path)
    return found


def _files(folder: Path, deeper: int) -> list[Path]:
    """Parquet files, sorted. A folder below the named one that holds images is no data set of files: a million need not be listed."""
    files, folders, named = list[str](), list[str](), set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(END) and entry.name != "metadata.parquet":
                files.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.name.endswith(".tar"):
                named.add(entry.name.removesuffix(".tar"))
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS) and deeper < FOLDERS:
                return []
    # img2dataset writes 00000.parquet, a table of addresses, beside the images in 00000.tar or in the folder 00000
    tables = {name for name in files if name.removesuffix(END) in named.union(folders)}
    here = [folder / name for name in sorted(set(files) - tables)]
    below = [path for name in sorted(folders) for path in _files(folder / name, deeper - 1)] if deeper else []
    return here + below


def names_parquet(spec: str) -> bool:
    """Whether a spec without columns names Parquet files; it looks at names alone."""
    path = from_home(spec)
    if path.is_dir():
        return bool(layout(path))
    return spec.endswith(END) or bool(_split(path))


def _split(path: Path) -> list[Path]:
    """The files of a split: of DIR/train, the files DIR/train-*.parquet or DIR/data/train-*.parquet."""
    for folder in (path.parent, path.parent / "data"):
        if not path.exists() and folder.is_dir():
            files = [file for file in _files(folder, 0) if split_of(file) == path.name]
            if files:
                return files
    return []


def files_of(spec: str) -> tuple[str, list[Path]]:
    """How to name the files of a spec again, and the files in order.

    Raises:
        NotFound: there are none.
        TokError: several splits to choose from, or a file of a numbered split is missing.
    """
    path = from_home(spec)
    if spec.endswith(END) and not path.is_dir():
        files = regular(expand(str(path.absolute())))
        return str(path.absolute()), files
    found = layout(path) if path.is_dir() else {}
    if len(found) > 1:
        raise TokError(f"--data {spec}", "holds splits or several data sets", next=f"Give {' or '.join(sorted(found))}")
    files = next(iter(found.values()), _split(path))
    if not files:
        raise NotFound(f"--data {spec}", "holds no Parquet files", next="Name a folder or files that do")
    _refuse_missing(spec, regular(files))
    return os.path.abspath(files[0].parent / split_of(files[0])), files


def _refuse_missing(spec: str, files: list[Path]) -> None:
    """Files that are numbered say how many they are."""
    numbered = [found for file in files if (found := NUMBERED.fullmatch(file.stem))]
    wanted = {int(found["all"]) for found in numbered}
    if wanted and (len(wanted) > 1 or max(wanted) != len(numbered)):
        pattern = files[0].parent / f"{split_of(files[0])}-*{END}"
        raise TokError(
            f"--data {spec}",
            "some of its files are missing",
            got=f"{len(numbered)} where {files[0].name} says {max(wanted)}",
            next=f"Fetch the others, or name those that are there: '{pattern}'",
        )
