"""WebShop: how fast a shop loads and a play steps, and what buyers score: one who knows the product, and a hasty one.

python benchmarks/webshop.py data/webshop/items_shuffle_1000.json
python benchmarks/webshop.py --invented 100000     # a made-up catalogue in the published layout, prepared and reopened
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from statistics import mean

from retro.envs.webshop import WebshopTasks, finding_search, options_to_choose
from retro.envs.webshop.catalogue import Product
from retro.envs.webshop.goals import Goal
from retro.envs.webshop.pages import BUY, NEXT
from retro.envs.webshop.reward import COLOURS, colour, same, score
from retro.types import Split, Task, derive_seed

STEP_LIMIT = 15


def buy(taskset: WebshopTasks, task: Task) -> tuple[float, int]:
    """Play ``task`` knowing its product: search by title words, click it, choose the asked options, buy.

    Returns:
        The return and how many steps it took.
    """
    product, goal = taskset.product(task), taskset.goal(task)
    found = finding_search(taskset.catalogue(task), product)
    if found is None:
        return 0.0, 0
    query, page = found
    options = [f"click[{value}]" for value in options_to_choose(product, goal)]
    turning = [f"click[{NEXT}]"] * (page - 1)
    world = taskset.make(task)
    world.reset()
    return_, steps = 0.0, 0
    for action in (f"search[{query}]", *turning, f"click[{product.asin}]", *options, f"click[{BUY}]"):
        observation, reward, terminated, truncated, _ = world.step(action)
        return_, steps = return_ + reward, steps + 1
        if observation.startswith("Invalid action"):
            raise AssertionError(f"{task.id}: {action} is not possible: {observation}")
        if terminated or truncated:
            break
    return return_, steps


def measure_buyer(taskset: WebshopTasks, per_split: int | None) -> None:
    returns, steps, seconds = [], 0, 0.0
    for split in Split:
        tasks = taskset.tasks(split, per_split if per_split is not None else taskset.count(split))
        began = time.process_time()
        for task in tasks:
            return_, taken = buy(taskset, task)
            returns.append(return_)
            steps += taken
        seconds += time.process_time() - began
    perfect = sum(return_ == 1 for return_ in returns)
    print(
        f"knowing buyer: mean return {mean(returns):.4f} over {len(returns):,} tasks, {perfect / len(returns):.2%} "
        f"perfect ({steps:,} steps, {steps / seconds:,.0f} a second of CPU, its own searches included)"
    )


def measure_hasty(taskset: WebshopTasks, count: int) -> None:
    """The floor: search for the whole instruction, buy the first result without looking at its options."""
    returns = []
    for task in taskset.tasks(Split.TRAIN, count):
        world = taskset.make(task)
        world.reset()
        results = world.step(f"search[{taskset.goal(task).instruction}]")[0]
        world.step(f"click{first_result(results)}")
        returns.append(world.step(f"click[{BUY}]")[1])
    print(
        f"hasty buyer: mean return {mean(returns):.4f} over {count:,} training tasks, "
        f"{sum(return_ == 1 for return_ in returns) / count:.2%} perfect"
    )


def measure_pairs(taskset: WebshopTasks, count: int) -> None:
    """How many successes upstream would refuse: a synthetic instruction's options are pairs of name and value there."""
    exact, drawn = [], []
    for task in taskset.tasks(Split.TRAIN, count):
        target, goal = taskset.product(task), taskset.goal(task)
        draw = random.Random(derive_seed("benchmark", "any options", task.id))
        exact += _refused(target, goal, options_to_choose(target, goal))
        drawn += _refused(target, goal, [draw.choice(values) for values in target.options.values()])
    for buyer, refused in (("the options asked for", exact), ("any options", drawn)):
        print(
            f"the right product with {buyer}: {len(refused):,} successes in {count:,} training tasks, of which "
            f"upstream's pairs refuse {sum(refused):,}"
        )


def _refused(target: Product, goal: Goal, chosen: list[str]) -> list[bool]:
    """Of a successful purchase, whether upstream would refuse it; else nothing."""
    if score(target, chosen, goal, target).total < 1:
        return []
    pairs = zip(sorted(target.options), goal.options, strict=True)
    return [not all(any(_same_pair(*pair, value) for value in chosen) for pair in pairs)]


def _same_pair(name: str, value: str, chosen: str) -> bool:
    """Upstream's comparison: a pair is compared as Python writes it, unless its name or value is just a colour."""
    wanted = next((text for text in (name, value) if text in COLOURS.split()), str((name, value)))
    return same(wanted, colour(chosen))


def first_result(results: str) -> str:
    """The id, in brackets, of the first product on a page of results."""
    return next(line.partition(" ")[0] for line in results.splitlines() if "] " in line)


def measure_steps(taskset: WebshopTasks, plays: int) -> None:
    """Searches by each instruction, then a look at the first result and its pages, as an actor does."""
    tasks = [task for split in Split for task in taskset.tasks(split, min(plays, taskset.count(split)))]
    steps, began = 0, time.process_time()
    for task in tasks:
        world = taskset.make(task)
        world.reset()
        query = taskset.goal(task).instruction
        results = world.step(f"search[{query}]")[0]
        first = first_result(results)
        actions = (f"click[{NEXT}]", "click[< Prev]", f"click{first}", "click[Features]", "click[< Prev]", "nonsense")
        for action in (*actions, f"click[{BUY}]"):
            world.step(action)
        steps += len(actions) + 2
    seconds = time.process_time() - began
    print(f"{steps / seconds:,.0f} steps a second of CPU over {len(tasks):,} plays (searches by the whole instruction)")


def invent(folder: Path, products: int) -> Path:
    """A catalogue of made-up products in the published layout, of about the published products' length."""
    draw = random.Random(0)
    syllables = ["ba", "do", "ki", "lu", "me", "no", "pi", "ra", "su", "ta", "ve", "zo"]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(2, 5))) for _ in range(60_000)]
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(lexicon))))
    attributes = {}
    with (folder / "items_shuffle.json").open("w", encoding="utf-8") as file:
        for number in range(products):
            asin = f"B{number:09d}"
            said = draw.choices(lexicon, cum_weights=weights, k=160)
            record = {
                "asin": asin,
                "name": " ".join(said[:16]),
                "category": "garden",
                "query": said[0],
                "product_category": f"Home › {said[1]} › {said[2]}",
                "full_description": " ".join(said[16:90]),
                "small_description": [" ".join(said[90:125]), " ".join(said[125:])],
                "pricing": f"${draw.uniform(2, 200):.2f}",
                "customization_options": {"color": [{"value": "red"}, {"value": "blue"}]},
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
            attributes[asin] = {
                "attributes": said[3:5],
                "instruction": f"find me {said[0]}",
                "instruction_attributes": said[3:4],
            }
        file.write("]")
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes), encoding="utf-8")
    return folder


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def load(source: str, instructions: str) -> WebshopTasks:
    taskset = WebshopTasks(data=source, instructions=instructions, splits="hashed", steps=STEP_LIMIT)
    began = time.perf_counter()
    tasks = sum(taskset.count(split) for split in Split)
    print(f"loaded in {time.perf_counter() - began:.1f} s, {tasks:,} tasks; peak memory {peak_gib():.2f} GiB")
    return taskset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="folder, file of products or Parquet file")
    parser.add_argument("--instructions", choices=("human", "synthetic"), default="synthetic")
    parser.add_argument("--invented", type=int, metavar="N", help="make up a catalogue of N products instead")
    arguments = parser.parse_args()
    if (arguments.source is None) == (arguments.invented is None):
        parser.error("name a source, or --invented N")
    if arguments.source is not None:
        taskset = load(arguments.source, arguments.instructions)
        measure_buyer(taskset, None)
        measure_hasty(taskset, min(3000, taskset.count(Split.TRAIN)))
        if arguments.instructions == "synthetic":
            measure_pairs(taskset, min(3000, taskset.count(Split.TRAIN)))
        measure_steps(taskset, 500)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = invent(Path(name), arguments.invented)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{arguments.invented:,} made-up products, {size / 2**20:,.0f} MiB of JSON; peak {peak_gib():.2f} GiB")
        load(name, "synthetic")
        prepared = sum(path.stat().st_size for path in folder.rglob("retro-webshop-*/**/*") if path.is_file())
        print(f"prepared: {prepared / 2**20:,.0f} MiB on disk; once more:")
        taskset = load(name, "synthetic")
        measure_buyer(taskset, 100)
        measure_steps(taskset, 100)


if __name__ == "__main__":
    main()
