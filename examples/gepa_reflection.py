"""DSPy's prompt optimiser GEPA with a served model as its `reflection_lm`.

    pip install dspy                                        # in an environment of its own
    retro serve runs/quickstart/export                      # in another shell
    python examples/gepa_reflection.py http://127.0.0.1:8080 MODEL

MODEL is the program's own language model, at OPENAI_BASE_URL (by default OpenAI's), with OPENAI_API_KEY. RETRO_API_KEY
is the key of `retro serve`, if it has one.

The program names three places in which to look for a thing. GEPA evolves its instruction: it runs the program on a few
tasks, lets the reflection model read a failure, and keeps the new instruction if it scores better. DSPy's own proposer
asks for a whole new instruction as JSON, which a retrospective model has not learnt to write. `propose` asks for what
it has learnt, a reflection on one failed trajectory, and appends that to the instruction. GEPA calls `propose` with
`reflection_lm` as the current model. The example prints every candidate's score and instruction.
"""

import json
import os
import sys
from urllib.request import Request, urlopen

import dspy

PLACES = "cabinet 1 countertop 1 desk 1 desk 2 drawer 4 shelf 2"
TASKS = [
    dspy.Example(task=f"places: {PLACES}\ntask: put {thing} in cabinet 1", thing=thing).with_inputs("task")
    for thing in ("fork 1", "knife 1", "spoon 1", "fork 2", "knife 2", "spoon 2")
]  # the cutlery is in desk 2, which the instruction does not say
KEY = os.environ.get("RETRO_API_KEY", "none")


class Search(dspy.Signature):
    """Name the three places in which you would look for the thing."""

    task: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="three places, separated by commas")


def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
    """Whether the thing was found; the feedback is what was seen, as JSON."""
    places = [place.strip() for place in pred.answer.split(",")][:3]
    seen = {place: f"you see {gold.thing}" if place == "desk 2" else "you see nothing" for place in places}
    steps = [{"action": f"go to {place}", "observation": observation} for place, observation in seen.items()]
    score = float("desk 2" in places)
    return dspy.Prediction(score=score, feedback=json.dumps({"steps": steps, "return": score}))


def propose(candidate, reflective_dataset, components_to_update):
    """New instructions: the old ones, each with a reflection on the worst of the attempts that GEPA shows."""
    proposed = {}
    for name in components_to_update:
        attempts = [
            {"opening": example["Inputs"]["task"], **json.loads(example["Feedback"])}
            for example in reflective_dataset[name]
        ]
        worst = min(attempts, key=lambda attempt: attempt["return"])
        [reflection] = dspy.settings.lm(json.dumps(worst))
        proposed[name] = f"{candidate[name]}\n{reflection}"
    return proposed


def main(server: str, model: str) -> None:
    with urlopen(Request(f"{server}/v1/models", headers={"Authorization": f"Bearer {KEY}"})) as answer:
        served = json.load(answer)["data"][0]["id"]
    reflection_lm = dspy.LM(f"openai/{served}", api_base=f"{server}/v1", api_key=KEY, cache=False)
    dspy.configure(lm=dspy.LM(f"openai/{model}"))
    optimiser = dspy.GEPA(
        metric, max_metric_calls=24, reflection_lm=reflection_lm, instruction_proposer=propose, track_stats=True
    )
    found = optimiser.compile(dspy.Predict(Search), trainset=TASKS[:3], valset=TASKS[3:]).detailed_results
    for score, program in zip(found.val_aggregate_scores, found.candidates, strict=True):
        print(f"score {score:.2f}: {program.signature.instructions}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/gepa_reflection.py SERVER MODEL, for example http://127.0.0.1:8080 gpt-5-mini")
    main(*sys.argv[1:])
