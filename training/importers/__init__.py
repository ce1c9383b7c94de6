"""Finished networks of other libraries as model folders: each library's reader, and one way from there to the folder."""
