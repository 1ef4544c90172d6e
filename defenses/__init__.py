"""Built-in defenses, one file or one sub-package each."""
