"""A script: what the footers of the Parquet files named on stdin say, a JSON line each. A damaged footer can end the process."""

import base64
import io
import json
import sys
from typing import Any

MOST = 32 << 20  # bytes of a footer: of 100,000 row groups of an image and a label


def check(path: str) -> None:
    """Refuse a footer that is longer than any that is needed, by its length, which stands at the file's end."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 8))
        length = int.from_bytes(file.read(4), "little")
    if length > MOST:
        raise ValueError(f"its footer claims {length:,} bytes, more than {MOST:,}")


def footer(path: str) -> dict[str, Any]:
    """Schema, rows and bytes of each row group, columns of bytes and texts, and their nulls in each group (null: not said)."""
    import pyarrow.parquet

    check(path)
    with pyarrow.parquet.ParquetFile(path) as file:
        meta, schema = file.metadata, file.schema_arrow
        parts = [meta.schema.column(i) for i in range(meta.num_columns)]
        groups = [meta.row_group(group) for group in range(meta.num_row_groups)]
        leaves = [i for i, part in enumerate(parts) if part.physical_type == "BYTE_ARRAY"]
        said = {i: [group.column(i).statistics for group in groups] for i in leaves}
        return {
            "schema": base64.b64encode(schema.serialize()).decode(),
            "rows": [group.num_rows for group in groups],
            "bytes": [group.total_byte_size for group in groups],
            "leaves": [parts[i].path for i in leaves],
            "nulls": [
                [one.null_count if one is not None and one.has_null_count else None for one in said[i]] for i in leaves
            ],
        }


def main() -> None:
    """Answer for each path, one a line; an error is an answer, too."""
    for path in json.load(sys.stdin):
        try:
            found = footer(path)
        except Exception as error:
            found = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
