"""Contracts as test classes, and fakes that are called fakes: public, for backends inside and outside the project."""
