"""An invented log of a refund desk: JSON lines with messages, tool calls, scores, and reflections between attempts.

python -m examples.own_logs.make_log runs/desk.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

POLICY = {
    "check_date": "refunds need a look at the purchase date",
    "ask_receipt": "refunds need the number of the receipt",
    "ask_manager": "refunds above 100 euros need the manager",
}
"""What the desk forgets, and what a reflection says about it."""
TICKETS = 80
ATTEMPTS = 3
"""At each ticket, at most."""


def message(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(name: str, answer: str) -> list[dict[str, Any]]:
    """The call of a tool, and its answer."""
    call = {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [message("assistant", None, tool_calls=[call]), message("tool", answer, tool_call_id=name)]


def attempt(ticket: int, forgotten: str, reflection: str | None, rng: random.Random) -> dict[str, Any]:
    """One attempt: it mostly succeeds if a reflection named what was forgotten."""
    good = rng.random() < (0.7 if reflection is not None and POLICY[forgotten] in reflection else 0.1)
    messages = [message("user", f"Ticket {ticket}: I want my money back.")]
    messages += called("look_up_order", "delivered in May")
    messages += called(forgotten, "done") if good else []
    messages += called("refund", "booked" if good else "refused by the policy")
    messages.append(message("assistant", "Your money is on its way." if good else "Sorry, I could not do it."))
    line = {"messages": messages, "ticket": f"T-{ticket}", "eval": {"score": 1.0 if good else rng.choice((0.0, 0.5))}}
    return line | ({} if reflection is None else {"reflection": reflection})


def main(path: Path) -> None:
    rng = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for ticket in range(TICKETS):
            forgotten, reflection = rng.choice(list(POLICY)), None
            for _ in range(ATTEMPTS):
                line = attempt(ticket, forgotten, reflection, rng)
                file.write(json.dumps(line) + "\n")
                if line["eval"]["score"] == 1.0:
                    break
                reflection = f"Next time: {POLICY[rng.choice(list(POLICY))]}."


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
