import pytest

from rayreid.errors import UserError
from rayreid.publishing.licences import LICENCES, licence_named


@pytest.mark.parametrize("text", ["mit", "MIT", "apache-2.0", "CC-BY-NC-4.0", "openrail++", "other", "unknown"])
def test_identifiers_of_model_hubs_are_accepted_in_lower_case(text):
    assert licence_named(text) == text.lower() and text.lower() in LICENCES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apache2", "do not know this identifier; did you mean apache-2.0"),
        ("cc-by-nc", "did you mean cc-by-nc-"),
        ("gpl-3", "did you mean gpl-3.0"),
        ("null", "do not know this identifier"),
        ("1.0", "do not know this identifier"),
        ("true", "do not know this identifier"),
        ("", "--license : model hubs do not know"),
        ("see my page", "--license see my page: .*, or other for a licence without one"),
    ],
)
def test_what_hubs_do_not_know_is_refused_with_the_nearest_name(text, message):
    with pytest.raises(UserError, match=message) as caught:
        licence_named(text)
    assert "\n" not in str(caught.value)
