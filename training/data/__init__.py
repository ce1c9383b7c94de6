"""Reading the data that recipes name: files and their checksums, series, labelled texts, downloads."""
