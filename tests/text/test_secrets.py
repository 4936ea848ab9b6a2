"""Secrets are found, and code that only speaks of them is not."""

from __future__ import annotations

import pytest

from pressroom.text import secrets_in

MIXED = "a1B2c3D4e5F6g7H8i9J0" * 5
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" + "\n"


def found(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in secrets_in(text)]


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "AIza" + MIXED[:35],
        "ghp_" + MIXED[:36],
        "github_pat_" + MIXED[:59],
        "glpat-" + MIXED[:20],
        "xoxb-123456789012-123456789012-" + MIXED[:24],
        "sk_live_" + MIXED[:24],
        "rk_test_" + MIXED[:24],
        "sk-" + MIXED[:48],
        "sk-proj-" + MIXED[:60],
        "sk-ant-api03-" + MIXED[:80],
        "hf_" + MIXED[:34],
        "npm_" + MIXED[:36],
        "pypi-AgEIcHlwaS5vcmc" + MIXED[:60],
        "pr-" + MIXED[:43],
        "gsk_" + MIXED[:52],
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "SG." + MIXED[:22] + "." + MIXED[:43],
        "123456789:AA" + MIXED[:33],
    ],
)
@pytest.mark.parametrize("around", ["{}", 'use "{}" for it', "export KEY={}\n", "(see {}.)"])
def test_tokens_with_a_form_of_their_own(token: str, around: str) -> None:
    text = around.format(token)
    ((kind, what),) = found(text)
    assert kind in ("token", "password")
    assert what.rstrip(".)") == token


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_private_keys(kind: str) -> None:
    key = f"-----BEGIN {kind}PRIVATE KEY-----\n{BODY * 20}-----END {kind}PRIVATE KEY-----"
    assert found(f"look:\n{key}\nwhat is it?") == [("private-key", key)]


def test_a_private_key_in_json_and_one_that_is_cut() -> None:
    key = "-----BEGIN PRIVATE KEY-----\\n" + BODY.replace("\n", "\\n") * 3 + "-----END PRIVATE KEY-----"
    assert found(f'{{"private_key": "{key}\\n"}}') == [("private-key", key)]
    cut = "-----BEGIN PRIVATE KEY-----\n" + BODY * 2
    ((kind, what),) = found(cut + "# and so on")
    assert (kind, what.strip()) == ("private-key", cut.strip())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("password=hunter2", "hunter2"),
        ('password: "correct-horse-battery"', "correct-horse-battery"),
        ("DB_PASSWORD = 'S3cr3t!pw'", "S3cr3t!pw"),
        ("Server=db;User Id=sa;Password=Tr0ub4dor&3;", "Tr0ub4dor&3"),
        ('{"api_key": "9f8a7s6d5f4g3h2j1k0l"}', "9f8a7s6d5f4g3h2j1k0l"),
        ("api-key: 9f8a7s6d5f4g3h2j1k0l", "9f8a7s6d5f4g3h2j1k0l"),
        ("client_secret=9f8a7s6d5f4g3h2j1k0l", "9f8a7s6d5f4g3h2j1k0l"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        ),
        ("my password is Tr0ub4dor&3.", "Tr0ub4dor&3"),
        ("Mein Passwort ist Gehe1m!x, bitte", "Gehe1m!x"),
        ("我的密码是 abc12345x", "abc12345x"),
        ("mot de passe : Azerty2024!", "Azerty2024!"),
        ("postgres://bob:s3cr3t@db.example:5432/x", "bob:s3cr3t"),
        ("https://user:pass@example.com/", "user:pass"),
        ("redis://:longpassword@cache:6379", ":longpassword"),
        ("curl -u admin:letmein https://example.com", "admin:letmein"),
        ("Authorization: Bearer abcdef1234567890abcd", "abcdef1234567890abcd"),
        ("authorization: Basic dXNlcjpwYXNzd29yZDEyMw==", "dXNlcjpwYXNzd29yZDEyMw=="),
    ],
)
def test_passwords(text: str, what: str) -> None:
    assert [one for _, one in found(text)] == [what]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "password: str = None",
        "def login(user: str, password: Optional[str] = None) -> Token:",
        "password = os.environ['DB_PASSWORD']",
        "password=get_password(user), token=self.token, key=config.secrets.api_key",
        "password: required",
        "password=$DB_PASSWORD password=${DB_PASSWORD} password={{ password }} password=<your password>",
        "password=[SECRET], password=******, password: xxxxxxxx, api_key=your_api_key_goes_here",
        "the password must have at least 8 characters",
        "max_tokens=1000000 token_count: 123456789012345678, total tokens: 12345678901234567890",
        "The secret: be yourself. The key: practice.",
        "postgres://db.example:5432/x, https://example.com/a:b@c, http://$USER:$PASS@host, https://host:8080/@user",
        "https://{user}:{password}@host and https://user:[SECRET]@host",
        "550e8400-e29b-41d4-a716-446655440000 3b18e512dba79e4c8300dd08aeb37f8e728b8dad",
        "sk-learn, task-force, pr-review-of-the-week, hf_hub_download, npm_config_cache, sk-something-in-words-only",
        "from google.oauth2 import service_account; credentials = service_account.Credentials.from_file(path)",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "docker run -u 1000:1000 image; curl https://example.com",
        "basic understanding of bearer responsibilities",
        "eyJust a word. eyJ.eyJ",
        "id: 12345678901234567890, digest: sha256:9f86d081884c7d659a2feaa0c55ad015",
    ],
)
def test_left_alone(text: str) -> None:
    assert found(text) == []
