"""Environments of verifiers that the tests of the kind ``verifiers`` play. A process that has verifiers imports this
file as a module; it needs nothing of ours."""

import os

import verifiers.v1 as vf


class NumberData(vf.TaskData):
    answer: int


class NumberTask(vf.Task[NumberData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        if self.data.answer == 13:
            raise OSError("nobody grades this one")
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=-0.5)
    async def begged(self, trace: vf.Trace) -> float:
        return float("please" in trace.last_reply)


class Clock(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    def time(self) -> str:
        """The time."""
        return "noon"


class GuessConfig(vf.TasksetConfig):
    numbers: list[int] = list(range(1, 14))
    clock: bool = False


class GuessTaskset(vf.Taskset[NumberTask, GuessConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Clock(vf.ToolsetConfig())] if config.clock else []

    def load(self):
        for number in self.config.numbers:
            data = NumberData(prompt="A number from 1 to 13?", system_prompt="A game of numbers.", answer=number)
            yield NumberTask(data, self.config.task)


class GuessEnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class GuessEnv(vf.Env[GuessEnvConfig]):
    """Answers each guess until it is right."""

    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and segment.last_reply != str(task.data.answer):
                guess = segment.last_reply
                if guess == "die":
                    os._exit(3)
                more = guess.isdecimal() and int(guess) < task.data.answer
                segment = await interaction.turn("It is more." if more else "It is less, or that was not a number.")


__all__ = ["GuessEnv", "GuessTaskset"]
