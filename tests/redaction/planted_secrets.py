"""Secrets of every kind, as (the text that a program passes around, the part of it that nobody may read).

None of them is real. They are put together here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import random
import string

_ALNUM = string.ascii_letters + string.digits


def made(length: int, seed: str, characters: str = _ALNUM) -> str:
    """Random characters, always the same for a seed: letters, digits among them."""
    drawn = random.Random(seed)
    return "a7" + "".join(drawn.choice(characters) for _ in range(length - 2))


def _key(beginning: str, length: int, characters: str = _ALNUM) -> tuple[str, str]:
    rest = made(length, beginning, characters)
    return beginning + rest, rest


_CAPITALS = string.ascii_uppercase + string.digits
_PEM = "\n".join(made(64, f"pem{line}") for line in range(4))

# Whole by themselves: they are known by their shape wherever they stand.
SHAPED: dict[str, tuple[str, str]] = {
    name: _key(beginning, length)
    for name, beginning, length in (
        ("openai", "sk-", 48),
        ("openai project", "sk-proj-", 60),
        ("openai service account", "sk-svcacct-", 60),
        ("anthropic", "sk-ant-api03-", 90),
        ("openrouter", "sk-or-v1-", 64),
        ("gitlab", "glpat-", 20),
        ("slack bot", "xoxb-2345678901-", 24),
        ("slack user", "xoxp-2345678901-", 24),
        ("pypi", "pypi-AgEIcHlwaS5vcmc", 60),
        ("nvidia", "nvapi-", 64),
        ("perplexity", "pplx-", 48),
        ("xai", "xai-", 80),
        ("tavily", "tvly-", 32),
        ("google oauth", "GOCSPX-", 28),
        ("github", "ghp_", 36),
        ("github app", "ghs_", 36),
        ("github fine-grained", "github_pat_11ABCDEFG0", 60),
        ("stripe", "sk_live_", 24),
        ("stripe restricted", "rk_live_", 24),
        ("webhook", "whsec_", 32),
        ("hugging face", "hf_", 34),
        ("npm", "npm_", 36),
        ("groq", "gsk_", 52),
        ("replicate", "r8_", 37),
        ("langsmith", "lsv2_pt_", 42),
        ("docker", "dckr_pat_", 27),
        ("digitalocean", "dop_v1_", 64),
        ("google", "AIza", 35),
    )
} | {
    "aws": ("AKIA" + (rest := "7" + made(15, "akia", _CAPITALS).upper()), rest),
    "aws session": ("ASIA" + (rest := "7" + made(15, "asia", _CAPITALS).upper()), rest),
    "jwt": (f"eyJ{made(17, 'j1')}.eyJ{made(30, 'j2')}.{(rest := made(43, 'j3'))}", rest),
    "pem": (f"-----BEGIN RSA PRIVATE KEY-----\n{_PEM}\n-----END RSA PRIVATE KEY-----", _PEM.splitlines()[2]),
    "bearer": (f"Bearer {(rest := made(32, 'bearer'))}", rest),
    "address": (f"https://ann:{(rest := made(12, 'address'))}@example.org/x", rest),
    "database": (f"postgresql://ann:{(rest := made(14, 'database'))}@db:5432/app", rest),
    "redis": (f"redis://:{(rest := made(14, 'redis'))}@localhost:6379/0", rest),
    "query": (f"https://example.org/v1?a=1&api_key={(rest := made(12, 'query'))}&b=2", rest),
    "signed": (f"https://example.org/v1?access_token={(rest := made(12, 'signed'))}", rest),
    "slack webhook": (f"https://hooks.slack.com/services/T0000000/B0000000/{(rest := made(24, 'hook'))}", rest),
    "discord webhook": (f"https://discord.com/api/webhooks/1234567890/{(rest := made(68, 'discord'))}", rest),
    "sendgrid": (f"SG.{made(22, 'sg')}.{(rest := made(43, 'sg2'))}", rest),
    "header": (f"Authorization: Basic {(rest := made(20, 'basic'))}", rest),
    "header of a key": (f"X-Api-Key: {(rest := made(20, 'xapi'))}", rest),
    "cookie header": (f"Cookie: session={(rest := made(20, 'cookie'))}; theme=dark", rest),
    "set-cookie header": (f"Set-Cookie: sid={(rest := made(20, 'setcookie'))}; HttpOnly", rest),
    "dotenv": (f"DEBUG=1\nDB_PASSWORD={(rest := made(12, 'dotenv'))}\nPORT=1", rest),
    "export": (f"export AWS_SECRET_ACCESS_KEY={(rest := made(40, 'export'))}", rest),
    "ini": (f"[default]\naws_secret_access_key = {(rest := made(40, 'ini'))}\n", rest),
    "yaml": (f"user: ann\npassword: {(rest := made(12, 'yaml'))}\nport: 1", rest),
    "azure": (f"AccountName=x;AccountKey={(rest := made(40, 'azure'))}==;EndpointSuffix=core", rest),
    "sql server": (f"Server=db;User Id=ann;Password={(rest := made(12, 'mssql'))};", rest),
    "json": (f'{{"user": "ann", "password": "{(rest := made(12, "json"))}"}}', rest),
    "json after a blank": (f'\n  {{"api_key": "{(rest := made(12, "blank"))}"}}', rest),
    "json in json": ('{"body": "{\\"client_secret\\": \\"' + (rest := made(12, "nested")) + '\\"}"}', rest),
    "python": (f"client = OpenAI(api_key='{(rest := made(12, 'python'))}')", rest),
}

# Known by the names that they stand under, whatever they look like.
NAMED = {
    name: f"plain{index}words"
    for index, name in enumerate(
        (
            "api_key", "apiKey", "OPENAI_API_KEY", "X-Api-Key", "aws_secret_access_key", "secret_key", "private_key",
            "access_key", "password", "passwd", "db_pwd", "passphrase", "access_token", "refresh_tokens", "token",
            "client_secret", "secret", "secrets", "api_keys", "credentials", "Authorization", "Proxy-Authorization",
            "cookie", "Set-Cookie", "auth", "basic_auth", "signing_key", "connection_string",
        )
    )
}  # fmt: skip
