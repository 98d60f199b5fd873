"""The models, one file each, assembled on top of minidl."""
