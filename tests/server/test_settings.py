"""Where a setting comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from model.kernels.library import NO_PATH, PATHS
from server.settings import ENV_PREFIX, Settings, SettingsError, load_settings


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "verbatim.toml"
    path.write_text('port = 1\nhost = "::1"\nmax_waiting = 3\n')
    return path


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERBATIM_PORT", "2")
    monkeypatch.setenv("VERBATIM_HOST", "0.0.0.0")
    monkeypatch.setenv("VERBATIM_CONFIG", str(toml))
    settings = load_settings(port=4)
    assert (settings.port, settings.host, settings.max_waiting, settings.max_num_seqs) == (
        4,
        "0.0.0.0",
        3,
        32,
    )


def test_the_file_may_be_named_by_a_flag(toml: Path) -> None:
    assert load_settings(config=toml).port == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot: there is no such setting; the nearest is port"),
        ("port = 65536", "port"),
        ("port = -1", "port"),
        ("dtype = 'float12'", "dtype"),
        ("grace_s = 'long'", "grace_s"),
        ("port = ", "verbatim.toml"),
        ("api_keys = ['']", "api_keys"),
        ("config = 'other.toml'", "verbatim.toml"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_the_cause(text: str, named: str, toml: Path) -> None:
    toml.write_text(text)
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings(config=toml)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(config=tmp_path / "none.toml")


def test_keys_are_split_at_commas_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERBATIM_API_KEYS", "first, second")
    settings = load_settings()
    assert settings.api_keys == (SecretStr("first"), SecretStr("second"))
    assert "first" not in repr(settings)


@pytest.mark.parametrize("name", ["model_dir", "host"])
def test_what_is_set_to_nothing_is_neither_here_nor_every_address(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_PREFIX + name.upper(), "")
    with pytest.raises(SettingsError, match=f"setting {name}: it is empty"):
        load_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_knob_says_why_and_has_a_default(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    assert "\n" not in field.description
    assert not field.is_required()
    assert ENV_PREFIX == "VERBATIM_"


def test_every_path_of_kernels_can_be_chosen_and_no_other() -> None:
    """The list stands twice, since the server does not import the model."""
    assert get_args(Settings.model_fields["kernels"].annotation) == ("auto", *PATHS, NO_PATH)
