"""Doing what a model asks for: the loop of calls and results, and servers that offer tools."""
