"""What a person looks at: the demo's self-contained HTML page and its parts."""
