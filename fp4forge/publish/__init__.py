"""Build, check and publish, and what carries an image elsewhere."""
