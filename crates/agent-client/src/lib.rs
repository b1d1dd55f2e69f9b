//! The host's end of the channel to a guest agent: the multiplexed session over it, how a guest is taken over whose agent
//! spoke with another host before, and the guest's clock.
//!
//! # Invariants
//! It knows a byte stream and the protocol, neither machines nor their files. Nothing here waits without an end that the
//! caller may choose: whoever drops a future of it has given up, and loses no byte of the stream by that.

pub mod clock;
pub mod session;
pub mod takeover;
