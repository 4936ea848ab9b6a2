"""Names, versions, sheets, and the sources that models are pulled from."""
