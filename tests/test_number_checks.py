import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppreid_plugin.number_checks import is_number, require_not_negative, require_positive, require_whole

NO_NUMBERS = (True, False, np.True_, None, "1", "many", [1], 1j, b"1")
NOT_FINITE = (math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"))
WHOLE_TYPES = (int, np.int8, np.uint8, np.int64)
NUMBER_TYPES = (*WHOLE_TYPES, float, np.float32, np.float64)


@pytest.mark.parametrize("kind", WHOLE_TYPES)
@pytest.mark.parametrize(("least", "most"), [(0, None), (1, None), (2, 16), (5, 5)])
def test_whole_numbers_in_range_and_no_others(kind, least, most):
    allowed = set(range(least, 101 if most is None else most + 1))
    for number in range(101):
        if number in allowed:
            found = require_whole("steps", kind(number), least=least, most=most)
            assert (found, type(found)) == (number, int)
        else:
            with pytest.raises(ValueError, match=r"^steps is .*, must be a whole number "):
                require_whole("steps", kind(number), least=least, most=most)


@pytest.mark.parametrize("value", [*NO_NUMBERS, *NOT_FINITE, 2.0, 2.5, np.float64(2)])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="must be a whole number >= 0"):
        require_whole("steps", value, least=0)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_finite_numbers_by_their_sign(value):
    for check, allowed in ((require_positive, value > 0), (require_not_negative, value >= 0)):
        if allowed:
            assert check("lr", value) == value
        else:
            with pytest.raises(ValueError, match="^lr is .*, must be a finite number >"):
                check("lr", value)


@pytest.mark.parametrize("kind", NUMBER_TYPES)
def test_numbers_of_any_type_become_floats(kind):
    assert is_number(kind(3))
    for check in (require_positive, require_not_negative):
        found = check("lr", kind(3))
        assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize("check", [require_positive, require_not_negative])
@pytest.mark.parametrize("value", [*NO_NUMBERS, *NOT_FINITE])
def test_what_is_no_finite_number(check, value):
    assert is_number(value) == (value in NOT_FINITE)
    with pytest.raises(ValueError, match="must be a finite number >"):
        check("lr", value)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_whole("bank", 1, least=2, hint="such as 4096"), ">= 2 (such as 4096)."),
        (lambda: require_whole("bits", 17, most=16), "bits is 17, must be a whole number from 1 to 16."),
        (lambda: require_whole("blocks", "8"), "blocks is '8', must be a whole number >= 1."),
        (lambda: require_positive("sigma", 0), "sigma is 0, must be a finite number > 0 (such as 1)."),
        (
            lambda: require_positive("lr", -1.0, hint="such as 0.1"),
            "is -1.0, must be a finite number > 0 (such as 0.1).",
        ),
        (lambda: require_not_negative("weight", math.inf), "weight is inf, must be a finite number >= 0."),
    ],
)
def test_messages_name_the_value_what_is_allowed_and_what_is_usual(check, message):
    with pytest.raises(ValueError) as error:
        check()
    assert str(error.value).endswith(message)
