//! Pinned artifacts and helpers for tests.
