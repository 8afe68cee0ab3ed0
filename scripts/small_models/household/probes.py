"""Probes of each ability of the quickstart's two models: what the model card's table is made from.

python -m scripts.small_models.household.probes --rooms 300
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retro.envs.household import CLOSED, Household, World, draw_world, kind_of, know_all
from retro.models.generation import Engine
from retro.models.text import encode_prompt
from retro.prompts import load_prompts
from retro.types import Sampling, Split, Step, Task, Trajectory, derive_seed
from scripts.small_models.household import reflections
from scripts.small_models.household.demonstrator import Advice
from scripts.small_models.household.samples import play

PROMPTS = load_prompts("household")
PROBE_SEEDS = 2_000_000_000_000
"""Rooms that neither the models' training nor the pipeline's splits contain."""


def rooms(count: int, wanted: Callable[[World], bool]) -> list[World]:
    found: list[World] = []
    seed = PROBE_SEEDS
    while len(found) < count:
        world = draw_world(seed)
        seed += 1
        if wanted(world):
            found.append(world)
    return found


def rollouts(engine: Engine, worlds: list[World], notes: list[list[str]]) -> list[list[Step]]:
    """The actor at temperature 0, all rooms side by side."""
    plays = [Household(Task("household", f"probe-{i}", Split.TEST), world) for i, world in enumerate(worlds)]
    openings = [room.reset()[0] for room in plays]
    steps: list[list[Step]] = [[] for _ in worlds]
    live = list(range(len(worlds)))
    while live:
        requests = [
            (
                f"room-{i}",
                encode_prompt(engine.tokenizer, PROMPTS.actor(openings[i], steps[i], notes[i])),
                Sampling(max_tokens=12, stop=PROMPTS.actor_stop),
            )
            for i in live
        ]
        texts = [engine.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in engine.complete(requests)]
        still = []
        for i, text in zip(live, texts, strict=True):
            action = text.strip()
            observation, reward, terminated, truncated, _ = plays[i].step(action)
            steps[i].append(Step(action, observation, reward))
            if not (terminated or truncated):
                still.append(i)
        live = still
    return steps


def visits(steps: list[Step]) -> list[str]:
    return [step.action.removeprefix("go to ") for step in steps if step.action.startswith("go to ")]


def share(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 3)


def _open_and_empty(world: World) -> list[str]:
    """Places to be sent to in vain, one step each."""
    return [p for p in world.places if kind_of(p) not in CLOSED and not set(world.targets) & set(world.contents[p])]


def probe_actor(engine: Engine, count: int) -> dict[str, float]:
    """Each value is the share of rooms in which the actor did what its notes said."""
    rng = random.Random(1)
    single = rooms(count, lambda world: world.kind == "pick" and len(_open_and_empty(world)) > 1)
    treated = rooms(count, lambda world: bool(world.tools))
    broken = rooms(count, lambda world: bool(world.broken))
    result: dict[str, float] = {}

    def first_goes(worlds: list[World], notes: list[list[str]], told: list[list[str]]) -> list[bool]:
        return [visits(s)[: len(t)] == t for s, t in zip(rollouts(engine, worlds, notes), told, strict=True)]

    told = [[rng.choice([p for p in w.places if p != w.place_of(w.targets[0])])] for w in single]
    says = [[f"{w.targets[0]} is in {t[0]}."] for w, t in zip(single, told, strict=True)]
    result["goes where the object is said to be, wrongly"] = share(first_goes(single, says, told))
    says = [[s[0], "be more careful.", "try again."] for s in says]
    result["the same, said two notes before the last"] = share(first_goes(single, says, told))

    told = [rng.sample(_open_and_empty(w), 2) for w in single]
    says = [[f"try {' '.join(t)}."] for t in told]
    result["tries two places in the order said"] = share(first_goes(single, says, told))
    says = [[f"try {older}.", f"try {newest}."] for newest, older in told]
    result["tries the newest note's place, then the older one's"] = share(first_goes(single, says, told))
    told = [rng.sample(w.places, 5) for w in single]
    says = [[f"nothing in {' '.join(t[:3])}.", f"nothing in {' '.join(t[3:])}."] for t in told]
    goes = [visits(s)[:2] for s in rollouts(engine, single, says)]
    result["keeps away from five places, named in two notes"] = share(
        [not set(g) & set(t) for g, t in zip(goes, told, strict=True)]
    )
    known = [f"{w.targets[0]} is in {w.place_of(w.targets[0])}. remember to {w.kind} it." for w in treated]
    tool = [rng.choice(w.tools) for w in treated]
    played = rollouts(engine, treated, [[f"{k} use {t}."] for k, t in zip(known, tool, strict=True)])
    result["uses the tool it is told to use"] = share(
        [next((p for p in visits(s) if p in w.tools), "") == t for s, t, w in zip(played, tool, treated, strict=True)]
    )
    known = [f"{w.targets[0]} is in {w.place_of(w.targets[0])}. remember to {w.kind} it." for w in broken]
    played = rollouts(engine, broken, [[f"{w.broken} is broken.", k] for k, w in zip(known, broken, strict=True)])
    result["keeps away from the tool said to be broken"] = share(
        [w.broken not in visits(s) for s, w in zip(played, broken, strict=True)]
    )
    for kind in ("clean", "heat", "cool"):
        some = [w for w in treated if w.kind == kind]
        for words, extra in (("reminded", f" remember to {kind} it."), ("not reminded", "")):
            notes = [[f"{w.targets[0]} is in {w.place_of(w.targets[0])}.{extra}"] for w in some]
            treats = [any(step.action.startswith(kind) for step in s) for s in rollouts(engine, some, notes)]
            result[f"treats the object ({kind}), {words}"] = share(treats)
    everything = rooms(count, lambda world: True)
    played = rollouts(engine, everything, [[know_all(w)] for w in everything])
    result["succeeds with the oracle's reflection"] = share([sum(x.reward for x in s) > 0.999 for s in played])
    played = rollouts(engine, everything, [[know_all(w), "try again.", "be more careful."] for w in everything])
    result["succeeds with the oracle's reflection, two vague ones after it"] = share(
        [sum(x.reward for x in s) > 0.999 for s in played]
    )
    played = rollouts(engine, everything, [[] for _ in everything])
    result["succeeds without notes"] = share([sum(x.reward for x in s) > 0.999 for s in played])
    return result


def probe_retrospective(engine: Engine, count: int) -> dict[str, float]:
    """Shares over reflections on the demonstrator's failures, sampled at temperature 1."""
    failures = []
    seed = PROBE_SEEDS
    while len(failures) < count:
        attempt = play(draw_world(seed), [], random.Random(seed))
        seed += 1
        if not attempt.success:
            failures.append(attempt)
    prompts = [
        encode_prompt(engine.tokenizer, PROMPTS.reflection(Trajectory(f.opening, f.steps), f.return_, False, f.notes))
        for f in failures
    ]
    sampled = engine.sample(
        prompts,
        4,
        Sampling(temperature=1.0, max_tokens=48),
        [[derive_seed("probe", i, j) for j in range(4)] for i in range(count)],
    )
    ended: list[bool] = []
    vague: list[bool] = []
    seen_true: list[bool] = []
    empty_true: list[bool] = []
    fresh: list[bool] = []
    for failure, group in zip(failures, sampled, strict=True):
        found = reflections.find(failure.world, failure.steps, failure.notes)
        for answer in group:
            text = engine.tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
            advice = Advice.of([text])
            ended.append(answer.finish_reason == "stop")
            vague.append(any(text.startswith(words[:-1]) for words in reflections.VAGUE))
            seen_true.extend(found.seen.get(thing) == place for thing, place in advice.places.items())
            empty_true.extend(place in found.empty for place in advice.nothing_in)
            fresh.extend(place in found.fresh for place in advice.try_places)
    return {
        "ends by itself": share(ended),
        "vague": share(vague),
        "'X is in Y' is what the trajectory shows": share(seen_true),
        "'nothing in Y' is what the trajectory shows": share(empty_true),
        "'try Y' names a place not looked at yet": share(fresh),
    }


def load(folder: Path) -> Engine:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Engine(model.eval(), AutoTokenizer.from_pretrained(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--rooms", type=int, default=300)
    arguments = parser.parse_args()
    probes = {"actor": probe_actor, "retrospective": probe_retrospective}
    for role, probe in probes.items():
        if (arguments.models / role).is_dir():
            print(role, json.dumps(probe(load(arguments.models / role), arguments.rooms), indent=2))


if __name__ == "__main__":
    main()
