"""What an image with people is, and how it is stored, read and scored."""
