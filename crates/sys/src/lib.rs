//! All unsafe of the host: durable files, locks, children, descriptors, taps, terminals, host facts.
