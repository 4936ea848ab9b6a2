"""Bytes by digest: kept whole or not at all, checked when asked, weights understood from their headers."""
