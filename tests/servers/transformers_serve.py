"""``transformers serve`` (the extra ``transformers[serving]``) with one local model, in a fork that is its own process.

What is to know of it (transformers 5.23): a request must name the model as the command did, by its path; GET
``/v1/models`` lists the hub's cache, not that model; the answer's text includes the stop string; ``temperature`` alone
does not sample (the model's ``generation_config.json`` must say ``do_sample``), 0 is greedy; ``n`` is ignored; a prompt
longer than the model's context is answered, not refused; one request is computed after the other, also those whose
client has left.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pipeline import forks
from tests.servers.processes import live_with_stdin, server_process

WANTED = ("fastapi", "uvicorn")
_PLAIN_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
_STOP_PROBE = "abcdef"
"""transformers' search for stop strings reads every token's text behind this one, so the tokenizer must know it."""


def missing_packages() -> list[str]:
    """What ``pip install 'transformers[serving]'`` would bring and is not there."""
    return [name for name in WANTED if importlib.util.find_spec(name) is None]


def servable(model: Path, folder: Path) -> Path:
    """A copy of one of the quickstart's models in ``folder`` as a server of others needs it.

    Our own actor puts the begin token before a prompt itself; here the tokenizer does (completions) or a chat template
    that adds nothing else (chat). The weights are the same.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([_STOP_PROBE])
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer.chat_template = _PLAIN_CHAT
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """Serve the model in the folder ``model`` in float32 on the CPU; yield the server's URL (without ``/v1``).

    Raises:
        ServerFailedError: if it does not come up; with its log.
    """
    arguments = [str(model), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32", "--log-level", "error"]
    module = "tests.servers.transformers_serve"
    with server_process(module, arguments, log, "/health", python=forks.stand_in()) as url:
        yield url


def main() -> None:
    from transformers.cli.transformers import main as transformers_cli

    live_with_stdin()
    sys.argv[1:1] = ["serve"]
    transformers_cli()


if __name__ == "__main__":
    main()
