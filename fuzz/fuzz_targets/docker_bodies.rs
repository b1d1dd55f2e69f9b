//! See [`zmachine_fuzz`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| zmachine_fuzz::docker_bodies(input));
