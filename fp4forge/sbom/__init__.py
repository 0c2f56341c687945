"""What is in an image: components and their files, in CycloneDX and SPDX; a page of licences."""
