from __future__ import annotations

import copy
import pickle

import pytest

from icre import errors
from icre.errors import IcreError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, IcreError)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hint", ["", "turn it off and on"])
def test_errors_survive_the_trip_between_processes(kind: type[IcreError], hint: str) -> None:
    error = kind("it broke: 7", hint=hint)
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is kind
        assert (copied.message, copied.hint, copied.exit_code) == ("it broke: 7", hint, kind.exit_code)
        assert str(copied) == str(error)


def test_the_text_holds_message_and_hint() -> None:
    assert str(IcreError("it broke")) == "it broke"
    assert str(IcreError("it broke", hint="mend it")).splitlines() == ["it broke", "  hint: mend it"]


def test_exit_codes_tell_wrong_input_from_a_failed_run() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        "IcreError": 1,
        "TrainingError": 1,
        "NotFiniteError": 1,
        "StoppedError": 143,
        "UserError": 2,
        "ConfigError": 2,
        "DataError": 2,
        "WeightsError": 2,
        "StorageError": 2,
        "ProtocolError": 2,
    }
