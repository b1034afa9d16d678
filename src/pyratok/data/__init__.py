"""Data: video and image files, manifests, transforms, data sets and rendered clips."""
