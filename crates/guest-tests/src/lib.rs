//! Guest-in-the-loop tests.
