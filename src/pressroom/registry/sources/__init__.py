"""Where models come from: one file a source, chosen by the scheme of what was asked for."""
