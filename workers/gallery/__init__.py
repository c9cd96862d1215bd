"""Models on this machine's disk: brought from the Hugging Face hub, described by their files, and given up."""
