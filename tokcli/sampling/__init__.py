"""What `tok sample` does: the request, the loaded networks, edits of images, contact sheets."""
