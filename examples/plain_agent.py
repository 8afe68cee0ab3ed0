"""An agent in plain Python, which does not import retro: after a failure it asks a served model, and says how it went.

    retro serve runs/quickstart/export --buffer runs/served
    python examples/plain_agent.py http://127.0.0.1:8080

Replace `play` by your agent: it gets the reflections on earlier failures, and returns its steps and the return.
"""

import json
import os
import re
import sys
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PLACES = ("cabinet 1", "countertop 1", "desk 1", "desk 2", "drawer 4", "shelf 2")
OPENING = f"places: {' '.join(PLACES)}\ntask: put fork 1 in cabinet 1"
STEPS = 3


def play(reflections: list[str]) -> tuple[list[dict[str, str]], float]:
    """Look at three places: first at those that the newest reflection says to try, not at those where nothing is."""
    advice = reflections[-1] if reflections else ""
    empty = re.findall(r"\w+ \d", "".join(re.findall(r"nothing in ([^.]*)", advice)))
    named = [place for place in re.findall(r"\w+ \d", advice) if place in PLACES and place not in empty]
    places = dict.fromkeys([*named, *(place for place in PLACES if place not in empty), *PLACES])
    steps = [{"action": f"go to {place}", "observation": "you see nothing"} for place in list(places)[:STEPS]]
    for number, step in enumerate(steps):
        if step["action"] == "go to desk 2":
            step["observation"] = "you see fork 1"
            return steps[: number + 1], 1.0
    return steps, 0.0


def post(url: str, body: dict[str, object]) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('RETRO_API_KEY', '')}"}
    try:
        with urlopen(Request(url, json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)
    except HTTPError as error:
        sys.exit(f"{url}: {sentence(error)}")
    except (OSError, HTTPException, ValueError) as error:
        sys.exit(f"{url}: retro serve does not answer there: {error}")


def sentence(error: HTTPError) -> str:
    """What the server says about its error."""
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"status {error.code}, which is not from retro serve"


def main(server: str, attempts: int = 4) -> None:
    reflections: list[str] = []
    reflection_id = None
    for attempt in range(attempts):
        steps, score = play(reflections)
        print(f"attempt {attempt + 1}: {', '.join(step['action'] for step in steps)}: return {score:g}")
        played = {"opening": OPENING, "steps": steps}
        if score == 1 or attempt + 1 == attempts:
            if reflection_id:
                outcome = {"reflection_id": reflection_id, "return": score, "trajectory": played}
                post(f"{server}/v1/outcomes", outcome)
            return
        trajectory = {**played, "return": score, "memory": reflections}
        answer = post(f"{server}/v1/reflections", {"trajectory": trajectory, "reflection_id": reflection_id})
        print(f"  reflection: {answer['text']}")
        if answer["reflection_id"] is None:
            print("  It was not recorded: the server was started without --buffer.")
        reflections, reflection_id = [*reflections, answer["text"]], answer["reflection_id"]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/plain_agent.py SERVER, for example http://127.0.0.1:8080")
    main(sys.argv[1])
