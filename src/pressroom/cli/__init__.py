"""The `press` command: one file a group of commands, each imported when it is called."""
