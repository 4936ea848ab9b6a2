"""Text as language: what it is written in, and what in it is personal or secret."""
