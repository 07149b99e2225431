"""What plans cost together: `python scripts/costs.py PLAN.json...`, of `tok ... --dry-run --json`; `--markdown` for a table of the docs.

Times are the plans' own arithmetic: floating-point operations over the speed of the hardware that they name, at the share of it
that they assume. Nothing is measured.
"""

import json
import sys
from pathlib import Path
from typing import Any


def lines(plans: list[dict[str, Any]]) -> list[list[str]]:
    """A heading, a line a plan and their sum: command, FLOP, memory of one GPU, hours."""
    found = [["", "EFLOP", "GiB a GPU", "hours"]]
    total = [0.0, 0.0]
    for plan in plans:
        compute, memory = plan["compute"] or {}, plan["memory"] or {}
        flop, seconds, held = compute.get("flop"), compute.get("seconds"), memory.get("bytes_per_gpu")
        total = [total[0] + (flop or 0), total[1] + (seconds or 0)]
        cells = [flop and f"{flop / 1e18:,.2f}", held and f"{held / 2**30:.1f}", seconds and f"{seconds / 3600:.2f}"]
        found.append([_name(plan), *(cell or "-" for cell in cells)])
    return [*found, ["all", f"{total[0] / 1e18:,.1f}", "", f"{total[1] / 3600:,.1f}"]]


def _name(plan: dict[str, Any]) -> str:
    facts, sample = plan["facts"], plan["recipe"].get("sample", {})
    mode = facts.get("mode") if plan["kind"] in ("proposal", "samples") else None
    scale = f"cfg_scale {sample['cfg_scale']}" if "cfg_scale" in sample else None
    return " ".join(str(part) for part in (facts.get("name"), plan["kind"], mode, scale) if part)


def assumed(plans: list[dict[str, Any]]) -> list[str]:
    """What the times rest on, each set of assumptions once."""
    said = []
    for plan in plans:
        if plan["compute"]:
            a = plan["compute"]["assumed"]
            speed = f"{a['flop_per_second'] / 1e12:.0f} TFLOP/s ({a['precision']})"
            said.append(
                f"{a['gpus']} GPUs of {speed} and {a['bytes_per_second'] / 1e12:.2f} TB/s at {a['utilisation']:.0%} of either"
            )
    uncounted = sorted({what for plan in plans if plan["compute"] for what in plan["compute"]["uncounted"]})
    return [f"by arithmetic, on {one}" for one in dict.fromkeys(said)] + [
        f"not counted: {', '.join(uncounted)}"
    ] * bool(uncounted)


def main(*arguments: str) -> None:
    """See the module."""
    markdown = "--markdown" in arguments
    plans = [json.loads(Path(one).read_text(encoding="utf-8")) for one in arguments if one != "--markdown"]
    table = lines(plans)
    if markdown:
        table.insert(1, ["---", "---:", "---:", "---:"])
        print("\n".join("| " + " | ".join(line) + " |" for line in table))
    else:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        print(
            "\n".join(
                "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])
                for first, *rest in table
            )
        )
    print("\n" * markdown + "\n".join(assumed(plans)))


if __name__ == "__main__":
    main(*sys.argv[1:])
