"""One run from data to a published folder, each read like a page."""
