"""The console process: the API and the pages for people."""
