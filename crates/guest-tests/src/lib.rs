//! Guest-in-the-loop tests: the program as users have it, with real guests. All of them are in `tests/guest`.
