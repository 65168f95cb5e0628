"""Storages that are object stores: a folder of this machine stands for each, and files travel between the two."""
