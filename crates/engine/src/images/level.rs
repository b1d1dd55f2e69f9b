//! Which variant of an image a guest of this host can run.

use zmachine_hypervisor::Accel;
use zmachine_hypervisor::accel::{self, AccelFacts, Requested};

/// The level of the processor that guests of this host have: its own with KVM, and what QEMU emulates without.
pub fn guest_level() -> u8 {
    match accel::choose(Requested::Auto, &AccelFacts::gather()) {
        Ok(choice) if choice.accel == Accel::Kvm => host_level(),
        // QEMU has emulated AVX2 since 7.2, which is older than what is supported here; AVX-512 it does not.
        _ => 3,
    }
}

/// The level of this processor, as the ABI of x86-64 has them.
fn host_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let is_v2 =
        has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
    let is_v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let is_v3 = is_v2 && is_v3 && has!("lzcnt") && has!("movbe");
    let is_v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (is_v2, is_v3, is_v3 && is_v4) {
        (_, _, true) => 4,
        (_, true, _) => 3,
        (true, ..) => 2,
        _ => 1,
    }
}
