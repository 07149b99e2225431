"""What `tok sample` is made of: what is asked for, the loaded networks, edits of pictures, and the sheets."""
