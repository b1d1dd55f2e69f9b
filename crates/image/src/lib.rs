//! From a reference to a verified local image.
