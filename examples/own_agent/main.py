"""Run the agent with its trained model: `python -m examples.own_agent.main EXPORT [key.sub=value …]`."""

import sys
from pathlib import Path

from examples.own_agent.notices import NoticeTasks
from retro import RetroAgent, RetrospectiveModel
from retro.config import build, load_config
from retro.types import Sampling, Split


def main(export: str, overrides: list[str]) -> None:
    config = load_config(Path(__file__).with_name("config.yaml"), overrides)
    agent = RetroAgent(
        actor=build(config.actor),
        environment=NoticeTasks(),
        model=RetrospectiveModel.load(export),
        sampling=Sampling(config.actor.temperature, config.actor.top_p, config.actor.max_tokens),
        attempts=3,
    )
    for episodes in agent.run_all(NoticeTasks().tasks(Split.TEST, 3)):
        for episode in episodes:
            if episode.reflection:
                print(f"    reflection: {episode.reflection.text}")
            print(f"{episode.task.id}, attempt {episode.trial + 1}: return {episode.return_:.2f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m examples.own_agent.main EXPORT [key.sub=value …]")
    main(sys.argv[1], sys.argv[2:])
