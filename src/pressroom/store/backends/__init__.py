"""One file a backend; the scheme of the `store` setting chooses it (`file` → `file.py`)."""
