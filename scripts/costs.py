"""What plans cost together: `python scripts/costs.py PLAN.json...`, of `tok ... --dry-run --json`; `--markdown`: a row a tokenizer.

Times are the plans' own arithmetic: floating-point operations over the speed of the hardware that they name, at the share of it
that they assume. Nothing is measured.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

COLUMNS = ("tokenizer", "decoder", "tokens", "proposal ar", "proposal nar", "samples", "report")


def lines(plans: list[dict[str, Any]]) -> list[list[str]]:
    """A heading, a line a plan and their sum: command, operations, memory of one GPU, hours."""
    found = [["", "EFLOP", "GiB a GPU", "hours"]]
    for plan in plans:
        compute, memory = plan["compute"] or {}, plan["memory"] or {}
        flop, held = compute.get("flop"), memory.get("bytes_per_gpu")
        cells = [flop and f"{flop / 1e18:,.2f}", held and f"{held / 2**30:.1f}", _hours(plan) and f"{_hours(plan):.2f}"]
        found.append([_name(plan), *(cell or "-" for cell in cells)])
    flops = sum((plan["compute"] or {}).get("flop") or 0 for plan in plans)
    return [*found, ["all", f"{flops / 1e18:,.1f}", "", f"{sum(map(_hours, plans)):,.1f}"]]


def by_tokenizer(plans: list[dict[str, Any]]) -> list[list[str]]:
    """A heading, a line a tokenizer and their sum: hours of each kind of command, and the most memory that one GPU needs."""
    hours: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    memory: dict[str, float] = defaultdict(float)
    for plan in plans:
        row = "evaluation of all" if plan["kind"] == "report" else plan["facts"]["name"]
        hours[row][_column(plan)] += _hours(plan)
        memory[row] = max(memory[row], ((plan["memory"] or {}).get("bytes_per_gpu") or 0) / 2**30)
    found = [["hours", *COLUMNS[:-1], "all", "GiB a GPU"]]
    for row, own in hours.items():
        cells = [f"{own[column]:.2f}" if own[column] else "-" for column in COLUMNS[:-1]]
        found.append([row, *cells, f"{sum(own.values()):.1f}", f"{memory[row]:.0f}" if memory[row] else "-"])
    return [*found, ["all", *[""] * (len(COLUMNS) - 1), f"{sum(map(_hours, plans)):,.0f}", ""]]


def _hours(plan: dict[str, Any]) -> float:
    """0 where nobody knows."""
    return ((plan["compute"] or {}).get("seconds") or 0) / 3600


def _column(plan: dict[str, Any]) -> str:
    return f"proposal {plan['facts']['mode']}" if plan["kind"] == "proposal" else plan["kind"]


def _name(plan: dict[str, Any]) -> str:
    facts, sample = plan["facts"], plan["recipe"].get("sample", {})
    mode = facts.get("mode") if plan["kind"] in ("proposal", "samples") else None
    scale = f"cfg_scale {sample['cfg_scale']}" if "cfg_scale" in sample else None
    return " ".join(str(part) for part in (facts.get("name"), plan["kind"], mode, scale) if part)


def assumed(plans: list[dict[str, Any]]) -> list[str]:
    """What the times rest on, each set of assumptions once, and what is missing from the sum."""
    said, uncounted = [], set()
    for compute in (plan["compute"] for plan in plans if plan["compute"]):
        a = compute["assumed"]
        speed = f"{a['flop_per_second'] / 1e12:.0f} TFLOP/s ({a['precision']})"
        gpus = f"{a['gpus']} GPU{'s' * (a['gpus'] > 1)}"
        said.append(
            f"{gpus} of {speed} and {a['bytes_per_second'] / 1e12:.2f} TB/s, at {a['utilisation']:.0%} of either"
        )
        uncounted |= {*compute["uncounted"]}
    unknown = [_name(plan) for plan in plans if not _hours(plan)]
    found = [f"By arithmetic, on {one}." for one in dict.fromkeys(said)]
    found += [f"Not counted: {', '.join(sorted(uncounted))}."] * bool(uncounted)
    return found + [f"Unknown, so that the sum is a lower bound: {', '.join(unknown)}."] * bool(unknown)


def main(*arguments: str) -> None:
    """See the module."""
    markdown = "--markdown" in arguments
    plans = [json.loads(Path(one).read_text(encoding="utf-8")) for one in arguments if one != "--markdown"]
    table = by_tokenizer(plans) if markdown else lines(plans)
    if markdown:
        table.insert(1, ["---", *["---:"] * (len(table[0]) - 1)])
        print("\n".join("| " + " | ".join(line) + " |" for line in table) + "\n")
        print(" ".join(assumed(plans)))
        return
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *rest in table:
        print(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        )
    print("\n".join(assumed(plans)))


if __name__ == "__main__":
    main(*sys.argv[1:])
