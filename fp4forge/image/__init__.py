"""From a plan to a build context: templates, the stages of the build, what the image gets."""
