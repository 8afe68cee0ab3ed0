"""The requests to a vLLM server: which base it serves, adapters that come and go, and samples in tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from retro.config import ConfigError, GeneratorSection, NonNegativeInt, PositiveFloat, PositiveInt, Speed
from retro.reading import UnreadableError, parse_json
from retro.types import Sampling
from retro.wire.answers import MalformedAnswerError, excerpt
from retro.wire.client import Client
from retro.wire.credentials import read_key
from retro.wire.failures import Failure, Problem, Words
from retro.wire.redaction import shown
from retro.wire.request import RequestSection
from retro.wire.retrying import backoff_seconds

if TYPE_CHECKING:
    from retro.models.running import Generated

RUNTIME_LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The environment variable that lets a server load adapters while it runs."""
_TOKEN = "token_id:"
_FLAGS = "--generation-config vllm --enable-lora --max-loras 2"
_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What could change the distribution besides the temperature and ``top_p``, switched off, so that a server that takes
its defaults from the model's ``generation_config.json`` samples from the model as it is."""


class VllmOptions(GeneratorSection):
    """A vLLM server with the same base (docs/running.md). Its key is read from ``OPENAI_API_KEY``, if it wants one."""

    kind: Literal["vllm"] = "vllm"
    base_url: Annotated[str, Speed] = "http://127.0.0.1:8000/v1"
    model: Annotated[str | None, Speed] = None
    """What the server calls ``model.base``. By default it is found by its name or the end of its path."""
    adapters: Annotated[str | None, Speed] = None
    """The folder in which adapters are saved for the server, by default a temporary one of this machine."""
    adapters_on_server: Annotated[str | None, Speed] = None
    """The path of ``adapters`` on the server, if it is another one there."""
    max_sampler_gap: Annotated[PositiveFloat | None, Speed] = 0.05
    """Nats a token: the run stops if a new adapter's first samples have log-probabilities on the server that are on
    average further than this from those of this process. ``null``: this is not measured."""
    concurrency: Annotated[PositiveInt, Speed] = 256
    """Requests under way at once. Each is one sample."""
    timeout_seconds: Annotated[PositiveFloat, Speed] = 600.0
    """Of one request."""
    max_retries: Annotated[NonNegativeInt, Speed] = 20
    """Of one request, after timeouts, cut connections and server errors, with growing jittered pauses. By default they
    last about four minutes, so that a server can be restarted during a run."""


class AdapterMissingError(ConfigError):
    """The server does not have the adapter, or the base, that a request names."""


class VllmServer:
    """One server. Every method raises ConfigError if the server is not there or refuses, naming the remedy.

    Args:
        base: The name or path of the base that this process trains.
        ends: The tokens that end an answer.
    """

    def __init__(self, options: VllmOptions, base: str, ends: list[int]) -> None:
        self._options, self._base, self._ends = options, base, ends
        self._name = f"vLLM server {options.base_url}"
        start = f"start it: {RUNTIME_LORA}=True vllm serve {base} {_FLAGS} (docs/running.md)"
        self._words = Words(
            self._name,
            url="model.generator.base_url",
            prefix="model.generator.",
            timeout="model.generator.timeout_seconds",
            errors={Problem.MODEL: AdapterMissingError},
            remedies={
                Problem.NOBODY: start,
                Problem.NO_ANSWER: start,
                Problem.REDIRECT: "set model.generator.base_url to the address that answers by itself",
                Problem.TOO_LONG: "start it with a larger --max-model-len, which must hold model.max_prompt_tokens and "
                "model.max_new_tokens",
            },
        )
        section = RequestSection(model=base, base_url=options.base_url, endpoint="completions")
        self._client = Client(
            section, self._words, read_key(), options.timeout_seconds, options.max_retries, options.concurrency
        )

    async def base(self, patient: bool) -> str:
        """What the server calls the base; an error if it serves another one.

        Args:
            patient: Whether to wait for a server that does not answer; it may be starting again.
        """
        attempt = 0
        while isinstance(listed := await self._client.models(), Failure):
            if not patient or not listed.again or attempt == self._options.max_retries:
                raise self._words.error(listed)
            await asyncio.sleep(backoff_seconds(attempt, "vllm"))
            attempt += 1
        served = {str(item["id"]): str(item.get("root") or item["id"]) for item in listed if not item.get("parent")}
        wanted = self._options.model
        if wanted is not None and wanted in served:
            return wanted
        names = ", ".join(shown(root if root == name else f"{name} ({root})") for name, root in served.items())
        if wanted is not None:
            raise ConfigError(f"{self._name} has no model.generator.model={wanted}; it serves: {names or 'nothing'}")
        for name, root in served.items():
            if _last(self._base) in (_last(name), _last(root)):
                return name
        raise ConfigError(
            f"{self._name} serves {names or 'no base'}, and model.base is {self._base}: serve that; if it is the same "
            "model under another name, set model.generator.model to the server's name"
        )

    async def load(self, name: str, path: str, rank: int) -> None:
        """Load the adapter in the server's folder ``path``, whose LoRA rank is ``rank``, under a name.

        A name stands for one content. If it is loaded already, it is loaded anew, since its folder may be gone.
        """
        failure = await self._post("load_lora_adapter", name, lora_path=path)
        if failure is not None and "already been loaded" in failure.text:
            await self.unload(name)
            failure = await self._post("load_lora_adapter", name, lora_path=path)
        if failure is not None:
            raise self._refusal(failure, name, path, rank)

    async def unload(self, name: str) -> None:
        """Unload an adapter, or nothing if it is not loaded."""
        failure = await self._post("unload_lora_adapter", name)
        if failure is not None and failure.problem is not Problem.MODEL:
            raise self._words.error(failure)

    async def complete(self, model: str, prompt: list[int], sampling: Sampling) -> Generated:
        """One sample. A retried request yields one, too: an answer that does not arrive whole is not used.

        Raises:
            AdapterMissingError: if the server has no such model, as after a restart.
        """
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": self._ends,
            "logprobs": 0,  # of the sampled token alone
            "return_tokens_as_token_ids": True,
            **_NEUTRAL,
        }
        if sampling.temperature > 0:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        answer = await self._client.exchange("/completions", body, _sample, ("vllm", sampling.seed))
        if isinstance(answer, Failure):
            raise self._words.error(answer)
        return answer

    async def _post(self, action: str, name: str, **more: str) -> Failure | None:
        """The failure of a request about an adapter, if it failed. vLLM says 500 to an adapter that it cannot use."""
        body = {"lora_name": name, **more}
        done = await self._client.exchange(f"/{action}", body, bool, ("vllm", name), final=_is_500)
        return done if isinstance(done, Failure) else None

    def _refusal(self, failure: Failure, name: str, path: str, rank: int) -> Exception:
        said = failure.text
        if failure.problem is Problem.MODEL and "No adapter found" not in said:
            what = f"does not load adapters while it runs: start it with the environment variable {RUNTIME_LORA}=True"
        elif failure.problem is Problem.MODEL:
            what = (
                f"does not find the adapter at {path}: it must see the folder that this process writes; set "
                "model.generator.adapters to a shared folder, and adapters_on_server to its path there"
            )
        elif "max_lora_rank" in said:
            what = f"refuses rank {rank}: start it with --max-lora-rank {rank} or more, or lower model.lora.r"
        elif "LoRA is not enabled" in said:
            what = "does not take adapters: start it with --enable-lora --max-loras 2"
        else:
            return self._words.error(failure, f"it does not load the adapter {name} from {path}")
        return ConfigError(f"{self._name} {what} ({said})")


def _last(name: str) -> str:
    return Path(name.rstrip("/")).name


def _is_500(failure: Failure) -> bool:
    return failure.text.startswith("HTTP 500")


def _sample(content: bytes) -> Generated:
    """The tokens of an answer with their log-probabilities.

    Raises:
        MalformedAnswerError: if something is missing, or the server aborted the request (it is being stopped).
        ConfigError: if it gives no token ids.
    """
    from retro.models.running import Generated  # here: this file is imported for the options

    try:
        body = parse_json(content, half_surrogates=True)
        [choice] = body["choices"]
        tokens, log_probs = choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"]
        finish_reason = choice["finish_reason"]
    except UnreadableError as error:
        raise MalformedAnswerError(f"{error}: {excerpt(content)}") from None
    except (KeyError, TypeError, ValueError):
        raise MalformedAnswerError(f"no choice with log-probabilities: {excerpt(content)}") from None
    if finish_reason not in ("stop", "length"):
        raise MalformedAnswerError(f"an answer that ended by {shown(str(finish_reason))}")
    if not tokens or len(tokens) != len(log_probs) or not all(isinstance(value, float | int) for value in log_probs):
        raise MalformedAnswerError(f"not a log-probability for each token: {excerpt(content)}")
    if not all(str(token).startswith(_TOKEN) for token in tokens):
        raise ConfigError(
            "model.generator: the server does not answer with token ids (return_tokens_as_token_ids), as vLLM does: "
            "use a current vLLM"
        )
    return Generated([int(token.removeprefix(_TOKEN)) for token in tokens], list(map(float, log_probs)), finish_reason)
