"""Keys: in the environment and nowhere else, so that no file or message of a run holds one."""

import os
import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from lit_align.types import UserError


def check_no_key(base_url: str, api_key_env: str | None) -> None:
    """Refuse what may be a key where a config file, which is written down with every run, should have none.

    Raises:
        UserError: that does not show it.
    """
    if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
        raise UserError(
            "ChatAPI: api_key_env should be the name of an environment variable in capital letters, such as OPENAI_API_KEY, never the key "
            "itself. What was given is not shown, as it may be one."
        )
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password or parts.query:
        raise UserError(
            "ChatAPI: base_url should be an address such as https://api.openai.com/v1, without user, password or `?...`. What was given is "
            "not shown, as it may hold a key; keys are read from the environment variable that `api_key_env` names."
        )


def read_key(base_url: str, api_key_env: str | None) -> str:
    """What to send as the key; something where none is needed, as the client wants one.

    Raises:
        UserError: if the variable is not set, or to what no header can hold.
    """
    if api_key_env is None:
        return "no-key-is-needed"
    key = os.environ.get(api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"ChatAPI expected the key of {base_url} in the environment variable {api_key_env}, but it is "
            f"{'no text that can be sent' if key else 'not set'}. Set it (`export {api_key_env}=...`) where the run is started, name "
            "another variable by `api_key_env`, or set that to null if the server wants no key."
        )
    return key


def require_openai() -> None:
    """Say how to get the client.

    Raises:
        UserError: if it is not installed.
    """
    if find_spec("openai") is None:
        raise UserError("ChatAPI needs the package openai, which is not installed: `pip install lit-align[api]`.")
