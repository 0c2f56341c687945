"""What goes into an image, read from releases/ and patches/."""
