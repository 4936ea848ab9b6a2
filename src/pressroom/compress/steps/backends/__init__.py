"""One file for each kind of step; the name of the file is its method."""
