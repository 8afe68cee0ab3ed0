"""Stop strings: the tokens that can complete one, and where a text is cut."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from retro.models.running import Running
from retro.models.stopping import StopStrings
from retro.types import Sampling
from retro.wire.answers import cut


def test_tokens_that_can_complete_a_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    closing = StopStrings(tokenizer).closing(("\n", "desk 1"))
    words = [tokenizer.convert_ids_to_tokens(int(token)) for token in closing.nonzero()[0]]
    assert {"\n", "desk 1", "cabinet 1", "1.00"} <= set(words)
    assert not {"go to", "desk 2", "."} & set(words)


def test_a_stop_string_is_found_across_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    stops = StopStrings(tokenizer)
    ids = tokenizer.encode("open desk 1\nlook", add_special_tokens=False)
    assert stops.found(ids, ("1\nlo",))
    assert not stops.found(ids[:-1], ("1\nlo",))


def test_a_text_is_cut_at_the_first_of_its_stop_strings() -> None:
    assert cut("go to desk 1\nlook\n", ("look", "\n")) == "go to desk 1"
    assert cut("go to desk 1", ("\n",)) == "go to desk 1"
    assert cut("go", ()) == "go"


def test_a_token_that_the_tokenizer_does_not_know(tokenizer: PreTrainedTokenizerBase) -> None:
    """Models pad their vocabularies: such a token can be drawn, and has no text."""
    running = Running([Sampling(stop=("\n",))], np.array([4]), [2], StopStrings(tokenizer))
    assert running.add(np.array([len(tokenizer) + 5]), np.array([-9.0])).tolist() == [0]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    assert running.add(np.array([newline]), np.array([-1.0])).tolist() == []
    assert running.results()[0].finish_reason == "stop"
