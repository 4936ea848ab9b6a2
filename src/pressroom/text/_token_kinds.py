"""Tokens that their makers gave a form of their own, so that they can be told from anything else."""

from __future__ import annotations

import re

# No letter, digit or dash before it: the search looks at a place once however often the first letters come.
_ALONE = r"(?<![A-Za-z0-9_-])"
_OVER = r"(?![A-Za-z0-9_])"
_MIXED = r"(?=[\w-]{0,250}[0-9])(?=[\w-]{0,250}[A-Za-z])"

# What must be in the text, and the token. All lengths are bounded.
_KINDS = (
    ("AKIA", r"AKIA[A-Z2-7]{16}"),  # AWS
    ("ASIA", r"ASIA[A-Z2-7]{16}"),
    ("AIza", r"AIza[A-Za-z0-9_-]{35}"),  # Google
    ("ya29.", r"ya29\.[A-Za-z0-9_-]{20,2000}"),
    ("GOCSPX-", r"GOCSPX-[A-Za-z0-9_-]{28}"),
    ("8Q~", r"[A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{31,34}"),  # Azure
    *((f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9]{{36,255}}") for kind in "pousr"),  # GitHub
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
    ("gl", r"gl(?:pat|dt|rt|ptt|cbt|ft|soat|agent|imt)-[A-Za-z0-9_.-]{20,255}"),  # GitLab
    ("xox", r"xox[abeprs]-[A-Za-z0-9-]{10,255}"),  # Slack
    ("xapp-", r"xapp-[A-Za-z0-9-]{20,255}"),
    ("hooks.slack.com", r"hooks\.slack\.com/services/T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{20,32}"),
    ("k_live_", r"[rs]k_live_[A-Za-z0-9]{16,255}"),  # Stripe
    ("k_test_", r"[rs]k_test_[A-Za-z0-9]{16,255}"),
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{24,100}"),
    ("sk-", rf"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-)?{_MIXED}[A-Za-z0-9_-]{{20,255}}"),  # OpenAI, Anthropic
    ("pr-", r"pr-[A-Za-z0-9_-]{43}"),  # Pressroom
    ("hf_", r"hf_[A-Za-z0-9]{30,40}"),  # Hugging Face
    ("npm_", r"npm_[A-Za-z0-9]{36}"),
    ("pypi-AgE", r"pypi-AgE[A-Za-z0-9_-]{50,1000}"),
    ("SG.", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid
    ("dapi", r"dapi[0-9a-f]{32}"),  # Databricks
    ("_v1_", r"do[opr]_v1_[0-9a-f]{64}"),  # DigitalOcean
    ("shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),  # Shopify
    ("hv", r"hv[sbr]\.[A-Za-z0-9_-]{24,300}"),  # Vault
    ("gsk_", r"gsk_[A-Za-z0-9]{40,60}"),  # Groq
    ("xai-", r"xai-[A-Za-z0-9]{60,100}"),
    ("r8_", r"r8_[A-Za-z0-9]{37}"),  # Replicate
    ("pplx-", r"pplx-[A-Za-z0-9]{40,60}"),  # Perplexity
    ("lin_api_", r"lin_api_[A-Za-z0-9]{40}"),  # Linear
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
    (":AA", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),  # Telegram
    # JSON Web Tokens: {" in base64, and two to four more parts.
    ("eyJ", r"eyJ[A-Za-z0-9_-]{10,4000}\.(?:[A-Za-z0-9_-]{1,8000}\.){1,3}[A-Za-z0-9_-]{0,8000}"),
)
KINDS = tuple((marker, re.compile(f"{_ALONE}{pattern}{_OVER}")) for marker, pattern in _KINDS)
