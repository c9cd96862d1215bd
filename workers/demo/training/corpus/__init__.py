"""Generated conversations, one file per topic; `mixture` puts them together."""
