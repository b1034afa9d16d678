"""Token pyramids as files and bitstreams."""
